"""How fast a model is and how much memory it takes: measured in a process of its own, medians over several.

    python -m popi_export.measure JOB

JOB is JSON: ``engine``, ``model``, ``adapter``, ``tokens`` of prefill, ``decode`` of decode, ``threads``. The child
prints one JSON object. Memory is the whole process's, Python and libraries included. Not covered: a machine that does
other things meanwhile, GPUs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.errors import EngineError
from popi_export.runners import open_runner

STEP = 37
"""Token ids are multiples of it, modulo the vocabulary: no text, but the same for every engine."""


@dataclass(frozen=True)
class Settings:
    """Tokens of prefill and of decode, processes a figure, threads, and the seconds that a process may take."""

    tokens: int = 512
    decode: int = 64
    runs: int = 1
    threads: int = 1
    seconds: float = 600.0


@dataclass(frozen=True)
class Speed:
    """Seconds to load; tokens a second of prefill and decode; the same a second of processor time (with one thread what
    a machine that does nothing else would reach, about); resident memory in MB when loaded, at the end and at its peak
    (0 where the system does not say)."""

    load_s: float
    prefill: float
    decode: float
    prefill_cpu: float
    decode_cpu: float
    loaded_mb: float
    rss_mb: float
    peak_mb: float


def measure(
    engine: str, model: Path, adapter: Path | None, *, vocabulary: int, context: int, how: Settings
) -> Speed:
    """Medians over ``how.runs`` processes; no more tokens than half of ``context``. Raises EngineError."""
    tokens = max(1, min(how.tokens, context // 2))
    job = {
        "engine": engine, "model": str(model.resolve()), "adapter": str(adapter.resolve()) if adapter else None,
        "ids": [STEP * i % vocabulary for i in range(tokens)], "decode": max(1, min(how.decode, context // 4)),
        "threads": how.threads,
    }  # fmt: skip
    rows = [_child(job, how.seconds) for _ in range(how.runs)]
    return Speed(**{k: round(statistics.median(r[k] for r in rows), 3) for k in Speed.__dataclass_fields__})


def _child(job: dict[str, Any], seconds: float) -> dict[str, float]:
    limit = {"OMP_NUM_THREADS": str(job["threads"]), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "popi_export.measure"], input=json.dumps(job), capture_output=True, text=True,
            errors="replace", env=os.environ | limit, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EngineError(f"{job['engine']} did not end within {seconds:g} s") from None
    if done.returncode:
        why = [line for line in done.stderr.splitlines() if line.strip()]
        raise EngineError(f"{job['engine']} could not be measured: {why[-1][:200] if why else done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(job: dict[str, Any]) -> dict[str, float]:
    """Load, prefill and decode once, in this process."""
    adapter = Path(job["adapter"]) if job["adapter"] else None
    start = time.perf_counter()
    runner = open_runner(job["engine"], Path(job["model"]), adapter, threads=job["threads"])
    load, loaded = time.perf_counter() - start, memory()[0]
    wall, busy = [time.perf_counter()], [time.process_time()]
    token = int(runner.step(job["ids"]).argmax())
    wall.append(time.perf_counter())
    busy.append(time.process_time())
    for _ in range(job["decode"]):
        token = int(runner.step([token]).argmax())
    wall.append(time.perf_counter())
    busy.append(time.process_time())
    rss, peak = memory()
    runner.close()
    counts = ("prefill", len(job["ids"])), ("decode", job["decode"])
    speeds = {name: n / max(1e-9, wall[i + 1] - wall[i]) for i, (name, n) in enumerate(counts)}
    speeds |= {f"{name}_cpu": n / max(1e-9, busy[i + 1] - busy[i]) for i, (name, n) in enumerate(counts)}
    return {"load_s": load, **speeds, "loaded_mb": loaded, "rss_mb": rss, "peak_mb": peak}


def memory() -> tuple[float, float]:
    """Resident memory of this process now and at its peak, in MB; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        values = {line.split(":")[0]: float(line.split()[1]) / 1024 for line in lines if line.endswith("kB")}
        return values["VmRSS"], values["VmHWM"]
    except (OSError, KeyError):
        pass
    if sys.platform == "win32":
        return 0.0, 0.0
    import resource

    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    from popi_edge.errors import PopiError

    try:
        print(json.dumps(run(json.loads(sys.stdin.read()))))
    except PopiError as e:
        sys.exit(str(e))
