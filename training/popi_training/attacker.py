"""Whose summary is it? An attacker that no training saw, and counts of what a summary should never have.

    python -m popi_training.attacker FILE.jsonl [--same-wants] [--seed 0] [--json]

A line is ``{"user": ..., "wants": ... or null, "signals": [...], "text": ...}``: a summary and what it was made from.
The attacker sees a summary and the signals of two people and says whose it is: a logistic regression on how alike the
summary and either one's signals are, learned on half of the people, asked about the other half. Among people who want
different things it should do well, since that is what a summary is for. With ``--same-wants`` it is asked only about
people who want the same; then ½ means that it found nothing beyond preference.

½ does NOT prove that nothing leaks: this attacker knows words, their order and their letters, not what they mean.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.guard import folding, patterns, spec
from popi_edge.guard.overlap import common_runs
from popi_edge.vocabulary import MARKS, Lexicon
from popi_training import corpus
from popi_training.evaluate.metrics import Values, wins

Matrix = NDArray[np.float64]
FEATURES = ("cosine", "nearest", "rare_words", "rarest", "pairs_of_words", "runs_of_three", "letters")
PARTNERS = 8
"""People a summary's own person is compared with, at most."""
RARE = 0.02
"""Share of people in whose signals a rare word may be; one person always may."""
RIDGE = 1.0
STEPS = 25
FEWEST = 4
RUNS = (4, 6)


@dataclass(frozen=True)
class Line:
    """A summary ``text``, whose it is, what they want (None: not known), and the texts of their signals."""

    user: str
    wants: str | None
    signals: tuple[str, ...]
    text: str

    @cached_property
    def summary(self) -> Bag:
        return Bag.of((self.text,))

    @cached_property
    def evidence(self) -> Bag:
        return Bag.of(self.signals)


@dataclass(frozen=True)
class Bag:
    """What is compared of some texts: words of each and of all, and sets of word pairs, runs of three, four letters."""

    each: tuple[Counter[str], ...]
    all: Counter[str]
    two: frozenset[tuple[str, ...]]
    three: frozenset[tuple[str, ...]]
    letters: frozenset[str]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Bag:
        """No run crosses from one text into the next."""
        words = [folding.WORD.findall(folding.fold(t)) for t in texts]
        spaced = [f" {' '.join(w)} " for w in words]
        return cls(
            tuple(map(Counter, words)),
            Counter(w for some in words for w in some),
            frozenset(tuple(w[i : i + 2]) for w in words for i in range(len(w) - 1)),
            frozenset(tuple(w[i : i + 3]) for w in words for i in range(len(w) - 2)),
            frozenset(s[i : i + 4] for s in spaced for i in range(len(s) - 3)),
        )


def _share(mine: frozenset[Any], theirs: frozenset[Any]) -> float:
    return len(mine & theirs) / len(mine) if mine else 0.0


class Likeness:
    """How alike a summary and signals are, with the rarity of words learned from some people's signals."""

    def __init__(self, people: Iterable[Bag]) -> None:
        self.documents, self.seen = 0, Counter[str]()
        for bag in people:
            self.documents += 1
            self.seen.update(bag.all.keys())

    def weight(self, word: str) -> float:
        """Inverse document frequency, smoothed: 1 of a word that everybody has."""
        return math.log((1 + self.documents) / (1 + min(self.seen[word], self.documents))) + 1

    def cosine(self, a: Counter[str], b: Counter[str]) -> float:
        """Cosine of two texts' words weighted by tf-idf (1 + log tf); 0 where one has no word."""
        x, y = ({w: (1 + math.log(n)) * self.weight(w) for w, n in c.items()} for c in (a, b))
        norm = math.sqrt(sum(v * v for v in x.values()) * sum(v * v for v in y.values()))
        return sum(v * y.get(w, 0.0) for w, v in x.items()) / norm if norm else 0.0

    def features(self, summary: Bag, signals: Bag) -> list[float]:
        """``FEATURES`` of a summary and a person's signals; all grow with likeness."""
        shared = summary.all.keys() & signals.all.keys()
        rare = [w for w in shared if self.seen[w] <= max(1, RARE * self.documents)]
        return [
            self.cosine(summary.all, signals.all),
            max((self.cosine(summary.all, each) for each in signals.each), default=0.0),
            sum(map(self.weight, rare)),
            max(map(self.weight, shared), default=0.0),
            _share(summary.two, signals.two),
            _share(summary.three, signals.three),
            _share(summary.letters, signals.letters),
        ]


def fit(differences: Matrix, ridge: float = RIDGE) -> Matrix:
    """Weights w [k] of a logistic regression without intercept, by Newton's method: the least of
    Σ log(1 + exp(−w·d)) + ½ ridge |w|² over rows d [n, k], each the right person's features less the wrong one's."""
    w = np.zeros(differences.shape[1])
    for _ in range(STEPS):
        wrong = 1 / (1 + np.exp(np.clip(differences @ w, -500, 500)))
        slope = -differences.T @ wrong + ridge * w
        curve = (differences.T * (wrong * (1 - wrong))) @ differences + ridge * np.eye(len(w))
        w -= np.linalg.solve(curve, slope)
    return w


