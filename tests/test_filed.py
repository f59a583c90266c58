"""A run on a data set of somebody else's shape: who is trained on, what is kept apart, and a step of it."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from popi_edge import config
from popi_edge.errors import ConfigError
from popi_edge.models.bases import file_sha256
from popi_training import corpus, datasets, filed, train
from popi_training import recipe as recipes
from tests import tiny as make
from tests import tiny_training as small
from tests.test_train import edited

pytestmark = pytest.mark.usefixtures("torch_as_before")
RECIPE = """\
name = "file"
method = "joint"
role = "both"
[base]
name = "{base}"
sha256 = "{sha256}"
[data]
file = "roleplay.jsonl"
[lora]
rank = 2
alpha = 4.0
[users]
silent = 0.0
most = 3
[joint]
pairs = 1
group = 2
[train]
steps = 2
batch = 2
warmup = 1
threads = 1
dev_users = 1
"""


@pytest.fixture
def path(tiny: tuple[Path, Any], tmp_path: Path) -> Path:
    """A recipe beside a file of four personas who judge sixty prompts each."""
    rows = [
        {"x": f"Tell me about thing {i}.", "yw": f"Reply {i} as {p} likes it.", "yl": f"Reply {i} as {p} does not.",
         "level": f"persona-{p}"}
        for p in range(4)
        for i in range(60)
    ]  # fmt: skip
    (tmp_path / "roleplay.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = tmp_path / "file.toml"
    recipe.write_text(RECIPE.format(base=tiny[0], sha256=file_sha256(tiny[0])))
    return recipe


def prompts_of(people: Any) -> set[str]:
    return {t.prompt for p in people for t in p.targets} | {s.prompt for p in people for s in p.signals}


def test_development_prompts_are_no_part_of_training(path: Path) -> None:
    found = filed.load(recipes.read(path), path)
    trained, kept = prompts_of(found.train), {t.prompt for p in found.dev for t in p.targets}
    assert len(found.train) > 10 and kept and trained.isdisjoint(kept) and all(map(filed.kept_apart, kept))
    assert all(len(p.targets) >= 2 and p.signals for p in found.train)
    one, other = found.couple(0)
    assert found.loaded.persona(one) != found.loaded.persona(other)


def test_a_round_takes_everybody_once_and_the_next_in_another_order(path: Path) -> None:
    edited(path, "batch = 2", "batch = 5")
    recipe = recipes.read(path)
    found = filed.load(recipe, path)
    n = len(found.train)
    ids = [p.id for step in range(2 * n) for p in found.batch(recipe, step)]
    assert sorted(ids[:n]) == sorted(ids[n : 2 * n]) == sorted(p.id for p in found.train) and ids[:n] != ids[n : 2 * n]


def test_a_run_trains_on_it_and_remembers_the_file(path: Path, tmp_path: Path) -> None:
    trainer = train.open_run(recipes.read(path), path, config.load())
    train.run(trainer, tmp_path / "run", until=2, minutes=None, tell=lambda *_: None)
    metrics = train.read_metrics(tmp_path / "run" / train.METRICS)
    assert len(metrics) == 2 and metrics[-1]["grad_norm_generate"] > 0 and "dev_contrast" in metrics[-1]
    before = trainer.made_from["data"]
    with (tmp_path / "roleplay.jsonl").open("a") as file:
        file.write(json.dumps({"x": "One more?", "yw": "Yes.", "yl": "No.", "level": "persona-1"}) + "\n")
    again = train.open_run(recipes.read(path), path, config.load())
    assert again.made_from["data"] != before
    with pytest.raises(ConfigError, match="begun from another data"):
        train.run(again, tmp_path / "run", until=2, minutes=None, tell=lambda *_: None)


def test_check_says_what_it_would_be_trained_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = small.popi(monkeypatch, capsys, "train", path, "--check", "--json")
    found, people = json.loads(out), filed.load(recipes.read(path), path).train
    base, source = recipes.read(path).base, found["source"]
    assert code == 0 and found["base"] == {"name": base.name, "sha256": base.sha256, "here": True}
    assert found["licences"] == {"data": "not known", "base": "not known to popi"} and found["start"] == {}
    counts = (len(people), sum(len(p.signals) for p in people), sum(len(p.targets) for p in people))
    assert (source["people"], source["signals"], source["pairs"]) == counts
    _, out, _ = small.popi(monkeypatch, capsys, "train", path, "--check")
    assert f"joint of both on {base.name} (not known to popi)\n" in out
    people_line = "roleplay.jsonl (roleplay): {:,} people with {:,} signals, {:,} pairs (licence: not known)"
    assert people_line.format(*counts) in out and "for development" in out


def test_check_names_the_adapters_that_it_starts_from(
    path: Path, tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make.adapter(path.parent / "start.gguf", tiny[1].config, seed=1, rank=2, alpha=4.0)
    edited(path, "alpha = 4.0", 'alpha = 4.0\nstart_generate = "start.gguf"')
    _, out, _ = small.popi(monkeypatch, capsys, "train", path, "--check")
    assert f"starts from  the generate adapter {file_sha256(path.parent / 'start.gguf')[:12]}\n" in out
    edited(path, "rank = 2", "rank = 3")
    code, _, err = small.popi(monkeypatch, capsys, "train", path, "--check")
    assert code == 1 and "lora.start_generate has rank 2" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("apart", "corpus", "says"),
    [
        (False, True, "no evaluation file was named (data.apart): what is trained on was compared only with what our"),
        (False, False, "no evaluation file was named (data.apart): what is trained on was compared with nothing"),
        (True, True, "nothing that our own corpus holds out and no evaluation prompt of other is trained on"),
        (True, False, "no evaluation prompt of other is trained on"),
    ],
)
def test_check_says_what_it_was_compared_with(
    path: Path, apart: bool, corpus: bool, says: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    small.corpus(path.parent / "other")
    monkeypatch.setattr(filed, "corpus_here", lambda: corpus)
    if apart:
        edited(path, "[lora]", 'apart = "other"\napart_format = "corpus"\n[lora]')
    code, out, _ = small.popi(monkeypatch, capsys, "train", path, "--check")
    assert code == 0 and out.splitlines()[-1].startswith(says) and "nothing that is held out" not in out


# A public name --------------------------------------------------------------------------------------------------
@pytest.fixture
def hub(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recipe asks for a public name; ``datasets`` is a stand-in, which notes what is downloaded."""
    rows = [json.loads(line) for line in (path.parent / "roleplay.jsonl").read_text().splitlines()]
    asked: list[str] = []

    class Table(list[Any]):
        info = SimpleNamespace(license="cc-by-4.0")

    def load_dataset(name: str, split: str) -> Table:
        asked.append(f"{name} {split}")
        return Table(rows)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    edited(path, "roleplay.jsonl", datasets.PUBLIC["roleplay"].upper())
    return asked


