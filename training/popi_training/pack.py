"""Shared-prefix packing: several sequences in one, every shared token computed once (DESIGN, the objective).

Sequences are merged into a prefix tree whose tokens, in depth-first order, form one sequence: a token sees its
ancestors and itself, and its position is its depth. So logits equal those of every sequence alone, to float error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """A prompt and a completion to be learnt. ``allowed[i]``: ids from which token i was to be chosen, None for all.

    ``weight`` multiplies the completion's mean loss. ``of``: whose summary it is, as an index into the batch, where it
    is compared with what others' signals make of it; −1 where it is not.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    allowed: tuple[Ints | None, ...] = ()
    weight: float = 1.0
    of: int = -1


@dataclass
class Packed:
    """``ids``, ``positions`` [n]; ``mask`` [n, n], true where row may see column; and for every completion token,
    sample by sample, ``at`` the node that predicts it, ``label`` its id and ``allowed``; ``sizes`` the completions'
    lengths."""

    ids: Ints
    positions: Ints
    mask: NDArray[np.bool_]
    at: Ints
    label: Ints
    allowed: list[Ints | None]
    sizes: list[int]
    weights: list[float] = field(default_factory=list)
    of: list[int] = field(default_factory=list)


def pack(samples: Sequence[Sample]) -> Packed:
    """Merge samples into one sequence. Raises ValueError for no samples or an empty completion or prompt."""
    if not samples or not all(s.completion and s.prompt for s in samples):
        raise ValueError("a sample needs a prompt and a completion")
    children: list[dict[int, int]] = [{}]
    token, parent = [-1], [-1]
    ends: list[list[int]] = []
    for sample in samples:
        node, path = 0, []
        for value in (*sample.prompt, *sample.completion[:-1]):
            if value not in children[node]:
                children[node][value] = len(token)
                children.append({})
                token.append(value)
                parent.append(node)
            node = children[node][value]
            path.append(node)
        ends.append(path[len(sample.prompt) - 1 :])
    order = _depth_first(children)
    place = np.zeros(len(token), np.int64)
    place[order] = np.arange(len(order))
    n = len(order)
    mask = np.zeros((n, n), np.bool_)
    positions = np.zeros(n, np.int64)
    for row, node in enumerate(order):
        if parent[node] != 0:
            above = place[parent[node]]
            mask[row] = mask[above]
            positions[row] = positions[above] + 1
        mask[row, row] = True
    allowed: list[Ints | None] = []
    for s in samples:
        allowed += list(s.allowed) if s.allowed else [None] * len(s.completion)
    return Packed(
        np.array([token[node] for node in order], np.int64),
        positions,
        mask,
        np.array([place[node] for path in ends for node in path], np.int64),
        np.array([t for s in samples for t in s.completion], np.int64),
        allowed,
        [len(s.completion) for s in samples],
        [s.weight for s in samples],
        [s.of for s in samples],
    )


def _depth_first(children: list[dict[int, int]]) -> list[int]:
    out, stack = [], list(reversed(children[0].values()))
    while stack:
        node = stack.pop()
        out.append(node)
        stack += reversed(children[node].values())
    return out
