"""A run stops anywhere and goes on exactly; whatever is wrong with it is one line, and the checkpoint before stays."""

from __future__ import annotations

import _thread
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popi_edge import config
from popi_edge.errors import ConfigError, PopiError
from popi_edge.files import whole_file
from popi_edge.models.bases import BASES
from popi_training import recipe as recipes
from popi_training import train
from popi_training.base import lora_state
from popi_training.runfolder import BOARD
from tests import tiny as make
from tests import tiny_training as small

pytestmark = pytest.mark.usefixtures("torch_as_before")
more_than_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")
"""On one core torch advises against two processes."""
STEPS = 14
Popi = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tiny: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a recipe and ``whole``, a run of it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("training")
    small.corpus(folder / "corpus")
    path = small.recipe(folder, tiny[0], steps=STEPS)
    go_on(path, folder / "whole")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def popi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Popi:
    """``popi`` with its words: exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        return small.popi(monkeypatch, capsys, *words)

    return call


def go_on(path: Path, out: Path, until: int = STEPS) -> train.Trainer:
    """Train by a recipe in this process, up to a step."""
    trainer = train.open_run(recipes.read(path), path, config.load())
    train.run(trainer, out, until=until, minutes=None, tell=lambda *_: None)
    return trainer


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def refused(done: tuple[int, str, str], *words: str) -> None:
    """One line that says what and where, and nothing on stdout."""
    code, out, err = done
    assert (code, out) == (1, "") and err.startswith("popi: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


def alike(one: Path, other: Path) -> bool:
    """Whether two runs have the same adapter and optimizer bit for bit, at the same step."""
    a, b = (train.read_checkpoint(f / train.CHECKPOINT) for f in (one, other))
    moments = ("exp_avg", "exp_avg_sq", "step")
    states = [[s[k] for s in x["optimizer"]["state"].values() for k in moments] for x in (a, b)]
    same = all(torch.equal(p, q) for p, q in zip(*states, strict=True))
    lora = [x["adapters"]["infer"] for x in (a, b)]
    return same and a["step"] == b["step"] and all(np.array_equal(lora[0][n], lora[1][n]) for n in lora[0] | lora[1])


def figures(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, but for the seconds."""
    return [{k: v for k, v in m.items() if k != "seconds"} for m in train.read_metrics(folder / train.METRICS)]


def settled(folder: Path) -> list[dict[str, Any]]:
    """The same, without the shares of a joint run's first step: before θ moves all its margins are 0, so that rounding,
    which depends on the processor, gives them their signs."""
    first, *rest = figures(folder)
    for share in ("accuracy", "dpo_accuracy"):
        assert 0 <= first.pop(share, 0.5) <= 1
    return [first, *rest]


CHILD = """
import sys
from pathlib import Path
from popi_edge import config
from popi_training import recipe, train
path, out = Path(sys.argv[1]), Path(sys.argv[2])
trainer = train.open_run(recipe.read(path), path, config.load())
train.run(trainer, out, until=10**6, minutes=None, tell=lambda *_: None)
"""


