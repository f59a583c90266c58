"""A joint training step against TRL doing the same job: wall time of its parts and peak memory, in one run on the CPU.

    python -m bench.training [--model smollm2|tiny] [--signals N] [--summary N] [--group G] [--part all|step|packing]

One person, whose prompt of signals has ``signals`` tokens. The step: G summaries of them are drawn, each is rewarded on
one held-out pair under the generator, φ moves by the policy gradient with a KL to its start, θ by DPO on another pair
under each summary. Ours is ``Joint.train_step``; the peer (``_trl_peer``) is TRL's GRPOTrainer for φ, then its
DPOTrainer for θ. On both sides: the same dequantized base, LoRA of the same rank, float32, AdamW, no gradient
checkpointing, the same threads, frozen roles as adapters of their own.

Lengths are pinned, so that both do the same. Every id is written as one character of a private plane and is read back
as that id; summaries are drawn without the closed vocabulary and no token ends one (TRL: min_new_tokens =
max_new_tokens). What each side really had is counted, and a run in which the sides differ is refused.

Not measured: building TRL's trainers and data sets (outside its clock), the vocabulary mask, whether either learns.
``packing``: forward and backward of the summaries' log-probabilities alone, one packed sequence against G full ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common import base, child, median, options, show, signals
from popi_edge import prompts
from popi_edge.errors import ConfigError, EngineError, PopiError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_training import recipe as recipes
from popi_training import warm
from popi_training.base import dequantized, lora_parameters, with_lora
from popi_training.joint import TOGETHER, Asked, Group, Joint
from popi_training.loss import token_logprobs
from popi_training.pack import Sample, pack
from popi_training.people import Person, Target
from popi_training.recipe import Recipe
from popi_training.roles import Adapters

RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "popi-smol.toml"
"""Rank, rates, β and the weight of the KL are this recipe's."""
TRL = "TRL is not installed: pip install trl==1.16.0 'datasets<5' -c constraints.txt (in an environment of its own)"
FIRST = 0x100000
"""The character of id 0: a plane of 65,534 for private use."""
TAIL = 48
"""Tokens of the prompt's end that stay, where the signals are cut to length: the instruction."""
PARTS = ("rollout", "reward", "phi", "theta")
LEAST = {"signals": 32, "summary": 2, "group": 2, "question": 1, "reply": 2, "rows": 1, "threads": 1, "runs": 1}
"""What each number must be at least."""
FRAME = 64
"""Tokens, at most, of the generator's template around a summary and a question."""


@dataclass(frozen=True)
class Job:
    """What is to be done; numbers of tokens, but for ``group``, ``rows`` (sequences of TRL, or of the plain
    computation, that go through the model at once while it learns) and ``threads``. ``model``: a GGUF's path."""

    model: str
    signals: int = 1024
    summary: int = 64
    group: int = 8
    question: int = 32
    reply: int = 64
    rows: int = 2
    threads: int = 2

    def recipe(self) -> Recipe:
        """The recipe of the step: one reward pair and one DPO pair a summary, none of them left empty."""
        r = recipes.read(RECIPE)
        joint = replace(r.joint, group=self.group, pairs=1, dpo_pairs=1, mask=False, empty=0.0)
        return replace(r, joint=joint, train=replace(r.train, threads=self.threads))

    def pairs_at_once(self) -> int:
        """How many pairs the peer scores or learns from at once: as many as ours, as far as they divide the group."""
        return next(n for n in range(TOGETHER, 0, -1) if self.group % n == 0)


class Clock:
    """Seconds, and tokens through the models, of each part; a part's figures leave out the parts inside it."""

    def __init__(self) -> None:
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

    def reward(self, group: Group) -> dict[str, Tensor]:
        with self.clock.part("reward"):
            return super().reward(group)

    def move_infer(self, groups: Sequence[Group]) -> dict[str, Any]:
        with self.clock.part("phi"):
            return super().move_infer(groups)

    def move_generate(self, groups: Sequence[Group]) -> dict[str, Any]:
        with self.clock.part("theta"):
            return super().move_generate(groups)

    def ratios(self, role: str, asked: Sequence[Asked]) -> Tensor:
        if role == "generate":
            lengths = [[len(ids) for ids in asked_ids(self.reader.tokenizer, z, t)] for z, t in asked]
            self.had[self.clock.now] = self.had.get(self.clock.now, []) + lengths
        return super().ratios(role, asked)


# in a process of its own ------------------------------------------------------------------------------------------
def ours(job: Job) -> dict[str, Any]:
    """One step of the joint method: seconds and tokens of its parts, ``had``, ``moved``, memory (MiB)."""
    prepare(job, exact=True)
    recipe, reader = job.recipe(), Pinned(job)
    roles = Adapters(dequantized(Path(job.model)), recipe.lora.rank, recipe.lora.alpha, recipe.seed)
    for role in ("infer", "generate"):
        roles.begin(role)
    trainer = Timed(recipe, reader, roles, lambda _: [reader.person], lambda _: [], {})
    trainer.clock, trainer.had = Clock(), {}
    with roles.playing("infer") as model:
        warm_up(model)
    trainer.clock.watch(roles.model)
    before = memory(reset=True)
    with trainer.clock.part("rest"):
        trainer.train_step(trainer.make(0))
    moved = {role: largest_b(roles.model, adapter) for role, adapter in (("phi", "infer"), ("theta", "generate"))}
    return trainer.clock.figures() | {"had": trainer.had, "moved": moved} | memory(before)


