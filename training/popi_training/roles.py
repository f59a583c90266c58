"""Who plays which role: two adapters on one base, or two models; and each role as it was when the run began.

Four roles: ``infer`` (π_φ) and ``generate`` (π_θ), which are trained, ``start`` (π_φ as it began: what the KL is taken
against) and ``reference`` (π_θ as it began: DESIGN's π_ref).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from popi_edge.errors import ModelError
from popi_training import base, shards

TRAINED = ("infer", "generate")
BEGAN = {"start": "infer", "reference": "generate"}
"""What each frozen role is a copy of."""
States = dict[str, dict[str, np.ndarray]]


class Roles(Protocol):
    """What the trainer asks of its models."""

    def playing(self, role: str) -> Any:
        """A context in which the model it gives plays the role; one role at a time, and backward belongs inside."""

    def begin(self, role: str) -> None:
        """Keep ``infer`` or ``generate`` as it is now: what ``start`` or ``reference`` plays from here on."""

    def share_out(self, share: Callable[[Any], None]) -> None:
        """Share every model out among processes; no role can be begun after that."""

    def parameters(self, role: str) -> list[Any]:
        """What is trained of a role."""

    def matrices(self, role: str) -> list[Any]:
        """The matrices of the layers among them, where a role is a whole model; else none."""

    def state(self) -> States:
        """Role → its arrays; also of the frozen roles, where no file holds them."""

    def load(self, states: States) -> None:
        """Put them back. Raises ModelError where names or shapes differ."""


class One:
    """``infer`` alone, the only adapter of its base: for the warm start."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @contextmanager
    def playing(self, role: str) -> Iterator[Any]:
        yield self.model

    def begin(self, role: str) -> None:
        raise NotImplementedError("a warm start is compared with nothing")

    def share_out(self, share: Callable[[Any], None]) -> None:
        raise NotImplementedError("a warm start runs in one process")

    def parameters(self, role: str) -> list[Any]:
        return list(base.lora_parameters(self.model).values())

    def matrices(self, role: str) -> list[Any]:
        return []

    def state(self) -> States:
        return {"infer": base.lora_state(self.model)}

    def load(self, states: States) -> None:
        base.load_lora(self.model, states.get("infer", {}))


class Adapters:
    """Both roles as LoRA adapters of one base; what a role began with is an adapter too, or the base alone."""

    def __init__(self, model: Any, rank: int, alpha: float, seed: int) -> None:
        """Fresh adapters: B is zero, so that each role begins as the base."""
        for k, role in enumerate(TRAINED):
            model = base.with_lora(model, rank, alpha, seed + k, adapter=role)
        self.model = model
        self._rank, self._alpha, self._seed = rank, alpha, seed
        self._began: dict[str, str | None] = dict.fromkeys(BEGAN)
        self._look()

    def _look(self) -> None:
        """Know the layers that have adapters, and what is trained: to look for them at every turn takes as long as a
        GPU needs for the turn itself."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]
        self._trained = [p for name in TRAINED for p in base.lora_parameters(self.model, name).values()]

    def begin(self, role: str) -> None:
        """Keep ``infer`` or ``generate`` as it is now: what ``start`` or ``reference`` plays."""
        frozen = next(k for k, v in BEGAN.items() if v == role)
        self._keep(frozen, base.lora_state(self.model, role))

    def _keep(self, frozen: str, state: Mapping[str, np.ndarray]) -> None:
        if self._began[frozen] is None:
            base.with_lora(self.model, self._rank, self._alpha, self._seed, adapter=frozen)
            self._began[frozen] = frozen
            self._look()
        base.load_lora(self.model, state, frozen)

    @contextmanager
    def playing(self, role: str) -> Iterator[Any]:
        adapter = self._began.get(role) if role in BEGAN else role
        for layer in self._layers:
            if adapter is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter(adapter)
        if adapter is not None:
            for p in self._trained:  # setting one adapter freezes the others
                p.requires_grad_(True)
        try:
            yield self.model
        finally:
            if adapter is None:
                for layer in self._layers:
                    layer.enable_adapters(True)
        _put_away(self.model)

    def share_out(self, share: Callable[[Any], None]) -> None:
        share(self.model)

    def parameters(self, role: str) -> list[Any]:
        return list(base.lora_parameters(self.model, role).values())

    def matrices(self, role: str) -> list[Any]:
        return []

    def state(self) -> States:
        kept = [frozen for frozen, name in self._began.items() if name]
        return {role: base.lora_state(self.model, role) for role in (*TRAINED, *kept)}

    def load(self, states: States) -> None:
        for role in TRAINED:
            base.load_lora(self.model, states.get(role, {}), role)
        for frozen in BEGAN:
            if frozen in states:
                self._keep(frozen, states[frozen])


class Models:
    """Each role a model of its own, trained whole."""

    def __init__(self, infer: Any, generate: Any) -> None:
        self.models = {"infer": infer, "generate": generate}
        for role in TRAINED:
            self.begin(role)

    def begin(self, role: str) -> None:
        frozen = next(k for k, v in BEGAN.items() if v == role)
        self.models[frozen] = copy.deepcopy(self.models[role]).requires_grad_(False)

    @contextmanager
    def playing(self, role: str) -> Iterator[Any]:
        yield self.models[role]
        _put_away(self.models[role])

    def share_out(self, share: Callable[[Any], None]) -> None:
        for model in self.models.values():
            share(model)

    def parameters(self, role: str) -> list[Any]:
        return list(self.models[role].parameters())

    def matrices(self, role: str) -> list[Any]:
        named = self.models[role].named_parameters()
        return [p for name, p in named if p.ndim == 2 and ".layers." in name]

    def state(self) -> States:
        return {role: {n: shards.array(p) for n, p in model.named_parameters()} for role, model in self.models.items()}

    def load(self, states: States) -> None:
        for role, model in self.models.items():
            named, state = dict(model.named_parameters()), states.get(role, {})
            if set(named) != set(state) or any(shards.shape(named[n]) != v.shape for n, v in state.items()):
                raise ModelError(f"what was saved of {role} is for another model")
            for name, value in state.items():
                shards.put(named[name], value)


def _put_away(model: Any) -> None:
    """Of a model that is shared out this process keeps no more than its part; a backward pass sees to it itself."""
    if hasattr(model, "reshard") and not torch.is_grad_enabled():
        model.reshard()
