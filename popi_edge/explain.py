"""What a summary rests on: signals are left out, and each sentence is scored again. The model is measured, not asked.

    nats of a signal for a sentence = log p(sentence | all signals) − log p(sentence | all but this one)

with the sentences before it given, under the same mask that summaries are decoded under where the text keeps it.
Positive: the signal makes the sentence likelier.

It does NOT tell apart what several signals say together: two that say the same hide each other, since either is enough
(then ``total``, against no signals at all, is large and every single figure small). Nor does it show why the model
read a signal as it did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from popi_edge import prompts
from popi_edge.engines.base import common_prefix
from popi_edge.summarize import SENTENCE_END, inference_prompt, writable

if TYPE_CHECKING:
    from popi_edge.engines.base import Constraint, Engine
    from popi_edge.signals import Signal

CALLS = 24
"""Scorings at most, unless told otherwise; each reads the prompt once, sharing what comes before the gap."""
FEWEST = 4
Span = tuple[int, int]


@dataclass(frozen=True)
class Support:
    """What leaving these signals out costs one sentence (nats; negative: it gets likelier without them)."""

    signal_ids: tuple[str, ...]
    nats: float


@dataclass(frozen=True)
class Sentence:
    """``logprob`` under all signals (nats), ``total`` that less the one under none; ``support``, the largest first."""

    text: str
    logprob: float
    total: float
    support: tuple[Support, ...]


@dataclass(frozen=True)
class Explanation:
    """``masked``: scored under the closed vocabulary. ``calls``: how often the model was run over the prompt."""

    sentences: tuple[Sentence, ...]
    masked: bool
    calls: int


def explain(
    engine: Engine,
    signals: Sequence[Signal],
    text: str,
    *,
    constraint: Constraint | None = None,
    adapter: str | None = None,
    opening: str = "",
    calls: int = CALLS,
    each: Callable[[], object] = lambda: None,
) -> Explanation:
    """Explain each sentence of ``text`` by the signals it was made from, in order of insertion.

    The prompt is read at most ``max(calls, FEWEST)`` times (``each`` is called after every one). Where there are more
    signals than that allows, neighbours are left out together, and the groups that matter most are split further.
    An ``opening`` that was put into the model's mouth is not counted. ``text`` must not be empty.
    """
    scorer = _Scorer(engine, signals, text, constraint, adapter, opening, each)
    whole = scorer.without((0, 0))
    none = scorer.without((0, scorer.count))
    budget = max(calls, FEWEST) - scorer.calls

    def costs(span: Span) -> list[float]:
        return [a - b for a, b in zip(whole, scorer.without(span), strict=True)]

    found = _search(scorer.count, budget, costs)
    ids = [s.id for s in signals[scorer.start :]]
    sentences = tuple(
        Sentence(said, a, a - b, tuple(sorted(
            (Support(tuple(ids[x:y]), nats[i]) for (x, y), nats in found.items()), key=lambda s: -s.nats
        )))
        for i, (said, a, b) in enumerate(zip(scorer.sentences, whole, none, strict=True))
    )  # fmt: skip
    return Explanation(sentences, scorer.constraint is not None, scorer.calls)


def _search(count: int, budget: int, costs: Callable[[Span], list[float]]) -> dict[Span, list[float]]:
    """Spans that together are all of ``count`` signals, and their costs, for at most ``budget`` of these.

    One each where that fits; else half the budget goes to equal groups, the rest to halving the costliest.
    """
    groups = count if count <= budget else max(2, budget // 2)
    edges = [round(i * count / groups) for i in range(groups + 1)] if count else []
    found = {span: costs(span) for span in reversed(list(pairwise(edges)))}  # the last first: prefixes stay cached
    left = budget - groups
    while left >= 2:
        wide = [s for s in found if s[1] - s[0] > 1]
        if not wide:
            break
        start, end = max(wide, key=lambda s: (max(map(abs, found[s])), -s[0]))
        middle = (start + end) // 2
        del found[start, end]
        found |= {span: costs(span) for span in ((middle, end), (start, middle))}
        left -= 2
    return found


class _Scorer:
    """log p of every sentence of one text, with some signals left out; each set is run once."""

    def __init__(
        self, engine: Engine, signals: Sequence[Signal], text: str, constraint: Constraint | None,
        adapter: str | None, opening: str, each: Callable[[], object],
    ) -> None:  # fmt: skip
        tokenizer = engine.tokenizer
        self.engine, self.adapter, self.each = engine, adapter, each
        self.start, _ = inference_prompt(tokenizer, signals, engine.context_length)
        self.texts = [prompts.signal_text(s, tokenizer) for s in signals[self.start :]]
        self.count, self.calls = len(self.texts), 0
        said = tokenizer.clean(text)
        self.sentences = SENTENCE_END.split(said)
        self.ids = tokenizer.encode(said)
        self.owner = _owners(said, [tokenizer.token_bytes[i] or b"" for i in self.ids])
        spoken = tokenizer.encode(opening)
        self.skip = len(spoken) if common_prefix(spoken, self.ids) == len(spoken) else 0
        self.limit = prompts.spec()["limits"]["summary_tokens"]
        self.constraint = constraint if constraint and writable(constraint, self.ids, self.limit) else None
        self._known: dict[tuple[int, ...], list[float]] = {}

    def without(self, span: Span) -> list[float]:
        """log p of each sentence when the signals from ``span[0]`` up to ``span[1]`` are left out."""
        kept = (*range(span[0]), *range(span[1], self.count))
        if kept not in self._known:
            messages = prompts.infer_messages([self.texts[i] for i in kept])
            prompt = prompts.chat_ids(self.engine.tokenizer, messages)
            [score] = self.engine.score(
                prompt, [self.ids], adapter=self.adapter, constraint=self.constraint, max_tokens=self.limit
            )
            self.calls += 1
            self.each()
            parts: list[list[float]] = [[] for _ in self.sentences]
            for owner, logprob in list(zip(self.owner, score.tokens, strict=True))[self.skip :]:
                parts[owner].append(logprob)
            self._known[kept] = [math.fsum(p) for p in parts]
        return self._known[kept]


def _owners(text: str, tokens: Sequence[bytes]) -> list[int]:
    """For each token of a text, the number of the sentence in which it ends."""
    starts = [len(text[: m.start()].encode()) for m in SENTENCE_END.finditer(text)]
    return [sum(start < end for start in starts) for end in accumulate(map(len, tokens))]
