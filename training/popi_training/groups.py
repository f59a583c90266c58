"""What a joint step works on: a person's drawn summaries, and what is asked of the generator about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from popi_training.people import Person, Target
from popi_training.rollout import Draw
from popi_training.team import Team

Asked = tuple[str, Target]
"""A summary (empty: none) and a pair that is scored under it."""
FILLER = Target("?", "no", "yes")
"""What is scored, for nothing, where other processes have more to score."""


@dataclass
class Group:
    """A person's prompt of signals, the summaries drawn of it, and what is said of each ("" where nothing is)."""

    person: Person
    prompt: tuple[int, ...]
    draws: list[Draw]
    texts: list[str]
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))
    """The advantage of each, once scored."""
    identity: Tensor = field(default_factory=lambda: torch.zeros(()))
    """What each says of whose it is (``identity``), where that costs anything."""


def lengths(groups: Sequence[Group], team: Team) -> dict[str, Any]:
    """What a step says of the summaries drawn: tokens of one, shares cut off and different, tokens of the prompts."""
    draws, texts = [d for g in groups for d in g.draws], team.gather([z for g in groups for z in g.texts])
    return {
        "length": sum(len(d.ids) for d in draws) / len(draws),
        "truncated": sum(not d.finished for d in draws) / len(draws),
        "distinct": len(set(texts)) / len(texts),
        "tokens": team.size * sum(len(g.prompt) for g in groups),  # whose mean over the processes is their sum
    }
