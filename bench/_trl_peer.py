"""The peer of ``bench.training``: one step with TRL, GRPOTrainer for φ and then DPOTrainer for θ, in this process.

As somebody would put it together who knows TRL: its own ``generate`` (no vLLM), a reward function that scores the
pair of replies under the generator in plain batches, fresh completions scored once (no log-probabilities of before),
no scaling of rewards, the KL against a copy of the adapter. TRL trains the adapter called "default", so that each role
is a PeftModel; their bases share one set of weights. Its KL is the one-sample estimate, ours is exact; its DPO takes
the reference under the same summary, ours on the bare prompt.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from bench._step import (
    Clock,
    Counts,
    Job,
    Pinned,
    asked_ids,
    largest_b,
    memory,
    prepare,
    tail_logprobs,
    verbatim,
    warm_up,
)
from popi_training.base import dequantized, with_lora


class Step(TrainerCallback):
    """Clocks a trainer's one step as a part: from before its first micro-batch to after the optimizer."""

    def __init__(self, clock: Clock, part: str) -> None:
        self.clock, self.part = clock, part

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.enter(self.part)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.leave()


class Grpo(GRPOTrainer):
    """TRL's trainer with its generation clocked apart, and what it generated from and got counted."""

    clock: Clock
    had: Counts

    def _generate(self, prompts: list[Any]) -> Any:
        with self.clock.part("rollout"):
            made = super()._generate(prompts)
        self.had["prompt"], self.had["summary"] = ([len(ids) for ids in lists] for lists in made[:2])
        return made


def characters(size: int, end: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``verbatim`` text: a character is an id."""
    made = Tokenizer(models.WordLevel({verbatim([i]): i for i in range(size)}))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    last = verbatim([end])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=last, pad_token=last)


def peer(job: Job) -> dict[str, Any]:
    """One step with TRL: seconds and tokens of its parts, ``had``, ``moved``, memory (MiB), ``versions``."""
    prepare(job, exact=False)
    disable_progress_bars()
    recipe, reader, clock = job.recipe(), Pinned(job), Clock(job.device)
    one = dequantized(Path(job.model)).to(job.device)
    one.config.use_cache = one.generation_config.use_cache = True  # for generate: dequantized() leaves it off
    other = copy.deepcopy(one, {id(p): p for p in one.parameters()})
    phi, theta = (
        with_lora(m, recipe.lora.rank, recipe.lora.alpha, recipe.seed + k, adapter="default").to(job.device)
        for k, m in enumerate((one, other))
    )
    for model in (phi, theta):
        warm_up(model)
        clock.watch(model)
    words, beta, had = characters(one.config.vocab_size, reader.tokenizer.eos), recipe.joint.beta, Counts()
    rewarded, learnt = reader.person.targets

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        """log σ(β m)/β of each summary."""
        low = torch.autocast("cuda", torch.bfloat16, enabled=job.device != "cpu")
        with clock.part("reward"), torch.no_grad(), low:
            rows = [asked_ids(reader.tokenizer, verbatim(ids), rewarded) for ids in completion_ids]
            had["reward"] = [[len(ids) for ids in row] for row in rows]
            with theta.disable_adapter():
                bare = margins(theta, [asked_ids(reader.tokenizer, "", rewarded)])
            n = job.pairs_at_once()
            found = torch.cat([margins(theta, rows[k : k + n]) for k in range(0, len(rows), n)]) - bare
            drawn.extend(completion_ids)
            return [float(r) for r in logsigmoid(beta * found) / beta]

    drawn: list[list[int]] = []
    with tempfile.TemporaryDirectory(prefix="popi-bench-") as folder:
        grpo = Grpo(
            model=phi, reward_funcs=reward, processing_class=words, callbacks=[Step(clock, "phi")],
            train_dataset=Dataset.from_list([{"prompt": verbatim(reader.pinned)}]),
            args=GRPOConfig(
                **_common(job, folder, recipe.train.lr, recipe.train.clip, job.rows),
                num_generations=job.group, steps_per_generation=job.group // job.rows,
                max_completion_length=job.summary, temperature=recipe.joint.temperature,
                generation_kwargs={"min_new_tokens": job.summary, "use_cache": True},
                beta=recipe.joint.kl, epsilon=recipe.joint.ratio, loss_type="dr_grpo", scale_rewards="none",
            ),
        )  # fmt: skip
        grpo.clock, grpo.had = clock, had
        before = memory(job)
        grpo.train()
        n = job.pairs_at_once()
        pairs = [asked_ids(reader.tokenizer, verbatim(ids), learnt) for ids in drawn]
        texts = [dict(zip(("prompt", "chosen", "rejected"), map(verbatim, pair), strict=True)) for pair in pairs]
        dpo = DPOTrainer(
            model=theta, processing_class=words, callbacks=[Step(clock, "theta")],
            train_dataset=Dataset.from_list(texts),
            args=DPOConfig(
                **_common(job, folder, recipe.joint.lr_generate, recipe.train.clip, n),
                beta=beta, max_length=None,
            ),
        )  # fmt: skip
        assert isinstance(dpo.train_dataset, Dataset)
        had["theta"] = [[len(row[f"{k}_ids"]) for k in ("prompt", "chosen", "rejected")] for row in dpo.train_dataset]
        dpo.train()
    moved = {"phi": largest_b(phi, "default"), "theta": largest_b(theta, "default")}
    versions = "TRL {}, transformers {}, peft {}".format(*map(version, ("trl", "transformers", "peft")))
    return clock.figures() | {"had": had, "moved": moved, "versions": versions} | memory(job, before)


def margins(model: Any, pairs: Sequence[tuple[list[int], list[int], list[int]]]) -> torch.Tensor:
    """log π(y⁺|…) − log π(y⁻|…) of pairs of one length, [pairs] (nats)."""
    device = next(model.parameters()).device
    ids = torch.tensor([[*context, *reply] for context, *both in pairs for reply in both], device=device)
    found = tail_logprobs(model, ids, len(pairs[0][1])).view(-1, 2)
    return found[:, 0] - found[:, 1]


def _common(job: Job, folder: str, lr: float, clip: float, rows: int) -> dict[str, Any]:
    """What both trainers are told: one step of the whole group, ``rows`` at a time, without gradient checkpointing; on
    the CPU in float32, elsewhere in bfloat16, as ours."""
    on_cpu = job.device == "cpu"
    return {
        "output_dir": folder, "max_steps": 1, "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": job.group // rows, "learning_rate": lr, "lr_scheduler_type": "constant",
        "optim": "adamw_torch", "weight_decay": 0.0, "max_grad_norm": clip, "gradient_checkpointing": False,
        "bf16": not on_cpu, "use_cpu": on_cpu, "dataloader_pin_memory": False, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
