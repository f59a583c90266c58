"""Which poles a summary names: a naive Bayes probe over words, made from the corpus' phrasings, that no training sees.

It reads sentence by sentence. It was fitted on the summaries' own phrasings, so it judges what they say, not how well.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from popi_edge.summarize import SENTENCE_END
from popi_training import corpus as corpora
from popi_training.users import Want

WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")


def features(text: str) -> list[str]:
    """Words and pairs of neighbouring words, lower case."""
    words = WORD.findall(text.lower())
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


@dataclass(frozen=True)
class Probe:
    """Log-probabilities of features by pole, with Laplace smoothing."""

    weights: dict[Want, dict[str, float]]
    unseen: dict[Want, float]

    @classmethod
    def fit(cls, examples: Iterable[tuple[Want, str]], smoothing: float = 0.3) -> Probe:
        """Fit on (pole, text) pairs; all poles count the same."""
        counts: dict[Want, Counter[str]] = {}
        for want, text in examples:
            counts.setdefault(want, Counter()).update(features(text))
        size = len(set().union(*counts.values()))
        totals = {w: sum(c.values()) + smoothing * size for w, c in counts.items()}
        weights = {w: {f: math.log((n + smoothing) / totals[w]) for f, n in c.items()} for w, c in counts.items()}
        return cls(weights, {w: math.log(smoothing / totals[w]) for w in counts})

    def sentence(self, text: str) -> Want:
        """The likeliest pole of one sentence."""
        found = features(text)
        return max(self.weights, key=lambda w: sum(self.weights[w].get(f, self.unseen[w]) for f in found))

    def poles(self, summary: str) -> list[Want]:
        """The poles that a summary names, one a sentence, each once."""
        sentences = SENTENCE_END.split(summary.strip())
        return list(dict.fromkeys(self.sentence(s) for s in sentences if WORD.search(s.lower())))


@functools.cache
def fitted() -> Probe:
    """The probe on all summary phrasings of the corpus, held-out ones too; a phrasing of two sentences counts whole."""
    examples = []
    for corpus in (corpora.load(), corpora.load(heldout=True)):
        for dimension in corpus.dimensions.values():
            for pole in dimension.poles.values():
                examples += [(Want(dimension.id, pole.id), text) for text in pole.phrasings["summary"]]
    return Probe.fit(examples)


@dataclass(frozen=True)
class Verdict:
    """Of a summary against what a user wants: wants ``named``, wants of which the ``opposite`` is named, wants left
    out (``missed``), poles named that are neither (``other``), and wants named of which the opposite is named too
    (``torn``)."""

    named: int
    opposite: int
    missed: int
    other: int
    torn: int = 0


def judge(summary: str, wants: Sequence[Want], probe: Probe) -> Verdict:
    """Count what a summary gets right."""
    said = probe.poles(summary) if summary else []
    named = sum(w in said for w in wants)
    opposed = [w for w in wants if any(s.dimension == w.dimension and s.pole != w.pole for s in said)]
    torn, dimensions = sum(w in said for w in opposed), {w.dimension for w in wants}
    against, other = len(opposed) - torn, sum(s.dimension not in dimensions for s in said)
    return Verdict(named, against, len(wants) - named - against, other, torn)


def f1(verdicts: Sequence[Verdict]) -> float:
    """Micro-averaged F1 of the poles named."""
    right = sum(v.named for v in verdicts)
    said = right + sum(v.opposite + v.other + v.torn for v in verdicts)
    wanted = sum(v.named + v.opposite + v.missed for v in verdicts)
    return 2 * right / (said + wanted) if said + wanted else 0.0
