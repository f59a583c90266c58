"""Log-probabilities of packed samples, and the losses of the warm start."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from popi_training.pack import Ints, Packed, Sample, pack
from popi_training.tree_attention import leaving_out

PORTION = 64
"""Tokens whose rows over the vocabulary are computed at once: few enough to stay near the processor."""


@dataclass(frozen=True)
class Scored:
    """Logits at the places that predict completions: ``logits`` [places, vocabulary]; for every completion token its
    place (``back``), its id (``label``) and which row of ``masks`` [rows, vocabulary] says what was allowed (``row``);
    ``tokens`` of each packed sequence."""

    logits: torch.Tensor
    back: torch.Tensor
    label: torch.Tensor
    row: torch.Tensor
    masks: torch.Tensor
    tokens: list[int]
    states: torch.Tensor | None = None
    """The states [packs, tokens, hidden] of the depth that was asked for."""

    def logprobs(self, temperature: float = 1.0) -> torch.Tensor:
        """log p [tokens] over what was allowed, at a temperature."""
        return _Chosen.apply(self.logits, self, temperature)  # type: ignore[no-any-return]

    def kl(self, before: Scored, temperature: float = 1.0) -> torch.Tensor:
        """KL to what another model gave the same tokens, [tokens] (nats), as ``objective.kl`` has it."""
        return _Apart.apply(self.logits, self, before, temperature)  # type: ignore[no-any-return]

    def portions(self) -> Iterator[slice]:
        """The tokens, ``PORTION`` at a time."""
        for start in range(0, len(self.back), PORTION):
            yield slice(start, start + PORTION)

    def rows(self, some: slice, temperature: float) -> torch.Tensor:
        """Logits of some tokens over the temperature, −∞ for what was not allowed there: a copy, [some, vocabulary]."""
        logits = self.logits.detach()[self.back[some]].div_(temperature)
        return logits if self.open else logits.masked_fill_(~self.masks[self.row[some]], -torch.inf)

    @functools.cached_property
    def open(self) -> bool:
        """Whether everything was allowed everywhere."""
        return bool(self.masks.all())


class _Chosen(torch.autograd.Function):
    """log p of each token. All tokens times the vocabulary are a hundred megabytes and more, and every copy costs; here
    there are copies of a portion alone, which the backward pass makes again."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, found: Scored, temperature: float) -> torch.Tensor:
        chosen, whole = logits.new_empty((2, len(found.back))).unbind()
        for some in found.portions():
            rows = found.rows(some, temperature)
            chosen[some], whole[some] = rows.gather(1, found.label[some, None])[:, 0], rows.logsumexp(1)
        ctx.found, ctx.temperature, ctx.whole = found, temperature, whole
        return chosen - whole

    @staticmethod
    def backward(ctx: Any, wanted: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        found, scaled = ctx.found, wanted / ctx.temperature
        gradient = torch.zeros_like(found.logits)
        for some in found.portions():
            each = scaled[some, None]
            p = found.rows(some, ctx.temperature).sub_(ctx.whole[some, None]).exp_()
            gradient.index_add_(0, found.back[some], p.mul_(-each).scatter_add_(1, found.label[some, None], each))
        return gradient, None, None


class _Apart(torch.autograd.Function):
    """KL of each token's distribution, in portions like ``_Chosen``."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, now: Scored, before: Scored, temperature: float) -> torch.Tensor:
        ctx.now, ctx.before, ctx.temperature = now, before, temperature
        ctx.kl = logits.new_empty(len(now.back))
        for some in now.portions():
            p, apart = _compared(now, before, some, temperature)
            ctx.kl[some] = p.mul_(apart).sum(1)
        return ctx.kl.clone()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, wanted: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        scaled, gradient = wanted / ctx.temperature, torch.zeros_like(ctx.now.logits)
        for some in ctx.now.portions():
            p, apart = _compared(ctx.now, ctx.before, some, ctx.temperature)
            gradient.index_add_(0, ctx.now.back[some], p.mul_(apart.sub_(ctx.kl[some, None])).mul_(scaled[some, None]))
        return gradient, None, None, None


def _compared(now: Scored, before: Scored, some: slice, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of some tokens the probabilities now, and how far their logarithms are above those before: 0 where nothing was
    allowed."""
    log_p, log_q = (f.rows(some, temperature).log_softmax(1) for f in (now, before))
    apart = log_p - log_q
    return log_p.exp_(), apart if now.open else apart.masked_fill_(~now.masks[now.row[some]], 0.0)


def scored(model: Any, packs: Sequence[Packed], depth: int | None = None) -> Scored:
    """Run packed sequences through the model together, the shorter ones padded; on another device than the processor
    up to the last layer in bfloat16. ``depth``: which states to keep, from the embeddings (0) to the last layer's."""
    device, longest = next(model.parameters()).device, max(len(p.ids) for p in packs)
    ids = torch.zeros((len(packs), longest), dtype=torch.long)
    positions = torch.zeros_like(ids)
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(packs), 1, 1)  # padding sees itself
    for i, p in enumerate(packs):
        n = len(p.ids)
        ids[i, :n], positions[i, :n] = torch.from_numpy(p.ids), torch.from_numpy(p.positions)
        sees[i, :n, :n] = torch.from_numpy(p.mask)
    masks = attention(model, sees, positions, positions)
    low = torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")
    with low, leaving_out(model, ids) as how:
        hidden = model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=masks,
            logits_to_keep=1,
            output_hidden_states=True,
            use_cache=False,
            **how,
        ).hidden_states
    at = np.concatenate([i * longest + p.at for i, p in enumerate(packs)])
    nodes, back = (torch.from_numpy(a).to(device) for a in np.unique(at, return_inverse=True))
    logits = model.get_output_embeddings()(hidden[-1].flatten(0, 1)[nodes].float())
    label = torch.from_numpy(np.concatenate([p.label for p in packs])).to(device)
    row, sets = _allowed([a for p in packs for a in p.allowed], logits.shape[1])
    kept = None if depth is None else hidden[depth].float()
    return Scored(logits, back, label, row.to(device), sets.to(device), [sum(p.sizes) for p in packs], kept)


