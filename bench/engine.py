"""An engine against bare llama.cpp (llama_cpp.Llama): the same 1,024 tokens of prefill and 64 of decode, one run.

``load_s`` is from the first line of a fresh Python until the model is open, imports among it, on both sides.
"""

from __future__ import annotations

from bench.common import base, child, median, options, show
from popi_edge.cli.common import launch

TOKENS = 1_024
DECODE = 64
OURS = """
import time; start = time.perf_counter()
from pathlib import Path
from popi_edge.engines.base import open_engine
e = open_engine(sys.argv[3], Path(sys.argv[2]), threads=2)
load = time.perf_counter() - start
ids = [int(i) for i in sys.argv[4].split(',')]
lane = e.lane(None)
start = time.perf_counter(); e._feed(lane, ids, 1); prefill = len(ids) / (time.perf_counter() - start)
e._eval(lane, [ids[0]], 1); lane.tokens.append(ids[0])
start = time.perf_counter()
for t in ids[1:65]:
    e._eval(lane, [t], 1).argmax(); lane.tokens.append(t)
decode = 64 / (time.perf_counter() - start)
result = {'load_s': load, 'prefill': prefill, 'decode': decode}
"""
PEER = """
import time; start = time.perf_counter()
import llama_cpp
m = llama_cpp.Llama(sys.argv[2], n_ctx=4096, n_threads=2, n_threads_batch=2, verbose=False)
load = time.perf_counter() - start
ids = [int(i) for i in sys.argv[4].split(',')]
start = time.perf_counter(); m.eval(ids); prefill = len(ids) / (time.perf_counter() - start)
m.eval([ids[0]])
start = time.perf_counter()
for t in ids[1:65]:
    m.eval([t]); m.sample(temp=0.0)
decode = 64 / (time.perf_counter() - start)
result = {'load_s': load, 'prefill': prefill, 'decode': decode}
"""


def main() -> None:
    args = options(__doc__ or "").parse_args()
    model = base()
    ids = ",".join(str(1_000 + 37 * i % 20_000) for i in range(TOKENS))
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for i in range(args.runs):  # in turn, so that a drift of the machine meets both
        for name, code in (("ours", OURS), ("peer", PEER))[:: 1 if i % 2 else -1]:
            rows[name].append(child(code, str(model), args.engine, ids))
    keys = ("load_s", "prefill", "decode", "rss_mb", "peak_rss_mb")
    figures = {name: {k: round(median(r, k), 2) for k in keys} for name, r in rows.items()}
    ours, peer = figures["ours"], figures["peer"]
    ratio = {k: round(ours[k] / peer[k], 2) for k in ("prefill", "decode")}
    ratio |= {k: round(peer[k] / ours[k], 2) for k in ("load_s", "rss_mb", "peak_rss_mb")}
    show(args, {"engine": args.engine, "model_mb": round(model.stat().st_size / 1e6, 1), "ours": ours,
                "peer": {"name": "bare llama.cpp"} | peer, "ratio": ratio})  # fmt: skip


if __name__ == "__main__":
    launch(main)
