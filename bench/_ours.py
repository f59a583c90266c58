"""Our sides of ``bench.training``, each run in a process of its own: the joint step, and the packed computation of the
summaries' log-probabilities beside the plain one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench._step import Clock, Counts, Job, Pinned, asked_ids, largest_b, memory, prepare, tail_logprobs, warm_up
from popi_training.base import dequantized, lora_parameters, with_lora
from popi_training.groups import Asked, Group
from popi_training.joint import Joint
from popi_training.loss import token_logprobs
from popi_training.pack import Sample, pack
from popi_training.people import Person
from popi_training.roles import Adapters


class Timed(Joint):
    """The joint method with a clock, and a count of what it had."""

    clock: Clock
    had: Counts

    def draw(self, people: Sequence[Person]) -> list[Group]:
        with self.clock.part("rollout"):
            groups = super().draw(people)
        self.had["prompt"] = [len(g.prompt) for g in groups for _ in g.draws]
        self.had["summary"] = [len(d.ids) for g in groups for d in g.draws]
        return groups

    def rewards(self, groups: Sequence[Group]) -> list[dict[str, Tensor]]:
        with self.clock.part("reward"):
            return super().rewards(groups)

    def move_infer(self, groups: Sequence[Group]) -> dict[str, Any]:
        with self.clock.part("phi"):
            return super().move_infer(groups)

    def move_generate(self, groups: Sequence[Group]) -> dict[str, Any]:
        with self.clock.part("theta"):
            return super().move_generate(groups)

    def likelihoods(self, role: str, asked: Sequence[Asked]) -> Tensor:
        if role == "generate":
            lengths = [[len(ids) for ids in asked_ids(self.reader.tokenizer, z, t)] for z, t in asked]
            self.had[self.clock.now] = self.had.get(self.clock.now, []) + lengths
        return super().likelihoods(role, asked)


def ours(job: Job) -> dict[str, Any]:
    """One step of the joint method: seconds and tokens of its parts, ``had``, ``moved``, memory (MiB)."""
    prepare(job, exact=True)
    recipe, reader = job.recipe(), Pinned(job)
    roles = Adapters(dequantized(Path(job.model)), recipe.lora.rank, recipe.lora.alpha, recipe.seed)
    for role in ("infer", "generate"):
        roles.begin(role)
    roles.model.to(job.device)
    trainer = Timed(recipe, reader, roles, lambda _: [reader.person], lambda _: [], {}, job.device)
    trainer.clock, trainer.had = Clock(job.device), {}
    with roles.playing("infer") as model:
        warm_up(model)
    trainer.clock.watch(roles.model)
    before = memory(job)
    with trainer.clock.part("rest"):
        trainer.train_step(trainer.make(0))
    moved = {role: largest_b(roles.model, adapter) for role, adapter in (("phi", "infer"), ("theta", "generate"))}
    return trainer.clock.figures() | {"had": trainer.had, "moved": moved} | memory(job, before)


def packed(job: Job) -> dict[str, Any]:
    """Forward and backward of all summaries in one sequence: seconds, memory, and each summary's log-probability."""

    def one(model: Any, samples: list[Sample]) -> list[float]:
        found = token_logprobs(model, [pack(samples)])[0]
        found.sum().backward()
        return [float(p) for p in found.detach().view(len(samples), -1).sum(1)]

    return _alone(job, one)


def plain(job: Job) -> dict[str, Any]:
    """The same with the signals once for every summary, ``rows`` sequences at a time."""

    def each(model: Any, samples: list[Sample]) -> list[float]:
        out: list[float] = []
        for k in range(0, len(samples), job.rows):
            ids = torch.tensor([[*s.prompt, *s.completion] for s in samples[k : k + job.rows]])
            found = tail_logprobs(model, ids, job.summary)
            found.sum().backward()
            out += found.detach().tolist()
        return out

    return _alone(job, each)


def _alone(job: Job, compute: Callable[[Any, list[Sample]], list[float]]) -> dict[str, Any]:
    prepare(job, exact=False)
    recipe, prompt, clock = job.recipe(), Pinned(job).pinned, Clock()
    model = with_lora(dequantized(Path(job.model)), recipe.lora.rank, recipe.lora.alpha, recipe.seed)
    dice = torch.Generator().manual_seed(recipe.seed)
    drawn = torch.randint(model.config.vocab_size, (job.group, job.summary), generator=dice).tolist()
    warm_up(model)
    clock.watch(model)
    before = memory(job)
    with clock.part("packing"):
        found = compute(model, [Sample(prompt, tuple(ids)) for ids in drawn])
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in lora_parameters(model).values()))
    return clock.figures() | {"logprobs": found, "gradient": norm} | memory(job, before)
