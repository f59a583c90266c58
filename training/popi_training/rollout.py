"""Summaries drawn from the inference model under the closed vocabulary: signals read once, G ways on from there.

All of a step stands in one cache, each person's signals once, and the tokens of one step of all summaries go through
the model as one sequence under a mask: no prompt is padded to the longest, and no cache is copied G times.


The distribution is the one that the objective means by π_φ: masked to what the closed vocabulary allows, renormalised,
at the rollout's temperature (DESIGN, closed vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache

from popi_training.loss import attention
from popi_training.pack import Ints, Sample
from popi_training.roles import Roles
from popi_training.warm import Reader


@dataclass(frozen=True)
class Draw:
    """One drawn summary: its ``ids`` (with an end token where it ``finished``), the ids ``allowed`` at each, and the
    log-probability of each as it was drawn."""

    ids: tuple[int, ...]
    allowed: tuple[Ints, ...]
    logprobs: tuple[float, ...]
    finished: bool

    def sample(self, prompt: tuple[int, ...], weight: float = 1.0) -> Sample:
        """It behind its prompt, to be scored or trained on."""
        return Sample(prompt, self.ids, self.allowed, weight)


@torch.no_grad()
def rollout(
    model: Any,
    reader: Reader,
    prompts: Sequence[tuple[int, ...]],
    *,
    group: int,
    temperature: float,
    seeds: Sequence[int] | None = None,
    mask: bool = True,
    most: Callable[[int], int] = int,
) -> list[list[Draw]]:
    """``group`` summaries of each prompt, [prompts][group]; temperature 0 takes the likeliest token. Without ``mask``
    every id is allowed everywhere.

    ``seeds``: one a prompt, for a CPU generator of its own, so that what is drawn of a prompt depends on neither the
    other prompts nor the device, as long as the logits are the same. ``most``: of a count, the largest of any process
    that must call the model as often as this one (``Team.most``).
    Raises ValueError for no prompts or a group below 1.
    """
    if not prompts or group < 1:
        raise ValueError("a rollout needs prompts and a group of at least one")
    device, limit = next(model.parameters()).device, reader.limits["summary_tokens"]
    rows, ends = len(prompts) * group, set(reader.tokenizer.eos_ids)
    cache, logits, sees, places = _prefilled(model, prompts, group)
    keys = torch.cat([torch.arange(len(p)) for p in prompts])  # the position of every cached token
    states, every = [reader.vocabulary.start()] * rows, np.arange(logits.shape[-1])
    drawn: list[list[tuple[int, Ints, float]]] = [[] for _ in range(rows)]
    done, alive = [False] * rows, list(range(rows))
    dice = [torch.Generator().manual_seed(seed) for seed in seeds or (torch.seed(),) * len(prompts)]
    for step in range(limit):
        scores = logits.float().cpu()
        chances = torch.cat([torch.rand(group, generator=d) for d in dice]).tolist()
        for k, row in enumerate(alive):
            allowed = reader.allowed(states[row], limit - step) if mask else every
            place, logprob = _pick(scores[k, torch.from_numpy(allowed)], temperature, chances[row])
            token = int(allowed[place])
            drawn[row].append((token, allowed, logprob))
            done[row] = token in ends
            if mask and not done[row]:
                states[row] = reader.vocabulary.advance(states[row], token)
        alive = [row for row in alive if not done[row]]
        if not most(len(alive)) or step + 1 == limit:
            break
        on = alive or [0]  # where only others go on, a token that nobody sees
        own = torch.tensor(on)[None, :] == torch.arange(rows)[:, None]
        sees = torch.cat([sees, own], 1)  # each new token is seen by its own row alone
        now = torch.tensor([places[row] + step for row in on])
        keys = torch.cat([keys, now])
        logits = model(
            input_ids=torch.tensor([[drawn[row][-1][0] for row in on]], device=device),
            position_ids=now[None].to(device),
            attention_mask=attention(model, sees[None, on], now[None], keys[None]),
            past_key_values=cache,
            use_cache=True,
        ).logits[0]
    if mask:  # at the limit nothing but the end may follow, and nothing that ends there was cut off
        for row in alive:
            drawn[row].append(ended(reader))
            done[row] = True
    made = [
        Draw(tuple(t for t, _, _ in each), tuple(a for _, a, _ in each), tuple(p for _, _, p in each), end)
        for each, end in zip(drawn, done, strict=True)
    ]
    return [made[k : k + group] for k in range(0, rows, group)]


def ended(reader: Reader) -> tuple[int, Ints, float]:
    """The end of a summary as long as may be, which the closed vocabulary leaves no choice: its token, what was allowed
    and its log-probability."""
    return reader.tokenizer.eos, np.array([reader.tokenizer.eos]), 0.0


def _prefilled(
    model: Any, prompts: Sequence[tuple[int, ...]], group: int
) -> tuple[DynamicCache, torch.Tensor, torch.Tensor, list[int]]:
    """All prompts in one cache, one behind the other, each read by itself; the logits behind each, for each of its rows
    [rows, vocabulary]; which cached token each row sees [rows, cached]; and each row's next position."""
    device = next(model.parameters()).device
    read = [
        model(
            input_ids=torch.tensor([p], device=device), use_cache=True, logits_to_keep=1, past_key_values=DynamicCache()
        )
        for p in prompts
    ]
    layers = zip(*(out.past_key_values.to_legacy_cache() for out in read), strict=True)
    cache = DynamicCache.from_legacy_cache(
        tuple((torch.cat([k for k, _ in layer], 2), torch.cat([v for _, v in layer], 2)) for layer in layers)  # type: ignore[arg-type]
    )
    whose = torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(p) for p in prompts]))
    rows = torch.arange(len(prompts)).repeat_interleave(group)
    logits = torch.cat([out.logits[:, -1] for out in read]).repeat_interleave(group, 0)
    return cache, logits, rows[:, None] == whose[None, :], [len(p) for p in prompts for _ in range(group)]


def _pick(logits: torch.Tensor, temperature: float, chance: float) -> tuple[int, float]:
    """(place, its log-probability) in logits [n]; ``chance`` in [0, 1) is what is drawn by."""
    if temperature <= 0:
        return int(logits.argmax()), float(logits.log_softmax(0).max())
    logprobs = (logits.double() / temperature).log_softmax(0)
    place = int(torch.searchsorted(logprobs.exp().cumsum(0), chance, right=True).clamp(max=len(logits) - 1))
    return place, float(logprobs[place])


Prompts = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class How:
    """How many summaries of each prompt are drawn, at which temperature, under the closed vocabulary or not."""

    group: int
    temperature: float
    mask: bool


class Rollouts(Protocol):
    """What draws the summaries of a joint step (``joint.rollout``)."""

    def draw(
        self, roles: Roles, reader: Reader, prompts: Prompts, seeds: Sequence[int] | None, how: How
    ) -> list[list[Draw]]:
        """Summaries of each prompt by ``infer`` as it is now, [prompts][group], as ``rollout`` says."""


class TransformersRollouts:
    """``rollout`` on the model that is trained; ``most`` as there."""

    def __init__(self, most: Callable[[int], int] = int) -> None:
        self.most = most

    def draw(
        self, roles: Roles, reader: Reader, prompts: Prompts, seeds: Sequence[int] | None, how: How
    ) -> list[list[Draw]]:
        with roles.playing("infer") as model:
            return rollout(
                model, reader, prompts, group=how.group, temperature=how.temperature, seeds=seeds, mask=how.mask,
                most=self.most,
            )  # fmt: skip
