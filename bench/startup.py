"""What ``import popi_edge`` costs over bare Python: wall milliseconds, and what it loads."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench.common import options, show
from popi_edge.cli.common import launch

LIMIT_MS = 100.0
HEAVY = ("torch", "onnxruntime", "llama_cpp", "transformers", "numpy", "tokenizers", "httpx2", "keyring")


def wall(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    args = options(__doc__ or "").parse_args()
    wall("import popi_edge")
    pairs = [(wall("pass"), wall("import popi_edge; popi_edge.Comparison")) for _ in range(max(args.runs, 3))]
    over = statistics.median(b - a for a, b in pairs)
    loaded = subprocess.run(
        [sys.executable, "-c", f"import popi_edge, sys; print([m for m in {HEAVY} if m in sys.modules])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    ours = {"import_ms_over_bare_python": round(over, 1), "heavy_modules": loaded}
    show(args, {"ours": ours, "peer": {"limit_ms": LIMIT_MS}, "ratio": round(LIMIT_MS / max(over, 0.1), 2)})


if __name__ == "__main__":
    launch(main)
