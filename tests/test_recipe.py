"""A recipe with a misspelt key or a number that cannot be is refused in one line that names it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from popi_edge.errors import ConfigError
from popi_training import limits, recipe
from popi_training.limits import Limits

RECIPES = Path(recipe.__file__).parent.parent / "recipes"


def read(folder: Path, text: str) -> recipe.Recipe:
    path = folder / "r.toml"
    path.write_text(text)
    return recipe.read(path)


def test_the_committed_recipes_are_read(tmp_path: Path) -> None:
    for path in RECIPES.glob("*.toml"):
        made = recipe.read(path)
        assert made.text == path.read_text("utf-8")
        apart = made.data.world or made.base.name.startswith("../../bases/")  # of nobody's file that is known here
        assert apart or (made.base.name == "smollm2-135m" and len(made.base.sha256) == 64)


def test_what_is_left_out_has_its_default_and_what_is_given_its_place(tmp_path: Path) -> None:
    made = read(tmp_path, 'name = "a"\n[train]\nsteps = 70\nlr = 1\n[users]\nwants = [1, 2]\nkinds = { post = 1 }\n')
    assert made.train == dataclasses.replace(recipe.Schedule(), steps=70, lr=1.0)
    assert made.users.wants == (1.0, 2.0) and made.users.kinds == {"post": 1.0}
    assert made.lora == recipe.Lora() and made.seed == 0


def test_limits_of_an_export_override_the_defaults_kind_by_kind(tmp_path: Path) -> None:
    made = read(tmp_path, 'name = "a"\n[limits]\ntask = 0.5\n[limits.kl]\nQ4_1 = 0.3\n')
    assert made.limits == dataclasses.replace(Limits(), task=0.5, kl={**Limits().kl, "Q4_1": 0.3})
    assert read(tmp_path, 'name = "a"').limits == Limits()


def test_the_kinds_are_those_that_can_be_exported() -> None:
    from popi_export import quantize, to_onnx

    assert (*quantize.KINDS, *to_onnx.KINDS) == limits.KINDS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nmae = 'a'", "there is no key nmae; did you mean name"),
        ("name = 'a'\n[train]\nstep = 3", r"there is no key train\.step; did you mean train\.steps"),
        ("name = 'a'\n[users.kinds]\npoem = 1", "users.kinds: there is no kind 'poem'; there are comparison"),
        ("name = 'a'\n[zzz]\nx = 1", "there is no key zzz$"),
        ("name = 'a'\n[limits]\ntokeniser = 1", r"there is no key limits\.tokeniser; there are .*tokenizer"),
        ("name = 'a'\n[limits.kl]\nQ9 = 1", r"there is no kind limits\.kl\.Q9; there are F32, "),
        ("name = 'a'\n[limits.kl]\nQ4_1 = nan", r"limits\.kl\.Q4_1 must be a number of at least 0"),
        ("limits = 3\nname = 'a'", "limits must be a table"),
        ("name = 'a'\ntext = 'b'", "there is no key text"),
        ("seed = 1", "name is missing"),
        ("name = '../up'", "name must be letters"),
        ("name = ''", "name must be letters"),
        ("name = 'a'\n[base]\nname = ''", "base.name is empty"),
        ("name = 'a'\nmethod = 'magic'", 'method and role must be "warm_start" of "infer" or "joint" of "both"'),
        ("name = 'a'\nname = 'b'", "not TOML"),
        ("name = ", "not TOML"),
    ],
)
def test_a_key_that_is_not_there_is_named_with_the_nearest(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        read(tmp_path, text)
    assert str(refused.value).startswith(str(tmp_path / "r.toml")) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "line", "why"),
    [
        ("train", "steps = 0", "train.steps is 0; it must lie between 1 and"),
        ("train", "steps = -3", "train.steps is -3"),
        ("train", "batch = 0", "train.batch is 0"),
        ("train", "lr = -1e-3", "train.lr is -0.001"),
        ("train", "lr = nan", "train.lr is nan"),
        ("train", "lr = inf", "train.lr is inf"),
        ("train", "decay = 2", "train.decay is 2; it must lie between 0 and 1"),
        ("train", "warmup = 101", "train.warmup is 101; it must lie between 0 and 100"),
        ("train", "clip = 0", "train.clip is 0"),
        ("train", "checkpoint_every = 0", "train.checkpoint_every is 0"),
        ("train", "threads = 0", "train.threads is 0"),
        ("train", "patience = 2\ndev_users = 0", "train.patience looks at development users; train.dev_users is 0"),
        ("base", f"sha256 = '{12 * 'a'}'", "base.sha256 must be 64 hexadecimal digits, not 'aaaaaaaaaaaa'"),
        ("base", f"sha256 = '{64 * 'g'}'", "base.sha256 must be 64 hexadecimal digits, not 'ggg"),
        ("lora", "rank = 0", "lora.rank is 0"),
        ("lora", "alpha = nan", "lora.alpha is nan"),
        ("users", "noise = 1.5", "users.noise is 1.5; it must lie between 0 and 1"),
        ("users", "silent = 1", "users.silent is 1"),
        ("users", "change = 0.7\ncancel = 0.7", "users.change and users.cancel sum to more than 1"),
        ("users", "wants = [0, 0]", "users.wants: the weights sum to nothing"),
        ("users", "wants = []", "users.wants: the weights sum to nothing"),
        ("users", "signals = [1, -1]", "users.signals is -1"),
        ("users", "wants = [nan]", "users.wants is nan"),
        ("users", "kinds = { post = 0 }", "users.kinds: the weights sum to nothing"),
        ("users", "most = 1", "users.most is 1"),
        ("data", "later = true", "data.later adds to data.wide, which is false"),
        ("users", "most = 4\nleast = 5", "users.least is 5; it must lie between 0 and 4"),
    ],
)  # fmt: skip
def test_an_impossible_number_is_named(table: str, line: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        read(tmp_path, f"name = 'a'\n[{table}]\n{line}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name = 3", "name must be text, not 3"),
        ("name = 'a'\nseed = 1.5", "seed must be a whole number, not 1.5"),
        ("name = 'a'\nseed = true", "seed must be a whole number, not True"),
        ("name = 'a'\n[train]\nlr = '0.1'", "train.lr must be a number, not '0.1'"),
        ("name = 'a'\n[train]\nlr = true", "train.lr must be a number, not True"),
        ("name = 'a'\ntrain = 5", "train must be a table"),
        ("name = 'a'\n[users]\nwants = 1", "users.wants must be a list, not 1"),
        ("name = 'a'\n[users]\nwants = ['x']", "users.wants must be a number, not 'x'"),
        ("name = 'a'\n[users]\nkinds = [1]", "users.kinds must be a table"),
        ("name = 'a'\n[users]\nkinds = { post = 'x' }", "users.kinds.post must be a number"),
        ("name = 'a'\n[data]\ndimensions = 'tone'", "data.dimensions must be a list"),
    ],
)
def test_a_wrong_type_is_named(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"[train]\nsteps = 1{'0' * 400}", r"train\.steps is a whole number of more than 64 bits"),
        (f"[train]\nlr = 1{'0' * 400}", r"train\.lr is a whole number of more than 64 bits"),
        (f"[train]\nsteps = {'9' * 5001}", "not TOML: "),
        (f"[train]\nsteps = 0x{'f' * 5001}", r"train\.steps is a whole number of more than 64 bits"),
        (f"[users]\nwants = 0x{'f' * 5001}", r"users\.wants is a whole number of more than 64 bits"),
        (f"[users]\nwants = {'[' * 3000}{']' * 3000}", "not TOML: "),
        (f"[limits]\ntask = 1{'0' * 400}", r"limits\.task is a whole number of more than 64 bits"),
        (f"[limits]\ntokenizer = 0x{'f' * 5001}", r"limits\.tokenizer is a whole number of more than 64 bits"),
        (f"[limits.kl]\nQ4_1 = 1{'0' * 400}", r"limits\.kl\.Q4_1 is a whole number of more than 64 bits"),
        ('[data]\ncorpus = "x\\u0000y"', r"data\.corpus has a null character"),
    ],
    ids=range(10),
)
def test_what_is_too_large_or_no_path_is_one_line(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"r\.toml: {why}") as refused:
        read(tmp_path, f"name = 'a'\n{text}")
    assert "\n" not in str(refused.value)


def test_limits_of_a_file_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(f"x = {'[' * 3000}{']' * 3000}")
    with pytest.raises(ConfigError, match=r"limits\.toml: not TOML: "):
        limits.read(path)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        recipe.read(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        recipe.read(tmp_path)
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        recipe.read(tmp_path / "r.toml")
