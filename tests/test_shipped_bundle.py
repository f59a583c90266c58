"""The committed bundles still say and score what their committed tables say: the whole table from its rows, and some
rows anew. Two are committed: the shipped one, and the pair that was trained jointly from it."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popi_edge import config
from popi_edge.models.bases import BASES, stored
from popi_edge.models.bundle import DEFAULT, open_bundle
from popi_training import corpus, recipe, train, warm
from popi_training.evaluate import run
from popi_training.evaluate.data import load
from popi_training.evaluate.journal import Journal
from popi_training.evaluate.metrics import wins

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
MANIFEST = "popi_edge/models/popi-smol/manifest.json"
COUPLES = 2
"""Couples of users that are inferred and scored again."""
SAME = ("none", "raw", "untrained_summary", "summary", "oracle_summary")
"""Conditions that depend on the couple alone; another user's summary depends on who else is there."""


JOINT = corpus.FOLDER.parent / "adapters" / "joint-90"
BUNDLES = {"warm": DEFAULT, "joint": str(JOINT)}


@pytest.fixture(scope="module", params=list(BUNDLES))
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def table(which: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MEASURED / f"{which}_prompts.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def rows(which: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (MEASURED / f"{which}_prompts.jsonl").read_text("utf-8").splitlines()]


def test_the_table_is_that_of_its_rows(table: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    assert len(rows) == table["pairs"] == table["limit"]
    for name, figures in table["conditions"].items():
        if name in ("longer", "likelihood"):
            continue
        own, other = np.array([r["margins"][name] for r in rows]).T
        assert wins(own).mean() == pytest.approx(figures["accuracy"])
        assert wins(own, other).mean() == pytest.approx(figures["contrast"])


def test_the_adapter_is_of_the_committed_recipe_and_corpus_and_of_the_run_whose_metrics_are_there() -> None:
    manifest = json.loads((Path(corpus.__file__).parent.parent.parent / MANIFEST).read_text("utf-8"))
    path = corpus.FOLDER.parent / "recipes" / "warm-start.toml"
    read = recipe.read(path)
    made = manifest["training"]["made_from"]
    texts = {"corpus": train.corpus_hash(warm.load(read, path))}
    assert made == train.made_from(read, texts, BASES["smollm2-135m"].sha256, {}, "cpu")
    steps = [m["step"] for m in train.read_metrics(MEASURED / "warm_start_gpu_metrics.jsonl")]
    assert steps == [*range(1, manifest["training"]["steps"] + 1)] and len(steps) == read.train.steps


def test_the_joint_pair_is_of_the_committed_recipe_from_the_shipped_adapter() -> None:
    made = json.loads((JOINT / "manifest.json").read_text("utf-8"))["training"]
    path = corpus.FOLDER.parent / "recipes" / "popi-smol.toml"
    read = recipe.read(path)
    texts = {"corpus": train.corpus_hash(warm.load(read, path))}
    want = train.made_from(read, texts, BASES["smollm2-135m"].sha256, {}, "cpu")
    shipped = json.loads((Path(corpus.__file__).parent.parent.parent / MANIFEST).read_text("utf-8"))
    assert made["made_from"] == want | {"start": shipped["roles"]["infer"]["sha256"]}
    steps = [m["step"] for m in train.read_metrics(MEASURED / "joint_metrics.jsonl")]
    assert steps == [*range(1, made["steps"] + 1)] and len(steps) == read.train.steps


def test_some_rows_come_out_as_they_stand_there(
    which: str, table: dict[str, Any], rows: list[dict[str, Any]], base: Path, tmp_path: Path
) -> None:
    smol = BASES["smollm2-135m"]
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    shutil.copy(base, stored(smol, home / "models"))
    settings = config.load(home)
    opened = open_bundle(BUNDLES[which], settings)
    assert table["model"] == f"{opened.name} {opened.version}"
    known = {r["row"]: r for r in rows}
    data = load(corpus.FOLDER, "corpus", part="prompts", limit=table["limit"], seed=table["seed"])
    chosen = random.Random(1).sample(range(len(data.rows) // 2), COUPLES)
    some = [row for k in sorted(chosen) for row in data.rows[2 * k : 2 * k + 2]]
    pair = run.open_pair(BUNDLES[which], "onnx", settings)
    try:
        quiet = lambda *_: None  # noqa: E731
        _, listing = run.evaluate(replace(data, rows=tuple(some)), pair, Journal(), seed=table["seed"], advance=quiet)
    finally:
        pair.engine.close()
    assert len(listing) == 2 * COUPLES
    for line in listing:
        there = known[line["row"]]
        assert (line["text"], line["status"]) == (there["text"], there["status"])
        for name in SAME:
            assert line["margins"][name] == pytest.approx(there["margins"][name], abs=0.02), (line["row"], name)
