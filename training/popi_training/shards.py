"""Models too large for one device: their weights, gradients and optimizer state shared out among the processes.

By the settings that ``accelerate launch --config_file`` hands to every process: PyTorch's own ``fully_shard`` (FSDP2;
with ``fsdp_reshard_after_forward`` the partition of ZeRO stage 3, arXiv 1910.02054), or DeepSpeed's ZeRO stage 3
(``zero``). A checkpoint holds whole arrays, so that a run can go on with another number of processes, or with one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from popi_edge.errors import ConfigError, ModelError
from popi_training import optimizers


def wanted() -> Literal["", "fsdp", "deepspeed"]:
    """The engine that the launcher asked to share models out, if it did."""
    for engine in ("fsdp", "deepspeed"):
        if os.environ.get(f"ACCELERATE_USE_{engine.upper()}", "false").lower() in ("1", "true"):
            return engine
    return ""


class Sharding(Protocol):
    """How models are shared out among the processes; gradients come out summed over them."""

    def __call__(self, model: Any) -> None:
        """Share a model out in place."""

    def backward(self, loss: Any, model: Any) -> None:
        """Add a loss's gradients to those of the model it came from."""

    def clip(self, parameters: Iterable[Any]) -> float:
        """Scale gradients whose norm is too large down, at the latest when they are used; what the norm was."""

    def optimizer(self, kind: str, roles: Any, rates: dict[str, float], lr: float) -> Any:
        """What moves the roles, in the shape of ``optimizers.made``."""


def made(device: str, clip: float) -> Sharding | None:
    """The engine that the launcher asked for, if any; ``clip``: the most that the norm of a role's gradients may be.
    Raises ConfigError where it cannot be had."""
    match wanted():
        case "fsdp":
            return Fsdp2(device, clip)
        case "deepspeed":
            from popi_training.zero import Zero3

            return Zero3(device, clip)
    return None


class Fsdp2:
    """``Sharding`` by PyTorch's ``fully_shard``."""

    def __init__(self, device: str, clip: float) -> None:
        """Raises ConfigError for FSDP's first version."""
        from accelerate import FullyShardedDataParallelPlugin

        plugin = FullyShardedDataParallelPlugin()
        if plugin.fsdp_version != 2:
            raise ConfigError("fsdp_version must be 2: the first wraps parameters that several roles share")
        self.most = clip
        self.reshard = bool(plugin.reshard_after_forward)
        self.offload: OffloadPolicy = plugin.cpu_offload
        self.mesh: DeviceMesh = init_device_mesh(device.partition(":")[0], (torch.distributed.get_world_size(),))

    def __call__(self, model: Any) -> None:
        """Share a model out in place, layer by layer; what stands outside the layers is whole from forward to backward,
        as the head is asked apart from the model."""
        blocks = set(model._no_split_modules or ())
        for layer in [m for m in model.modules() if type(m).__name__ in blocks]:
            fully_shard(layer, mesh=self.mesh, reshard_after_forward=self.reshard, offload_policy=self.offload)
        fully_shard(model, mesh=self.mesh, reshard_after_forward=False, offload_policy=self.offload)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def backward(self, loss: Any, model: Any) -> None:
        loss.backward()

    def clip(self, parameters: Iterable[Any]) -> float:
        return float(whole(torch.nn.utils.clip_grad_norm_(parameters, self.most)))

    def optimizer(self, kind: str, roles: Any, rates: dict[str, float], lr: float) -> Any:
        return optimizers.made(kind, roles, rates, lr)


def whole(tensor: Any) -> Any:
    """All of a tensor, of which this process may hold only a part; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shape(parameter: Any) -> torch.Size:
    """The shape of all of a parameter."""
    found: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return found


def array(parameter: Any) -> np.ndarray:
    """A copy of all of a parameter; every process must ask."""
    if hasattr(parameter, "ds_id"):
        from popi_training import zero

        return zero.array(parameter)
    return np.array(whole(parameter.detach()).cpu().numpy())


def put(parameter: Any, value: np.ndarray) -> None:
    """Give a parameter its values, of which a process may keep only its part."""
    if hasattr(parameter, "ds_id"):
        from popi_training import zero

        return zero.put(parameter, value)
    with torch.no_grad():
        parameter.copy_(_like(torch.from_numpy(value), parameter))


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The optimizer's state with whole tensors; every process must ask."""
    state: dict[str, Any] = optimizer.state_dict()
    each = {i: {k: whole(v) for k, v in s.items()} for i, s in state["state"].items()}
    return {**state, "state": each}


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Put the state of ``optimizer_state`` back. Raises ModelError for that of another optimizer."""
    groups = [g["params"] for g in optimizer.param_groups]
    parameters = getattr(optimizer, "parameters", None) or [p for group in groups for p in group]
    try:
        each = {i: {k: _moment(v, parameters[i]) for k, v in s.items()} for i, s in state["state"].items()}
        optimizer.load_state_dict({**state, "state": each})
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise ModelError("what was saved of the optimizer is of another one") from None


def _moment(value: Any, parameter: Any) -> Any:
    """What an optimizer keeps of a parameter; its numbers are as many. Raises ValueError where they are not."""
    if not torch.is_tensor(value) or not value.dim():
        return value
    if value.shape != shape(parameter):
        raise ValueError
    return _like(value, parameter)


def _like(value: torch.Tensor, parameter: Any) -> Any:
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
