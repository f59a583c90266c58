"""What moves the weights: Muon is torch's on the matrices, the rest is AdamW's, and a state put back goes on alike."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from popi_training import optimizers
from popi_training.micro import SHAPE, untrained
from popi_training.roles import Models

RATES = {"infer": 2e-2, "generate": 1e-2}


def opened(kind: str = "muon") -> tuple[Models, Any]:
    roles = Models(untrained(64, 0, SHAPE), untrained(64, 1, SHAPE))
    return roles, optimizers.made(kind, roles, RATES, 1e-3)


def moved(roles: Models, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        for k, role in enumerate(RATES):
            for i, p in enumerate(roles.parameters(role)):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 * step + 100 * k + i))
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"]
        optimizer.step()


def test_matrices_of_layers_are_muons_and_the_rest_is_adamws_each_at_its_roles_rate() -> None:
    roles, optimizer = opened()
    sizes = [(g["role"], g["base_lr"], len(g["params"])) for g in optimizer.param_groups]
    assert sizes == [("infer", 2e-2, 14), ("generate", 1e-2, 14), ("infer", 2e-2, 6), ("generate", 1e-2, 6)]
    before = {r: {n: p.detach().clone() for n, p in roles.models[r].named_parameters()} for r in RATES}
    moved(roles, optimizer, range(1))
    for k, (role, rate) in enumerate(RATES.items()):
        for i, (name, p) in enumerate(roles.models[role].named_parameters()):
            step = p.detach() - before[role][name]
            if p.ndim == 2 and ".layers." in name:
                drawn = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * k + i))
                u, _, v = torch.linalg.svd(drawn, full_matrices=False)
                straight = torch.linalg.svdvals(step / (rate * 0.2 * max(p.shape) ** 0.5))
                assert straight.max() < 1.3 and (straight > 0.6).float().mean() > 0.9  # as near to 1 as five steps come
                assert torch.cosine_similarity(-step.flatten(), (u @ v).flatten(), 0) > 0.95
            else:
                assert step.abs().flatten() == pytest.approx(rate, rel=1e-3)  # AdamW's first step


def test_a_state_that_was_put_back_goes_on_bit_for_bit() -> None:
    roles, optimizer = opened()
    moved(roles, optimizer, range(3))
    kept, weights = copy.deepcopy(optimizer.state_dict()), roles.state()
    assert sorted(kept["state"]) == list(range(40)) == [i for g in kept["param_groups"] for i in g["params"]]
    moved(roles, optimizer, range(3, 6))
    other, again = opened()
    other.load({r: {n: np.array(v) for n, v in s.items()} for r, s in weights.items()})
    with pytest.raises(ValueError, match="groups"):
        again.load_state_dict({**kept, "param_groups": kept["param_groups"][:3]})
    again.load_state_dict(kept)
    moved(other, again, range(3, 6))
    for role in RATES:
        for a, b in zip(roles.parameters(role), other.parameters(role), strict=True):
            assert torch.equal(a, b)
    assert len(opened("adamw")[1].param_groups) == 2
