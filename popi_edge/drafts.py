"""Several drafts of a summary, and the one under which the generator best tells what the person chose.

The first draft is the likeliest one, the others are drawn; each sentence of any is a draft of its own too, since
one may be right and the next made up. For every pair of replies that the person has judged (of comparisons and edits,
the newest) and every draft z, in nats, over the first tokens of both replies,

    m(z) = log π(y⁺|x,z) − log π(y⁻|x,z) − [ log π(y⁺|x) − log π(y⁻|x) ]

and kept is the draft with the highest mean log σ(β m): the objective that both roles were trained for, maximised once
more over a few z, on what is known of this person. π is this bundle's own generator. The likeliest draft stands unless
another is better by ``GAIN``, as it also says what no pair shows.

Costs what it reads: (drafts + 1) × pairs × two replies. Not covered: a person who only stated or rated (there is no
pair then, and the likeliest draft is kept); that a generator from elsewhere would have chosen the same draft.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from popi_edge import prompts
from popi_edge.signals import Comparison, Edit, Signal

if TYPE_CHECKING:
    from popi_edge.engines.base import Engine
    from popi_edge.models.tokenizer import Tokenizer

PAIRS = 4
"""Pairs that judge a draft at most."""
TOKENS = 64
"""Tokens of either reply from the first that differs on; what both begin with counts on top, up to as many again."""
BETA = 0.2
GAIN = 0.03
TEMPERATURE = 0.9
"""At which drafts are drawn."""


@dataclass(frozen=True)
class Judged:
    """A prompt, and the ids that the preferred and the other reply begin with."""

    prompt: str
    up: tuple[int, ...]
    down: tuple[int, ...]


def judged(signals: Sequence[Signal], tokenizer: Tokenizer) -> list[Judged]:
    """The newest pairs that the person has judged, at most ``PAIRS``; replies that begin alike for long are none."""
    return list(itertools.islice(_pairs(signals, tokenizer), PAIRS))


def _pairs(signals: Sequence[Signal], tokenizer: Tokenizer) -> Iterator[Judged]:
    for signal in reversed(signals):
        match signal:
            case Comparison(prompt=prompt, chosen=chosen, rejected=rejected):
                texts = (chosen, rejected)
            case Edit(prompt=prompt, original=original, edited=edited):
                texts = (edited, original)
            case _:
                continue
        up, down = (prompts.reply_ids(tokenizer, text) for text in texts)
        alike = next((i for i, (a, b) in enumerate(zip(up, down, strict=False)) if a != b), min(len(up), len(down)))
        if alike < TOKENS:
            yield Judged(prompt, tuple(up[: alike + TOKENS]), tuple(down[: alike + TOKENS]))


def margins(engine: Engine, text: str, pairs: Sequence[Judged], adapter: str | None) -> list[float]:
    """log π(y⁺|x,z) − log π(y⁻|x,z) of each pair under a summary (empty: the bare prompt), in nats."""
    found = []
    for pair in pairs:
        ids = prompts.generate_ids(engine.tokenizer, pair.prompt, summary=text or None)
        up, down = engine.score(ids, [pair.up, pair.down], adapter=adapter)
        found.append(up.total - down.total)
    return found


def worth(found: Sequence[float], bare: Sequence[float]) -> float:
    """Mean log σ(β m) over the pairs."""
    return sum(_log_sigmoid(BETA * (a - b)) for a, b in zip(found, bare, strict=True)) / len(bare)


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


def best(engine: Engine, texts: Sequence[str], pairs: Sequence[Judged], adapter: str | None) -> str:
    """The first of several drafts, or what tells the pairs best where that is better by ``GAIN``; of equals the first.
    Raises EngineError."""
    if len(texts) < 2 or not pairs:
        return texts[0]
    bare = margins(engine, "", pairs, adapter)
    first, *scores = [worth(margins(engine, text, pairs, adapter), bare) for text in texts]
    return texts[1 + scores.index(max(scores))] if max(scores) > first + GAIN else texts[0]
