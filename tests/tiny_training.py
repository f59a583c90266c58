"""A small corpus and a recipe that the training tests write: two dimensions of taste, one base of random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from popi_edge import cli
from popi_edge.models.bases import file_sha256

VERBS = ("Prefers", "Likes", "Wants", "Enjoys", "Needs", "Loves")
WORDS = {"size": ("short", "long"), "tone": ("warm", "calm"), "order": ("plain", "playful")}
HELD = "order"
"""The dimension that the small split holds out."""

RECIPE = """\
name = "small"
seed = 3

[base]
name = "{base}"
sha256 = "{sha256}"

[data]
corpus = "{corpus}"

[lora]
rank = 4
alpha = 8.0

[users]
wants = [1.0]
signals = [1.0]
silent = 0.0
kinds = {{ statement = 1.0 }}

[train]
steps = {steps}
batch = 3
lr = {lr}
warmup = 2
phrasings = 2
halfway = 1
easy = 2
contrast = 0.5
mirrored = 0.5
threads = 1
checkpoint_every = {every}
dev_every = 4
dev_users = 2
"""


def _dimension(name: str, verbs: tuple[str, ...], told: str) -> dict[str, Any]:
    poles = []
    for word in WORDS[name]:
        voices = {v: [f"{told} {verb.lower()} {word} {v}." for verb in verbs] for v in ("statement", "post", "profile")}
        poles.append({"id": word, "summary": [f"{verb} {word} {told} replies." for verb in verbs], **voices})
    return {"type": "dimension", "id": name, "about": name, "poles": poles}


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def corpus(folder: Path) -> Path:
    """Write a corpus that keeps every rule, with facts, its held-out part and a split; returns the folder."""
    rows: list[dict[str, Any]] = [_dimension(name, VERBS, "clear") for name in WORDS]
    rows += [{"type": "prompt", "id": f"form-{i}", "text": f"What is thing {i}?"} for i in range(4)]
    for name, poles in WORDS.items():
        for i in range(4):
            replies = {p: f"Thing {i} is told here in a {p} way, as {name} asks, for the " + "x " * 6 for p in poles}
            pair = {"type": "pair", "id": f"{name}-{i}", "dimension": name, "prompt": f"form-{i}", "replies": replies}
            rows.append(pair)
    facts = [
        {"type": "fact", "voice": voice, "set": "train", "text": f"The bus is late, says this {voice}."}
        for voice in ("statement", "post", "profile")
    ]
    facts += [{"type": "reaction", "kind": k, "set": "train", "text": f"I am {k}."} for k in ("pleased", "displeased")]
    (folder / "heldout").mkdir(parents=True)
    _lines(folder / "form.jsonl", rows)
    _lines(folder / "facts.jsonl", facts)
    apart = [_dimension(name, VERBS[:5], "honest") for name in WORDS]
    _lines(folder / "heldout" / "form.jsonl", [*apart, {"type": "prompt", "id": "form-9", "text": "Why is it so?"}])
    split = {"seed": 1, "dimensions": [HELD], "combinations": [["size", "tone"]], "dev_prompts": ["form-3"]}
    (folder / "splits.json").write_text(json.dumps(split))
    return folder


def recipe(
    folder: Path, base: Path | str, *, sha256: str | None = None, steps: int = 8, lr: float = 0.01, every: int = 3
) -> Path:
    """Write ``recipe.toml`` for a base (a GGUF file, or a name with its hash) and the corpus in ``folder/corpus``."""
    digest = sha256 or file_sha256(Path(base))
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(base=base, sha256=digest, corpus="corpus", steps=steps, lr=lr, every=every))
    return path


def popi(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """The program with its words, in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["popi", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    return int(str(left.value.code or 0)), out, err


def launched(*words: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """``popi train`` with its words in two processes (gloo), one thread each, with settings in their environment."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "popi_edge"]
    own = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    said = [*map(str, (*start, "train", *words))]
    return subprocess.run(said, env=os.environ | own | settings, capture_output=True, text=True)
