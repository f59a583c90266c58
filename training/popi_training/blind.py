"""The blind check of the corpus: readers who did not write it name the pole of a reply from the reply alone.

    python -m popi_training.blind sheets OUT [--heldout | --wide]    question sheets: what a reader sees, nothing else
    python -m popi_training.blind score [--heldout | --wide]         agreement by dimension from the committed guesses

Two questions. ``choice``: one reply of every pair, drawn by seed, and the dimension's two poles. ``open``: the other
reply of ten pairs a dimension, and only the list of all dimensions; up to three poles, the most evident first. An
item's number says nothing of its pair: it is a salted hash. The readers saw neither prompt nor other reply nor
phrasings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_training.corpus import FOLDER, Corpus, lines, load

SEED = 20261124
OPEN_PAIRS = 10
AGREEMENT = 0.9
GUESSES = {
    "": "blind/guesses.jsonl", "--heldout": "blind/guesses-heldout.jsonl", "--wide": "blind/guesses-wide.jsonl",
}  # fmt: skip
"""Part of the corpus → what its readers said."""


@dataclass(frozen=True)
class Item:
    """One question: a reply, the poles to choose from (both of its dimension, or none named), and the answer."""

    id: str
    kind: str
    dimension: str
    text: str
    poles: tuple[str, str]
    answer: str

    @property
    def answers(self) -> set[str]:
        """The pole, and the pole with its dimension, as an open answer names it."""
        return {self.answer, f"{self.dimension}:{self.answer}"} if self.kind == "choice" else {
            f"{self.dimension}:{self.answer}"
        }


def items(corpus: Corpus, seed: int = SEED) -> list[Item]:
    """Every question, in an order drawn by ``seed``; a rewritten reply is another question with another id."""
    out: list[Item] = []
    asked: dict[str, int] = defaultdict(int)
    for pair in corpus.pairs:
        rng = random.Random(f"{seed}:{pair.id}")
        poles = sorted(pair.replies)
        rng.shuffle(poles)
        shown, other = rng.sample(poles, 2)
        out.append(_item("choice", pair.dimension, pair.replies[shown], poles, shown))
        if asked[pair.dimension] < OPEN_PAIRS:
            asked[pair.dimension] += 1
            out.append(_item("open", pair.dimension, pair.replies[other], poles, other))
    random.Random(seed).shuffle(out)
    return out


def _item(kind: str, dimension: str, text: str, poles: list[str], answer: str) -> Item:
    name = hashlib.sha256(f"{SEED}:{kind}:{dimension}:{text}".encode()).hexdigest()[:10]
    return Item(name, kind, dimension, text, (poles[0], poles[1]), answer)


def sheets(corpus: Corpus, out: Path, parts: int = 4) -> None:
    """Write the readers' sheets: ``choice-1.jsonl`` … and ``open-1.jsonl`` …, and the list of dimensions."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "dimensions.txt").write_text(listing(corpus), "utf-8")
    for kind, n in (("choice", parts), ("open", 1)):
        asked = [i for i in items(corpus) if i.kind == kind]
        for part in range(n):
            rows = [_shown(i) for i in asked[part::n]]
            text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
            (out / f"{kind}-{part + 1}.jsonl").write_text(text, "utf-8")


def listing(corpus: Corpus) -> str:
    """The list of dimensions as a reader sees it: what each is about, and the names of its poles."""
    return "".join(f"{d.id}: {d.about} [{' | '.join(sorted(d.poles))}]\n" for d in corpus.dimensions.values())


def _shown(item: Item) -> dict[str, object]:
    choice = {"dimension": item.dimension, "poles": list(item.poles)} if item.kind == "choice" else {}
    return {"id": item.id, **choice, "reply": item.text}


def read_guesses(path: Path) -> dict[str, list[str]]:
    """Item id → the poles guessed, the first one first. Raises ConfigError naming file and line."""
    out: dict[str, list[str]] = {}
    for where, row in lines(path):
        guess = row.get("guess")
        if not isinstance(row.get("id"), str) or not isinstance(guess, list) or not guess:
            raise ConfigError(f"{where}: a guess needs an id and a list of poles")
        if row["id"] in out:
            raise ConfigError(f"{where}: {row['id']} is guessed twice")
        out[row["id"]] = [str(g) for g in guess]
    return out


def agreement(corpus: Corpus, guesses: dict[str, list[str]], kind: str) -> dict[str, tuple[int, int, int]]:
    """By dimension (asked and answered, right at first, right among the first three)."""
    counts: dict[str, list[int]] = {d: [0, 0, 0] for d in corpus.dimensions}
    for item in items(corpus):
        if item.kind == kind and item.id in guesses:
            guess = guesses[item.id][:3]
            count = counts[item.dimension]
            count[0] += 1
            count[1] += guess[0] in item.answers
            count[2] += bool(item.answers & set(guess))
    return {d: (c[0], c[1], c[2]) for d, c in counts.items()}


def missed(corpus: Corpus, guesses: dict[str, list[str]]) -> list[Item]:
    """``choice`` items whose pole was not named: to be rewritten."""
    return [i for i in items(corpus) if i.kind == "choice" and i.id in guesses and guesses[i.id][0] not in i.answers]


def read_part(part: str) -> Corpus:
    """The corpus, or with ``--heldout`` or ``--wide`` that part of it. Raises ConfigError."""
    corpus = load(heldout=part == "--heldout", wide=part == "--wide")
    if part == "--wide":
        whole = {pair.id for pair in load().pairs}
        corpus.pairs = [pair for pair in corpus.pairs if pair.id not in whole]
        asked = {pair.dimension for pair in corpus.pairs}
        corpus.dimensions = {name: d for name, d in corpus.dimensions.items() if name in asked}
    return corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (commands.add_parser("sheets"), commands.add_parser("score")):
        parts = command.add_mutually_exclusive_group()
        for name in filter(None, GUESSES):
            parts.add_argument(name, dest="part", action="store_const", const=name, default="")
    commands.choices["sheets"].add_argument("out", type=Path)
    options = parser.parse_args()
    try:
        corpus = read_part(options.part)
        if options.command == "sheets":
            sheets(corpus, options.out, parts=1 if options.part == "--heldout" else 4)
        else:
            _score(corpus, FOLDER / GUESSES[options.part])
    except (PopiError, OSError) as e:
        sys.exit(f"blind: {e}")


def _score(corpus: Corpus, path: Path) -> None:
    guesses = read_guesses(path)
    choice, free = (agreement(corpus, guesses, kind) for kind in ("choice", "open"))
    print(f"{'dimension':<18}{'choice':>14}{'open, first':>14}{'open, of three':>16}")
    for name in corpus.dimensions:
        (n, right, _), (m, first, three) = choice[name], free[name]
        print(f"{name:<18}{right:>8} of {n:<3}{first:>8} of {m:<3}{three:>10} of {m:<3}")
    low = [d for d, (n, right, _) in choice.items() if n and right < AGREEMENT * n]
    unread = sum(i.kind == "choice" and i.id not in guesses for i in items(corpus))
    print(f"not read yet: {unread}")
    if low:
        sys.exit(f"blind: agreement below {AGREEMENT}: {', '.join(low)}")


if __name__ == "__main__":
    launch(main)
