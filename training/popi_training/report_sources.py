"""What a report is made from: a run's folder, its evaluations and listings of summaries, read and checked.

Everything comes out in one shape with finite numbers, so that the page and the plots need not look again. Does not load
torch, and does not ask whether a recipe could be trained: a run that is over is shown as it is.
"""

from __future__ import annotations

import json
import os
import tomllib
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError
from popi_training.runfolder import LARGEST, METRICS, RECIPE, RUN, is_number, json_lines, metric_lines

RESULT, LISTING, BEFORE = "result.json", "summaries.jsonl", "before.jsonl"
SHARES = ("accuracy", "low", "high", "contrast", "contrast_low", "contrast_high")


@dataclass(frozen=True)
class Series:
    """One field of the metrics: its finite values and their steps; ``odd``: the steps of values that are not."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    odd: list[int] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        if abs(value) < LARGEST:  # neither NaN nor infinity nor a whole number that no float holds
            self.steps.append(step)
            self.values.append(value)
        else:
            self.odd.append(step)


@dataclass(frozen=True)
class Metrics:
    """``lines`` read, the ``last`` step, ``series`` by field; ``cut``: the last line was not whole."""

    lines: int
    last: int
    series: dict[str, Series]
    cut: bool


@dataclass(frozen=True)
class Line:
    """One condition or baseline of a table, as ``popi eval`` gave it; None where there was nothing to count."""

    name: str
    accuracy: float | None
    low: float | None
    high: float | None
    contrast: float | None
    contrast_low: float | None
    contrast_high: float | None
    tokens: float | None
    gap_accuracy: float | None
    gap_contrast: float | None
    baseline: bool

    def point(self, metric: str) -> tuple[float, float] | None:
        """(tokens, accuracy or contrast), where both are there."""
        value = self.accuracy if metric == "accuracy" else self.contrast
        return None if value is None or self.tokens is None else (self.tokens, value)


@dataclass(frozen=True)
class Table:
    """Lines over the same pairs; ``part``: over some of the evaluation's."""

    title: str
    part: bool
    pairs: int
    prompts: int
    lines: list[Line]


@dataclass(frozen=True)
class Difference:
    """Condition ``a`` less condition ``b`` on the same pairs; ``clear``: the interval leaves zero out."""

    a: str
    b: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    clear: bool


@dataclass(frozen=True)
class Listed:
    """A row's summary; ``margins``: m in nats under its own context and under the opposite's, by condition."""

    row: str
    persona: str
    profile: bool
    status: str
    tokens: float | None
    text: str
    margins: dict[str, tuple[float, float]]
    right: dict[str, float] = field(default_factory=dict)
    """By condition how often the preferred reply was chosen, where choices decide it and not the sign of m."""

    def chose(self, condition: str) -> float:
        """1 where the preferred reply was chosen under a condition that has margins, 0 where the other was; ½ at a tie,
        or between where choices decide."""
        own = self.margins[condition][0]
        return self.right.get(condition, 1.0 if own > 0 else 0.5 if own == 0 else 0.0)

    @property
    def key(self) -> tuple[str, str, bool]:
        return self.row, self.persona, self.profile

    @property
    def unreachable(self) -> bool:
        """Whether the oracle's own sentence does not choose right either."""
        return "oracle_summary" in self.margins and self.chose("oracle_summary") <= 0.5


@dataclass(frozen=True)
class Evaluation:
    """``tables``: all rows first; ``listing``: None where the folder has none."""

    title: str
    facts: list[tuple[str, str]]
    tables: list[Table]
    tests: list[Difference]
    listing: list[Listed] | None


@dataclass(frozen=True)
class Sources:
    """All that a page is made from; None or empty: it is not there."""

    folder: str
    recipe: str | None
    table: dict[str, Any]
    made_from: dict[str, str] | None
    metrics: Metrics | None
    evaluations: list[Evaluation]
    before: list[Listed] | None


def read(run: Path, evaluations: Sequence[Path] = (), before: Path | None = None) -> Sources:
    """What a run's folder holds; evaluations and the summaries before are looked for in it unless they are named.

    Raises ConfigError: no run there, or a file that is missing, damaged or of another shape.
    """
    there = {name: run / name for name in (METRICS, RUN, RECIPE, BEFORE) if _there(run / name)}
    if not {METRICS, RUN, RECIPE} & set(there):
        raise ConfigError(f"{run} is not a run: there is no {METRICS}, {RUN} or {RECIPE}")
    recipe = _text(there[RECIPE]) if RECIPE in there else None
    try:
        table = tomllib.loads(recipe or "")
        str(table)  # a number in hexadecimal may have more digits than can be shown
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{run / RECIPE}: not TOML: {e}") from None
    folders = list(evaluations) or sorted(p.parent for p in run.glob(f"eval/*/{RESULT}"))
    before = before or there.get(BEFORE)
    return Sources(
        run.resolve().name,
        recipe,
        table,
        _made_from(there[RUN]) if RUN in there else None,
        read_metrics(there[METRICS]) if METRICS in there else None,
        [read_evaluation(path, title) for path, title in _titled(folders)],
        read_listing(before) if before else None,
    )


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as e:
        raise ConfigError(f"cannot look at {path}: {e.strerror}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: not JSON: {e}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return value


def _made_from(path: Path) -> dict[str, str]:
    return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in _object(path).items()}