def packed(job: Job) -> dict[str, Any]:
    """Forward and backward of all summaries in one sequence: seconds, memory, and each summary's log-probability."""

    def one(model: Any, samples: list[Sample]) -> list[float]:
        found = token_logprobs(model, [pack(samples)])[0]
        found.sum().backward()  # type: ignore[no-untyped-call]
        return [float(p) for p in found.detach().view(len(samples), -1).sum(1)]

    return _alone(job, one)


def plain(job: Job) -> dict[str, Any]:
    """The same with the signals once for every summary, ``rows`` sequences at a time."""

    def each(model: Any, samples: list[Sample]) -> list[float]:
        out: list[float] = []
        for k in range(0, len(samples), job.rows):
            ids = torch.tensor([[*s.prompt, *s.completion] for s in samples[k : k + job.rows]])
            found = tail_logprobs(model, ids, job.summary)
            found.sum().backward()  # type: ignore[no-untyped-call]
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
    before = memory(reset=True)
    with clock.part("packing"):
        found = compute(model, [Sample(prompt, tuple(ids)) for ids in drawn])
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in lora_parameters(model).values()))
    return clock.figures() | {"logprobs": found, "gradient": norm} | memory(before)


def tail_logprobs(model: Any, ids: Tensor, tail: int) -> Tensor:
    """log p of the last ``tail`` tokens of each row, [rows] (nats); as anybody would write it."""
    logits = model(input_ids=ids, logits_to_keep=tail + 1, use_cache=False).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(2, ids[:, -tail:, None]).sum((1, 2))


def prepare(job: Job, *, exact: bool) -> None:
    """Threads; ``exact``: the repeatable kernels that ``popi train`` uses."""
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(exact)


def warm_up(model: Any) -> None:
    """A small forward and backward, so that no side's first one is in its figures."""
    model(input_ids=torch.arange(64)[None] + 5, use_cache=False).logits.sum().backward()
    model.zero_grad(set_to_none=True)


def largest_b(model: Any, adapter: str) -> float:
    """The largest |B| of an adapter: B begins at zero, so that 0 means that it did not move."""
    named = lora_parameters(model, adapter)
    return max(float(p.detach().abs().max()) for name, p in named.items() if name.endswith(".lora_b"))


def memory(before: dict[str, float] | None = None, *, reset: bool = False) -> dict[str, float]:
    """``loaded_mb`` of this process now and, where it is given what was ``before``, the ``peak_mb`` since (MiB; Linux).
    ``reset``: count the peak from here."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return {"loaded_mb": now} if before is None else before | {"peak_mb": peak}


# in the process that was started ----------------------------------------------------------------------------------
def measure(job: Job, sides: Sequence[str], runs: int) -> dict[str, list[dict[str, Any]]]:
    """``runs`` times each of two sides in turn, each in a process of its own. Raises EngineError where one fails."""
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for i in range(runs):  # in turn, so that a drift of the machine meets both
        for side in sides[:: 1 if i % 2 == 0 else -1]:
            where = "_trl_peer" if side == "peer" else "training"
            code = f"from bench.{where} import Job, {side} as side\nresult = side(Job(**json.loads(sys.argv[2])))"
            try:
                row = child(code, json.dumps(asdict(job)), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
            except subprocess.CalledProcessError as e:
                last = (e.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise EngineError(f"{side} ended with {e.returncode}: {last:.300}") from None
            rows[side].append(row)
            print(f"{side} {i + 1}/{runs}: {row['step_s']:.2f} s, {row['peak_mb']:.0f} MiB", file=sys.stderr)
    return rows


def same_work(ours: list[dict[str, Any]], peer: list[dict[str, Any]], job: Job) -> dict[str, Any]:
    """The lengths that every row of both sides had. Raises EngineError where they are not what was asked for, where a
    rollout did not keep its cache, or where a role did not move."""
    g, context = job.group, ours[0]["had"]["reward"][0][0]
    wanted: Counts = {"prompt": [job.signals] * g, "summary": [job.summary] * g}
    wanted |= {part: [[context, job.reply, job.reply]] * g for part in ("reward", "theta")}
    for side, rows, read in (("ours", ours, 1), ("peer", peer, g)):
        through = read * job.signals + g * (job.summary - 1)
        for row in rows:
            for key, want in wanted.items():
                if row["had"].get(key) != want:
                    raise EngineError(f"{side} did other work: {key} {row['had'].get(key)} instead of {want}")
            if row["tokens_through"]["rollout"] != through:
                raise EngineError(f"{side}: {row['tokens_through']['rollout']} tokens in the rollout, not {through}")
            if not all(row["moved"].values()):
                raise EngineError(f"{side}: a role did not move: {row['moved']}")
    return {"prompt": job.signals, "summary": job.summary, "context": context, "reply": job.reply}


def agree(packed: dict[str, Any], plain: dict[str, Any]) -> float:
    """How far the two computations lie apart, relatively: the largest of all summaries' log-probabilities and of the
    gradient's norm. Raises EngineError where that is more than float error."""
    pairs = [*zip(packed["logprobs"], plain["logprobs"], strict=True), (packed["gradient"], plain["gradient"])]
    apart = max(abs(a - b) / abs(b) for a, b in pairs)
    if not apart < 1e-3:  # also NaN
        raise EngineError(f"packed and plain differ by {apart:.1e}")
    return float(f"{apart:.1e}")


