"""The processes that train one run (``accelerate launch``): each takes its share of a step, gradients are summed.

One process is the usual case, and costs nothing. What is shared out are a step's people; every process holds whole
models, so the sum of the gradients is that of one process that has everybody (data parallel, as DDP, but with one
reduction a step, whatever the number of backward passes and adapters). Where the models are shared out too
(``shards``), all processes must call them equally often.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from popi_edge.errors import ConfigError
from popi_training import shards
from popi_training.shards import Sharding

T = TypeVar("T")


def several() -> bool:
    """Whether a launcher started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: str) -> Any:
    """Where this process stands among them: accelerate's ``PartialState``, which also makes a GPU of its own the
    current one, so that it comes before anything is put there. Raises ConfigError where accelerate, or DeepSpeed where
    it is asked for, is not installed."""
    try:
        from accelerate import PartialState
    except ImportError:
        raise ConfigError("several processes need accelerate; run: pip install 'popi-edge[training]'") from None
    if shards.wanted() == "deepspeed":
        from popi_training import zero

        zero.found(device)  # accelerate's own word for it missing is a traceback
    return PartialState(cpu=device == "cpu")


class Team:
    """``rank`` of ``size`` processes; the first of them is ``main``, which alone writes files."""

    def __init__(self, device: str = "cpu", clip: float = math.inf) -> None:
        """Joins the others where a launcher started several; ``clip``: the most that the norm of a role's gradient may
        be. Raises ConfigError where accelerate or the engine that is asked for is not installed."""
        self.rank, self.size, self.most_norm = 0, 1, clip
        self.sharding: Sharding | None = None
        if several():
            state = join(device)
            self.rank, self.size = state.process_index, state.num_processes
            self.sharding = shards.made(device, clip)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of what all of them have. Raises ConfigError where it cannot be shared out evenly."""
        if len(items) % self.size:
            raise ConfigError(f"train.batch {len(items)} cannot be shared out evenly among {self.size} processes")
        return list(items[self.rank :: self.size])

    def most(self, count: int) -> int:
        """The largest count of any process where all must call the models equally often, else this one's own."""
        return max(self.gather([count])) if self.sharding else count

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        """Every gradient becomes the sum over the processes, in one message; those of shared out models are it. A
        process that had nothing to learn from adds nothing."""
        if self.size == 1 or self.sharding:
            return
        some = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in some])
        torch.distributed.all_reduce(flat)
        for p, part in zip(some, flat.split([p.numel() for p in some]), strict=True):
            p.grad = part.view_as(p)

    def backward(self, loss: Any, model: Any) -> None:
        """Add a loss's gradients to those of the model it came from."""
        if self.sharding:
            self.sharding.backward(loss, model)
        else:
            loss.backward()

    def clip(self, parameters: Iterable[Any]) -> float:
        """Scale a role's gradients down to the most that their norm may be; what it was."""
        if self.sharding:
            return self.sharding.clip(parameters)
        return float(torch.nn.utils.clip_grad_norm_(parameters, self.most_norm))

    def mean(self, line: Mapping[str, float]) -> dict[str, float]:
        """Of every figure the mean over the processes, which must have the same names in the same order."""
        if self.size == 1:
            return dict(line)
        columns = zip(*self.gather([list(line.values())]), strict=True)  # NCCL reduces no tensor of the processor
        return {name: sum(each) / self.size for name, each in zip(line, columns, strict=True)}

    def gather(self, items: Sequence[T]) -> list[T]:
        """What all processes have, one after the other."""
        if self.size == 1:
            return list(items)
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, list(items))
        return [x for part in found for x in part]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            torch.distributed.barrier()
