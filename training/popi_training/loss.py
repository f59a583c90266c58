"""Log-probabilities under the closed vocabulary, and the supervised loss on packed samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from popi_training.pack import Packed


def token_logprobs(model: Any, packed: Packed) -> torch.Tensor:
    """log p of every completion token, masked to what the closed vocabulary allowed there and renormalised; [tokens].

    (DESIGN, closed vocabulary: wherever log π_φ stands it is this distribution.)
    """
    at = torch.from_numpy(packed.at)
    mask = torch.from_numpy(packed.mask)[None, None]
    nodes, back = torch.unique(at, return_inverse=True)
    out = model(
        input_ids=torch.from_numpy(packed.ids)[None],
        position_ids=torch.from_numpy(packed.positions)[None],
        attention_mask=torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min),
        logits_to_keep=nodes,
        use_cache=False,
    )
    logits = out.logits[0][back]
    chosen = logits.gather(1, torch.from_numpy(packed.label)[:, None])[:, 0]
    bars = []
    for row, allowed in zip(logits, packed.allowed, strict=True):
        bars.append(torch.logsumexp(row if allowed is None else row[torch.from_numpy(allowed)], 0))
    return chosen - torch.stack(bars)


def contrast(means: Sequence[torch.Tensor], of: Sequence[Sequence[int]], scale: float) -> torch.Tensor:
    """How surely each summary is told to be its own user's: the mean over users j of −log softmax_i of ``scale`` times
    the mean log p a token of j's summary behind i's signals, taken at i = j (InfoNCE, arXiv 1807.03748).

    ``means[i]`` [samples of user i], ``of[i]`` whose summary each of them is (−1: not compared). How likely a wording
    is in itself cancels out, so only what depends on the signals is learnt.
    """
    rows = []
    for j in range(len(means)):
        places = [list(of[i]).index(j) if j in of[i] else None for i in range(len(means))]
        if places[j] is None or sum(p is not None for p in places) < 2:
            continue
        column = torch.stack([means[i][p] for i, p in enumerate(places) if p is not None])
        own = sum(p is not None for p in places[:j])
        rows.append(-torch.log_softmax(scale * column, 0)[own])
    return torch.stack(rows).mean() if rows else means[0].new_zeros(())


def supervised(model: Any, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, mean log p a token of each completion): the means averaged by the samples' weights."""
    split = token_logprobs(model, packed).split(packed.sizes)
    weights = torch.tensor(packed.weights)
    means = torch.stack([part.mean() for part in split])
    return -(means * weights).sum() / weights.sum(), means
