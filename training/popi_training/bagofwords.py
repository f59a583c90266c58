"""An eye that shares nothing with the writers': how far single words give a reply's pole away.

    python -m popi_training.bagofwords       accuracy by dimension, in seconds

Multinomial naive Bayes over the words, punctuation and line breaks of one reply, each counted once; numbers count as
one word and emoji as another, and the reply's length in steps of 15 words is one more. For each prompt the classifier
learns from the replies to all other prompts of the dimension. Three more figures stand beside it: ``equal``, the same
with no length and with bags of one size (as many tokens of either reply, drawn by seed, as the shorter has);
``longer``, the share of pairs in which the pole that is usually the longer one is so (in words; 0.50 or more, since
the pole is chosen on the same pairs); ``held out``, learned from the training part, asked about replies written apart.

A low figure does not mean that a reply fails its pole: an order of sentences needs no word of its own, and what a
reply leaves out (emoji, a question back) says nothing to this classifier. Nothing in it was tuned on the corpus.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_training.corpus import Corpus, Pair, load, words
from popi_training.evaluate.metrics import interval, wins

SEED = 20261124
STEP = 15
SMOOTHING = 1.0
TOKEN = re.compile(r"(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)*)|(?P<number>\d+)|(?P<other>\n|[^\w\s]|_)")
BEYOND = 0x2300
"""Symbols from here on are emoji (and clocks, ticks and boxes), all one token: hardly one of them comes twice."""
JOINERS = "\ufe0f\u200d"

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """Accuracy over both replies of every pair, with its 95% interval clustered by prompt (None of one prompt)."""

    right: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Result:
    """One dimension. ``held`` is None without a held-out part."""

    full: Score
    equal: Score
    longer: Score
    held: Score | None


def tokens(text: str) -> list[str]:
    """Words in lower case, marks and line breaks as they are, ``0`` for a number, ``☺`` for an emoji."""
    out = []
    for match in TOKEN.finditer(text):
        found = match[0]
        if match.lastgroup == "number":
            out.append("0")
        elif match.lastgroup == "word":
            out.append(found.lower().replace("’", "'"))
        elif found not in JOINERS:
            out.append("☺" if ord(found) >= BEYOND else found)
    return out


def bag(text: str) -> set[str]:
    """What the classifier sees of a reply: its tokens, each once, and its length in steps."""
    return {*tokens(text), f"length {words(text) // STEP}"}


def equal_bags(pair: Pair) -> list[set[str]]:
    """Bags of the two replies (in order of pole id) of one size and without length: tokens of the one with more are
    left out by lot."""
    found = [tokens(pair.replies[pole]) for pole in sorted(pair.replies)]
    size = min(map(len, found))
    rng = random.Random(f"{SEED}:{pair.id}")
    return [set(f if len(f) == size else rng.sample(f, size)) for f in found]


def _matrix(bags: Sequence[set[str]], vocabulary: dict[str, int]) -> Matrix:
    out = np.zeros((len(bags), len(vocabulary)))
    for row, found in enumerate(bags):
        out[row, [vocabulary[t] for t in found if t in vocabulary]] = 1
    return out


def _evidence(counts: Matrix) -> Matrix:
    """log p(token | second pole) − log p(token | first pole) [V], from counts [2, V]; 0 where neither has it."""
    seen = counts.sum(0) > 0
    smooth = np.where(seen, counts + SMOOTHING, 1.0)
    share = np.log(smooth) - np.log(np.where(seen, smooth, 0).sum(1, keepdims=True))
    return np.asarray(np.where(seen, share[1] - share[0], 0.0))


def classify(train: Sequence[set[str]], poles: Sequence[int], asked: Sequence[set[str]]) -> Matrix:
    """Evidence for the second pole (1 in ``poles``) over the first (0), for each bag of ``asked`` [n]; 0 is a tie."""
    vocabulary = {t: i for i, t in enumerate(sorted(set().union(*train)))}
    rows, labels = _matrix(train, vocabulary), np.asarray(poles)
    counts = np.stack([rows[labels == k].sum(0) for k in (0, 1)])
    # Rounded, so that the last bit of a sum does not decide on another machine.
    return np.asarray(np.round(_matrix(asked, vocabulary) @ _evidence(counts), 9))


def left_out(bags: Sequence[set[str]], poles: Sequence[int], prompts: Sequence[str]) -> Matrix:
    """1 where a bag's pole is found by what all other prompts teach, ½ at a tie, else 0 [n]."""
    right = np.zeros(len(bags))
    for prompt in sorted(set(prompts)):
        inside = [i for i, p in enumerate(prompts) if p == prompt]
        other = [i for i, p in enumerate(prompts) if p != prompt]
        said = classify([bags[i] for i in other], [poles[i] for i in other], [bags[i] for i in inside])
        right[inside] = wins(said * np.array([2 * poles[i] - 1 for i in inside]))
    return right


