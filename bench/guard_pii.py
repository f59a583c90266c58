"""Structured personal data and secrets: what the guard's patterns find, and what they take for it.

    python -m bench.guard_pii [--seed 0] [--missed]

Texts are made up (``bench.pii_values``, ``bench.pii_secrets``): 29 kinds of national id, phones of 18 countries,
accounts of 16, cards, addresses, keys, places; and look-alikes that are none of them (wrong check digits, dates,
orders, hashes, versions). ``found``: a structured finding covers most of the value; ``named``: of the right rule. A
look-alike with any structured finding is a false alarm. ``bare``: phones and ids again in sentences that do not say
what the number is, counted apart. ``spec``: the shared patterns alone, as in the default install; ``with_libraries``:
with what the extra ``guard`` adds. The guard's rules on digits and on the lexicon, which block nearly all of both, are
left out of these, and ``blocked_by_the_whole_guard`` is the share of the values' texts that all rules together block.
Prints JSON.

The patterns and these texts have one author: the figures say that the formats are known, not what is found elsewhere.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.pii_secrets import AROUND, BARE, ID_SAID, LOOKALIKES, PHONE_SAID, SAID
from bench.pii_values import BBAN, NATIONAL, PHONES, iban
from popi_edge.cli.common import launch
from popi_edge.guard import check
from popi_edge.guard.finding import Finding
from popi_edge.guard.structured import structured
from popi_edge.vocabulary import Lexicon

EACH = {"phone": 40, "iban": 30, "national_id": 45, "other": 120, "lookalike": 160, "bare": 10}
MOST = 0.6
"""Share of a value's characters that a finding must cover."""
Find = Callable[[str], list[Finding]]


@dataclass(frozen=True)
class Case:
    """A text with a value at ``start`` to ``end``; ``rule`` None: it only looks like personal data."""

    kind: str
    text: str
    rule: str | None = None
    start: int = 0
    end: int = 0


def told(kind: str, rule: str, form: str, value: str, name: str = "") -> Case:
    """A text that tells a value, and its name where the form has a place for that."""
    start = form.format("\0", kind=name).index("\0")
    return Case(kind, form.format(value, kind=name), rule, start, start + len(value))


def cases(seed: int) -> list[Case]:
    """All of them, each from a generator of its own."""
    made: list[Case] = []

    def rng(*name: object) -> random.Random:
        return random.Random(":".join(map(str, (seed, *name))))

    for country, phone in PHONES.items():
        for i in range(EACH["phone"]):
            r = rng("phone", country, i)
            made.append(told(f"phone {country}", "phone", r.choice(PHONE_SAID), phone(r)))
    for country in BBAN:
        for i in range(EACH["iban"]):
            r = rng("iban", country, i)
            said = r.choice(("IBAN {0}", "Please pay to {0}.", "Mein Konto: {0}", "{0}"))
            made.append(told(f"iban {country}", "iban", said, iban(country)(r)))
    for name, (kind, make) in NATIONAL.items():
        for i in range(EACH["national_id"]):
            r = rng("id", name, i)
            made.append(told(f"id {name}", "national_id", r.choice(ID_SAID), make(r), kind))
    for rule, (make, *forms) in SAID.items():
        for i in range(EACH["other"]):
            r = rng(rule, i)
            made.append(told(rule, rule, r.choice(forms), make(r)))
    for kind, look in LOOKALIKES.items():
        for i in range(EACH["lookalike"]):
            r = rng(kind, i)
            made.append(Case(f"not: {kind}", r.choice(AROUND).format(look(r))))
    return made


def bare(seed: int) -> list[Case]:
    """Phones and ids in sentences that do not say what they are."""
    makers = [("phone", f"phone {c}", m) for c, m in PHONES.items()]
    makers += [("national_id", f"id {n}", m) for n, (_, m) in NATIONAL.items()]
    made = []
    for rule, kind, make in makers:
        for i in range(EACH["bare"]):
            r = random.Random(f"{seed}:bare:{kind}:{i}")
            made.append(told(f"{kind} (bare)", rule, r.choice(BARE), make(r)))
    return made


def covered(case: Case, found: list[Finding]) -> list[Finding]:
    """The findings that cover most of the case's value."""
    return [
        f for f in found if min(f.end, case.end) - max(f.start, case.start) >= MOST * (case.end - case.start)
    ]


def measure(made: list[Case], find: Find) -> dict[str, Any]:
    """Recall and false alarms, in all and by kind; the texts that were missed or taken for what they are not."""
    rows: dict[str, dict[str, int]] = {}
    wrong: list[str] = []
    for case in made:
        hits = find(case.text)
        if case.rule is None:
            row = rows.setdefault(case.kind, {"texts": 0, "false_alarms": 0})
            row["false_alarms"] += bool(hits)
            wrong += [f"{hits[0].rule} by {hits[0].by}: {case.text}"] if hits else []
        else:
            row = rows.setdefault(case.kind, {"texts": 0, "found": 0, "named": 0})
            over = covered(case, hits)
            row["found"] += bool(over)
            row["named"] += any(f.rule == case.rule for f in over)
            wrong += [] if over else [f"missed {case.kind}: {case.text}"]
        row["texts"] += 1
    true = [r for r in rows.values() if "found" in r]
    false = [r for r in rows.values() if "false_alarms" in r]
    return {
        "recall": round(sum(r["found"] for r in true) / sum(r["texts"] for r in true), 4),
        "named": round(sum(r["named"] for r in true) / sum(r["texts"] for r in true), 4),
        "false_alarms": round(sum(r["false_alarms"] for r in false) / max(1, sum(r["texts"] for r in false)), 4),
        "texts": sum(r["texts"] for r in true), "look_alikes": sum(r["texts"] for r in false),
        "by_kind": rows, "wrong": wrong,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--missed", action="store_true", help="list what was missed or wrongly found")
    options = parser.parse_args()
    made = cases(options.seed)
    ways: dict[str, Find] = {
        "spec": lambda text: structured(text, libraries=False),
        "with_libraries": lambda text: structured(text, libraries=True),
    }
    lexicon = Lexicon.load()
    values = [case.text for case in made if case.rule is not None]
    blocked = sum(bool(check(text, (), lexicon)) for text in values)
    result: dict[str, Any] = {"seed": options.seed, "cases": len(made)}
    result["blocked_by_the_whole_guard"] = round(blocked / len(values), 4)
    for name, find in ways.items():
        figures = measure(made, find)
        figures["bare"] = {k: v for k, v in measure(bare(options.seed), find).items() if k in ("recall", "texts")}
        result[name] = figures if options.missed else {k: v for k, v in figures.items() if k != "wrong"}
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    launch(main)