def figures(rows: list[dict[str, Any]], *keys: str) -> dict[str, Any]:
    """Medians of the runs, and the tokens that went through the model in each part."""
    named = {k: round(median(rows, k), 2) for k in ("step_s", *keys)}
    return named | {k: round(median(rows, k)) for k in ("loaded_mb", "peak_mb")} | {
        "tokens_through": rows[0]["tokens_through"]
    }  # fmt: skip


def ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """The peer's over ours of every time and of the peak: above 1 where ours is better."""
    keys = [k for k in ours if k.endswith("_s") or k == "peak_mb"]
    return {k: round(peer[k] / max(ours[k], 0.005), 2) for k in keys}


def step(job: Job, runs: int) -> dict[str, Any]:
    """The whole step against TRL. Raises ConfigError where there is no TRL, EngineError."""
    if importlib.util.find_spec("trl") is None:
        raise ConfigError(TRL)
    rows = measure(job, ("ours", "peer"), runs)
    lengths = same_work(rows["ours"], rows["peer"], job)
    one, other = (figures(rows[side], *(f"{part}_s" for part in PARTS)) for side in ("ours", "peer"))
    return {
        "lengths": lengths, "group": job.group, "rows": job.rows, "threads": job.threads, "runs": runs,
        "verified": "lengths of the ids that were drawn, scored and learnt from, every row of every run on both sides; "
        "tokens_through: ids that entered the model, counted at its embedding",
        "ours": one, "peer": {"name": rows["peer"][0]["versions"]} | other, "ratio": ratios(one, other),
    }  # fmt: skip


def packing(job: Job, runs: int) -> dict[str, Any]:
    """The packed computation against the plain one. Raises EngineError where their results differ."""
    rows = measure(job, ("packed", "plain"), runs)
    apart = max(agree(a, b) for a, b in zip(rows["packed"], rows["plain"], strict=True))
    one, other = figures(rows["packed"]), figures(rows["plain"])
    peer = {"name": f"plain, {job.rows} of {job.group} sequences at a time"} | other
    return {"apart": apart, "ours": one, "peer": peer, "ratio": ratios(one, other)}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = options((__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=["smollm2", "tiny"], default="smollm2")
    parser.add_argument("--part", choices=["all", "step", "packing"], default="all")
    parser.add_argument("--repeats", type=int, dest="runs", help="the same as --runs")
    for name in LEAST:
        if name != "runs":
            parser.add_argument(f"--{name}", type=int, default=getattr(Job, name))
    parser.set_defaults(runs=3)
    args = parser.parse_args(words)
    for name, least in LEAST.items():
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if args.group % args.rows:
        parser.error(f"--rows {args.rows} must divide --group {args.group}")
    return args


def job_of(args: argparse.Namespace, model: Path) -> Job:
    """The job on a GGUF. Raises ConfigError where its lengths do not fit the model's context."""
    job = Job(str(model), *(getattr(args, field) for field in LEAST if field != "runs"))
    context = int(Gguf(model).need("llama.context_length", int))
    longest = max(job.signals + job.summary, FRAME + job.summary + job.question + job.reply)
    if longest > context:
        raise ConfigError(f"{longest} tokens do not fit the model's context of {context}")
    return job


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything asked for. ``folder``: where a tiny model is written. Raises PopiError."""
    model = base() if args.model == "smollm2" else folder / "tiny.gguf"
    if args.model == "tiny":
        from tests import tiny

        tiny.llama(model)
    job = job_of(args, model)
    result: dict[str, Any] = {"model": model.name}
    if args.part != "packing":
        result |= step(job, args.runs)
    if args.part != "step":
        alone = packing(job, args.runs)
        result |= alone if args.part == "packing" else {"packing": alone}
    return result


def main() -> None:
    args = arguments()
    folder = Path(tempfile.mkdtemp(prefix="popi-bench-"))
    try:
        show(args, run(args, folder))
    except PopiError as e:
        sys.exit(f"Error: {e}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
