"""What ``verify`` found, for people: a table in Markdown, and a plot of size against KL."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from popi_export.verify import Report, Row

HEAD = ("file", "engine", "adapter", "MB", "mean KL", "greedy", "logits", "perplexity", "tokenizer")
SPEED = ("load s", "prefill", "decode", "a CPU second", "RSS MB")
PAIRS = ("pairs", "same reply", "same order", "margin off by")
FLOOR = 1e-9
"""KL is drawn on a logarithmic scale, and nothing lower than this."""


def markdown(report: Report) -> str:
    """One line a candidate, what fell back, and the verdict."""
    timed = any(r.speed for r in report.rows)
    tasks = list(dict.fromkeys(name for r in report.rows for name in r.before))
    paired = any(r.pairs for r in report.rows)
    head = [*HEAD, *tasks, *(PAIRS if paired else ()), *(SPEED if timed else ()), "within limits"]
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line([*_figures(r), *_tasks(r, tasks), *(_pairs(r) if paired else ()), *(_speed(r) if timed else ()),
                     "no" if r.failures else "yes"]) for r in report.rows]  # fmt: skip
    first = report.rows[0]
    notes = [
        f"Against {report.reference} on {first.parity.positions:,} positions, perplexity there "
        f"{first.parity.reference_perplexity:.4f}. KL in nats a position; greedy: share of positions with the same "
        "likeliest token; logits: largest difference.",
        *(["Tasks are the figure before → after (95% interval over prompts)."] if tasks else []),
        *(["Same reply, same order: the share of pairs of which the file prefers the same reply as the reference does, "
           "and has the same one of two opposite summaries in front. Margin off by: how far the margin between the "
           "replies is from the reference's, the mean over pairs, beside the mean size of its own."] if paired else []),
        *(["Prefill and decode in tokens a second, then both a second of processor time; memory of the whole process."]
          if timed else []),
        *dict.fromkeys(f"{r.candidate.model.name}: {r.fallback}." for r in report.rows if r.fallback),
    ]
    verdict = "Every limit holds." if report.ok else "Broken limits:"
    return "\n".join([*lines, "", *(n + "\n" for n in notes), verdict, *(f"- {f}" for f in report.failures), ""])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _figures(r: Row) -> list[str]:
    p, split = r.parity, r.tokenizer
    return [
        r.candidate.model.name, r.candidate.engine, r.candidate.role or "–", f"{r.size / 1e6:.1f}", f"{p.kl:.2g}",
        f"{p.agreement:.3f}", f"{p.logits:.2g}", f"{p.perplexity:.4g}",
        f"{split.differing} of {split.strings:,}" if split else "–",
    ]  # fmt: skip


def _tasks(r: Row, names: list[str]) -> list[str]:
    return [f"{r.before[n]:.2f} → {r.task[n]:.2f}{_interval(r, n)}" if n in r.before and n in r.task else "–"
            for n in names]  # fmt: skip


def _interval(r: Row, name: str) -> str:
    low, high = (r.pairs.get(f"{name}_{end}") for end in ("low", "high"))
    return f" ({low:.2f}–{high:.2f})" if low is not None and high is not None else ""


def _pairs(r: Row) -> list[str]:
    p = r.pairs
    if not p:
        return ["–"] * len(PAIRS)
    shares = [f"{p[name]:.3f}" for name in ("same_reply", "same_order")]
    return [f"{p['pairs']:.0f}", *shares, f"{p['difference']:.2g} of {p['size']:.2g} nats"]


def _speed(r: Row) -> list[str]:
    s = r.speed
    return [f"{s.load_s:.2f}", f"{s.prefill:.0f}", f"{s.decode:.1f}", f"{s.prefill_cpu:.0f} / {s.decode_cpu:.1f}",
            f"{s.rss_mb:.0f}"] if s else ["–"] * 5


def _point(r: Row) -> tuple[float, float]:
    return r.size / 1e6, max(r.parity.kl, FLOOR)


def plot(report: Report, path: Path) -> bool:
    """Write a picture (by the ending of ``path``) of size against mean KL; False where matplotlib is not installed.

    Raises OSError where it cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for engine in dict.fromkeys(r.candidate.engine for r in report.rows):
        at = [_point(r) for r in report.rows if r.candidate.engine == engine]
        axes.scatter([x for x, _ in at], [y for _, y in at], label=engine, alpha=0.7)
    told: set[str] = set()
    several = len({r.candidate.role for r in report.rows}) > 1
    for r in sorted(report.rows, key=lambda r: r.size):
        text = r.candidate.kind + (f" + {r.candidate.role}" if r.candidate.role and several else "")
        if text not in told:  # once a kind, in turn right and left of its first point
            side = "right" if len(told) % 2 else "left"
            axes.annotate(text, _point(r), xytext=(-6 if side == "right" else 6, 3), textcoords="offset points",
                          fontsize=8, ha=side)  # fmt: skip
            told.add(text)
    axes.set(xlabel="size (MB)", ylabel="mean KL to the source (nats)", xscale="log", yscale="log")
    axes.margins(x=0.15)
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(lambda x, _: f"{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None} if path.suffix == ".png" else None)
    return True