def test_a_public_name_is_downloaded_where_the_recipe_says_so(
    path: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local = filed.load(replace(recipes.read(path), data=recipes.Data(file="roleplay.jsonl")), path)
    code, out, err = small.popi(monkeypatch, capsys, "train", path, "--check")
    assert (code, out, hub) == (1, "", []) and err.count("\n") == 1
    assert "data.file: sher222/persona-iterative-responses is downloaded only with data.download = true; or" in err
    edited(path, "[lora]", "download = true\n[lora]")
    code, out, _ = small.popi(monkeypatch, capsys, "train", path, "--check", "--json")
    assert code == 0 and json.loads(out)["licences"]["data"] == "cc-by-4.0"
    found = filed.load(recipes.read(path), path)
    assert found.train == local.train and hub == ["sher222/persona-iterative-responses train"] * 2


def test_a_hub_out_of_reach_is_one_line(
    path: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_dataset(name: str, split: str) -> None:
        logging.getLogger("huggingface_hub").warning("Retrying")
        raise ConnectionError("Couldn't reach the Hub\nand more")

    edited(path, "[lora]", "download = true\n[lora]")
    unreached = SimpleNamespace(load_dataset=load_dataset)
    for stand_in, why in ((unreached, "Couldn't reach the Hub"), (None, "install `datasets`")):
        monkeypatch.setitem(sys.modules, "datasets", stand_in)
        code, out, err = small.popi(monkeypatch, capsys, "train", path, "--check")
        assert (code, out) == (1, "") and err.count("\n") == 1 and why in err and "local file" in err, err


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('file = "roleplay.jsonl"', 'file = "nowhere.jsonl"', "nowhere.jsonl"),
        ('file = "roleplay.jsonl"', 'file = "roleplay.jsonl"\nworld = true', "data.world"),
        ("most = 3", "most = 60", "nobody"),
        ('file = "roleplay.jsonl"', 'file = "roleplay.jsonl"\nwide = true', "data.wide means nothing with data.file"),
        ('file = "roleplay.jsonl"', 'apart = "apart.json"', "file.toml: data.apart is for data.file, which is missing"),
        ('file = "roleplay.jsonl"', 'download = true', "file.toml: data.download is for data.file, which is missing"),
        ('file = "roleplay.jsonl"', 'file = "roleplay.jsonl"\ndownload = true', "data.download is for a public name ("),
        ('file = "roleplay.jsonl"', 'file = "roleplay.jsonl"\ndownload = 1', "data.download must be true or false"),
        ('file = "roleplay.jsonl"', 'format = "elix"', "file.toml: data.format is for data.file, which is missing"),
        ('file = "roleplay.jsonl"', 'file = "roleplay.jsonl"\napart = "apart.json"\napart_format = "alginx"',
         "file.toml: data.apart_format is 'alginx'; it must be one of alignx, onestopenglish, corpus"),
        ('file = "roleplay.jsonl"', 'file = "roleplay.jsonl"\napart = "corpus"\napart_format = "corpus"',
         "only for measuring, has a prompt of data.file: 'Tell me about thing 3.'"),
        ('file = "roleplay.jsonl"', 'file = "roleplay.jsonl"\napart = "apart.json"', "only for measuring, has"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_one_line(
    path: Path, old: str, new: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    past = [{"prompt": f"What of {i}?", "chosen": "A good one.", "rejected": "A bad one."} for i in range(4)]
    both = [
        {"prompt": f"Tell me about thing {i}.", "chosen": f"One {p}.", "rejected": f"Another {p}.", "profile": "x",
         "ground_truth_persona": p, "Pair-wise Comparative Feedback": past}
        for p in ("Kind.", "Unkind.")
        for i in range(50)
    ]  # fmt: skip
    (path.parent / "apart.json").write_text(json.dumps(both))
    held = small.corpus(path.parent / "corpus") / "heldout" / "form.jsonl"
    edited(held, "Why is it so?", "Tell me about thing 3.")
    edited(path, old, new)
    code, out, err = small.popi(monkeypatch, capsys, "train", path, "--check")
    assert (code, out) == (1, "") and err.count("\n") == 1 and why in err, err


@pytest.mark.parametrize("key", ["x", "yw", "yl"])
def test_a_held_out_text_of_our_own_corpus_is_not_trained_on(path: Path, key: str) -> None:
    held = corpus.load(heldout=True)
    text = next(iter(held.prompts.values())) if key == "x" else next(iter(held.pairs[0].replies.values()))
    row = {"x": "Any?", "yw": "Yes.", "yl": "No.", key: f" {text.upper()}"}
    rows = [row | {"level": f"persona-{p}"} for p in range(4)]
    data = path.parent / "roleplay.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows) + data.read_text())
    edited(path, "most = 3", "most = 2")
    with pytest.raises(ConfigError, match=r"file\.toml: data\.file has a text that our corpus holds out: ") as refused:
        filed.load(recipes.read(path), path)
    assert text[:40].upper() in str(refused.value)


@pytest.mark.parametrize("line", ['schedule = "sft"', "warm = 1"])
def test_silence_is_not_taught_where_nothing_describes_a_person(path: Path, line: str) -> None:
    edited(path, "[joint]", f"[joint]\n{line}")
    with pytest.raises(ConfigError, match=r"file\.toml: joint\..* data\.file says nothing of roleplay:persona-"):
        filed.load(recipes.read(path), path)
    data = path.parent / "roleplay.jsonl"
    rows = [json.loads(row) for row in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(r | {"score_persona": "Likes short replies."}) + "\n" for r in rows))
    assert filed.load(recipes.read(path), path).train[0].oracle == "Likes short replies."


def test_too_few_people_to_develop_on_are_counted(path: Path) -> None:
    data = path.parent / "roleplay.jsonl"
    rows = [line for line in data.read_text().splitlines(keepends=True) if not filed.kept_apart(json.loads(line)["x"])]
    data.write_text("".join(rows))
    with pytest.raises(ConfigError, match=r"file\.toml: data\.file: 0 people are left to develop on; two with a"):
        filed.load(recipes.read(path), path)
    edited(path, "dev_users = 1", "dev_users = 0")
    assert filed.load(recipes.read(path), path).train
