"""A joint training step against TRL doing the same job: wall time of its parts and peak memory, in one run.

    python -m bench.training [--model smollm2|tiny] [--signals N] [--summary N] [--group G] [--part all|step|packing]
                             [--device cpu|cuda]

One person, whose prompt of signals has ``signals`` tokens. The step: G summaries of them are drawn, each is rewarded on
one held-out pair under the generator, φ moves by the policy gradient with a KL to its start, θ by DPO on another pair
under each summary. Ours is ``Joint.train_step``; the peer (``_trl_peer``) is TRL's GRPOTrainer for φ, then its
DPOTrainer for θ. On both sides: the same dequantized base, LoRA of the same rank, float32, AdamW, no gradient
checkpointing, the same threads, frozen roles as adapters of their own. With ``--device cuda`` both go through the
layers in bfloat16 and multiply the rest in TF32, and memory is the device's; the packed computation alone is held to
float error and stays on the CPU.

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
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench._step import PARTS, Counts, Job
from bench.common import base, child, median, options, show
from popi_edge.cli.common import at_least, launch
from popi_edge.errors import ConfigError, EngineError, PopiError
from popi_edge.models.gguf import Gguf
from popi_training.train import refuse_absent

TRL = "TRL is not installed: pip install trl==1.16.0 'datasets<5' -c constraints.txt (in an environment of its own)"
LEAST = {"signals": 32, "summary": 2, "group": 2, "question": 1, "reply": 2, "rows": 1, "threads": 1}
"""What each number must be at least."""
FRAME = 64
"""Tokens, at most, of the generator's template around a summary and a question."""
ROOMS = {"ours": "_ours", "packed": "_ours", "plain": "_ours", "peer": "_trl_peer"}
"""Side → the module in which it is computed."""


def measure(job: Job, sides: Sequence[str], runs: int) -> dict[str, list[dict[str, Any]]]:
    """``runs`` times each of two sides in turn, each in a process of its own. Raises EngineError where one fails."""
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for i in range(runs):  # in turn, so that a drift of the machine meets both
        for side in sides[:: 1 if i % 2 == 0 else -1]:
            code = f"from bench.{ROOMS[side]} import Job, {side} as side\nresult = side(Job(**json.loads(sys.argv[2])))"
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
        "lengths": lengths, "group": job.group, "rows": job.rows, "threads": job.threads,
        "device": torch.cuda.get_device_name() if job.device != "cpu" else "cpu", "runs": runs,
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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=at_least(1), dest="runs", help="the same as --runs")
    for name, least in LEAST.items():
        parser.add_argument(f"--{name}", type=at_least(least), default=getattr(Job, name))
    parser.set_defaults(runs=3)
    args = parser.parse_args(words)
    if args.device != "cpu" and args.part != "step":
        parser.error("--device cuda is for --part step alone")
    if args.group % args.rows:
        parser.error(f"--rows {args.rows} must divide --group {args.group}")
    return args


def job_of(args: argparse.Namespace, model: Path) -> Job:
    """The job on a GGUF. Raises ConfigError where its lengths do not fit the model's context."""
    job = Job(str(model), **{k: getattr(args, k) for k in (*LEAST, "device")})
    context = int(Gguf(model).need("llama.context_length", int))
    longest = max(job.signals + job.summary, FRAME + job.summary + job.question + job.reply)
    if longest > context:
        raise ConfigError(f"{longest} tokens do not fit the model's context of {context}")
    return job


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything asked for. ``folder``: where a tiny model is written. Raises PopiError."""
    refuse_absent(args.device)
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
    launch(main)
