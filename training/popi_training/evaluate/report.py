"""The evaluation's result as text for people: the same numbers as the JSON, in aligned columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
    "condition",
    "accuracy",
    "95% interval",
    "contrast",
    "95% interval",
    "tokens",
    "gap (acc.)",
    "gap (contr.)",
)


def number(value: float | None, places: int = 3) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def bounds(low: float | None, high: float | None, places: int = 3) -> str:
    return "–" if low is None or high is None else f"{low:.{places}f} to {high:.{places}f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns: the first flush left, the others flush right."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def conditions_text(table: Mapping[str, Any]) -> str:
    """One table of conditions and baselines; empty where there are no rows."""
    if not table["pairs"]:
        return ""
    rows: list[Sequence[str]] = [HEAD]
    for name, c in [*table["conditions"].items(), *table["baselines"].items()]:
        gap = table["gap_closed"].get(name, {})
        rows.append((
            name, number(c["accuracy"]), bounds(c["low"], c["high"]),
            number(c["contrast"]), bounds(c["contrast_low"], c["contrast_high"]), number(c["tokens"], 0),
            number(gap.get("accuracy"), 2), number(gap.get("contrast"), 2),
        ))  # fmt: skip
    return aligned(rows)


def tests_text(tests: Sequence[Mapping[str, Any]]) -> str:
    """The paired differences; a star where the interval leaves zero out."""
    rows: list[Sequence[str]] = [("difference", "by", "value", "95% interval", "")]
    for t in tests:
        value = number(t["difference"])
        mark = "*" if t["clear"] else ""
        rows.append((f"{t['a']} - {t['b']}", t["metric"], value, bounds(t["low"], t["high"]), mark))
    return aligned(rows)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _block(result: Mapping[str, Any], title: str) -> list[str]:
    statuses = ", ".join(f"{n} {s}" for s, n in sorted(result["statuses"].items()))
    counts = ", ".join(_count(result[f"{noun}s"], noun) for noun in ("pair", "prompt", "user"))
    shorter = result["shorter"]
    parts = [
        f"{title}: {counts}",
        conditions_text(result),
        f"Summaries: {statuses}; {_count(result['distinct_summaries'], 'distinct text')}, "
        f"{number(result['summary_tokens'], 1)} tokens on average; as long as may be {number(result['truncated'], 2)}, "
        f"with words in a row of the signals {number(result['leak_rate'], 2)}.",
        "",
        f"Where the shorter reply is the right one: {_count(shorter['pairs'], 'pair')}",
        conditions_text(shorter),
    ]
    for persona, table in result["by_persona"].items():
        parts += ["", f"{persona}: {_count(table['pairs'], 'pair')}", conditions_text(table)]
    return [*parts, "", tests_text(result["tests"])]


def text(result: Mapping[str, Any]) -> str:
    """The whole result, with the second table (signals and profile) where there is one."""
    dropped = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in result["dropped"].items() if n)
    what = f"{result['format']}, {result['half']} rows, seed {result['seed']}"
    parts = [
        f"{result['model']} on {result['engine']}; {what}" + (f"; left out: {dropped}" if dropped else ""),
        "",
        *_block(result, "All rows"),
    ]
    if "profile" in result:
        parts += ["", *_block(result["profile"], "With the profile among the signals")]
    return "\n".join(parts)
