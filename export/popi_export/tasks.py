"""What a quantization costs in use: pairs of the held-out corpus, judged under given summaries (a small ``popi eval``).

For a pair of replies a and b to a prompt x, liked by opposite tastes with the summaries z_a and z_b,

    m(z) = log p(a|z,x) − log p(b|z,x) − [ log p(a|x) − log p(b|x) ]

``accuracy`` is the mean of 1[m(z_a) > 0] and ``contrast`` that of 1[m(z_a) > m(z_b)], ties ½, as in
``popi_training.evaluate``. Not covered: summaries that the model writes itself (``popi eval`` on the bundle).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from popi_edge import prompts
from popi_edge.engines.base import log_softmax_at
from popi_edge.errors import ConfigError
from popi_edge.models.tokenizer import Tokenizer
from popi_export.runners import Runner

Task = Callable[[Runner], Mapping[str, float]]
"""Figures of a model from 0 to 1, more is better."""


@dataclass(frozen=True)
class Item:
    """One pair: ids of the prompt under a's summary, under b's and bare, and of the two replies."""

    own: tuple[int, ...]
    other: tuple[int, ...]
    bare: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]


def items(tokenizer: Tokenizer, n: int, seed: int, *, longest: int, folder: Path | None = None) -> list[Item]:
    """n pairs of the held-out corpus of at most ``longest`` tokens, drawn by ``seed``. Raises ConfigError: too few."""
    from popi_training import corpus

    where = folder or corpus.FOLDER
    if not (where / corpus.HELDOUT).is_dir():
        raise ConfigError("the project's held-out corpus is not in this install: no task figures")
    whole = corpus.load(where, heldout=True)
    pairs = sorted(whole.pairs, key=lambda p: p.id)
    random.Random(f"task:{seed}").shuffle(pairs)
    out: list[Item] = []
    for pair in pairs:
        rng = random.Random(f"task:{seed}:{pair.id}")
        a, b = rng.sample(sorted(pair.replies), 2)
        poles, x = whole.dimensions[pair.dimension].poles, whole.prompts[pair.prompt]
        own, other = (rng.choice(poles[p].phrasings["summary"]) for p in (a, b))
        item = Item(
            *(tuple(prompts.generate_ids(tokenizer, x, summary=z)) for z in (own, other, None)),
            *(tuple(prompts.reply_ids(tokenizer, pair.replies[p])) for p in (a, b)),
        )
        if max(map(len, (item.own, item.other))) + max(len(item.a), len(item.b)) <= longest:
            out.append(item)
        if len(out) == n:
            return out
    raise ConfigError(f"the held-out corpus has {len(out)} pairs of at most {longest} tokens, not {n}")


def likelihood(runner: Runner, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """log p(reply | prompt) in nats, all tokens of the reply, its end among them."""
    logits = runner.logits([*prompt, *reply[:-1]])
    return sum(log_softmax_at(logits[len(prompt) - 1 :], reply))


def figures(runner: Runner, pairs: Sequence[Item]) -> dict[str, float]:
    """``accuracy`` and ``contrast`` of a model on the pairs."""
    from popi_training.evaluate.metrics import wins

    own, other = [], []
    for item in pairs:
        margins = [likelihood(runner, p, item.a) - likelihood(runner, p, item.b)
                   for p in (item.own, item.other, item.bare)]  # fmt: skip
        own.append(margins[0] - margins[2])
        other.append(margins[1] - margins[2])
    return {"accuracy": float(wins(own).mean()), "contrast": float(wins(own, other).mean())}
