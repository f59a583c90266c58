"""What the margins say: accuracy, contrast, intervals clustered by prompt, gap closed. Numpy, pure functions.

Notation: m is the margin of a row under a context, in nats (see ``run``); ties count one half everywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
RESAMPLES = 2_000
PAIRED = (
    ("summary", "raw"),
    ("summary", "untrained_summary"),
    ("summary", "shuffled_summary"),
    ("summary", "none"),
    ("raw", "none"),
    ("oracle_summary", "summary"),
    ("oracle_summary", "raw"),
)


def wins(a: Sequence[float] | Values, b: Sequence[float] | Values | float = 0.0) -> Values:
    """1 where a > b, ½ where they tie, 0 where a < b; shape of a."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.where(x > y, 1.0, np.where(x == y, 0.5, 0.0))


def interval(
    values: Values, clusters: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """95% percentile bootstrap of the mean of ``values`` [n] over whole clusters; None below two clusters.

    The draw depends on ``seed`` and the set of clusters alone, so intervals over the same rows are paired.
    """
    names, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.bincount(index, weights=values, minlength=len(names))
    sizes = np.bincount(index, minlength=len(names)).astype(np.float64)
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    low, high = np.quantile((drawn @ sums) / (drawn @ sizes), [0.025, 0.975])
    return float(low), float(high)


def mean(values: Values) -> float | None:
    """The mean, or None of nothing (JSON has no NaN)."""
    return float(values.mean()) if len(values) else None


def gap_closed(value: float | None, none: float | None, ceiling: float | None) -> float | None:
    """(value − none) / (ceiling − none); None where the ceiling is not above none: no gap to close."""
    if value is None or none is None or ceiling is None or ceiling - none <= 1e-9:
        return None
    ratio = (value - none) / (ceiling - none)
    return ratio if math.isfinite(ratio) else None


@dataclass(frozen=True)
class Outcome:
    """One condition over n rows: m (nats, [n]) under each row's ``own`` context and under the ``other``, opposite
    taste's; ``tokens`` that its own adds [n]."""

    own: Values
    other: Values
    tokens: Values

    @property
    def right(self) -> Values:
        """Wins [n] of the chosen reply."""
        return wins(self.own)

    @property
    def beats(self) -> Values:
        """Wins [n] of the own context over the other: the contrast."""
        return wins(self.own, self.other)


@dataclass(frozen=True)
class Choice(Outcome):
    """An Outcome whose accuracy is that of choices: ``score`` [n] is 1, ½ or 0, or between over both orders."""

    score: Values

    @property
    def right(self) -> Values:
        return self.score


def longer(lengths: Sequence[tuple[int, int]]) -> Values:
    """The baseline that knows nobody: wins of the longer reply, from (chosen, rejected) lengths."""
    return wins([c for c, _ in lengths], np.array([r for _, r in lengths], np.float64))


def entry(values: Values, clusters: Sequence[str], seed: int, prefix: str = "") -> dict[str, float | None]:
    """A mean with its interval, as a table has it: ``accuracy``, ``low``, ``high``, or by the ``prefix``."""
    bounds = interval(values, clusters, seed=seed) or (None, None)
    name = prefix or "accuracy"
    low, high = (f"{prefix}_low", f"{prefix}_high") if prefix else ("low", "high")
    return {name: mean(values), low: bounds[0], high: bounds[1]}


def baseline(values: Values, clusters: Sequence[str], seed: int) -> dict[str, float | None]:
    """The entry of a baseline that looks at nobody, so that it is the same for people of opposite taste."""
    nobody = {"contrast": 0.5, "contrast_low": 0.5, "contrast_high": 0.5, "tokens": 0.0}
    return entry(values, clusters, seed) | nobody


def table(
    outcomes: Mapping[str, Outcome],
    baselines: Mapping[str, Values],
    clusters: Sequence[str],
    rows: Sequence[int],
    *,
    seed: int,
) -> dict[str, Any]:
    """One table, over the rows of the given indices: conditions, baselines, gap closed, counts."""
    pick = np.asarray(rows, dtype=int)
    groups = [clusters[i] for i in rows]
    conditions = {}
    for name, outcome in outcomes.items():
        conditions[name] = {
            **entry(outcome.right[pick], groups, seed),
            **entry(outcome.beats[pick], groups, seed, "contrast"),
            "tokens": mean(outcome.tokens[pick]),
        }
    return {
        "conditions": conditions,
        "baselines": {name: baseline(v[pick], groups, seed) for name, v in baselines.items()},
        "gap_closed": gaps(conditions),
        "pairs": len(rows),
        "prompts": len(set(groups)),
    }


def gaps(conditions: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Gap closed of every condition, by accuracy and by contrast; the ceiling is the oracle's summary."""
    none, top = conditions.get("none"), conditions.get("oracle_summary")
    if none is None or top is None:
        return {}
    return {
        name: {k: gap_closed(c[k], none[k], top[k]) for k in ("accuracy", "contrast")}
        for name, c in conditions.items()
        if name != "none"
    }


def difference(values: Values, clusters: Sequence[str], *, seed: int) -> dict[str, Any]:
    """The mean of paired differences [n] with its interval; ``clear`` says that the interval leaves zero out."""
    low, high = interval(values, clusters, seed=seed) or (None, None)
    clear = low is not None and high is not None and (low > 0 or high < 0)
    return {"difference": mean(values), "low": low, "high": high, "clear": clear}


def comparisons(outcomes: Mapping[str, Outcome], clusters: Sequence[str], *, seed: int) -> list[dict[str, Any]]:
    """Paired differences a − b with intervals; ``clear`` says that the interval leaves zero out.

    No correction for looking at several: read them as intervals, not as a verdict.
    """
    out = []
    for a, b in PAIRED:
        if a not in outcomes or b not in outcomes:
            continue
        for metric, field in (("accuracy", "right"), ("contrast", "beats")):
            values = getattr(outcomes[a], field) - getattr(outcomes[b], field)
            out.append({"a": a, "b": b, "metric": metric, **difference(values, clusters, seed=seed)})
    return out