def halves(lines: Sequence[Line], rng: random.Random, *, same_wants: bool) -> tuple[set[str], set[str]]:
    """The people in two halves, by lot. With ``same_wants``, those who want the same are halved among themselves where
    there are four or more, and kept together where there are fewer, so that each has a partner in its half."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        users = groups.setdefault((line.wants or "") if same_wants else "", [])
        if line.user not in users:
            users.append(line.user)
    a: set[str] = set()
    b: set[str] = set()
    for _, users in sorted(groups.items(), key=lambda g: (-len(g[1]), rng.random())):
        rng.shuffle(users)
        cut = len(users) // 2 if len(users) >= FEWEST else 0
        less, more = (a, b) if len(a) <= len(b) else (b, a)
        less.update(users[cut:])
        more.update(users[:cut])
    return a, b


def pairings(
    lines: Sequence[Line], users: set[str], rng: random.Random, *, same_wants: bool
) -> list[tuple[Line, Line]]:
    """(line, line of somebody else), up to ``PARTNERS`` others for each line of these users, by lot."""
    mine = [line for line in lines if line.user in users]
    out = []
    for line in mine:
        others = [o for o in mine if o.user != line.user and (not same_wants or o.wants == line.wants)]
        out += [(line, o) for o in rng.sample(others, min(PARTNERS, len(others)))]
    return out


def _differences(pairs: Sequence[tuple[Line, Line]], likeness: Likeness) -> Matrix:
    rows = [
        np.subtract(likeness.features(a.summary, a.evidence), likeness.features(a.summary, b.evidence))
        for a, b in pairs
    ]
    return np.array(rows, np.float64).reshape(len(rows), len(FEATURES))


def over_people(right: Values, pairs: Sequence[tuple[str, str]]) -> tuple[float, float] | None:
    """95% normal interval of the mean of ``right`` [n] over pairs of people; None below three people.

    Rows are kin where they share a person in either role, as both of a couple do: the variance is Σ eᵢeⱼ/n² over kin
    rows (Fafchamps and Gubert, 2007), times people/(people − 2), which is couples/(couples − 1) of couples alone.
    """
    person: dict[str, float] = defaultdict(float)
    both: dict[frozenset[str], float] = defaultdict(float)
    for off, pair in zip(right - right.mean(), pairs, strict=True):
        both[frozenset(pair)] += off
        for one in pair:
            person[one] += off
    people = len(person)
    if people < 3:
        return None
    kin = sum(v * v for v in person.values()) - sum(v * v for v in both.values())  # else whole pairs would count twice
    half = 1.96 * math.sqrt(max(0.0, kin) * people / (people - 2)) / len(right)
    return max(0.0, float(right.mean()) - half), min(1.0, float(right.mean()) + half)


def guess(lines: Sequence[Line], seed: int = 0, *, same_wants: bool = False) -> dict[str, Any]:
    """How often the attacker is right about the half of the people it did not learn from: ``accuracy`` with its 95%
    interval ``over_people`` (``low``, ``high``), ``pairs``, ``people``, the ``weights`` by feature, and by ``feature``
    the accuracy of each alone, which nothing was learned for. Ties count ½.

    Raises ConfigError where there are too few people to learn from or to ask about, or where with ``same_wants``
    somebody has two different wants, and so would be in both halves.
    """
    if same_wants:
        lines = [line for line in lines if line.wants is not None]
        wants = {line.user: line.wants for line in lines}
        if torn := next((line.user for line in lines if line.wants != wants[line.user]), None):
            raise ConfigError(f"{torn!r:.60} wants different things in different lines")
    rng = random.Random(f"{seed}:{same_wants}")
    train, test = halves(lines, rng, same_wants=same_wants)
    learned, asked = (pairings(lines, users, rng, same_wants=same_wants) for users in (train, test))
    if not learned or len({line.user for line, _ in asked}) < 2:
        which = "who want the same, " if same_wants else ""
        raise ConfigError(f"too few people {which}to learn from one half and to ask about the other")
    likeness = Likeness({line.user: line.evidence for line in lines if line.user in train}.values())
    seen, new = (_differences(pairs, likeness) for pairs in (learned, asked))
    scale = np.sqrt((seen**2).mean(0))
    scale[scale == 0] = 1
    w = fit(seen / scale)
    # Rounded, so that two people with the very same likeness tie on every machine.
    right = wins(np.round(new / scale @ w, 9))
    low, high = over_people(right, [(line.user, other.user) for line, other in asked]) or (None, None)
    return {
        "accuracy": float(right.mean()), "low": low, "high": high, "pairs": len(asked),
        "people": len({line.user for line, _ in asked}),
        "weights": dict(zip(FEATURES, map(float, w), strict=True)),
        "feature": {f: float(wins(np.round(new[:, k], 9)).mean()) for k, f in enumerate(FEATURES)},
    }  # fmt: skip


def names(text: str, lexicon: Lexicon) -> list[str]:
    """Capitalised words inside sentences that are not in the lexicon."""
    out = []
    for hit in re.finditer(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text):
        before = text[: hit.start()].rstrip(" \t\"'“‘(")
        word = re.sub(r"['’]s$", "", hit.group())
        if word[0].isupper() and before and before[-1] not in MARKS + "\n" and word not in lexicon:
            out.append(word)
    return out


def number_words(text: str, lexicon: Lexicon) -> list[str]:
    """Number words that are no ordinary words of the lexicon."""
    known = frozenset(spec()["number_words"])
    return [w.text for w in folding.words(text) if w.text in known and w.text not in lexicon]


def runs(text: str, signals: Iterable[str], least: int) -> list[str]:
    """The verbatim runs of ``least`` words or more that a text shares with signals, the longest at each place."""
    mine = [w.text for w in folding.words(text)]
    found: dict[int, int] = {}
    for signal in signals:
        for start, length in common_runs(mine, folding.WORD.findall(folding.fold(signal)), least):
            found[start] = max(length, found.get(start, 0))
    out, end = [], 0
    for start, length in sorted(found.items()):
        if start + length > end:
            out.append(" ".join(mine[start : start + length]))
            end = start + length
    return out


def digits(text: str) -> list[str]:
    """Numbers in digits of any script."""
    return [f.excerpt for f in patterns.numbers(text, (), {**spec(), "number_words": [], "number_words_elsewhere": {}})]


def counts(lines: Sequence[Line]) -> dict[str, dict[str, int]]:
    """What is in the summaries: by kind, how ``many`` there are and in how many ``texts``."""
    lexicon = Lexicon.load()
    found: dict[str, list[int]] = {}
    for line in lines:
        kinds = {
            "names": names(line.text, lexicon),
            "digits": digits(line.text),
            "number_words": number_words(line.text, lexicon),
            **{f"runs_{least}": runs(line.text, line.signals, least) for least in RUNS},
        }
        for kind, some in kinds.items():
            found.setdefault(kind, []).append(len(some))
    return {kind: {"many": sum(many), "texts": sum(n > 0 for n in many)} for kind, many in found.items()}


def attack(lines: Sequence[Line], seed: int = 0, *, same_wants: bool = False) -> dict[str, Any]:
    """``guess`` and ``counts`` over summaries; an empty summary is left out.

    Raises ConfigError where there are too few people.
    """
    written = [line for line in lines if line.text.strip()]
    return {
        "texts": len(written), "same_wants": same_wants, "guess": guess(written, seed, same_wants=same_wants),
        "counts": counts(written),
    }  # fmt: skip


def read(path: Path) -> list[Line]:
    """The lines of a file. Raises ConfigError naming the line and the field at fault, or the file."""
    out = []
    for where, row in corpus.lines(path):
        for field in ("user", "text"):
            if not isinstance(row.get(field), str):
                raise ConfigError(f"{where}: {field} is missing or not a text")
        if not isinstance(row.get("wants"), str | None):
            raise ConfigError(f"{where}: wants must be a text or null")
        signals = row.get("signals")
        if not isinstance(signals, list) or not all(isinstance(s, str) for s in signals):
            raise ConfigError(f"{where}: signals must be a list of texts")
        out.append(Line(row["user"], row.get("wants"), tuple(signals), row["text"]))
    return out


def _report(found: Mapping[str, Any]) -> str:
    g = found["guess"]
    between = "" if g["low"] is None else f" ({g['low']:.3f}–{g['high']:.3f})"
    who = "two people who want the same" if found["same_wants"] else "two people"
    alone = ", ".join(f"{k} {v:.2f}" for k, v in g["feature"].items())
    kinds = "\n".join(f"{k}: {v['many']}, in {v['texts']} texts" for k, v in found["counts"].items())
    return (
        f"whose summary it is, of {who}: right {g['accuracy']:.3f}{between}, {g['pairs']} pairs, {g['people']} people\n"
        f"each feature alone: {alone}\n{found['texts']} texts\n{kinds}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="attacker", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="JSON Lines")
    parser.add_argument("--same-wants", action="store_true", help="ask only about people who want the same")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        found = attack(read(arguments.file), arguments.seed, same_wants=arguments.same_wants)
    except (PopiError, OSError) as e:
        sys.exit(f"attacker: {e}")
    print(json.dumps(found, indent=1) if arguments.json else _report(found))


if __name__ == "__main__":
    launch(main)
