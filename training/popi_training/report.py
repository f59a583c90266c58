"""A run as one page for people to read, with plots: training, evaluation, summaries before and after, failures.

Turns what ``report_sources.read`` found into files (``made``) and writes them (``write``). The page stands alone: style
and pictures are inside it, it loads nothing, and every text in it is escaped. The same files give the same bytes. It
judges nothing: figures are those of ``popi train`` and ``popi eval``, and what a run lacks is named, not left out.
Does not hide what is in summaries: whoever gets the page can read them.
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError, StoreError
from popi_edge.files import whole_file
from popi_training.evaluate.metrics import wins
from popi_training.evaluate.report import bounds, number
from popi_training.report_sources import LISTING, RESULT, Evaluation, Line, Listed, Sources
from popi_training.runfolder import METRICS, RECIPE, RUN

PAGE, CURVES, PARETO = "index.html", "curves.png", "pareto.png"
MARK = "popi report"
"""What the page and the pictures carry, so that ``write`` replaces only what it made."""
NO_PICTURES: Mapping[str, Any] = {"curves": [], "pareto": {}, "left": []}
SHOWN = 100
"""Rows of summaries or failures on the page; the rest is only counted."""
CEILINGS = ("oracle_summary", "bayes", "bayes_any")
"""Conditions that nobody can have: they bound the others, and are not on the front."""


# what the figures are -------------------------------------------------------------------------------------
def front(lines: Sequence[Line], metric: str) -> list[Line]:
    """Conditions that no other beats: none has as few tokens and as high a value, and one of both better."""
    points = [(line, p) for line in lines if not line.baseline and (p := line.point(metric))]
    points = [(line, p) for line, p in points if line.name not in CEILINGS]
    best = [
        (line, (x, y))
        for line, (x, y) in points
        if not any(a <= x and b >= y and (a, b) != (x, y) for _, (a, b) in points)
    ]
    return [line for line, _ in sorted(best, key=lambda item: item[1])]


def shortcomings(own: float, other: float, chose: float | None = None) -> list[str]:
    """Why a row failed, by m under its own summary and under the opposite's; empty where it did not. ``chose``: how
    often the preferred reply was chosen (default: as the sign of m says)."""
    out = []
    chose = float(wins([own])[0]) if chose is None else chose
    if chose <= 0.5:
        out.append("chose the other reply" if chose < 0.5 else "undecided")
    if own <= other:
        out.append("the opposite’s summary did better" if own < other else "the opposite’s summary did as well")
    return out


def of_world(evaluations: Sequence[Evaluation]) -> bool:
    """Whether one of them is of the controlled world, where the best that can be done is known."""
    return any(line.name == "bayes" for e in evaluations for line in e.tables[0].lines)


def failures(listing: Sequence[Listed]) -> list[tuple[Listed, list[str]]]:
    """Rows whose own summary chose wrong or did not beat the opposite's, the worst first; with the reasons."""
    pairs = [(x, *x.margins["summary"]) for x in listing if "summary" in x.margins]
    failed = [(min(own, own - other), x, shortcomings(own, other, x.chose("summary"))) for x, own, other in pairs]
    return [(x, why) for _, x, why in sorted((f for f in failed if f[2]), key=lambda f: f[0])]


def side_by_side(before: Sequence[Listed], after: Sequence[Listed]) -> list[tuple[Listed, Listed]]:
    """Rows of both listings, in the order of the second: the same row, persona and kind of signals."""
    known = {x.key: x for x in before}
    return [(known[x.key], x) for x in after if x.key in known]


def described(rows: Sequence[Listed]) -> dict[str, float | int | None]:
    """Counts over rows: summaries, different texts, mean tokens of those; accuracy and contrast (ties ½)."""
    said = [x for x in rows if x.text]
    tokens = [x.tokens for x in said if x.tokens is not None]
    scored = [x for x in rows if "summary" in x.margins]
    own, other = ([x.margins["summary"][k] for x in scored] for k in (0, 1))
    return {
        "rows": len(rows),
        "summaries": len(said),
        "distinct": len({x.text for x in said}),
        "tokens": sum(tokens) / len(tokens) if tokens else None,
        "accuracy": sum(x.chose("summary") for x in scored) / len(scored) if scored else None,
        "contrast": float(wins(own, other).mean()) if scored else None,
    }


