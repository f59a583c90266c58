"""How far the world's signals go: the Bayes predictor and simpler rules, by test part and number of signals.

    python -m popi_training.world_ceiling [--users N] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from popi_edge.cli.common import at_least, launch
from popi_edge.signals import Signal
from popi_training.evaluate.metrics import interval, wins
from popi_training.people import Target
from popi_training.world import (
    MARKERS,
    SAID,
    SEEDS,
    SHARPNESS,
    TARGETS,
    bayes,
    draw,
    follow,
    read,
    say,
    tally,
    view,
    words,
)


def majority(signals: Sequence[Signal], target: Target, key: Mapping[str, Any]) -> int:
    """A rule that knows no Bayes: words (or what ``key`` makes of them) count up where liked and down where not; by how
    much the chosen reply's count is the higher."""
    counts = tally(signals, key)
    up, down = (sum(counts[key[w]] for w in words(t) if w in key) for t in (target.chosen, target.rejected))
    return up - down


def measure(part: str, count: int, users: int) -> dict[str, Any]:
    """One row: accuracies over the targets of a part's first users with ``count`` signals each (intervals by user).

    ``bayes`` has the part's own prior, ``bayes_any`` that of all users; ``noisy_type``: how often the user themselves
    would choose what a target calls chosen, were targets as noisy as signals.
    """
    world, rows = bayes(), []
    people = [draw(str(i), part, count) for i in range(users)]
    own = [world.posterior(p.signals, part) for p, _ in people]
    best = world.summaries(np.array(own))
    for (person, theta), posterior, wants in zip(people, own, best, strict=True):
        everybody = world.posterior(person.signals, "any")
        for t in person.targets:
            u = 2 * sum(a * b for a, b in zip(theta, view(t.chosen, t.rejected), strict=True))
            rows.append({
                "bayes": round(world.predict(posterior, t) - 0.5, 9),
                "bayes_any": round(world.predict(everybody, t) - 0.5, 9),
                "best_summary": follow(wants, t),
                "oracle_summary": follow(read(person.oracle), t),
                "type": u,
                "longer": len(t.chosen.split()) - len(t.rejected.split()),
                "majority_marker": majority(person.signals, t, {w: w for w in MARKERS}),
                "majority_pole": majority(person.signals, t, MARKERS | SAID),
            })  # fmt: skip
    right = {name: wins([r[name] for r in rows]) for name in rows[0]}
    right["noisy_type"] = 1 / (1 + np.exp(-SHARPNESS * np.array([r["type"] for r in rows])))
    clusters, conditions = [p.id for p, _ in people for _ in p.targets], {}
    for name, values in right.items():
        low, high = interval(values, clusters) or (None, None)
        conditions[name] = {"accuracy": float(values.mean()), "low": low, "high": high}
    count_of: dict[str, list[int]] = {
        "signals": [len(text.split()) for p, _ in people for s in p.signals for text in s.texts()],
        "best_summary": [len(say(w).split()) for w in best],
        "oracle_summary": [len(p.oracle.split()) for p, _ in people],
    }
    length = {k: sum(v) / users for k, v in count_of.items()}  # of texts alone, without the contract's templates
    return {"part": part, "signals": count, "conditions": conditions, "words": length}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=at_least(2), default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parts = [p for p, seed in SEEDS.items() if seed.startswith("test:")]
    rows = [measure(part, n, options.users) for part in parts for n in (1, 2, 4, 8)]
    if options.json:
        print(json.dumps({"users": options.users, "targets": TARGETS, "rows": rows}, indent=1))
        return
    for row in rows:
        told = [f"{k} {v['accuracy']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for k, v in row["conditions"].items()]
        told += [f"words of {k} {v:.1f}" for k, v in row["words"].items()]
        print(f"{row['part']}, {row['signals']} signals: " + ", ".join(told))


if __name__ == "__main__":
    launch(main)
