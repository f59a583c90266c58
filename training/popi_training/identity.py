"""What a summary says of whose it is beyond what they like: the half of the leak that is no run of words.

    identity(z) = max(0, log π_φ(z|s) − log mean π_φ(z|s′))      s′: the signals of others who want the same

Both are the masked, renormalised distribution at the rollout's temperature. Floored at 0, or a summary would be paid
for fitting others better than its own person. It is a cost of the reward, so no gradient goes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from popi_training import objective
from popi_training.loss import scored
from popi_training.pack import pack
from popi_training.rollout import Draw


@torch.no_grad()
def identity(
    model: Any, drawn: Sequence[Sequence[Draw]], others: Sequence[Sequence[tuple[int, ...]]], temperature: float
) -> list[Tensor]:
    """For each of several people what their summaries ``drawn`` cost, [G] (nats).

    ``others``: for each of them the prompts of people who want the same; 0 for everything where there are none. All
    prompts of a call go through the model at once, each with its summaries packed behind it.
    """
    packs = [pack([d.sample(p) for d in draws]) for draws, some in zip(drawn, others, strict=True) for p in some]
    if not packs:
        return [torch.zeros(len(draws)) for draws in drawn]
    found = scored(model, packs)
    sizes = [n for packed in packs for n in packed.sizes]
    sums = iter([each.sum() for each in found.logprobs(temperature).split(sizes)])
    out = []
    for draws, some in zip(drawn, others, strict=True):
        own = torch.tensor([sum(d.logprobs) for d in draws])
        behind = torch.tensor([[float(next(sums)) for _ in draws] for _ in some]).T  # [G, N]
        out.append(objective.identity_leak(own, behind).clamp(min=0) if some else torch.zeros(len(draws)))
    return out
