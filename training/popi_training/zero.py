"""Models shared out by DeepSpeed's ZeRO stage 3 (arXiv 1910.02054): an engine for each role.

Each trained role is a whole model with an engine and an optimizer of its own, so that a step of one role alone leaves
the other's moments as they are; a role that only is asked has an engine without an optimizer. A step's many backward
passes add up (``managed_gradient_accumulation: false``) until the engine steps.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from popi_edge.errors import ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter beside its step."""


def found(device: str) -> Any:
    """DeepSpeed, for the device that trains: it looks for one when it is imported. Raises ConfigError without it, or
    for a version whose engines know no step of several backward passes."""
    os.environ.setdefault("DS_ACCELERATOR", device.partition(":")[0])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            import deepspeed
    except ImportError:
        raise ConfigError("DeepSpeed is not installed; run: pip install 'popi-edge[deepspeed]'") from None
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, and is for processors alone
    if not hasattr(deepspeed.DeepSpeedEngine, "managed_gradient_accumulation"):
        raise ConfigError(f"DeepSpeed {deepspeed.__version__} is too old; run: pip install -U 'popi-edge[deepspeed]'")
    return deepspeed


class Zero3:
    """``shards.Sharding`` by DeepSpeed."""

    def __init__(self, device: str, clip: float) -> None:
        """Raises ConfigError without DeepSpeed, for another stage than the third, and for weights in 16 bits."""
        from accelerate import DeepSpeedPlugin

        self.deepspeed, settings = found(device), DeepSpeedPlugin().deepspeed_config
        if settings["zero_optimization"]["stage"] != 3:
            raise ConfigError("zero_stage must be 3: weights that every process has whole are ddp.yaml's")
        if any(settings.get(kind, {}).get("enabled") for kind in ("bf16", "fp16")):
            raise ConfigError("mixed_precision must be 'no': weights are float32, and a GPU reckons in bfloat16 anyway")
        self.settings = settings | {
            "train_batch_size": torch.distributed.get_world_size(),  # what a pass is of is the trainer's affair
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": clip,
            "zero_allow_untested_optimizer": True,  # torch's own AdamW, as without DeepSpeed
            "zero_force_ds_cpu_optimizer": False,
        }
        self.engines: dict[int, Any] = {}
        """By the identity of the model."""
        self.waiting: set[int] = set()
        """The models that had a backward pass since their engine stepped."""

    def engine(self, model: Any) -> Any:
        return self.engines[id(model)]

    def __call__(self, model: Any) -> None:
        moving = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(moving, weight_decay=0.0) if moving else None
        with contextlib.redirect_stdout(sys.stderr):  # it tells what it builds
            engine, *_ = self.deepspeed.initialize(model=model, optimizer=optimizer, config=self.settings)
        self.engines[id(model)] = engine
        if moving:  # gradients of the pass before are added to, not replaced
            model.register_forward_pre_hook(lambda *_: engine.optimizer.clear_backward_seen_flag())

    def backward(self, loss: Any, model: Any) -> None:
        self.waiting.add(id(model))
        self.engine(model).backward(loss * torch.distributed.get_world_size())  # which it takes the mean of

    def clip(self, parameters: Iterable[Any]) -> float:
        """The norm alone: the engine itself clips, when it steps."""
        from deepspeed.utils import safe_get_local_grad

        parts = [safe_get_local_grad(p) for p in parameters]
        total = torch.stack([p.float().square().sum() for p in parts]).sum()
        torch.distributed.all_reduce(total)
        return float(total.sqrt())

    def optimizer(self, kind: str, roles: Any, rates: dict[str, float], lr: float) -> Any:
        return Engines(self, {role: roles.models[role] for role in rates}, rates, lr)


class Engines:
    """The engines of the trained roles in the shape of one AdamW; those that had a backward pass step."""

    def __init__(self, zero: Zero3, models: dict[str, Any], rates: dict[str, float], lr: float) -> None:
        self.zero, self.models = zero, models
        for role, group in zip(models, self.param_groups, strict=True):
            group |= {"lr": lr, "base_lr": rates[role], "role": role}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for model in self.models.values() for group in self.zero.engine(model).optimizer.param_groups]

    @property
    def parameters(self) -> list[Any]:
        """In the order of ``state_dict``."""
        return [p for model in self.models.values() for p in model.parameters()]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do: an engine forgets its gradients when it steps."""

    def step(self) -> None:
        for model in self.models.values():
            if id(model) in self.zero.waiting:
                self.zero.engine(model).step()
        self.zero.waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """In the shape of torch's AdamW, with whole tensors; every process must ask."""
        from deepspeed.utils import safe_get_full_optimizer_state as get

        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for model, group in zip(self.models.values(), self.param_groups, strict=True):
            own, first = list(model.parameters()), sum(len(g["params"]) for g in groups)
            if kept := [*self.zero.engine(model).optimizer.state.values()]:  # of each of its parts, as it has stepped
                for i, p in enumerate(own, first):
                    state[i] = {"step": kept[0]["step"].clone()} | {k: get(p, k).cpu() for k in MOMENTS}
            groups.append({**group, "params": [*range(first, first + len(own))]})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave. Raises ValueError or KeyError for another number of parameters."""
        from deepspeed.utils import safe_set_local_optimizer_state as put

        first = 0
        for model, group, was in zip(self.models.values(), self.param_groups, state["param_groups"], strict=True):
            own = list(model.parameters())
            if len(was["params"]) != len(own):
                raise ValueError
            group |= {k: v for k, v in was.items() if k != "params"}
            if first in state["state"]:
                self._begin(model, state["state"][first]["step"])
                for i, p in enumerate(own, first):
                    for key in MOMENTS:
                        put(p, _part(p, state["state"][i][key]), key)
            first += len(own)

    def _begin(self, model: Any, step: torch.Tensor) -> None:
        """Moments of nothing after so many steps: an engine has none before it steps."""
        for part in self.zero.engine(model).optimizer.fp32_partitioned_groups_flat:
            state = self.zero.engine(model).optimizer.state[part]
            state |= {"step": step.clone()} | {key: torch.zeros_like(part) for key in MOMENTS}


def array(parameter: Any) -> np.ndarray:
    """A copy of all of a parameter; every process must ask."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return np.array(parameter.detach().cpu().numpy())


def put(parameter: Any, value: np.ndarray) -> None:
    """Give a parameter its values, and the engine's own copy of it, where it has one."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param

    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(torch.from_numpy(value))
    if parameter.requires_grad:
        safe_set_local_fp32_param(parameter, _part(parameter, torch.from_numpy(value)))


def _part(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """This process's part of a parameter's values, which all have as many of, the last with zeros after its own."""
    size = parameter.ds_tensor.numel()
    whole = value.new_zeros(size * torch.distributed.get_world_size())
    whole[: value.numel()] = value.flatten()
    return whole[size * torch.distributed.get_rank() :][:size]
