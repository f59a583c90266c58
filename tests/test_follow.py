"""How poles are followed: the table and the shrunken means, and the command on a tiny bundle."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from popi_training import corpus as corpora
from popi_training import follow
from popi_training.warm import followed, read_follow
from tests.test_transfer import tiny_base, tiny_bundle


def rows(values: list[tuple[float, float, float]], dimension: str = "length") -> list[dict[str, Any]]:
    """Rows of a dimension: m bare, under its first pole's sentence and under its second's, one a turn."""
    a, b = sorted(corpora.load().dimensions[dimension].poles)
    return [{"pair": f"p{k}", "dimension": dimension, "poles": [a, b], "turn": k % 2, "bare": bare, a: first, b: second}
            for k, (bare, first, second) in enumerate(values)]  # fmt: skip


def test_accuracy_is_against_the_bare_prompt_and_contrast_against_the_other_pole() -> None:
    found = follow.table(rows([(0.0, 1.0, -1.0), (0.0, 2.0, 1.0), (0.0, 0.0, 0.0), (5.0, 4.0, 6.0)]))["length"]
    assert found["pairs"] == 4 and found["first_pole"] == (1 + 1 + 0.5 + 0) / 4
    assert found["second_pole"] == (1 + 0 + 0.5 + 0) / 4
    assert found["accuracy"] == (found["first_pole"] + found["second_pole"]) / 2
    assert found["contrast"] == (1 + 1 + 0.5 + 0) / 4 and found["follows"]
    assert not follow.table(rows([(0.0, -1.0, 1.0)]))["length"]["follows"]


def test_phrasings_are_shrunk_by_what_chance_would_spread() -> None:
    """Without noise the means stand as they are; with nothing but noise they come to 0."""
    corpus = corpora.load()
    clear = rows([(0.0, 3.0, -1.0), (0.0, 1.0, -2.0)] * 6)
    found = follow.phrasings(clear, corpus)
    assert sorted(found.values()) == [1.0, 1.0, 2.0, 3.0]
    noise = rows([(0.0, x, -x) for x in (9.0, 9.0, -9.0, -9.0, 8.0, -9.0, -8.0, 9.0)])
    assert all(abs(v) < 0.5 for v in follow.phrasings(noise, corpus).values())
    some = rows([(0.0, 2.0 + k % 3, -1.0 + k % 2) for k in range(12)])
    moved: dict[str, list[float]] = {}
    for row in some:
        for pole, nats in zip(row["poles"], (row[row["poles"][0]], -row[row["poles"][1]]), strict=True):
            text = corpus.dimensions["length"].poles[pole].phrasings["summary"][row["turn"]]
            moved.setdefault(text, []).append(nats)
    inside = statistics.mean(statistics.variance(v) for v in moved.values())
    means = {t: statistics.mean(v) for t, v in moved.items()}
    spread = statistics.pvariance(means.values())
    want = {t: round(m * max(0.0, 1 - inside / len(moved[t]) / spread), 3) for t, m in means.items()}
    assert follow.phrasings(some, corpus) == want


def test_the_first_pairs_of_all_dimensions_come_first() -> None:
    corpus = corpora.load()
    todo = follow.work(corpus, 2, False, corpus.dimensions)
    count = len(corpus.dimensions)
    assert len({pair.dimension for pair, _ in todo[:count]}) == count
    assert [turns for _, turns in todo] == [(0,)] * count + [(1,)] * count
    every = follow.work(corpus, 1, True, ["length"])
    assert [len(turns) for _, turns in every] == [
        max(len(p.phrasings["summary"]) for p in corpus.dimensions["length"].poles.values())
    ]


def test_the_command_writes_what_training_and_the_page_read(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_base(tiny[0], monkeypatch)
    monkeypatch.setenv("POPI_THREADS", "1")
    bundle, out = tiny_bundle(tmp_path / "ours.popi", tiny[1], 1), tmp_path / "follow.json"
    small = corpora.load()
    small.dimensions = {"length": small.dimensions["length"]}
    pairs = [p for p in small.pairs if p.dimension == "length"]
    small.pairs = sorted(pairs, key=lambda p: sum(map(len, p.replies.values())))[:10]
    monkeypatch.setattr(follow, "load", lambda **_: small)
    monkeypatch.setattr(sys, "argv", ["x", str(out), "--pairs", "10", "--bundle", str(bundle)])
    follow.main()
    assert capsys.readouterr().out.startswith("length ") and followed(out, "dimensions")["length"]["pairs"] > 8
    assert read_follow(out) == json.loads(out.read_text())["phrasings"] != {}
