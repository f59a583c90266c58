"""Log-probabilities under the closed vocabulary, and the supervised loss on packed samples."""

from __future__ import annotations

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


def supervised(model: Any, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, log p of each completion): each sample's mean over its tokens, averaged by the samples' weights."""
    split = token_logprobs(model, packed).split(packed.sizes)
    weights = torch.tensor(packed.weights)
    means = torch.stack([part.mean() for part in split])
    return -(means * weights).sum() / weights.sum(), torch.stack([part.sum() for part in split]).detach()
