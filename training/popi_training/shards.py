"""Models too large for one device: their weights, gradients and optimizer state shared out among the processes.

PyTorch's own ``fully_shard`` (FSDP2; with ``fsdp_reshard_after_forward`` the partition of ZeRO stage 3, arXiv
1910.02054), by the settings that ``accelerate launch --config_file`` hands to every process. A checkpoint holds whole
arrays, so that a run can go on with another number of processes, or with one.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from popi_edge.errors import ConfigError, ModelError


def wanted() -> bool:
    """Whether the launcher asked for sharding. Raises ConfigError for an engine that is not supported."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        raise ConfigError("DeepSpeed is not used here; training/accelerate/zero3.yaml has its stage 3 by FSDP2")
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


class Sharding:
    """How models are shared out among the processes; gradients come out summed over them."""

    def __init__(self, device: str) -> None:
        """Raises ConfigError for FSDP's first version."""
        from accelerate import FullyShardedDataParallelPlugin

        plugin = FullyShardedDataParallelPlugin()
        if plugin.fsdp_version != 2:
            raise ConfigError("fsdp_version must be 2: the first wraps parameters that several roles share")
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


def whole(tensor: Any) -> Any:
    """All of a tensor, of which this process may hold only a part; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def array(parameter: Any) -> np.ndarray:
    """A copy of all of a parameter; every process must ask."""
    return np.array(whole(parameter.detach()).cpu().numpy())


def put(parameter: Any, value: np.ndarray) -> None:
    """Give a parameter its values, of which a process may keep only its part."""
    with torch.no_grad():
        parameter.copy_(_like(torch.from_numpy(value), parameter))


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The optimizer's state with whole tensors; every process must ask."""
    state: dict[str, Any] = optimizer.state_dict()
    each = {i: {k: whole(v) for k, v in s.items()} for i, s in state["state"].items()}
    return {**state, "state": each}


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Put the state of ``optimizer_state`` back. Raises ModelError for that of another optimizer."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        each = {i: {k: _moment(v, parameters[i]) for k, v in s.items()} for i, s in state["state"].items()}
        optimizer.load_state_dict({**state, "state": each})
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise ModelError("what was saved of the optimizer is of another one") from None


def _moment(value: Any, parameter: Any) -> Any:
    """What an optimizer keeps of a parameter; its numbers are as many. Raises ValueError where they are not."""
    if not torch.is_tensor(value) or not value.dim():
        return value
    if value.shape != parameter.shape:
        raise ValueError
    return _like(value, parameter)


def _like(value: torch.Tensor, parameter: Any) -> Any:
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
