"""What the guard costs: processor time to check one summary, by number of signals, and to build the index of them.

    python -m bench.guard_speed [--runs 200] [--json]

Signals are made-up people's (``popi_training.users``), together one person's; summaries are right ones, which should
pass (``blocked`` counts those that do not). Times are milliseconds of this process on its processor, not of the clock,
so that a busy machine changes little. ``cold`` is a first check in a new process: lexicon, numpy, index and all.
Nothing is compared: ``peer`` is the limit of 2 ms.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench.common import child, options, show
from bench.guard_false_alarms import people
from popi_edge.cli.common import launch
from popi_edge.guard import SignalText, check
from popi_edge.guard.index import SignalIndex
from popi_edge.vocabulary import Lexicon

LIMIT_MS = 2.0
TYPICAL = 300
SIZES = (30, TYPICAL, 3_000)
"""Signals of a person; the middle is called typical."""
COLD = """
import time
start = time.process_time()
from bench.guard_speed import store
from popi_edge.guard import check
from popi_edge.vocabulary import Lexicon
made = store(int(sys.argv[2]))
start = time.process_time()
check("Prefers short, direct answers with examples.", made, Lexicon.load())
result = {'ms': 1000 * (time.process_time() - start)}
"""


def store(signals: int) -> list[SignalText]:
    """The texts of so many signals."""
    texts: dict[str, list[SignalText]] = {}
    for _, some in people("speed", 1 + signals // 2):
        for signal_id, text in some:
            texts.setdefault(signal_id, []).append((signal_id, text))
    return [t for some in list(texts.values())[:signals] for t in some]


def measure(signals: int, summaries: list[str]) -> dict[str, Any]:
    """Medians over the summaries, in milliseconds."""
    texts, lexicon, times, blocked = store(signals), Lexicon.load(), [], 0
    start = time.process_time()
    index = SignalIndex(texts)
    build = 1000 * (time.process_time() - start)
    check(summaries[0], index, lexicon)
    for text in summaries:
        start = time.process_time()
        found = check(text, index, lexicon)
        times.append(1000 * (time.process_time() - start))
        blocked += bool(found)
    times.sort()
    return {
        "signals": len({i for i, _ in texts}), "words": int((index.row > 0).sum()),
        "check_ms": round(statistics.median(times), 3), "check_ms_p95": round(times[int(0.95 * len(times))], 3),
        "build_ms": round(build, 1), "blocked": blocked,
    }  # fmt: skip


def main() -> None:
    parser = options(__doc__ or "")
    parser.set_defaults(runs=200)
    args = parser.parse_args()
    summaries = [text for text, _ in people("asked", 2 * args.runs)][: args.runs]
    sizes = {str(n): measure(n, summaries) for n in SIZES}
    cold = statistics.median(child(COLD, str(TYPICAL))["ms"] for _ in range(3))
    ours = sizes[str(TYPICAL)]["check_ms"]
    figures = {"check_ms": ours, "cold_ms": round(cold, 1), "by_signals": sizes}
    show(args, {"ours": figures, "peer": {"limit_ms": LIMIT_MS}, "ratio": round(LIMIT_MS / ours, 2)})


if __name__ == "__main__":
    launch(main)