def attention(model: Any, sees: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> Any:
    """What the model takes for which token may see which, from ``sees`` [batch, queries, keys] and the positions of
    both [batch, queries], [batch, keys]: an additive mask, or, for a model with sliding windows (Gemma-3), one for each
    kind of layer; the window is counted in positions, as a packed token's place says nothing."""
    device, config = next(model.parameters()).device, model.config
    kinds = set(getattr(config, "layer_types", None) or ())

    def added(seen: torch.Tensor) -> torch.Tensor:
        bars = torch.zeros(seen.shape, device=device)
        return bars.masked_fill(~seen.to(device), torch.finfo(torch.float32).min)[:, None]

    if "sliding_attention" not in kinds:
        return added(sees)
    near = queries[:, :, None] - keys[:, None, :] < config.sliding_window
    return {"full_attention": added(sees), "sliding_attention": added(sees & near)}


def token_logprobs(model: Any, packs: Sequence[Packed], temperature: float = 1.0) -> list[torch.Tensor]:
    """log p of every completion token of every packed sequence, masked to what the closed vocabulary allowed there and
    renormalised; a tensor [tokens] each.

    (DESIGN, closed vocabulary: wherever log π_φ stands it is this distribution, at the rollout's temperature.)
    """
    found = scored(model, packs)
    return list(found.logprobs(temperature).split(found.tokens))


def _allowed(sets: Sequence[Ints | None], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(row of each set [sets], masks [rows, vocabulary]): the same array is one row."""
    rows: dict[int, int] = {}
    which = torch.tensor([rows.setdefault(id(s), len(rows)) for s in sets])
    masks = torch.zeros((len(rows), size), dtype=torch.bool)
    for i, s in {rows[id(s)]: s for s in sets}.items():
        masks[i, slice(None) if s is None else torch.from_numpy(s)] = True
    return which, masks


def contrast(means: Sequence[torch.Tensor], of: Sequence[Sequence[int]], scale: float) -> torch.Tensor:
    """How surely each summary is told to be its own user's: the mean over users j of −log softmax_i of ``scale`` times
    the mean log p a token of j's summary behind i's signals, taken at i = j (InfoNCE, arXiv 1807.03748).

    ``means[i]`` [samples of user i], ``of[i]`` whose summary each of them is (−1: not compared). How likely a wording
    is in itself cancels out, so only what depends on the signals is learnt.
    """
    starts = np.cumsum([0, *map(len, means[:-1])])
    places = np.full((len(means), len(means)), -1)
    for i, whose in enumerate(of):
        for k, j in reversed(list(enumerate(whose))):
            if j >= 0:
                places[i, j] = starts[i] + k
    known = places >= 0
    (asked,) = np.nonzero(known.diagonal() & (known.sum(0) > 1))
    flat = torch.cat(list(means))
    if not len(asked):
        return flat.new_zeros(())
    unknown = torch.from_numpy(~known[:, asked]).to(flat.device)
    table = flat[torch.from_numpy(places[:, asked]).to(flat.device)].masked_fill(unknown, -torch.inf)
    return -torch.log_softmax(scale * table, 0)[asked, range(len(asked))].mean()


def supervised(model: Any, packs: Sequence[Packed]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each packed sequence (loss, mean log p a token of each completion): the means averaged by the samples'
    weights."""
    return learnt(scored(model, packs), packs)


def learnt(found: Scored, packs: Sequence[Packed]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """``supervised`` of what was run through the model."""
    sizes = [n for p in packs for n in p.sizes]
    flat = found.logprobs()
    whose = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(flat.device)
    lengths = torch.tensor(sizes, device=flat.device)
    means = flat.new_zeros(len(sizes)).index_add(0, whose, flat) / lengths
    weights = torch.tensor([w for p in packs for w in p.weights], device=flat.device)
    each = zip(*(t.split([len(p.sizes) for p in packs]) for t in (means, weights)), strict=True)
    return [(-(m * w).sum() / w.sum(), m) for m, w in each]


def pair_logprobs(
    model: Any,
    contexts: Sequence[Sequence[int]],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    together: int = 1,
) -> torch.Tensor:
    """log π of the chosen and the rejected reply behind each context, [n, 2] (nats, sums over tokens).

    ``contexts[i]``: the prompt's ids with the summary in it; ``pairs[i]``: the two replies' ids, end token included. A
    context and what its replies have in common go through the model once; so does what ``together`` neighbouring
    contexts have in common.
    """
    samples = [
        [Sample(tuple(context), tuple(reply)) for reply in pair] for context, pair in zip(contexts, pairs, strict=True)
    ]
    packs = [pack([s for pair in samples[i : i + together] for s in pair]) for i in range(0, len(samples), together)]
    each = zip(packs, token_logprobs(model, packs), strict=True)
    return torch.stack([part.sum() for packed, p in each for part in p.split(packed.sizes)]).view(-1, 2)
