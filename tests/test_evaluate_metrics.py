"""Metrics against values worked out by hand, and the promises of the interval."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi_training.evaluate.metrics import (
    Outcome,
    comparisons,
    gap_closed,
    interval,
    longer,
    mean,
    table,
    wins,
)


def outcome(right: list[float], beats: list[float], tokens: float = 0) -> Outcome:
    own = [2 * r - 1 for r in right]
    other = [o + 1 - 2 * b for o, b in zip(own, beats, strict=True)]
    made = Outcome(np.array(own), np.array(other), np.full(len(right), float(tokens)))
    assert made.right.tolist() == right and made.beats.tolist() == beats
    return made


def test_ties_count_one_half() -> None:
    assert wins([2.0, -1.0, 0.0]).tolist() == [1, 0, 0.5]
    assert wins([2.0, 1.0, 3.0], np.array([1.0, 1.0, 4.0])).tolist() == [1, 0.5, 0]
    assert longer([(5, 3), (3, 5), (4, 4)]).tolist() == [1, 0, 0.5]


def test_one_cluster_has_no_interval_and_nothing_has_no_mean() -> None:
    assert interval(np.array([0.0, 1.0]), ["a", "a"]) is None
    assert interval(np.array([]), []) is None
    assert mean(np.array([])) is None


def test_the_interval_of_a_constant_is_that_constant() -> None:
    assert interval(np.full(6, 0.75), list("aabbcc")) == (0.75, 0.75)


def test_two_clusters_by_hand() -> None:
    """Of two clusters of equal size, all 0 and all 1, a resample's mean is 0, ½ or 1 (¼, ½, ¼)."""
    assert interval(np.array([0.0, 0.0, 1.0, 1.0]), list("aabb")) == (0.0, 1.0)


def test_the_interval_covers_as_a_normal_one_does() -> None:
    """For n independent values the bootstrap's width is close to 2 · 1.96 · s / √n."""
    values = np.random.default_rng(0).integers(0, 2, 400).astype(float)
    bounds = interval(values, [str(i) for i in range(400)], resamples=4000)
    assert bounds is not None
    assert bounds[1] - bounds[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert bounds[0] < values.mean() < bounds[1]


def test_rows_of_one_prompt_do_not_count_as_independent() -> None:
    """Ten copies of each row under its own prompt: as wide as without copies, far wider than if they were new rows."""
    values = np.random.default_rng(1).integers(0, 2, 40).astype(float)
    once = interval(values, [str(i) for i in range(40)])
    copies = interval(np.repeat(values, 10), [str(i) for i in range(40) for _ in range(10)])
    naive = interval(np.repeat(values, 10), [str(i) for i in range(400)])
    assert once and copies and naive
    assert copies == pytest.approx(once)
    assert (copies[1] - copies[0]) > 2 * (naive[1] - naive[0])


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from("abcdef")), min_size=1), st.integers(0, 9))
def test_the_interval_repeats_and_lies_within_the_values(rows: list[tuple[float, str]], seed: int) -> None:
    values, clusters = np.array([v for v, _ in rows]), [c for _, c in rows]
    bounds = interval(values, clusters, seed=seed, resamples=200)
    assert bounds == interval(values, clusters, seed=seed, resamples=200)
    if bounds is None:
        assert len(set(clusters)) < 2
    else:
        assert values.min() <= bounds[0] <= bounds[1] <= values.max()


def test_gap_closed() -> None:
    assert gap_closed(0.7, 0.5, 0.9) == pytest.approx(0.5)
    assert gap_closed(0.4, 0.5, 0.9) == pytest.approx(-0.25)
    for nothing in ((0.7, 0.5, 0.5), (0.7, 0.9, 0.5), (None, 0.5, 0.9), (0.7, None, 0.9), (0.7, 0.5, None)):
        assert gap_closed(*nothing) is None


def outcomes() -> dict[str, Outcome]:
    return {
        "none": outcome([1, 0, 0.5, 0.5], [0.5] * 4),
        "raw": outcome([1, 1, 0, 0], [1, 0, 0, 1], 100),
        "summary": outcome([1, 1, 1, 0], [1, 1, 0.5, 0.5], 20),
        "oracle_summary": outcome([1, 1, 1, 1], [1, 1, 1, 1], 15),
    }


BASELINES = {"longer": longer([(9, 5), (9, 5), (5, 9), (5, 5)])}
CLUSTERS = ["p", "p", "q", "r"]


def test_a_table_by_hand() -> None:
    made = table(outcomes(), BASELINES, CLUSTERS, range(4), seed=0)
    summary = made["conditions"]["summary"]
    assert (summary["accuracy"], summary["contrast"], summary["tokens"]) == (0.75, 0.75, 20)
    assert summary["low"] <= 0.75 <= summary["high"]
    none = made["conditions"]["none"]
    assert (none["accuracy"], none["contrast"], none["contrast_low"], none["contrast_high"]) == (0.5, 0.5, 0.5, 0.5)
    assert made["gap_closed"]["summary"] == {"accuracy": 0.5, "contrast": 0.5}
    assert made["gap_closed"]["raw"] == {"accuracy": 0.0, "contrast": 0.0}
    assert "none" not in made["gap_closed"]
    assert made["baselines"]["longer"]["accuracy"] == (1 + 1 + 0 + 0.5) / 4
    assert (made["pairs"], made["prompts"]) == (4, 3)


def test_a_table_of_some_rows_or_of_none() -> None:
    part = table(outcomes(), BASELINES, CLUSTERS, [2, 3], seed=0)
    assert part["conditions"]["summary"]["accuracy"] == 0.5
    assert part["baselines"]["longer"]["accuracy"] == 0.25
    empty = table(outcomes(), BASELINES, CLUSTERS, [], seed=0)
    assert empty["pairs"] == 0 and empty["conditions"]["raw"]["accuracy"] is None
    json.dumps([part, empty], allow_nan=False)


def test_comparisons_are_paired() -> None:
    """Two conditions that are each uncertain, one of them better by 0.5 on every row: the difference is sure."""
    right = [0.0, 0.5, 0.0, 0.5]
    made: list[dict[str, Any]] = comparisons(
        {"summary": outcome([r + 0.5 for r in right], right), "raw": outcome(right, right)}, list("abcd"), seed=0
    )
    by = {t["metric"]: t for t in made if (t["a"], t["b"]) == ("summary", "raw")}
    assert (by["accuracy"]["difference"], by["accuracy"]["low"], by["accuracy"]["high"]) == (0.5, 0.5, 0.5)
    assert by["accuracy"]["clear"] is True
    assert by["contrast"]["difference"] == 0 and by["contrast"]["clear"] is False
    assert len(made) == 2
