"""What both sides of ``bench.training`` are given and held to: the job with its pinned lengths, clock, counts, memory.

Every id is written as one character of a private plane and is read back as that id, so that a text has exactly the ids
asked for; nothing ends a summary before its length.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common import signals
from popi_edge import prompts
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_training import recipe as recipes
from popi_training import warm
from popi_training.base import lora_parameters
from popi_training.joint import TOGETHER
from popi_training.people import Person, Target
from popi_training.recipe import Recipe

RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "popi-smol.toml"
"""Rank, rates, β and the weight of the KL are this recipe's."""
FIRST = 0x100000
"""The character of id 0: a plane of 65,534 for private use."""
TAIL = 48
"""Tokens of the prompt's end that stay, where the signals are cut to length: the instruction."""
PARTS = ("rollout", "reward", "phi", "theta")


@dataclass(frozen=True)
class Job:
    """What is to be done; numbers of tokens, but for ``group``, ``rows`` (sequences of TRL, or of the plain
    computation, that go through the model at once while it learns) and ``threads``. ``model``: a GGUF's path;
    ``device``: as torch names it."""

    model: str
    signals: int = 1024
    summary: int = 64
    group: int = 8
    question: int = 32
    reply: int = 64
    rows: int = 2
    threads: int = 2
    device: str = "cpu"

    def recipe(self) -> Recipe:
        """The recipe of the step: one reward pair and one DPO pair a summary, none of them left empty."""
        r = recipes.read(RECIPE)
        joint = replace(r.joint, group=self.group, pairs=1, dpo_pairs=1, mask=False, empty=0.0)
        return replace(r, joint=joint, train=replace(r.train, threads=self.threads))

    def pairs_at_once(self) -> int:
        """How many pairs the peer scores or learns from at once: as many as ours, as far as they divide the group."""
        return next(n for n in range(TOGETHER, 0, -1) if self.group % n == 0)


class Clock:
    """Seconds, and tokens through the models, of each part; a part's figures leave out the parts inside it. On another
    ``device`` than the CPU a part ends when the device has done its work."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.seconds, self.tokens = defaultdict[str, float](float), Counter[str]()
        self._open, self._since = list[str](), 0.0

    @property
    def now(self) -> str:
        """The innermost part, or nothing."""
        return self._open[-1] if self._open else ""

    def enter(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def watch(self, model: Any) -> None:
        """Count every id that enters the model."""

        def seen(_: Any, given: tuple[Any, ...]) -> None:
            if self.now:
                self.tokens[self.now] += given[0].numel()

        model.get_input_embeddings().register_forward_pre_hook(seen)

    def figures(self) -> dict[str, Any]:
        named = {f"{part}_s": self.seconds[part] for part in PARTS if part in self.seconds}
        return {"step_s": sum(self.seconds.values()), **named, "tokens_through": dict(self.tokens)}

    def _charge(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
        then, self._since = self._since, time.perf_counter()
        if self._open:
            self.seconds[self.now] += self._since - then


def verbatim(ids: Sequence[int]) -> str:
    """Ids as text, a character each, that ``Verbatim`` and the peer's tokenizer read back as these ids."""
    return "".join(chr(FIRST + i) for i in ids)


class Verbatim(Tokenizer):
    """The model's tokenizer, which also reads ``verbatim``, and decodes to it."""

    def encode(self, text: str) -> list[int]:
        parts = re.split(f"([{chr(FIRST)}-{chr(0x10FFFD)}]+)", text)
        return [
            i
            for k, part in enumerate(parts)
            for i in ([ord(c) - FIRST for c in part] if k % 2 else super(Verbatim, self).encode(part))
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return verbatim(ids)


class Pinned(warm.Reader):
    """The runtime's reader with every length pinned: the prompt's, the summaries', the targets'."""

    def __init__(self, job: Job) -> None:
        file = Gguf(Path(job.model))
        super().__init__(Verbatim(file), int(file.need("llama.context_length", int)))
        self.tokenizer.eos_ids = ()  # nothing ends a summary
        self.limits = {**self.limits, "summary_tokens": job.summary}
        some = tuple(signals(8 + job.signals // 8))
        plain = Tokenizer(file)
        ids = prompts.chat_ids(plain, prompts.infer_messages([prompts.signal_text(s, plain) for s in some]))
        tail = min(TAIL, job.signals // 2)
        self.pinned = (*ids[: job.signals - tail], *ids[-tail:])
        self.person = Person("bench", some, self._targets(job, ids))

    def prompt(self, signals: tuple[Any, ...]) -> tuple[int, ...]:
        return self.pinned

    def _targets(self, job: Job, ids: list[int]) -> tuple[Target, ...]:
        """A pair to be rewarded on and one to learn from, of the lengths asked for; a reply's last token is its end."""
        sizes = [job.question, job.reply - 1, job.reply - 1] * 2
        ids = ids * (1 + sum(sizes) // len(ids))
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        texts = [verbatim(ids[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
        return Target(*texts[:3]), Target(*texts[3:])


def asked_ids(tokenizer: Tokenizer, z: str, t: Target) -> tuple[list[int], list[int], list[int]]:
    """Ids of the generator's context, under a summary or none (""), and of both replies."""
    context = prompts.generate_ids(tokenizer, t.prompt, summary=z or None)
    return context, prompts.reply_ids(tokenizer, t.chosen), prompts.reply_ids(tokenizer, t.rejected)


Counts = dict[str, list[Any]]
"""What a side really had: lengths of ``prompt`` and ``summary``, and of [context, chosen, rejected] in ``reward`` and
``theta``; a row each."""


def tail_logprobs(model: Any, ids: Tensor, tail: int) -> Tensor:
    """log p of the last ``tail`` tokens of each row, [rows] (nats); as anybody would write it."""
    logits = model(input_ids=ids, logits_to_keep=tail + 1, use_cache=False).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(2, ids[:, -tail:, None]).sum((1, 2))


def prepare(job: Job, *, exact: bool) -> None:
    """Threads; ``exact``: the repeatable kernels that ``popi train`` uses on the CPU. Elsewhere TF32, as it does."""
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(exact and job.device == "cpu")
    if job.device != "cpu":
        torch.set_float32_matmul_precision("high")


def warm_up(model: Any) -> None:
    """A small forward and backward, so that no side's first one is in its figures."""
    ids = torch.arange(64, device=next(model.parameters()).device)[None] + 5
    model(input_ids=ids, use_cache=False).logits.sum().backward()
    model.zero_grad(set_to_none=True)


def largest_b(model: Any, adapter: str) -> float:
    """The largest |B| of an adapter: B begins at zero, so that 0 means that it did not move."""
    named = lora_parameters(model, adapter)
    return max(float(p.detach().abs().max()) for name, p in named.items() if name.endswith(".lora_b"))


def memory(job: Job, before: dict[str, float] | None = None) -> dict[str, float]:
    """``loaded_mb`` of this process now (Linux), or of its device, and, where it is given what was ``before``, the
    ``peak_mb`` since (MiB)."""
    if job.device != "cpu":
        if before is None:
            torch.cuda.reset_peak_memory_stats()
        now, peak = torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
    else:
        if before is None:
            Path("/proc/self/clear_refs").write_text("5")
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, peak = (int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return {"loaded_mb": now} if before is None else before | {"peak_mb": peak}
