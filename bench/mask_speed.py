"""What the closed vocabulary costs while decoding: the same base, the same prompt, with the mask and without.

    python -m bench.mask_speed [--runs 5] [--engine onnx] [--json]

30 signals are read once; then summaries of up to 48 tokens are sampled at temperature 1, one with the mask and one
without (the peer) from each seed, which of them first in turn. Milliseconds a token, the first left out; medians over
the runs. A process that has decoded before is measured: the automaton's tables are made once, and ``first_ms`` is what
the first masked summary took more than the median one. ``ratio`` is without over with: 1 means that the mask is free,
and the limit of 5% is 0.95.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench.common import base, options, show, signals
from popi_edge import prompts
from popi_edge.cli.common import launch
from popi_edge.engines import open_engine
from popi_edge.engines.base import Constraint, Engine
from popi_edge.summarize import inference_prompt
from popi_edge.vocabulary import ClosedVocabulary, Lexicon

LEAST = 16
"""Tokens that a summary must have to be timed."""
LIMIT = 0.05


def decode(engine: Engine, prompt: list[int], constraint: Constraint | None, seed: int) -> tuple[float, int]:
    """Seconds and tokens behind the first one."""
    limit = int(prompts.spec()["limits"]["summary_tokens"])
    start, count = 0.0, -1
    for _ in engine.stream(prompt, max_tokens=limit, constraint=constraint, temperature=1.0, seed=seed):
        start = start or time.perf_counter()
        count += 1
    return time.perf_counter() - start, count


def measure(engine: Engine, runs: int) -> dict[str, Any]:
    """Median milliseconds a token with the mask and without, from ``runs`` summaries of each."""
    limit = int(prompts.spec()["limits"]["summary_tokens"])
    t = engine.tokenizer
    mask = ClosedVocabulary(Lexicon.load(), t.token_bytes, t.eos_ids, max_tokens=limit)
    prompt = inference_prompt(t, signals(), engine.context_length)[1]
    decode(engine, prompt, None, 0)
    first = time.perf_counter()
    decode(engine, prompt, mask, 0)
    first = time.perf_counter() - first
    times: dict[str, list[float]] = {"with": [], "without": []}
    whole, seed = list[float](), 0
    while len(times["without"]) < runs or len(times["with"]) < runs:
        seed += 1
        for name, constraint in (("with", mask), ("without", None))[:: 1 if seed % 2 else -1]:
            began = time.perf_counter()
            seconds, count = decode(engine, prompt, constraint, seed)
            if count >= LEAST:
                times[name].append(1000 * seconds / count)
                if constraint is not None:
                    whole.append(time.perf_counter() - began)
    ms = {name: statistics.median(some) for name, some in times.items()}
    return {
        "with_ms": round(ms["with"], 2), "without_ms": round(ms["without"], 2),
        "cost": round(ms["with"] / ms["without"] - 1, 4), "summaries": {k: len(v) for k, v in times.items()},
        "first_ms": round(1000 * max(0.0, first - statistics.median(whole)), 1),
    }  # fmt: skip


def main() -> None:
    args = options(__doc__ or "").parse_args()
    engine = open_engine(args.engine, base())
    found = measure(engine, args.runs)
    engine.close()
    ratio = round(found["without_ms"] / found["with_ms"], 3)
    show(args, {"ours": found | {"engine": args.engine}, "peer": {"limit": LIMIT}, "ratio": ratio})


if __name__ == "__main__":
    launch(main)
