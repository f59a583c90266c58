"""What tells a dimension of taste in a reply, and how well: features of ``markers`` beside the corpus' dimensions.

    python -m popi_training.probes [--json]        how often each probe ranks the poles of the corpus' pairs right

``DIMENSIONS`` says which probe tells which dimension, and whose pole has more; only dimensions whose probe ranks at
least 75% of the training pairs right are there. The held-out pairs, written apart, were only scored. So these are weak
judges with known accuracy: use ``win_rate`` over many pairs. Dimensions without a probe are listed by the command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_training import markers as m
from popi_training.corpus import Corpus, Pair, load
from popi_training.evaluate.metrics import interval, wins
from popi_training.markers import Probe, minus

ACCURATE = 0.75
"""The share of a dimension's training pairs that its probe must rank right."""


@dataclass(frozen=True)
class Told:
    """What tells a dimension: ``probe`` gives more for texts of the pole ``more`` than of ``less``, counting ``by``."""

    probe: Probe
    more: str
    less: str
    by: str

    def count(self, text: str) -> float:
        """What the probe gives, rounded so that the last bit of a sum of rates does not decide a tie."""
        return round(self.probe(text), 9)


DIMENSIONS: Mapping[str, Told] = {
    "expertise": Told(m.grade, "expert", "child", "reading grade"),
    "technical_depth": Told(m.rare, "technical", "plain", "long words beyond the common ones"),
    "analogies": Told(
        minus(m.similes, m.literal), "analogy", "literal", "words of comparison, less those of mechanism"
    ),
    "reasoning": Told(m.reasons, "shown", "answer_only", "words of reasoning"),
    "length": Told(m.length, "long", "short", "words"),
    "structure": Told(m.structure, "list", "prose", "items and headings"),
    "formality": Told(m.formality, "formal", "casual", "formal words, less casual ones and contractions"),
    "order": Told(m.verdict_last, "build_up", "conclusion_first", "where turns and verdicts stand"),
    "directness": Told(minus(m.politeness, m.blame), "diplomatic", "blunt", "polite words, less words of blame"),
    "hedging": Told(minus(m.hedges, m.certainty), "cautious", "confident", "hedges, less words of certainty"),
    "empathy": Told(m.feelings, "feelings_first", "solution_first", "words of feeling"),
    "examples": Told(m.concrete, "concrete", "general", "numbers, names, quotations, words of example"),
    "stance": Told(minus(m.praise, m.blame), "praising", "critical", "words of praise, less words of blame"),
    "priority": Told(minus(m.thrift, m.durability), "price", "quality", "words of cost, less words of make"),
    "evidence": Told(minus(m.figures, m.first_person), "facts", "experience", "numbers, less first person"),
    "plot": Told(minus(m.meaning, m.events), "theme", "action", "words of meaning, less words of movement"),
    "persona": Told(minus(m.tale, m.hedges), "storyteller", "scholar", "words of telling, less hedges"),
    "role": Told(minus(m.lesson, m.peer), "mentor", "peer", "words of teaching, less words of company"),
    "imagery": Told(m.senses, "vivid", "plain", "words of the senses"),
    "dialogue": Told(m.questions, "asks_back", "just_answers", "questions"),
    "tone": Told(m.warmth, "warm", "cool", "warm words"),
    "emoji": Told(m.emoji, "with_emoji", "without_emoji", "emoji"),
    "energy": Told(m.exclamation, "lively", "calm", "exclamation marks and capitals"),
    "risk": Told(minus(m.daring, m.caution), "bold", "safe", "words of daring, less words of caution"),
    "novelty": Told(minus(m.new, m.traditional), "novelty", "tradition", "words of novelty, less words of tradition"),
    "environment": Told(minus(m.reuse, m.comfort), "green", "convenient", "words of reuse, less words of convenience"),
    "company": Told(minus(m.together, m.solitude), "social", "solitary", "words of company, less words of solitude"),
}
"""Dimension → what tells it. ``humour`` is missing: no list of markers came near ``ACCURATE``."""


def told(dimension: str) -> Told:
    """What tells a dimension. Raises ConfigError where nothing does."""
    if dimension not in DIMENSIONS:
        raise ConfigError(f"no probe tells {dimension!r}; probes are for {', '.join(sorted(DIMENSIONS))}")
    return DIMENSIONS[dimension]


def score(text: str, dimension: str, pole: str) -> float:
    """How far a text leans towards a pole of a dimension, in the probe's own unit; the other pole has the negative.

    Raises ConfigError for a dimension without a probe and for a pole that it has not.
    """
    entry = told(dimension)
    if pole not in (entry.more, entry.less):
        raise ConfigError(f"{dimension} has the poles {entry.more} and {entry.less}, not {pole!r}")
    return entry.count(text) if pole == entry.more else -entry.count(text)


def win_rate(pairs: Sequence[tuple[str, str]], dimension: str, pole: str) -> float:
    """Share of pairs (a, b) in which a leans more towards the pole than b; a tie counts ½.

    Raises ConfigError for no pairs, for a dimension without a probe and for a pole that it has not.
    """
    if not pairs:
        raise ConfigError("a win rate needs a pair")
    a, b = ([score(pair[k], dimension, pole) for pair in pairs] for k in (0, 1))
    return float(wins(a, np.array(b)).mean())


def accuracy(pairs: Iterable[Pair], dimension: str) -> dict[str, float | int | None]:
    """How often the probe ranks the two poles' replies right over a dimension's pairs, with the 95% interval clustered
    by prompt: ``right``, ``low``, ``high`` (None below two prompts), ``pairs``."""
    entry = told(dimension)
    mine = [p for p in pairs if p.dimension == dimension]
    more, less = ([entry.count(p.replies[pole]) for p in mine] for pole in (entry.more, entry.less))
    right = wins(more, np.array(less))
    low, high = interval(right, [p.prompt for p in mine]) or (None, None)
    return {"right": float(right.mean()) if mine else None, "low": low, "high": high, "pairs": len(mine)}


def measure(train: Corpus, apart: Corpus) -> dict[str, Any]:
    """The table: each dimension's pole, what is counted, and the accuracy on training and on held-out pairs."""
    rows = {
        name: {
            "more": entry.more, "by": entry.by, "training": accuracy(train.pairs, name),
            "heldout": accuracy(apart.pairs, name),
        }
        for name, entry in DIMENSIONS.items()
    }  # fmt: skip
    return {"dimensions": rows, "without": sorted(set(train.dimensions) - set(DIMENSIONS))}


def _cell(found: Mapping[str, Any]) -> str:
    if found["right"] is None:
        return "–"
    return f"{found['right']:.2f}" + ("" if found["low"] is None else f" ({found['low']:.2f}–{found['high']:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(prog="probes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        table = measure(load(), load(heldout=True))
    except (PopiError, OSError) as e:
        sys.exit(f"probes: {e}")
    if arguments.json:
        print(json.dumps(table, indent=1))
        return
    print(f"{'dimension':<17}{'more':<15}{'training':<19}{'held out':<19}counts")
    for name, row in table["dimensions"].items():
        cells = f"{_cell(row['training']):<19}{_cell(row['heldout']):<19}"
        print(f"{name:<17}{row['more']:<15}{cells}{row['by']}")
    print(f"no probe: {', '.join(table['without'])}")


if __name__ == "__main__":
    launch(main)