def read_metrics(path: Path) -> Metrics:
    """The metrics of a run, field by field; a last line that was cut off is left out. Raises ConfigError."""
    series: dict[str, Series] = {}
    lines, last, cut = 0, 0, False
    for line in metric_lines(path):
        if line is None:
            cut = True
            continue
        lines, last = lines + 1, line["step"]
        for name, v in line.items():
            if name != "step" and isinstance(v, int | float) and not isinstance(v, bool):
                series.setdefault(name, Series()).add(last, v)
    return Metrics(lines, last, series, cut)


def _titled(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each folder once, with its name; with so many folders above it that no other is called the same."""
    once = list(dict.fromkeys(Path(os.path.realpath(f)) for f in folders))  # of a link to itself too
    deepest = max((len(f.parts) for f in once), default=0)
    ends = [Counter(f.parts[-n:] for f in once) for n in range(1, deepest + 1)]
    alone = [next(end for n, of in enumerate(ends, 1) if of[end := f.parts[-n:]] == 1) for f in once]
    return [(f, "/".join(end)) for f, end in zip(once, alone, strict=True)]


def read_evaluation(folder: Path, title: str) -> Evaluation:
    """What ``popi eval --out`` wrote there, and ``summaries.jsonl`` beside it. Raises ConfigError."""
    path = folder / RESULT
    if not _there(path):
        raise ConfigError(f"{folder} holds no evaluation: there is no {RESULT}")
    result = _object(path)
    try:
        tables, tests, facts = _tables(result, "All rows"), [_test(t) for t in result.get("tests", [])], _facts(result)
        if "profile" in result:
            tables += _tables(result["profile"], "With the profile among the signals")
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as e:
        raise ConfigError(f"{path}: not a result of popi eval: {type(e).__name__} {e}") from None
    listing = read_listing(folder / LISTING) if _there(folder / LISTING) else None
    return Evaluation(title, facts, tables, tests, listing)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if not is_number(value):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)


def _share(value: Any) -> float | None:
    if (share := _number(value)) is not None and not 0 <= share <= 1:
        raise ValueError(f"{share} is not a share")
    return share


def _tables(result: Mapping[str, Any], title: str) -> list[Table]:
    """The table of a result, of its pairs whose shorter reply is right, and of each persona; of a result of the
    controlled world the tables of its parts, which are other people."""
    if parts := result.get("parts", ()):
        return [_table(t, f"Test part {t['part']}", part=False) for t in (result, *parts[1:])]
    out = [_table(result, title, part=False)]
    if "shorter" in result:
        out.append(_table(result["shorter"], f"{title}: the shorter reply is the right one"))
    return [*out, *(_table(t, f"{title}: {name}") for name, t in result.get("by_persona", {}).items())]


def _table(table: Mapping[str, Any], title: str, *, part: bool = True) -> Table:
    lines, gaps = [], table.get("gap_closed", {})
    for kind, entries in (("condition", table["conditions"]), ("baseline", table.get("baselines", {}))):
        for name, entry in entries.items():
            gap = gaps.get(name, {})
            values = {key: _share(entry[key]) for key in SHARES} | {"tokens": _number(entry["tokens"])}
            closed = {f"gap_{key}": _number(gap.get(key)) for key in ("accuracy", "contrast")}
            lines.append(Line(name=name, baseline=kind == "baseline", **values, **closed))
    return Table(title, part, int(_number(table["pairs"]) or 0), int(_number(table["prompts"]) or 0), lines)


def _test(test: Mapping[str, Any]) -> Difference:
    value, low, high = (_number(test[key]) for key in ("difference", "low", "high"))
    return Difference(str(test["a"]), str(test["b"]), str(test["metric"]), value, low, high, test["clear"] is True)


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was evaluated, on what, and what its summaries were, as far as the result says it."""

    def counts(name: str) -> str:
        found = result.get(name)
        kept = {k: v for k, v in found.items() if v} if isinstance(found, dict) else {}
        return ", ".join(f"{v} {str(k).replace('_', ' ')}" for k, v in sorted(kept.items()))

    said, different = result.get("summary_tokens"), result.get("distinct_summaries")
    facts = {
        "model": result.get("model"), "engine": result.get("engine"), "data": result.get("format"),
        "rows": result.get("half"), "limit": result.get("limit"), "seed": result.get("seed"),
        "users": result.get("users"), "left out": counts("dropped"), "summaries": counts("statuses"),
        "different texts": different, "tokens a summary": said and f"{said:.1f}",
    }  # fmt: skip
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def read_listing(path: Path) -> list[Listed]:
    """What ``popi eval --summaries`` wrote. Raises ConfigError naming the line."""
    out = []
    for n, value in json_lines(path):
        try:
            margins = {str(c): (_number(m[0]), _number(m[1])) for c, m in value.get("margins", {}).items()}
            kept = {c: (a, b) for c, (a, b) in margins.items() if a is not None and b is not None}
            shares = {str(c): _share(v) for c, v in value.get("right", {}).items()}
            right = {c: v for c, v in shares.items() if v is not None}
            texts = [value["row"], value.get("persona", ""), value["status"], value["text"]]
            if not all(isinstance(t, str) for t in texts):
                raise TypeError("row, persona, status and text must be texts")
            row, persona, status, text = texts
            tokens = _number(value["tokens"])
            listed = Listed(row, persona, value.get("profile") is True, status, tokens, text, kept, right)
        except (TypeError, KeyError, AttributeError, IndexError, ValueError):
            raise ConfigError(f"{path}, line {n}: not a line of summaries") from None
        out.append(listed)
    return out
