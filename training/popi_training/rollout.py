"""Summaries drawn from the inference model under the closed vocabulary: signals read once, the cache forked G ways.

The distribution is the one that the objective means by π_φ: masked to what the closed vocabulary allows, renormalised,
at the rollout's temperature (DESIGN, closed vocabulary).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from popi_training.pack import Ints, Sample
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
    generator: torch.Generator | None = None,
) -> list[list[Draw]]:
    """``group`` summaries of each prompt, [prompts][group]; temperature 0 takes the likeliest token.

    ``generator``: a CPU generator, so that the same seed draws the same on any device that gives the same logits.
    Raises ValueError for no prompts or a group below 1.
    """
    if not prompts or group < 1:
        raise ValueError("a rollout needs prompts and a group of at least one")
    device, limit = next(model.parameters()).device, reader.limits["summary_tokens"]
    rows, eos, ends = len(prompts) * group, reader.tokenizer.eos, set(reader.tokenizer.eos_ids)
    ids, seen = _left_padded(prompts, eos)
    seen = seen.to(device)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=ids.to(device), attention_mask=seen, position_ids=positions, use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(group, 0)
    cache.batch_repeat_interleave(group)
    seen, last = seen.repeat_interleave(group, 0), positions[:, -1:].repeat_interleave(group, 0)
    states = [reader.vocabulary.start()] * rows
    drawn: list[tuple[list[int], list[Ints], list[float]]] = [([], [], []) for _ in range(rows)]
    done = [False] * rows
    for step in range(limit):
        scores, chosen = logits.float().cpu(), [eos] * rows
        chances = torch.rand(rows, generator=generator).tolist()
        for row in (r for r in range(rows) if not done[r]):
            allowed = reader.allowed(states[row], limit - step)
            place, logprob = _pick(scores[row, torch.from_numpy(allowed)], temperature, chances[row])
            token = chosen[row] = int(allowed[place])
            for column, value in zip(drawn[row], (token, allowed, logprob), strict=True):
                column.append(value)  # type: ignore[arg-type]
            done[row] = token in ends
            if not done[row]:
                states[row] = reader.vocabulary.advance(states[row], token)
        if all(done) or step + 1 == limit:
            break
        seen, last = torch.cat([seen, seen.new_ones(rows, 1)], 1), last + 1
        out = model(
            input_ids=torch.tensor(chosen, device=device)[:, None], attention_mask=seen, position_ids=last,
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        cache, logits = out.past_key_values, out.logits[:, -1]
    made = [Draw(tuple(i), tuple(a), tuple(p), end) for (i, a, p), end in zip(drawn, done, strict=True)]
    return [made[k : k + group] for k in range(0, rows, group)]


def _left_padded(prompts: Sequence[tuple[int, ...]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, which of them are a prompt's), both [prompts, longest]: every prompt ends in the last column."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), filler)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        seen[row, longest - len(prompt) :] = 1
    return ids, seen


def _pick(logits: torch.Tensor, temperature: float, chance: float) -> tuple[int, float]:
    """(place, its log-probability) in logits [n]; ``chance`` in [0, 1) is what is drawn by."""
    if temperature <= 0:
        return int(logits.argmax()), float(logits.log_softmax(0).max())
    logprobs = (logits.double() / temperature).log_softmax(0)
    place = int(torch.searchsorted(logprobs.exp().cumsum(0), chance, right=True).clamp(max=len(logits) - 1))
    return place, float(logprobs[place])
