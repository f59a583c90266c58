"""Linkage: which of a hundred people's other signals belong to a summary?

Three attackers order the hundred. ``preferences`` counts the preferences that the summary names (by a probe) among
those that the other signals show, less those it contradicts; it is told what they show, so nobody who has to read it
there does better that way. ``words`` compares words, weighted by how rare they are. ``learnt`` weighs both, with runs
and letters, as it has learnt from another hundred people and the same number of summaries. Ranks are in the middle of
ties: who cannot tell people apart has rank 50½ and is right once in a hundred times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_training import probe
from popi_training.attacker import Bag, Likeness, fit
from popi_training.evaluate.metrics import entry
from popi_training.users import Want

Matrix = NDArray[np.float64]
Row = Mapping[str, Any]
ATTACKERS = ("preferences", "words", "learnt")
PARTNERS = 20


def named(texts: Sequence[str], row: Row) -> float:
    """Preferences that a text names among those of a person, less those it contradicts; the mean over several."""
    wants = {Want(d, p) for d, p in row["poles"]}
    found = []
    for said in ({*probe.fitted().poles(t)} if t else set() for t in texts):
        against = {w.dimension for w in wants} & {w.dimension for w in said - wants}
        found.append(len(said & wants) - len(against))
    return float(np.mean(found))


def table(texts: Sequence[Sequence[str]], people: Sequence[Row], known: Sequence[Row]) -> Matrix:
    """Features [texts, people, k] of each one's texts against each one's other signals; the first is ``preferences``,
    the second ``words``. How rare a word is comes from the ``known`` people's other signals."""
    likeness = Likeness(Bag.of(row["others"]) for row in known)
    bags = [Bag.of(row["others"]) for row in people]
    out = []
    for some in texts:
        summary = Bag.of(some)
        out.append([[named(some, row), *likeness.features(summary, bag)]
                    for row, bag in zip(people, bags, strict=True)])  # fmt: skip
    return np.array(out, np.float64).round(9)


def weights(features: Matrix) -> tuple[Matrix, Matrix]:
    """(weights [k], scales [k]) from a square table whose diagonal is right: the right one's features less those of
    some others, who follow it in the table."""
    n = len(features)
    rows = [features[i, i] - features[i, (i + 1 + j) % n] for i in range(n) for j in range(min(PARTNERS, n - 1))]
    some = np.array(rows)
    scale = np.sqrt((some**2).mean(0))
    scale[scale == 0] = 1
    return fit(some / scale), scale


def ranks(scores: Matrix, right: Sequence[int]) -> tuple[Matrix, Matrix]:
    """(rank [n], chance of being the first [n]) of the right person of each row of scores [n, people]; ties are
    broken by lot, in expectation."""
    own = scores[np.arange(len(scores)), list(right)][:, None]
    above, level = (scores > own).sum(1), (scores == own).sum(1)
    return above + (level + 1) / 2, np.where(above == 0, 1 / level, 0.0)


def scored(features: Matrix, learnt: tuple[Matrix, Matrix] | None) -> dict[str, Matrix]:
    """Scores [n, people] of each attacker."""
    out = {"preferences": features[..., 0], "words": features[..., 1]}
    if learnt is not None:
        out["learnt"] = np.round(features / learnt[1] @ learnt[0], 9)
    return out


def described(rank: Matrix, first: Matrix, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Rank-1 accuracy with its interval over people, and the median rank."""
    return {"first": entry(first, names, seed), "median_rank": float(np.median(rank)), "people": len(rank)}


def linkage(panels: Sequence[Sequence[Row]], seed: int = 0) -> dict[str, Any]:
    """By attacker, over panels of people of one size; each is learnt about from the next panel, so there must be two.

    A summary that is empty cannot be linked: all people tie.
    """
    tables = [table([[row["text"]] for row in panel], panel, panel) for panel in panels]
    learnt = [weights(t) for t in tables]
    found: dict[str, list[tuple[Matrix, Matrix]]] = {name: [] for name in ATTACKERS}
    for i, (panel, features) in enumerate(zip(panels, tables, strict=True)):
        for name, scores in scored(features, learnt[(i + 1) % len(panels)]).items():
            found[name].append(ranks(scores, range(len(panel))))
    names = [str(row["user"]) for panel in panels for row in panel]
    return {
        name: described(np.concatenate([r for r, _ in parts]), np.concatenate([f for _, f in parts]), names, seed)
        for name, parts in found.items()
    } | {"of": len(panels[0]), "chance": 1 / len(panels[0])}  # fmt: skip
