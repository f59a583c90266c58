"""What a summary still tells: unwritable is not uninferable.

    python -m bench.tells --work FOLDER [--figure attributes linkage same_wants accumulation entropy] [--seed 0]
        [--json FILE]

Reads what ``bench.tells_write`` left in FOLDER. ``attributes``: what summaries tell of age group, job, place and health
that no preference says, closed and open, beside the same attacker on the raw signals. ``linkage``: which of a hundred
people's other signals a summary belongs to. ``same_wants``: the training report's attacker, and a stronger one that has
the model, on two people who want the same. ``accumulation``: 50 summaries of one person against the last one.
``entropy``: how many different summaries there are. Intervals are 95%, over couples or people; some numbers are small.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.tells_attribute import attributes, couple, most, trained
from bench.tells_linkage import described, linkage, ranks, scored, table, weights
from bench.tells_personas import ATTRIBUTES
from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_training import attacker, probe
from popi_training.evaluate.journal import write_json
from popi_training.evaluate.metrics import difference, entry, wins
from popi_training.users import Want

Row = dict[str, Any]
PANEL = 100
PERSON = {"user", "wants", "signals", "text", "classes", "others", "poles", "facts"}
FIELDS = {"closed": PERSON, "open": PERSON, "long": PERSON | {"texts"}, "likelihood": {"couple", "signals", "others"}}
FIGURES = ("attributes", "linkage", "same_wants", "accumulation", "entropy")


def read(work: Path, name: str) -> list[Row]:
    """The rows of a file. Raises ConfigError where it is not there, not whole, or not of ``bench.tells_write``."""
    path = work / f"{name}.jsonl"
    try:
        rows: list[Row] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        if not rows or not all(FIELDS[name] <= row.keys() for row in rows):
            raise ValueError
        return rows
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}; python -m bench.tells_write makes it") from None
    except ValueError:
        raise ConfigError(f"{path} is empty, damaged or of another form") from None


def first(rows: Sequence[Row]) -> list[Row]:
    """Those who are the first of their couple."""
    return [row for row in rows if str(row["user"]).endswith(":one")]


def second(rows: Sequence[Row]) -> list[Row]:
    """The others."""
    return [row for row in rows if not str(row["user"]).endswith(":one")]


def all_attributes(work: Path, seed: int) -> dict[str, Any]:
    """Closed on everybody; closed, open and raw on the same people; what changed between closed and open."""
    closed, unmasked = read(work, "closed"), read(work, "open")
    users = {row["user"] for row in unmasked}
    same = [row for row in closed if row["user"] in users]
    texts = [(a["text"], b["text"]) for a, b in zip(same, unmasked, strict=True)]
    return {
        "people": len(closed), "people_open": len(unmasked), "closed": attributes(closed, "text", seed),
        "raw": attributes(closed, "signals", seed), "closed_same_people": attributes(same, "text", seed),
        "open": attributes(unmasked, "text", seed), "told": attributes(closed, "told", seed),
        "open_differs": sum(a != b for a, b in texts),
    }  # fmt: skip


def all_linkage(work: Path, seed: int) -> dict[str, Any]:
    """Panels of a hundred: the first of the couples, and the others. Open: the first, and the others as closed, whom
    ``learnt`` has learnt from; so what is reported of open is the first panel alone, beside the same panel closed."""
    closed, unmasked = read(work, "closed"), read(work, "open")
    one, other = first(closed)[:PANEL], second(closed)[:PANEL]
    found = {"closed": linkage([one, other], seed)}
    teacher = weights(table([[row["text"]] for row in other], other, other))
    for name, panel in (("closed_same_people", one), ("open", unmasked[:PANEL])):
        features = table([[row["text"]] for row in panel], panel, panel)
        names = [str(row["user"]) for row in panel]
        found[name] = {
            who: described(*ranks(scores, range(len(panel))), names, seed)
            for who, scores in scored(features, teacher).items()
        } | {"of": len(panel), "chance": 1 / len(panel)}
    return found


def same_wants(work: Path, seed: int) -> dict[str, Any]:
    """Two people who want the same: whose summary is it? By words (``popi_training.attacker``), and by the model: the
    likelier signals, those it was made of or others of the same person. Ties count ½."""
    found: dict[str, Any] = {}
    for name in ("closed", "open"):
        lines = attacker.read(work / f"{name}.jsonl")
        with_wants = {}
        if name == "closed":
            with_wants["same_wants"] = attacker.guess([x for x in lines if x.text.strip()], seed, same_wants=True)
        found[name] = with_wants | {"all": attacker.guess([x for x in lines if x.text.strip()], seed)}
    rows = read(work, "likelihood")
    for which in ("signals", "others"):
        values = np.array([row[which] for row in rows], np.float64)  # [couples, whose signals, whose summary]
        right = [wins(values[:, k, k], values[:, 1 - k, k]) for k in (0, 1)]
        names = [str(row["couple"]) for row in rows]
        found[f"model_{which}"] = entry(np.mean(right, axis=0), names, seed) | {"couples": len(rows)}
    both = _paired(read(work, "closed"))
    found["same_text"] = {"couples": len(both), "same": sum(a["text"] == b["text"] for a, b in both)}
    return found


def _paired(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(couple(row), []).append(row)
    return [(some[0], some[1]) for some in by.values() if len(some) == 2]


def accumulation(work: Path, seed: int) -> dict[str, Any]:
    """The last summary of one person against all of them: linkage among a hundred (the person and 99 others), attribute
    inference by an attacker who learnt from the couples, and preferences named."""
    people, closed = read(work, "long"), read(work, "closed")
    reads = {"last": [[p["texts"][-1]] for p in people],
             "all": [[t for t in p["texts"] if t] or [""] for p in people]}  # fmt: skip
    names = [str(p["user"]) for p in people]
    truth = np.array([[p["classes"][a] for a in ATTRIBUTES] for p in people])
    most_have = np.array([most([row["classes"][a] for row in closed]) for a in ATTRIBUTES])
    right = {n: (trained(closed, texts) == truth).mean(1) for n, texts in reads.items()}
    return {
        "people": len(people), "updates": len(people[0]["texts"]),
        "different_texts": [len(set(t)) for t in reads["all"]],
        "named": {n: _named(people, texts) for n, texts in reads.items()},
        "linkage": _linked(people, closed, reads, names, seed),
        "attributes": {
            **{n: entry(r, names, seed) for n, r in right.items()},
            "guess": entry((truth == most_have).mean(1), names, seed),
            "more": difference(right["all"] - right["last"], names, seed=seed),
        },
    }  # fmt: skip


def _linked(
    people: Sequence[Row], closed: Sequence[Row], reads: Mapping[str, Sequence[Sequence[str]]], names: Sequence[str],
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """By attacker: rank-1 accuracy by the last summary, by all, and the difference."""
    others, teachers = first(closed)[: PANEL - 1], second(closed)[:PANEL]
    learnt = weights(table([[row["text"]] for row in teachers], teachers, teachers))
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, texts in reads.items():
        for person, some in zip(people, texts, strict=True):
            for who, scores in scored(table([some], [person, *others], others), learnt).items():
                rank, chance = ranks(scores, [0])
                found.setdefault(who, {}).setdefault(name, []).append((float(rank[0]), float(chance[0])))
    out: dict[str, Any] = {}
    for who, by in found.items():
        values = {n: np.array(v) for n, v in by.items()}
        out[who] = {n: described(v[:, 0], v[:, 1], names, seed) for n, v in values.items()}
        out[who]["more"] = difference(values["all"][:, 1] - values["last"][:, 1], names, seed=seed)
    return out


def _named(people: Sequence[Row], texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """Preferences of a person that the texts name, and others that they name, on average."""
    right, wrong = [], []
    for p, some in zip(people, texts, strict=True):
        said = {w for t in some if t for w in probe.fitted().poles(t)}
        wants = {Want(d, pole) for d, pole in p["poles"]}
        right.append(len(said & wants))
        wrong.append(len(said - wants))
    return {"right": float(np.mean(right)), "wrong": float(np.mean(wrong))}


def entropy(work: Path, seed: int) -> dict[str, Any]:
    """Closed and open: different texts, their entropy in bits as counted (too small, and never above log2 of the
    people), and the chance that the next person's is a new one (Good and Turing: texts seen once, over people)."""
    del seed
    out = {}
    for name in ("closed", "open"):
        counts = Counter(row["text"] for row in read(work, name) if row["text"])
        n = sum(counts.values())
        out[name] = {
            "people": n, "distinct": len(counts), "most_bits": round(math.log2(n), 3),
            "entropy_bits": round(-sum(c / n * math.log2(c / n) for c in counts.values()), 3),
            "new_next": round(sum(c == 1 for c in counts.values()) / n, 3),
        }  # fmt: skip
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--figure", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    figures = {"attributes": all_attributes, "linkage": all_linkage, "same_wants": same_wants,
               "accumulation": accumulation, "entropy": entropy}  # fmt: skip
    try:
        told = json.loads((args.work / "told.json").read_text("utf-8"))
        found = {"told": told, "seed": args.seed} | {name: figures[name](args.work, args.seed) for name in args.figure}
        if args.json:
            write_json(args.json, found)
    except (PopiError, OSError, ValueError) as e:
        print(f"bench.tells: {e}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    launch(main)
