"""What a quantization costs in use: pairs of the held-out corpus, judged under given summaries (a small ``popi eval``).

For a pair of replies a and b to a prompt x, liked by opposite tastes with the summaries z_a and z_b,

    m(z) = log p(a|z,x) − log p(b|z,x) − [ log p(a|x) − log p(b|x) ]

``accuracy`` is the mean of 1[m(z_a) > 0] and ``contrast`` that of 1[m(z_a) > m(z_b)], ties ½, as in
``popi_training.evaluate``. Two figures of so few pairs differ by chance; what tells two formats of one model apart is
how they judge each single pair (``Margins.against``). Not covered: summaries that the model writes itself (``popi
eval`` on the bundle).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from popi_edge import prompts
from popi_edge.engines.base import log_softmax_at
from popi_edge.errors import ConfigError
from popi_edge.models.tokenizer import Tokenizer
from popi_export.runners import Runner

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """One pair: ids of the prompt under a's summary, under b's and bare, and of the two replies."""

    own: tuple[int, ...]
    other: tuple[int, ...]
    bare: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]
    prompt: str = ""
    """Its name: pairs of one prompt are no independent draws."""


@dataclass(frozen=True)
class Margins:
    """m(z_a) and m(z_b) of each pair in nats, and the prompt that it is of."""

    own: tuple[float, ...]
    other: tuple[float, ...]
    prompts: tuple[str, ...]

    @property
    def figures(self) -> dict[str, float]:
        """``accuracy`` and ``contrast``, from 0 to 1, more is better."""
        return {name: float(values.mean()) for name, values in self._won().items()}

    @property
    def intervals(self) -> dict[str, float]:
        """Of each a 95% interval over prompts, ``…_low`` and ``…_high``; nothing where all are of one prompt."""
        from popi_training.evaluate.metrics import interval

        found: dict[str, float] = {}
        for name, values in self._won().items():
            if (ends := interval(values, self.prompts)) is not None:
                found |= {f"{name}_low": round(ends[0], 4), f"{name}_high": round(ends[1], 4)}
        return found

    def _won(self) -> dict[str, Values]:
        from popi_training.evaluate.metrics import wins

        return {"accuracy": wins(self.own), "contrast": wins(self.own, self.other)}

    def against(self, reference: Margins) -> dict[str, float]:
        """How alike two models judge the same pairs: ``pairs``; ``same_reply``, the share in which m(z_a) has the same
        sign, and ``same_order``, in which m(z_a) and m(z_b) stand in the same order; ``difference``, the mean |m − m'|
        over both summaries, and ``size``, the reference's own mean |m|, in nats."""
        mine, theirs = np.array([self.own, self.other]), np.array([reference.own, reference.other])
        return {
            "pairs": len(self.own),
            "same_reply": float((np.sign(mine[0]) == np.sign(theirs[0])).mean()),
            "same_order": float((np.sign(mine[0] - mine[1]) == np.sign(theirs[0] - theirs[1])).mean()),
            "difference": float(np.abs(mine - theirs).mean()),
            "size": float(np.abs(theirs).mean()),
        }


Task = Callable[[Runner], Margins]
"""What a model makes of pairs that are given."""


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
        said = *(rng.choice(poles[p].phrasings["summary"]) for p in (a, b)), None
        own, other, bare = (tuple(prompts.generate_ids(tokenizer, x, summary=z)) for z in said)
        one, two = (tuple(prompts.reply_ids(tokenizer, pair.replies[p])) for p in (a, b))
        item = Item(own, other, bare, one, two, pair.prompt)
        if max(map(len, (item.own, item.other))) + max(len(item.a), len(item.b)) <= longest:
            out.append(item)
        if len(out) == n:
            return out
    raise ConfigError(f"the held-out corpus has {len(out)} pairs of at most {longest} tokens, not {n}")


def likelihood(runner: Runner, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """log p(reply | prompt) in nats, all tokens of the reply, its end among them; a prompt that comes again at once is
    not read again."""
    return sum(log_softmax_at(runner.tail([*prompt, *reply[:-1]], len(reply)), reply))


def margins(runner: Runner, pairs: Sequence[Item]) -> Margins:
    """What a model makes of the pairs."""
    own, other = [], []
    for item in pairs:
        found = [likelihood(runner, p, item.a) - likelihood(runner, p, item.b)
                 for p in (item.own, item.other, item.bare)]  # fmt: skip
        own.append(found[0] - found[2])
        other.append(found[1] - found[2])
    runner.forget()
    return Margins(tuple(own), tuple(other), tuple(item.prompt for item in pairs))
