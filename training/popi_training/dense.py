"""Dense supervision of the inference model: at the end of every signal its state shows what the signals so far say.

A fixed projection, drawn once and never trained, reads the state before the last layer; what it reads is held to known
numbers by their squared difference. So the model learns from every signal and not from a summary's few words alone, and
what it has to say stands where the last layer can fetch it. Nothing of this is in the model that is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from popi_training.pack import Ints, Packed

DEPTH = -2
"""Of the states from the embeddings to the last layer's, the one that is read."""
Known = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Dense:
    """``weight`` beside the likelihood of the words; ``end``: the token that ends a signal and stands nowhere else."""

    weight: float
    end: int

    def loss(self, states: torch.Tensor, packs: Sequence[Packed], known: Sequence[Known]) -> torch.Tensor:
        """The mean squared difference over everything known, []; ``states`` [packs, tokens, hidden]."""
        rows = [(i, place) for i, p in enumerate(packs) for place in ends(p, self.end)[: len(known[i])]]
        wanted = torch.tensor([line for some in known for line in some], device=states.device)
        read = states[[i for i, _ in rows], [place for _, place in rows]]
        return torch.nn.functional.mse_loss(read @ projection(states.shape[-1], wanted.shape[1]).to(read), wanted)


def ends(packed: Packed, token: int) -> Ints:
    """Where the signals of a packed prompt end, in order."""
    (at,) = np.nonzero(packed.ids == token)
    return np.asarray(at[np.argsort(packed.positions[at], kind="stable")], np.int64)


def projection(hidden: int, numbers: int) -> torch.Tensor:
    """[hidden, numbers], its columns orthonormal."""
    drawn = np.random.default_rng(0).standard_normal((hidden, numbers))
    return torch.from_numpy(np.linalg.qr(drawn)[0])
