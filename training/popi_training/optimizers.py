"""What moves the weights: AdamW, or Muon for the matrices of whole models and AdamW for the rest.

Muon orthogonalises a matrix's momentum, so that every direction of it moves alike (Jordan et al., 2024); torch's own
is used, scaled so that a rate means what it means for AdamW (arXiv 2502.16982). Embeddings, norms and whatever is no
matrix of a layer are AdamW's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

MOMENTUM = 0.95


def adamw(groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.AdamW:
    """AdamW without decay."""
    return torch.optim.AdamW(list(groups), lr=lr, weight_decay=0.0)


class Muon:
    """Muon on ``matrices`` and AdamW on ``rest``, each groups of parameters as torch takes them, in the shape of one
    optimizer: ``param_groups`` are Muon's, then AdamW's, and so are the numbers of ``state_dict``."""

    def __init__(self, matrices: Sequence[dict[str, Any]], rest: Sequence[dict[str, Any]], lr: float) -> None:
        muon = torch.optim.Muon(
            list(matrices), lr=lr, weight_decay=0.0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw(rest, lr))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for part in self.parts:
            own, first = part.state_dict(), sum(len(g["params"]) for g in groups)
            state |= {first + i: s for i, s in own["state"].items()}
            groups += [g | {"params": [first + i for i in g["params"]]} for g in own["param_groups"]]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the groups are others."""
        groups, first = list(state["param_groups"]), 0
        if len(groups) != len(self.param_groups):
            raise ValueError(f"{len(groups)} groups of parameters, not {len(self.param_groups)}")
        for part in self.parts:
            own, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            size = sum(len(g["params"]) for g in own)
            part.load_state_dict({
                "state": {i - first: s for i, s in state["state"].items() if first <= i < first + size},
                "param_groups": [g | {"params": [i - first for i in g["params"]]} for g in own],
            })
            first += size


def made(kind: str, roles: Any, rates: dict[str, float], lr: float) -> Any:
    """The optimizer of some roles, each at its own rate; a group has ``role`` and ``base_lr`` beside torch's keys."""
    if kind == "adamw":
        return adamw([{"params": roles.parameters(r), "base_lr": rate, "role": r} for r, rate in rates.items()], lr)
    split: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for role, rate in rates.items():
        inner = {id(p) for p in roles.matrices(role)}
        for k, groups in enumerate(split):
            some = [p for p in roles.parameters(role) if (id(p) in inner) == (k == 0)]
            groups.append({"params": some, "base_lr": rate, "role": role})
    return Muon(*split, lr)