def child(*words: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command, pipe = [sys.executable, *map(str, words)], subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_killed_at_a_random_step_it_goes_on_with_the_same_numbers(made: Path) -> None:
    out, at = made / "killed", random.randint(1, STEPS - 6)
    running = child("-c", CHILD, made / "recipe.toml", out)
    while running.poll() is None:
        lines = (out / train.METRICS).read_text().count("\n") if (out / train.METRICS).exists() else 0
        if lines >= at:
            running.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    _, err = running.communicate()
    assert running.returncode == -signal.SIGKILL, err
    before = len((out / train.METRICS).read_text().splitlines())
    assert at <= before < STEPS
    trainer = go_on(made / "recipe.toml", out)
    assert trainer.step == STEPS
    assert figures(out) == figures(made / "whole") and len(figures(out)) == STEPS, f"killed at step {before}"
    assert alike(out, made / "whole"), f"killed at step {before}"


def test_a_second_trainer_in_the_same_folder_is_turned_away_and_the_first_is_not_disturbed(made: Path) -> None:
    out, said = made / "two", list[str]()

    def meanwhile(step: int, *_: Any) -> None:
        if step == 2:
            second = child("-c", CHILD, made / "recipe.toml", out)
            said.append(second.communicate()[1].strip().splitlines()[-1])

    trainer = train.open_run(recipes.read(made / "recipe.toml"), made / "recipe.toml", config.load())
    train.run(trainer, out, until=STEPS, minutes=None, tell=meanwhile)
    assert said == [f"popi_edge.errors.ConfigError: another popi train is at work in {out}"]
    assert figures(out) == figures(made / "whole") and alike(out, made / "whole")
    assert go_on(made / "recipe.toml", out).step == STEPS


def test_stopped_between_checkpoints_it_goes_on_with_the_same_numbers(place: Path) -> None:
    for step in (1, 4, 4, 11, STEPS):
        assert go_on(place / "recipe.toml", place / "pieces", until=step).step == step
    assert figures(place / "pieces") == figures(place / "whole")
    assert alike(place / "pieces", place / "whole")


def test_it_learns_and_only_the_adapter_all_of_it(made: Path) -> None:
    metrics, path = train.read_metrics(made / "whole" / train.METRICS), made / "recipe.toml"
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"] and all(0 < m["grad_norm"] < 100 for m in metrics)
    assert [m["step"] for m in metrics if "dev_loss" in m] == [4, 8, 12, STEPS]
    assert metrics[0]["lr"] < metrics[1]["lr"] == metrics[2]["lr"] > metrics[-1]["lr"] > 0
    trainer = train.open_run(recipes.read(path), path, config.load())
    fresh, fixed = lora_state(trainer.model), [p for p in trainer.model.parameters() if not p.requires_grad]
    before = [p.clone() for p in fixed]
    learnt = train.read_checkpoint(made / "whole" / train.CHECKPOINT)["adapters"]["infer"]
    assert len(fresh) == 2 * 7 * 4 and all(not np.array_equal(fresh[n], learnt[n]) for n in fresh)
    trainer.train_step(next(iter(trainer.batches(trainer.step + 1, 0))))
    assert len(fixed) > 30 and all(torch.equal(a, b) for a, b in zip(before, fixed, strict=True))


def test_a_replay_agrees_and_finds_the_one_number_that_was_changed(place: Path, popi: Popi) -> None:
    words = ("train", place / "recipe.toml", "--replay", 5, "--against")
    assert popi(*words, place / "whole")[:2] == (0, "5 steps agree bit for bit\n")
    lines = (place / "whole" / train.METRICS).read_text().splitlines()
    third = json.loads(lines[2])
    third["loss"] = float(np.nextafter(third["loss"], 10))
    lines[2] = json.dumps(third)
    (place / "other.jsonl").write_text("\n".join(lines[:4]) + "\n")
    code, out, _ = popi(*words, place / "other.jsonl")
    assert code == 1 and out.startswith("step 3: loss ") and repr(third["loss"]) in out
    assert out.splitlines()[1:] == ["step 5 is not there to compare with"]
    code, out, _ = popi(*words, place / "other.jsonl", "--json")
    assert code == 1 and len(json.loads(out)["differences"]) == 2 and json.loads(out)["steps"] == 5
    refused(popi(*words, place / "none.jsonl"), "cannot read", "none.jsonl")
    refused(popi("train", place / "recipe.toml", "--replay", 99, "--against", place / "whole"), "14 steps")
    for text in ("", "flour = 2"):
        (place / "none.jsonl").write_text(text)
        refused(popi(*words, place / "none.jsonl"), "none.jsonl: no line of metrics")


def test_the_command_trains_stops_and_goes_on(place: Path, popi: Popi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code, out, err = popi("train", "recipe.toml", "--until", 2)
    assert code == 0 and "step 2 of 14: loss " in out and "runs/small; the same command goes on" in out
    assert "training: 100%" in err
    code, out, _ = popi("train", "recipe.toml", "--minutes", 0.0001, "--json")
    assert code == 0 and json.loads(out)["step"] == 3 and json.loads(out)["done"] is False
    code, out, _ = popi("train", "recipe.toml", "--json")
    result = json.loads(out)
    assert result["step"] == result["steps"] == STEPS and result["done"] is True
    last = figures(place / "whole")[-1]
    assert result["loss"] == last["loss"] and result["dev"]["dev_loss"] == last["dev_loss"]
    assert alike(place / "runs" / "small", place / "whole")
    code, out, _ = popi("runs", "list")
    assert code == 0 and re.search(r"^small +14/14 +[\d.]+ +[\d.]+ .* \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", out, re.M)
    code, out, _ = popi("runs", "list", "--json")
    assert [r["name"] for r in json.loads(out)] == ["small"] and json.loads(out)[0]["loss"] == last["loss"]
    code, out, _ = popi("runs", "show", "small", "--every", 10)
    assert 'name = "small"' in out and "prompt contract: " in out
    assert [line.split()[0] for line in out.splitlines() if re.match(r"\d", line)] == ["1", "4", "8", "10", "12", "14"]
    code, out, _ = popi("runs", "show", place / "whole", "--json")
    assert json.loads(out)["metrics"][4]["step"] == 5 and set(json.loads(out)["made_from"]) >= {"recipe", "base"}
    refused(popi("runs", "show", "none"), "there is no run 'none' in runs")
    assert popi("runs", "list", "--dir", place / "corpus")[1] == f"no runs in {place / 'corpus'}\n"


def test_a_run_in_a_folder_whose_name_is_no_text_is_shown(place: Path) -> None:
    (place / "whole").rename(place / os.fsdecode(b"caf\xe9"))
    for words in (("runs", "list", "--dir", place), ("report", place / os.fsdecode(b"caf\xe9"), "--json")):
        running = child("-m", "popi_edge", *words)
        out, err = running.communicate()
        assert running.returncode == 0 and "caf\\udce9" in out, err
        assert words[0] == "runs" or json.loads(out)["run"] == os.fsdecode(b"caf\xe9")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT is heard, also where a shell that put the tests in the background had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_one_line_and_the_last_checkpoint_is_whole(place: Path, popi: Popi) -> None:
    out = place / "cut"

    ended = threading.Event()

    def press() -> None:
        while not ended.wait(0.001):
            if (out / train.CHECKPOINT).exists():
                _thread.interrupt_main()
                return

    edited(place / "recipe.toml", f"steps = {STEPS}", "steps = 100000")
    pressing = threading.Thread(target=press)
    pressing.start()
    code, said, err = popi("train", place / "recipe.toml", "--out", out)
    ended.set()
    pressing.join()
    assert (code, said, err.splitlines()[-1]) == (130, "", "popi: interrupted")
    step = train.read_checkpoint(out / train.CHECKPOINT)["step"]
    assert step >= 3 and step % 3 == 0
    kept = {train.CHECKPOINT, train.LOCK, train.METRICS, train.RECIPE, train.RUN, BOARD}
    assert {p.name for p in out.iterdir()} in (kept, kept | {train.BEST})


def test_check_says_what_would_be_trained_on_without_torch(
    place: Path, popi: Popi, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as bare:
        for module in ("torch", "transformers", "peft", "popi_training.train"):
            bare.setitem(sys.modules, module, None)
        code, out, _ = popi("train", place / "recipe.toml", "--check", "--json")
        text = popi("train", place / "recipe.toml", "--check")[1]
        training, looking = popi("train", place / "recipe.toml"), popi("runs", "list", "--dir", place)
    found = json.loads(out)
    assert code == 0 and found["dimensions"] == ["size", "tone"]
    assert (found["prompts"], found["pairs"], found["phrasings"]) == (3, 6, 2 * 2 * 4 * 6)
    assert (found["batch"], found["steps"], found["users"]) == (3, STEPS, 3 * STEPS)
    held = {"dimensions": ["order"], "combinations": 1, "development_prompts": 1, "prompts": 1, "pairs": 4}
    assert held.items() <= found["held_out"].items() and found["held_out"]["phrasings"] == 3 * 2 * 4 * 5 + 2 * 4 * 6
    metrics = train.read_metrics(place / "whole" / train.METRICS)
    assert found["tokens"]["run"] == pytest.approx(sum(m["tokens"] for m in metrics), rel=0.01)  # every step is sampled
    assert "2 dimensions: size, tone" in text and "3 a step x 14 steps = 42" in text and "tokens " in text
    refused(training, "torch and transformers and peft not installed", "popi-edge[training]")
    refused(looking, "torch not installed", "popi-edge[training]")


def test_check_of_a_known_base_that_is_not_here_leaves_the_tokens_out(place: Path, popi: Popi) -> None:
    known = BASES["smollm2-135m"].sha256
    path = small.recipe(place, "smollm2-135m", sha256=known)
    edited(path, known, known.upper())
    code, out, _ = popi("train", path, "--check", "--json")
    assert code == 0 and json.loads(out)["tokens"] is None and json.loads(out)["licences"]["base"] == "Apache-2.0"
    edited(path, known.upper(), "0" * 64)
    refused(popi("train", path, "--check"), "but the recipe wants 000000000000…")


def test_a_misspelt_folder_of_a_base_is_refused(place: Path, popi: Popi) -> None:
    text = (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(re.sub(r"name = .*gguf.*", 'name = "./bsae"', text))
    refused(popi("train", place / "recipe.toml", "--check"), "recipe.toml: base.name: there is no folder", "bsae")


def test_a_base_file_is_looked_for_beside_the_recipe(
    place: Path, popi: Popi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(recipes.read(place / "recipe.toml").base.name, place / "base.gguf")
    edited(place / "recipe.toml", recipes.read(place / "recipe.toml").base.name, "base.gguf")
    monkeypatch.chdir(tmp_path)
    assert popi("train", place / "recipe.toml", "--check")[0] == 0
    assert popi("train", place / "recipe.toml", "--out", tmp_path / "run", "--until", 1)[0] == 0


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("key", ["base.name", "data.corpus", "lora.start", "data.file", "data.apart"])
def test_a_name_that_no_file_can_have_is_one_line(place: Path, popi: Popi, key: str, check: bool) -> None:
    (place / "circle").symlink_to("circle")
    if key.startswith("data.") and key != "data.corpus":
        edited(place / "recipe.toml", 'name = "small"', 'name = "small"\nmethod = "joint"\nrole = "both"')
        edited(place / "recipe.toml", 'corpus = "corpus"', 'file = "roleplay.jsonl"')
        rows = [{"x": f"Thing {i}?", "yw": "Yes.", "yl": "No.", "level": "ann"} for i in range(99)]
        (place / "roleplay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, name = key.split(".")
    text = re.sub(rf"(?m)^{name} = .*\n(?!method|seed)", "", (place / "recipe.toml").read_text())
    words = ["--check"] if check else ["--out", place / "run"]
    for value, why in (("circle", "a link that leads back to itself"), ("x" * 300, "File name too long")):
        (place / "recipe.toml").write_text(text.replace(f"[{table}]", f'[{table}]\n{name} = "{value}"'))
        refused(popi("train", place / "recipe.toml", *words), f"recipe.toml: {key}: {value[:80]}: {why}")
    assert not (place / "run").exists()


@pytest.mark.parametrize("check", [True, False])
def test_another_base_is_refused(place: Path, popi: Popi, check: bool) -> None:
    make.llama(place / "other.gguf", seed=9)
    text = (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(re.sub(r"name = .*gguf.*", f'name = "{place / "other.gguf"}"', text))
    words = ["--check"] if check else ["--out", place / "run"]
    refused(popi("train", place / "recipe.toml", *words), "other.gguf", "but the recipe wants")
    assert not (place / "run").exists()


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("what", ["phrasing", "prompt", "dimension"])
def test_what_is_held_out_is_not_trained_on(place: Path, popi: Popi, what: str, check: bool) -> None:
    held = place / "corpus" / "heldout" / "form.jsonl"
    if what == "phrasing":
        edited(held, "honest prefers short statement.", "Clear  PREFERS short statement.")
        why = ["held-out statement of size.short is also the training statement of size.short"]
    elif what == "prompt":
        edited(held, "Why is it so?", "what is thing 2?")
        why = ["held-out prompt form-9 is also the training prompt form-2"]
    else:
        edited(place / "recipe.toml", 'corpus = "corpus"', 'corpus = "corpus"\ndimensions = ["tone", "order"]')
        why = ["recipe.toml: data.dimensions: order is held out by splits.json"]
    words = ["--check"] if check else ["--out", place / "run"]
    refused(popi("train", place / "recipe.toml", *words), *why)
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("change", "key"),
    [("recipe", "recipe"), ("corpus", "corpus")],
)
def test_a_run_begun_from_something_else_is_left_as_it_is(place: Path, popi: Popi, change: str, key: str) -> None:
    if change == "recipe":
        edited(place / "recipe.toml", "lr = 0.01", "lr = 0.02")
    else:
        edited(place / "corpus" / "form.jsonl", "What is thing 0?", "What was thing 0?")
    before = {p: p.read_bytes() for p in (place / "whole").rglob("*") if p.is_file()}
    refused(popi("train", place / "recipe.toml", "--out", place / "whole"), f"was begun from another {key}")
    assert {p: p.read_bytes() for p in (place / "whole").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("what", ["another recipe", "no run.json", "a link to nowhere"])
def test_a_run_without_a_checkpoint_that_is_not_this_one_is_left_as_it_is(place: Path, popi: Popi, what: str) -> None:
    whole, why = place / "whole", "was begun from another recipe"
    (whole / train.CHECKPOINT).unlink()
    if what == "another recipe":
        edited(place / "recipe.toml", "lr = 0.01", "lr = 0.02")
    elif what == "no run.json":
        (whole / train.RUN).unlink()
        why = "best.pt: there is no run.json beside it"
    else:
        (whole / train.CHECKPOINT).symlink_to("nowhere")
        why = "cannot read"
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    refused(popi("train", place / "recipe.toml", "--out", whole), str(whole), why)
    assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("run.json", '{"name": "mine"}', "not one of popi train"),
        ("run.json", "[" * 100_000, "not a run"),
        ("recipe.toml", "flour = 2", "another recipe"),
        ("metrics.jsonl", "", "there is no run.json beside it"),
    ],
)
def test_a_file_that_is_no_run_of_ours_is_left_as_it_is(
    place: Path, popi: Popi, name: str, text: str, why: str
) -> None:
    out = place / "mine"
    out.mkdir()
    (out / name).write_text(text)
    refused(popi("train", place / "recipe.toml", "--out", out), f"{out / name}: {why}")
    assert {p.name for p in out.iterdir()} <= {name, train.LOCK} and (out / name).read_text() == text


@pytest.mark.parametrize("what", ["a link to nowhere", "a folder"])
def test_a_recipe_of_a_run_that_cannot_be_read_is_said_to_be_that(place: Path, popi: Popi, what: str) -> None:
    out = place / "mine"
    out.mkdir()
    if what == "a folder":
        (out / train.RECIPE).mkdir()
    else:
        (out / train.RECIPE).symlink_to("nowhere")
    code, _, err = popi("train", place / "recipe.toml", "--out", out)
    assert (code, err.count("\n")) == (1, 1) and f"cannot read the recipe {out / train.RECIPE}" in err
    assert {p.name for p in out.iterdir()} <= {train.RECIPE, train.LOCK} and not (place / "nowhere").exists()


def test_a_file_or_a_link_to_nowhere_is_no_folder_to_train_in(place: Path, popi: Popi) -> None:
    (place / "link").symlink_to("nowhere")
    for name in ("recipe.toml", "link"):
        refused(popi("train", place / "recipe.toml", "--out", place / name), f"{place / name}: it is no folder")
    assert not (place / "nowhere").exists()
    for name, why in ((BOARD, "it is no folder"), (train.RECIPE, "Is a directory"), (train.LOCK, "Is a directory")):
        out = Path(shutil.copytree(place / "whole", place / f"whole-{name}", ignore=shutil.ignore_patterns(name)))
        (out / name).touch() if name == BOARD else (out / name).mkdir()
        refused(popi("train", place / "recipe.toml", "--out", out), f"cannot write to {out / name}: {why}")


def test_a_run_killed_before_its_first_checkpoint_starts_anew(place: Path, made: Path) -> None:
    (place / "whole" / train.CHECKPOINT).unlink()
    go_on(place / "recipe.toml", place / "whole")
    assert figures(place / "whole") == figures(made / "whole") and alike(place / "whole", made / "whole")


@pytest.mark.parametrize("how", ["cut", "one byte", "text", "another file"])
def test_a_damaged_checkpoint_is_refused_and_nothing_is_overwritten(place: Path, popi: Popi, how: str) -> None:
    path = place / "whole" / train.CHECKPOINT
    whole = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "one byte":
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    elif how == "text":
        path.write_text("not a checkpoint")
    else:
        torch.save({"step": 3}, path)
    before = {p: p.read_bytes() for p in (place / "whole").rglob("*") if p.is_file()}
    refused(popi("train", place / "recipe.toml", "--out", place / "whole"), str(path))
    assert {p: p.read_bytes() for p in (place / "whole").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("key", "change", "why"),
    [
        *(("step", lambda _, v=v: v, "not a checkpoint: ValueError") for v in (-1, 3.5, True)),
        ("adapters", lambda _: {}, "the adapter is for another model"),
        *(("optimizer", lambda _, v=v: v, "what was saved of the optimizer") for v in ({}, [], None, "x")),
        ("optimizer", lambda old: old | {"param_groups": []}, "what was saved of the optimizer is of another one"),
        ("optimizer", lambda old: old | {"state": {0: {"exp_avg": torch.zeros(3)}}}, "what was saved of the optimizer"),
    ],
)
def test_a_checkpoint_of_another_shape_is_one_line(
    place: Path, popi: Popi, key: str, change: Callable[[Any], Any], why: str
) -> None:
    path = place / "whole" / train.CHECKPOINT
    state = torch.load(path, weights_only=True)
    torch.save(state | {key: change(state[key])}, path)
    before = path.read_bytes()
    refused(popi("train", place / "recipe.toml", "--out", place / "whole"), f"{path}: {why}")
    assert path.read_bytes() == before


def test_damaged_metrics_name_the_line(place: Path, popi: Popi) -> None:
    path = place / "whole" / train.METRICS
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{", *lines[4:]]) + "\n")
    refused(popi("train", place / "recipe.toml", "--out", place / "whole"), "metrics.jsonl, line 4")
    path.write_text("\n".join(lines[:5]) + '\n{"step": 6, "lo')  # cut off in the last line: made again
    assert len(train.read_metrics(path)) == 5


FULL = """
import resource, sys
from popi_edge.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(place: Path) -> None:
    out = place / "full"
    go_on(place / "recipe.toml", out, until=5)
    before = (out / train.CHECKPOINT).read_bytes()
    limit = len(before) // 2
    running = child("-c", FULL, limit, "train", place / "recipe.toml", "--out", out)
    said, err = running.communicate()
    refused((running.returncode, said, err), "cannot write the checkpoint of step 6 to", "File too large")
    assert (out / train.CHECKPOINT).read_bytes() == before
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [train.BEST, train.CHECKPOINT, train.LOCK, train.METRICS, train.RECIPE, train.RUN, BOARD]
    )
    assert go_on(place / "recipe.toml", out).step == STEPS
    assert figures(out) == figures(place / "whole") and alike(out, place / "whole")


def test_what_a_run_had_half_written_when_it_was_killed_does_not_stay(place: Path) -> None:
    out = place / "whole"
    kept = {p.name for p in out.iterdir()}
    with pytest.raises(FileNotFoundError), whole_file(out / train.CHECKPOINT) as draft:
        draft.write(b"half")
        assert len(list(out.iterdir())) == len(kept) + 1
        assert go_on(place / "recipe.toml", out).step == STEPS
    assert {p.name for p in out.iterdir()} == kept
    assert train.read_checkpoint(out / train.CHECKPOINT)["step"] == STEPS


def test_a_disk_that_is_full_for_tensorboard_alone_is_one_line_too(place: Path) -> None:
    """Its file is past the limit at step 2, when no other is."""
    out = place / "full"
    running = child("-c", FULL, 700, "train", place / "recipe.toml", "--out", out)
    said, err = running.communicate()
    refused((running.returncode, said, err), f"cannot write to {out}: File too large")
    (board,) = (out / BOARD).iterdir()
    assert board.stat().st_size == 700 > (out / train.METRICS).stat().st_size
    assert not (out / train.CHECKPOINT).exists() and go_on(place / "recipe.toml", out, until=1).step == 1


def test_tensorboard_has_the_same_lines_and_can_be_absent(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = place / "board"
    for until in (2, 5):
        go_on(place / "recipe.toml", out, until=until)
    read = EventAccumulator(str(out / BOARD))
    read.Reload()
    lines = train.read_metrics(out / train.METRICS)
    for name in ("loss", "lr", "dev_loss"):
        seen = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in read.Scalars(name)]
        assert [(m["step"], m[name]) for m in lines if name in m] == seen
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    go_on(place / "recipe.toml", place / "without", until=2)
    assert not (place / "without" / BOARD).exists() and figures(place / "without") == figures(out)[:2]


@more_than_cores
def test_processes_that_make_batches_change_no_number(place: Path) -> None:
    trainer = train.open_run(recipes.read(place / "recipe.toml"), place / "recipe.toml", config.load())
    train.run(trainer, place / "ahead", until=STEPS, minutes=None, tell=lambda *_: None, workers=2)
    assert figures(place / "ahead") == figures(place / "whole") and alike(place / "ahead", place / "whole")


KILLED = """
import os, signal
from popi_training import train
class Large:
    step = 0
    def maker(self):
        return lambda step: bytes(10**6)
batches = iter(train.Trainer.batches(Large(), 100, 2))
next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_that_make_batches_end_with_the_one_that_was_killed() -> None:
    running = child("-c", KILLED)
    assert running.stdout is not None
    workers = list(map(int, running.stdout.readline().split()))
    try:
        running.communicate(timeout=30)  # what they print to is closed when all of them are gone
    except subprocess.TimeoutExpired:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        running.communicate()
        raise
    assert len(workers) == 2


def test_a_process_that_makes_batches_may_begin_when_the_main_one_is_gone_already() -> None:
    late = child("-c", "import time; from popi_training import train; train._work_for(2**30, 0); time.sleep(30)")
    assert late.communicate() == ("", "") and late.returncode == 1


@more_than_cores
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_a_batch_is_one_line(
    place: Path, popi: Popi, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Worker processes are forked on Linux, so they have the patch too."""

    def wrong(*_: Any) -> Any:
        raise ConfigError("users.wants: no 3 of them may stand together")

    monkeypatch.setattr(train.warm, "batch", wrong)
    done = popi("train", place / "recipe.toml", "--out", place / "out", "--workers", workers)
    refused(done, "users.wants: no 3 of them")


def test_a_device_that_is_not_here_is_one_line(place: Path, popi: Popi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(popi("train", place / "recipe.toml", "--out", place / "out", "--device", "cuda"), "no device cuda")
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    "words",
    [["--replay", 2], ["--against", "x"], ["--check", "--until", 3], ["--check", "--workers", 2],
     ["--replay", 2, "--against", "x", "--device", "cuda"], ["--check", "--replay", 2, "--against", "x"],
     ["--until", 0], ["--minutes", 0], ["--minutes", "nan"]],
)  # fmt: skip
def test_options_that_do_not_go_together_are_wrong_usage(made: Path, popi: Popi, words: list[object]) -> None:
    assert popi("train", made / "recipe.toml", *words)[0] == 2


def test_what_finish_cannot_do_is_said_before_training(
    place: Path, popi: Popi, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = place / "recipe.toml", place / "run"
    words = ("train", recipe, "--out", out, "--finish", 2)
    refused(popi(*words), f"{recipe}: base.name: --finish makes a bundle, and devices know only smollm2-135m")
    assert not out.exists()
    monkeypatch.setitem(BASES, recipes.read(recipe).base.name, next(iter(BASES.values())))
    (place / "corpus" / "follow.json").write_text('{"phrasings": {}}')
    refused(popi(*words), f"{place / 'corpus'}: the corpus has too little for the set prompts")
    edited(recipe, 'corpus = "corpus"', "")
    whole = recipe.read_text().replace("rank = 4", "rank = 4\nfull = true")
    (place / "whole.toml").write_text('method = "joint"\nrole = "both"\n' + whole)
    refused(popi("train", place / "whole.toml", *words[2:]), "lora.full: --finish makes a bundle, which holds adapters")
    assert not out.exists()
    page = out / "report" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>my own page")
    refused(popi(*words), f"{page} was not made by popi report")
    assert page.read_text() == "<p>my own page" and list(out.iterdir()) == [page.parent]
    (out / "bundle").mkdir()
    (out / "bundle" / "mine.txt").write_text("mine")
    refused(popi(*words), f"{out / 'bundle'} is not a bundle's folder")


def test_a_corpus_that_lacks_what_the_users_need_is_refused(place: Path, popi: Popi) -> None:
    (place / "corpus" / "facts.jsonl").unlink()
    refused(popi("train", place / "recipe.toml", "--check"), "no facts for training")
    edited(place / "corpus" / "splits.json", '["form-3"]', "[]")
    refused(popi("train", place / "recipe.toml", "--check"), "no pairs are left to develop on")


@pytest.mark.parametrize(
    ("phrasings", "why"),
    [
        ([-8.0] * 36, "train.sharpness is too large for the figures in"),
        ([8.0] * 36, "train.sharpness is too large for the figures in"),
        ([7.09] * 36, "train.sharpness is too large for the figures in"),  # each can be told, their sum cannot
        ([float("inf")] * 36, "follow.json: not what popi_training.follow writes: no number for 'Prefers short"),
        ([True] * 36, "no number for"),
        (["1.0"] * 36, "no number for"),
        ([10**400] * 36, "no number for"),
        ([0.1] * 35, "was not measured, nor 0 more"),
        ("[" * 100_000, "follow.json: not what popi_training.follow writes: maximum recursion"),
        ("[]", "follow.json: not what popi_training.follow writes"),
    ],
)
def test_what_follow_wrote_must_be_numbers_that_weigh_something(
    place: Path, popi: Popi, phrasings: str | list[object], why: str
) -> None:
    lines = map(json.loads, (place / "corpus" / "form.jsonl").read_text().splitlines())
    said = [text for row in lines for pole in row.get("poles", ()) for text in pole["summary"]]
    if not isinstance(phrasings, str):
        phrasings = json.dumps({"phrasings": dict(zip(said, phrasings, strict=False))})
    (place / "corpus" / "follow.json").write_text(phrasings)
    edited(place / "recipe.toml", "easy = 2", "easy = 2\nsharpness = 100.0")
    refused(popi("train", place / "recipe.toml", "--check"), why)


@pytest.mark.parametrize("when", ["at a step", "on opening", "in Python"])
def test_too_little_memory_is_one_line(place: Path, popi: Popi, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def much(*_: Any) -> Any:
        if when == "in Python":
            raise MemoryError
        return torch.empty(10**15)

    taken = train.warm if when == "on opening" else train.Trainer
    monkeypatch.setattr(taken, "load" if when == "on opening" else "clipped", much)
    why = "for its models" if when == "on opening" else "step 0: too little memory on cpu for this train.batch"
    refused(popi("train", place / "recipe.toml", "--out", place / "run"), why)
    assert not (place / "run" / train.CHECKPOINT).exists()


def test_a_loss_that_is_not_a_number_stops_the_run(place: Path) -> None:
    trainer = train.open_run(recipes.read(place / "recipe.toml"), place / "recipe.toml", config.load())
    with torch.no_grad():
        trainer.roles.parameters("infer")[0][0, 0] = float("nan")
    with pytest.raises(PopiError, match="step 0: the loss is not a number"):
        train.run(trainer, place / "nan", until=3, minutes=None, tell=lambda *_: None)
    assert not (place / "nan" / train.CHECKPOINT).exists()


@pytest.mark.parametrize(("bad", "good"), [(2, 2), (4, 3)])
def test_a_run_that_meets_no_number_ends_in_one_line_and_goes_on_from_its_last_good_checkpoint(
    place: Path, popi: Popi, monkeypatch: pytest.MonkeyPatch, bad: int, good: int
) -> None:
    """``bad``: the step that a weight is spoilt in, the first after going on or a later one; ``good``: the step that
    was saved last."""
    out, kept = place / "nan", dict[Path, bytes]()
    words, set_rates = ("train", place / "recipe.toml", "--out", out), train.Trainer.set_rates
    assert popi(*words, "--until", 2)[0] == 0

    def spoil(trainer: train.Trainer) -> None:
        set_rates(trainer)
        if trainer.step == bad:
            kept.update({p: p.read_bytes() for p in out.glob("*.pt")})
            with torch.no_grad():
                trainer.roles.parameters("infer")[0][0, 0] = float("nan")

    with monkeypatch.context() as patched:
        patched.setattr(train.Trainer, "set_rates", spoil)
        code, said, err = popi(*words)
    assert (code, said, err) == (1, "", f"popi: step {bad}: the loss is not a number; a lower train.lr may help\n")
    assert out / train.CHECKPOINT in kept and kept == {p: p.read_bytes() for p in out.glob("*.pt")}
    assert train.read_checkpoint(out / train.CHECKPOINT)["step"] == good
    assert popi(*words)[0] == 0 and figures(out) == figures(place / "whole") and alike(out, place / "whole")