def spread(rows: Sequence[Any], most: int = SHOWN) -> list[Any]:
    """All rows, or ``most`` of them, evenly spaced."""
    return list(rows) if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def missing(sources: Sources) -> list[str]:
    """What is not there or does not fit, a plain sentence each."""
    run, out = sources, []
    out += [f"There is no {RECIPE} in the run’s folder."] * (run.recipe is None)
    out += [f"There is no {RUN} in the run’s folder, so what it was made from is not known."] * (run.made_from is None)
    if run.metrics is None:
        out.append(f"There is no {METRICS} in the run’s folder: no curves.")
    else:
        out += ["No step is in the metrics yet: no curves."] * (not run.metrics.lines)
        out += ["The last line of the metrics was cut off; it is left out."] * run.metrics.cut
        for name, series in run.metrics.series.items():
            if series.odd:
                at = f"{len(series.odd)} of its steps, first at step {series.odd[0]}"
                out.append(f"{name}: not a finite number at {at}; not drawn there.")
    out += ["No evaluation was given."] * (not run.evaluations)
    for e in run.evaluations:
        if e.listing is None:
            out.append(f"{e.title}: there is no {LISTING}, so neither summaries nor failures can be shown.")
        elif unlike := _unlike(e):
            out.append(f"{e.title}: {LISTING} does not belong to {RESULT}: {unlike}.")
    if run.before is None:
        out.append("No summaries from before training were given.")
    elif not any(side_by_side(run.before, e.listing or []) for e in run.evaluations):
        out.append(f"None of the {len(run.before)} rows from before training is among those listed after it.")
    return out


def _unlike(evaluation: Evaluation) -> str:
    """How a listing contradicts its result: empty where it does not (margins are rounded in it)."""
    rows = [x for x in evaluation.listing or [] if not x.profile]
    table = evaluation.tables[0]
    if len(rows) != table.pairs:
        return f"{len(rows)} rows against {table.pairs}"
    ours, theirs = described(rows)["accuracy"], {line.name: line.accuracy for line in table.lines}.get("summary")
    if ours is None or theirs is None or abs(ours - theirs) < 0.005:
        return ""
    return f"accuracy {ours:.3f} against {theirs:.3f}"


# the page -------------------------------------------------------------------------------------------------
def made(sources: Sources) -> tuple[dict[str, bytes], list[str]]:
    """The files by name, and what is missing. Without matplotlib there are no pictures, and that is missing too."""
    lacking = missing(sources)
    pictures, out = NO_PICTURES, dict[str, bytes]()
    try:
        from popi_training import report_plots as plots

        pictures, out = plots.pictures(sources)
    except ImportError as e:
        if (e.name or "").partition(".")[0] != "matplotlib":
            raise
        lacking.append("No plots: matplotlib is not installed; pip install matplotlib")
    return out | {PAGE: page(sources, pictures, lacking).encode("utf-8", "replace")}, lacking


def page(sources: Sources, pictures: Mapping[str, Any], lacking: Sequence[str]) -> str:
    """The page. ``pictures``: as ``report_plots.pictures`` makes them."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    helpers: dict[str, Callable[..., Any]] = {
        "number": number, "bounds": bounds, "front": front, "failures": failures, "spread": spread,
        "described": described, "side_by_side": side_by_side, "duration": duration, "figure": figure,
        "of_world": of_world,
        "reach": lambda tests: max([0.1, *(abs(v) for t in tests for v in (t.value, t.low, t.high) if v is not None)]),
        "reasons": lambda failed: Counter(why for _, whys in failed for why in whys),
        "base64": lambda blob: base64.b64encode(blob).decode(),
    }  # fmt: skip
    environment.globals.update(helpers)
    template = environment.from_string((files("popi_training") / "report.html").read_text("utf-8"))
    table, series = sources.table, sources.metrics.series if sources.metrics else {}
    train, joint = (v if isinstance(v := table.get(key), dict) else {} for key in ("train", "joint"))
    return template.render(
        s=sources,
        name=(sources.made_from or {}).get("name") or table.get("name") or sources.folder,
        kind={"method": table.get("method"), "role": table.get("role"), "schedule": joint.get("schedule")},
        planned=train.get("steps"),
        series=series,
        seconds=sum(series["seconds"].values) if "seconds" in series else None,
        tokens=sum(series["tokens"].values) if "tokens" in series else None,
        pictures=pictures,
        lacking=lacking,
        mark=MARK,
        shown=SHOWN,
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: 41 s, 12 min 5 s, 3 h 4 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def figure(value: float) -> str:
    """A field's value: whole numbers whole, others to four digits."""
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"


# writing --------------------------------------------------------------------------------------------------
def refuse(folder: Path, force: bool) -> None:
    """Raises ConfigError where a file of ours is there already; under ``force`` only where it is not ours."""
    for name in (PAGE, CURVES, PARETO):
        path = folder / name
        if not os.path.lexists(path):
            continue
        if not force:
            raise ConfigError(f"{path} exists; take another --out, or --force to replace it")
        if not _ours(path):
            raise ConfigError(f"{path} was not made by popi report; take another --out")


def _ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not path.is_symlink() and MARK.encode() in file.read(2000)
    except OSError:
        return False


def write(out: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write each file whole, the page last; those of an earlier report that are not made now go. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, blob in out.items():
            with whole_file(folder / name) as file:
                file.write(blob)
        for name in {CURVES, PARETO} - set(out):
            if _ours(folder / name):
                (folder / name).unlink()
    except OSError as e:
        why = "it is no folder" if isinstance(e, FileExistsError) else e.strerror
        raise StoreError(f"cannot write to {folder}: {why}") from None
    return [folder / name for name in out]
