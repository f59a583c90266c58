"""Cold process → first summary of 30 signals (``popi summary refresh``), against a cold bare llama.cpp process.

The peer loads the same GGUF, evaluates the same prompt tokens and decodes as many tokens: no store, no mask, no guard.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import base, child, median, options, show, signals
from popi_edge import Popi, prompts
from popi_edge.cli.common import launch
from popi_edge.models.bases import BASES, remember, stored

PEER = """
import llama_cpp
m = llama_cpp.Llama(sys.argv[2], n_ctx=4096, n_threads=2, n_threads_batch=2, verbose=False)
m.eval([int(i) for i in sys.argv[3].split(',')])
for _ in range(int(sys.argv[4])):
    m.eval([m.sample(temp=0.0)])
result = {}
"""


def main() -> None:
    args = options(__doc__ or "").parse_args()
    folder = Path(tempfile.mkdtemp(prefix="popi-bench-"))
    try:
        show(args, measure(args.engine, args.runs, folder))
    finally:
        shutil.rmtree(folder)


def measure(engine: str, runs: int, home: Path) -> dict[str, object]:
    smol = BASES["smollm2-135m"]
    (home / "models").mkdir()
    model = stored(smol, home / "models")
    shutil.copy(base(), model)
    remember(smol, model)
    with Popi.open(home=home, engine=engine) as me:
        me.record(*signals())
        first = me.summarize()
        tokenizer = me.engine.tokenizer
        kept = [s.signal for s in me.store.signals() if s.signal.id in first.signal_ids]
        texts = [prompts.signal_text(s, tokenizer) for s in kept]
        prompt = prompts.chat_ids(tokenizer, prompts.infer_messages(texts))
    ours, peer = [], []
    for _ in range(runs):
        start = time.perf_counter()
        command = [sys.executable, "-c", "from popi_edge.cli import main; main()", "summary", "refresh", "--json"]
        done = subprocess.run(
            [*command, "--home", str(home)], capture_output=True, check=True, env=os.environ | {"POPI_ENGINE": engine}
        )
        made = json.loads(done.stdout)
        ours.append({"wall_s": time.perf_counter() - start, "tokens": made["tokens"]})
        peer.append(child(PEER, str(model), ",".join(map(str, prompt)), str(made["tokens"])))
    a, b = median(ours, "wall_s"), median(peer, "wall_s")
    return {
        "engine": engine,
        "signals": len(kept),
        "prompt_tokens": len(prompt),
        "summary_tokens": ours[-1]["tokens"],
        "ours": {"wall_s": round(a, 2)},
        "peer": {"name": "bare llama.cpp process", "wall_s": round(b, 2)},
        "ratio": round(b / a, 2),
    }


if __name__ == "__main__":
    launch(main)
