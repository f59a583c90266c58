"""Injected secrets in summaries that an attacker made: how many arrive with the guard off, and how many with it on.

    python -m bench.guard_attacks [--seed 0]

900 secrets, each in a signal among a dozen ordinary ones of the same person, are carried by 55 styles
(``bench.attack_styles``): 300 are made of ordinary words alone, 600 are names, places, passwords, cards, phone numbers
and codes. A secret counts as past when the summary passes and its receiver reads the secret in it. ``lexicon`` is
what the closed vocabulary alone would let be written (words, not form), ``rules`` is the guard without its lexicon
rule. The styles of ``bench.attack_beyond`` are counted apart, and so is ``later``: the sentences of
``bench.attack_later``, which the rules were not made with. Prints JSON. Secrets, styles and summaries are made up.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable
from typing import Any

from bench import attack_later
from bench.attack_beyond import BEYOND
from bench.attack_secrets import Secret, digits, letters, ordinary
from bench.attack_styles import SIGNS, WORDS, Style
from popi_edge.cli.common import launch
from popi_edge.guard import SignalText, check
from popi_edge.vocabulary import Lexicon
from popi_training import corpus, users

EACH = {"words": 20, "signs": 15, "beyond": 20}
AROUND = 12
Case = tuple[Style, Secret, str]


def secret_for(style: Style, rng: random.Random, i: int) -> Secret:
    """The i-th secret that a style is tried on."""
    makers: dict[str, Callable[[], Secret]] = {
        "words": lambda: ordinary(rng, i),
        "letters": lambda: letters(rng, i),
        "digits": lambda: digits(rng, i),
        "any": lambda: (letters if i % 2 else digits)(rng, i // 2),
        "third": lambda: ordinary(rng, 0),
        "health": lambda: ordinary(rng, 1),
        "code": lambda: digits(rng, 2),
    }
    return makers[style.fits]()


def cases(styles: Iterable[Style], seed: int) -> list[Case]:
    """(style, secret, summary), each drawn from a generator of its own."""
    made = []
    for style in styles:
        for i in range(EACH[style.group]):
            rng = random.Random(f"{seed}:{style.group}:{style.name}:{i}")
            secret = secret_for(style, rng, i)
            made.append((style, secret, style.write(secret.payload, rng)))
    return made


def around(seed: int) -> list[SignalText]:
    """Texts of ordinary signals for the secret to stand among."""
    person = users.draw(f"attacked:{seed}", users.Material(corpus.load()), users.Mix(silent=0, most=AROUND), wants=None)
    return [(s.id, t) for s in person.signals for t in s.texts()]


def judge(made: Iterable[Case], seed: int) -> dict[str, dict[str, int]]:
    """By style: secrets, those that arrive unguarded (``off``), and those that arrive past each part of the guard."""
    lexicon, others, counted = Lexicon.load(), around(seed), dict[str, dict[str, int]]()
    for style, secret, text in made:
        row = counted.setdefault(
            f"{style.group}: {style.name}", dict.fromkeys(("secrets", "off", "lexicon", "rules", "on"), 0)
        )
        row["secrets"] += 1
        if not style.arrived(secret.payload, text):
            continue
        found = {f.rule for f in check(text, [*others[:5], ("the-secret", secret.signal), *others[5:]], lexicon)}
        row["off"] += 1
        row["lexicon"] += "lexicon" not in found
        row["rules"] += not found - {"lexicon"}
        row["on"] += not found
    return counted


def total(counted: dict[str, dict[str, int]]) -> dict[str, int]:
    """The sums over styles."""
    return {k: sum(row[k] for row in counted.values()) for k in ("secrets", "off", "lexicon", "rules", "on")}


def kinds(made: Iterable[Case], seed: int) -> dict[str, dict[str, int]]:
    """``judge``, summed by kind of secret."""
    by: dict[str, list[Case]] = {}
    for case in made:
        by.setdefault(case[1].kind, []).append(case)
    return {kind: total(judge(some, seed)) for kind, some in sorted(by.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    carried, beyond = cases((*WORDS, *SIGNS), seed), cases(BEYOND, seed)
    by_style, apart = judge(carried, seed), judge(beyond, seed)
    later = {name: judge(attack_later.cases(name, seed), seed) for name in attack_later.LATER}
    result: dict[str, Any] = {
        "seed": seed,
        "styles": len(by_style),
        "carried": total(by_style),
        "ordinary_words_only": sum(s.group == "words" for s, _, _ in carried),
        "past": [name for name, row in by_style.items() if row["on"]],
        "by_style": by_style,
        "by_kind": kinds(carried, seed),
        "beyond": {"total": total(apart), "by_style": apart},
        "later": {name: {"total": total(rows), "by_style": rows} for name, rows in later.items()},
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    launch(main)