def longer(pairs: Sequence[Pair]) -> Matrix:
    """1 where the pole that is the longer one more often is so in this pair too, ½ at a tie, else 0 [n]."""
    lengths = [[words(pair.replies[pole]) for pole in sorted(pair.replies)] for pair in pairs]
    first = wins([a for a, _ in lengths], np.array([b for _, b in lengths], np.float64))
    return first if first.mean() >= 0.5 else 1 - first


def _score(values: Matrix, prompts: Sequence[str]) -> Score:
    low, high = interval(values, prompts) or (None, None)
    return Score(float(values.mean()), low, high)


def measure(corpus: Corpus, heldout: Corpus | None = None) -> dict[str, Result]:
    """By dimension. Raises ConfigError for one that has not two poles, or not pairs of two prompts."""
    out = {}
    for name, dimension in corpus.dimensions.items():
        pairs = [p for p in corpus.pairs if p.dimension == name]
        if len(dimension.poles) != 2 or len({p.prompt for p in pairs}) < 2:
            raise ConfigError(f"{name}: this check needs two poles, and pairs of two prompts or more")
        out[name] = _dimension(pairs, [p for p in heldout.pairs if p.dimension == name] if heldout else [])
    return out


def _dimension(pairs: Sequence[Pair], apart: Sequence[Pair]) -> Result:
    prompts, poles = [p.prompt for p in pairs for _ in range(2)], [0, 1] * len(pairs)
    bags = [bag(p.replies[pole]) for p in pairs for pole in sorted(p.replies)]
    even = [b for p in pairs for b in equal_bags(p)]
    held = None
    if apart:
        asked = [bag(p.replies[pole]) for p in apart for pole in sorted(p.replies)]
        said = classify(bags, poles, asked) * np.array([-1, 1] * len(apart))
        held = _score(wins(said), [p.prompt for p in apart for _ in range(2)])
    return Result(
        full=_score(left_out(bags, poles, prompts), prompts),
        equal=_score(left_out(even, poles, prompts), prompts),
        longer=_score(longer(pairs), [p.prompt for p in pairs]),
        held=held,
    )


def text(score: Score | None) -> str:
    """``0.85 (0.76–0.93)``."""
    if score is None:
        return "–"
    return f"{score.right:.2f}" + ("" if score.low is None else f" ({score.low:.2f}–{score.high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        results = measure(load(), load(heldout=True))
    except (PopiError, OSError) as e:
        sys.exit(f"bagofwords: {e}")
    print(f"{'dimension':<18}{'one reply':<20}{'equal':<20}{'longer':<20}held out")
    for name, r in results.items():
        print(f"{name:<18}{text(r.full):<20}{text(r.equal):<20}{text(r.longer):<20}{text(r.held)}")
    means = [np.mean([s.right for s in column if s]) for column in zip(
        *((r.full, r.equal, r.longer, r.held) for r in results.values()), strict=True)]  # fmt: skip
    print(f"{'mean':<18}" + "".join(f"{m:<20.2f}" for m in means).rstrip())


if __name__ == "__main__":
    launch(main)
