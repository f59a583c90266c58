"""Two evaluations of the same rows beside each other: which pair of models follows a person better, and is it clear?

    python -m popi_training.compare BEFORE.jsonl AFTER.jsonl [--json] [--seed N]

The files are listings of ``popi eval --summaries`` on the same data arguments (BEFORE's limit may be larger).
Differences are paired by row and their intervals clustered by prompt. ``oracle_summary`` of BEFORE under an untouched
generator is what a base that is told the truth does; ``summary`` of AFTER above it means that training the generator
gained more than the truth alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_training.evaluate.metrics import Choice, Outcome, difference, mean
from popi_training.runfolder import is_number, json_lines

COMPARED = (
    ("summary", "summary"), ("oracle_summary", "summary"), ("raw", "summary"), ("oracle_summary", "oracle_summary"),
    ("raw", "raw"), ("shuffled_summary", "shuffled_summary"),
)  # fmt: skip
"""(condition of BEFORE, condition of AFTER)."""
Listing = Mapping[str, Mapping[str, Any]]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Row id → its line, of the lines without a profile. Raises ConfigError for what is no listing."""
    found: dict[str, dict[str, Any]] = {}
    for number, value in json_lines(path):
        if not isinstance(value, dict) or "row" not in value or not isinstance(value.get("margins"), dict):
            raise ConfigError(f"{path}, line {number}: not a line of a listing")
        if odd := _odd(value):
            raise ConfigError(f"{path}, line {number}: {odd}")
        if not value.get("profile"):
            if str(value["row"]) in found:
                raise ConfigError(f"{path}, line {number}: row {value['row']!r:.60} comes twice")
            found[str(value["row"])] = value
    if not found:
        raise ConfigError(f"{path}: there is no row in it")
    return found


def _odd(line: Mapping[str, Any]) -> str:
    """Which figure of a line is none; empty where all are as a listing has them."""
    for condition, both in line["margins"].items():
        if not (isinstance(both, list) and len(both) == 2 and all(map(is_number, both))):
            return f"the margins of {condition!r:.40} are not two numbers"
    right = line.get("right", {})
    if not isinstance(right, dict) or not all(is_number(v) and 0 <= v <= 1 for v in right.values()):
        return "right must be an object of shares"
    return ""


def outcome(listing: Listing, rows: Sequence[str], condition: str) -> Outcome | None:
    """A condition over the rows, None where the listing has it not."""
    try:
        both = np.array([listing[r]["margins"][condition] for r in rows], np.float64)
    except KeyError:
        return None
    right = [listing[r].get("right", {}).get(condition) for r in rows]
    if None in right:
        return Outcome(both[:, 0], both[:, 1], np.zeros(len(rows)))
    return Choice(both[:, 0], both[:, 1], np.zeros(len(rows)), np.array(right, np.float64))


def compare(before: Listing, after: Listing, *, seed: int = 0) -> dict[str, Any]:
    """``rows`` and ``differences``: AFTER's condition less BEFORE's, in accuracy and contrast, each with an interval
    and whether that leaves zero out (``clear``). BEFORE may have more rows (a larger limit under the same seed), AFTER
    may not: ConfigError."""
    if odd := sorted(after.keys() - before.keys()):
        raise ConfigError(f"the two are not of the same rows: {len(odd)} are in the second alone, {odd[0]!r} for one")
    rows = sorted(after)
    clusters = [str(after[r].get("cluster") or before[r].get("cluster") or r.rpartition(":")[0]) for r in rows]
    out = []
    for first, second in COMPARED:
        a, b = outcome(before, rows, first), outcome(after, rows, second)
        if a is None or b is None:
            continue
        for metric, was, now in (("accuracy", a.right, b.right), ("contrast", a.beats, b.beats)):
            out.append({
                "before": first, "after": second, "metric": metric, "was": mean(was), "now": mean(now),
                **difference(now - was, clusters, seed=seed),
            })  # fmt: skip
    return {"rows": len(rows), "clusters": len(set(clusters)), "differences": out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        found = compare(read(options.before), read(options.after), seed=options.seed)
    except PopiError as e:
        sys.exit(f"compare: {e}")
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['rows']} rows, {found['clusters']} prompts; after less before")
    for d in found["differences"]:
        star = " *" if d["clear"] else ""
        span = "(one prompt)" if d["low"] is None else f"[{d['low']:+.3f}, {d['high']:+.3f}]"
        print(
            f"{d['after']:>16} after, {d['before']:>16} before, {d['metric']:8} {d['was']:.3f} -> {d['now']:.3f}  "
            f"{d['difference']:+.3f} {span}{star}"
        )


if __name__ == "__main__":
    launch(main)
