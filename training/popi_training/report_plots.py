"""The report's pictures, with matplotlib: curves by group of fields; accuracy and contrast against context tokens.

Every picture is made twice, for a light page and for a dark one; the files beside the page are light. Texts are drawn
as they are: no mathematics is read into a field's name.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.style import context
from matplotlib.ticker import NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from popi_training.report import CURVES, MARK, PARETO, front
from popi_training.report_sources import Evaluation, Line, Series, Sources

SMALL, TALL = (4.3, 2.9), (4.3, 3.7)
"""Inches of a curve and of a scatter on the page: letters can be read where a phone makes them 340 pixels wide."""
COLUMNS = 3
"""Curves beside each other in the file."""
COLOURS = 96
"""A picture's colours: enough for smooth lines."""
METRICS = ("accuracy", "contrast")
MOST = 24
"""Groups that are drawn; a metrics file with more fields than that is not a run's."""
WINDOWS = 50
"""A curve's mean runs over this share of its steps: one in so many."""
SHARES = "Right choices"


Theme = Mapping[str, Any]
Draw = Callable[[Figure, Theme], None]


@dataclass(frozen=True)
class Group:
    """Fields that are drawn together, and what they count."""

    title: str
    fields: tuple[str, ...]
    about: str


KNOWN = (
    Group("Loss", ("loss", "dev_loss"), "What training minimises: each step’s batch, and development users (dev)."),
    Group("Reward", ("reward", "dev_reward"), "What a sampled summary does for the generator, in nats, before costs."),
    Group(SHARES, ("accuracy", "dev_accuracy", "dev_choice", "dev_contrast"),
          "Shares; ½ is chance. Accuracy: the preferred reply gains. Choice: the user’s summary is likelier than the "
          "opposite one. Contrast: the own beats the opposite’s."),
    Group("Contrast term", ("contrast",), "The part of the objective that tells a user’s summary from other users’."),
    Group("KL", ("kl",), "How far the inference model is from where it started, in nats a summary."),
    Group("Summary length", ("length", "dev_tokens"), "Tokens of a summary, on average."),
    Group("Truncated", ("truncated",), "The share of sampled summaries that were cut off at the limit."),
    Group("Leak", ("leak",), "The share of a sampled summary’s words that stand in the signals word for word."),
    Group("Identity", ("identity",), "How much likelier a sampled summary is behind its own person’s signals than "
          "behind those of others who want the same, in nats."),
    Group("Distinct summaries", ("distinct", "dev_distinct"), "The share of summaries that differ."),
    Group("Gradient norm", ("grad_norm", "grad_norm_infer", "grad_norm_generate"), "Before it is clipped."),
    Group("Learning rate", ("lr",), "As the schedule sets it."),
    Group("Tokens", ("tokens",), "Tokens of a step, as the trainer counts them."),
    Group("Seconds", ("seconds",), "Time that a step took."),
)  # fmt: skip
THEMES: dict[str, Theme] = {
    "light": {
        "paper": "#ffffff", "ink": "#1c2630", "quiet": "#5b6875", "grid": "#e3e7eb",
        "colours": ("#0f62ab", "#b3480a", "#1c7a59", "#8a3ba6", "#a8283f", "#646c00", "#00707f", "#6d5a48"),
    },
    "dark": {
        "paper": "#171c22", "ink": "#dde3e9", "quiet": "#98a4b0", "grid": "#2d353e",
        "colours": ("#6cb2f1", "#f0a261", "#5ec79e", "#cd97e6", "#f28b99", "#c6cd5c", "#5dcde2", "#c8b6a6"),
    },
}  # fmt: skip
MARKERS = "osD^vP*Xp<>hd"


def groups(fields: Sequence[str]) -> list[Group]:
    """The fields in groups: known ones in KNOWN's order; a field beginning with a known one's name beside it; any other
    alone, or with its ``dev_`` twin."""
    listed = {f: g.title for g in KNOWN for f in g.fields}
    found: dict[str, list[str]] = {g.title: [f for f in g.fields if f in fields] for g in KNOWN}
    for name in fields:
        stem = name.removeprefix("dev_")
        near = [f for f in listed if stem == f or stem.startswith(f + "_")]
        if name not in listed:
            found.setdefault(listed[max(near, key=len)] if near else stem, []).append(name)
    about = {g.title: g.about for g in KNOWN}
    unknown = "A field that this page knows nothing about."
    return [Group(t, tuple(names), about.get(t, unknown)) for t, names in found.items() if names]


def smooth(values: Sequence[float], window: int) -> Any:
    """The mean of the values [n] around each one, ``window`` of them (one more if even), fewer at the ends; [n]."""
    first = values[0]  # taken off, so that what does not change stays exactly as it is
    whole = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64) - first)])
    at = np.arange(len(values))
    low, high = np.maximum(0, at - window // 2), np.minimum(len(values), at + window // 2 + 1)
    return first + (whole[high] - whole[low]) / (high - low)


# drawing --------------------------------------------------------------------------------------------------
def _style(theme: Theme) -> list[Any]:
    ink, quiet, paper = theme["ink"], theme["quiet"], theme["paper"]
    return ["default", {
        "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10,
        "figure.facecolor": paper, "axes.facecolor": paper, "savefig.facecolor": paper, "text.color": ink,
        "axes.titlecolor": ink, "axes.labelcolor": quiet, "xtick.color": quiet, "ytick.color": quiet,
        "axes.edgecolor": theme["grid"], "axes.grid": True, "grid.color": theme["grid"], "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 8,
        "axes.formatter.useoffset": False, "lines.solid_capstyle": "round",
        "agg.path.chunksize": 20_000, "figure.constrained_layout.w_pad": 0.09, "figure.constrained_layout.h_pad": 0.09,
    }]  # fmt: skip


def _label(text: str) -> str:
    """A name as a picture can show it: one short line (a legend leaves out what begins with an underscore)."""
    shown = "".join(c if c.isprintable() else " " for c in text.replace("_", " ")).strip() or "?"
    return shown if len(shown) <= 40 else shown[:39] + "…"


def _png(draw: Draw, theme: Theme, size: tuple[float, float], dpi: int = 170) -> bytes:
    """What ``draw`` puts on a figure of that size (inches), in few enough colours that a page can hold many."""
    with context(_style(theme)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        draw(figure, theme)
        canvas.draw()
    whole = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    few = whole.quantize(COLOURS, dither=Image.Dither.NONE)
    told, out = PngInfo(), io.BytesIO()
    told.add_text("Software", MARK)
    few.save(out, "PNG", optimize=True, pnginfo=told)
    return out.getvalue()


def _both(draw: Draw, size: tuple[float, float]) -> dict[str, bytes]:
    return {name: _png(draw, theme, size) for name, theme in THEMES.items()}


def _curve(axis: Axes, theme: Theme, group: Group, series: Mapping[str, Series]) -> None:
    for i, name in enumerate(group.fields):
        one, colour = series[name], theme["colours"][i % len(theme["colours"])]
        window = 1 if name.startswith(("dev_", "lr")) else len(one.values) // WINDOWS
        few = len(one.values) < WINDOWS
        if window > 1:
            axis.plot(one.steps, one.values, color=colour, alpha=0.28, linewidth=0.6)
        thick = smooth(one.values, window) if window > 1 else one.values
        axis.plot(one.steps, thick, color=colour, linewidth=1.5, marker="o" if few else "", markersize=3,
                  label=_label(name), clip_on=False)  # fmt: skip
    if group.title == SHARES:
        axis.set_ylim(-0.02, 1.02)
        axis.axhline(0.5, color=theme["quiet"], linewidth=0.8, linestyle=":")
    axis.set_xlim(0, max(1, *(s.steps[-1] for s in series.values())))
    axis.set_title(_label(group.title), loc="left")
    axis.set_xlabel("step")
    if len(group.fields) > 1:
        axis.legend(loc="best" if max(len(series[f].values) for f in group.fields) < 20_000 else "upper right")


def _curves(figure: Figure, theme: Theme, *, drawn: Sequence[Group], series: Mapping[str, Series]) -> None:
    columns = min(COLUMNS, len(drawn))
    axes = list(figure.subplots(-(-len(drawn) // columns), columns, squeeze=False).flat)
    for axis, group in zip(axes, drawn, strict=False):
        _curve(axis, theme, group, series)
    for axis in axes[len(drawn) :]:
        axis.remove()


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Every condition once: its place gives it the same colour and marker in all pictures."""
    return list(dict.fromkeys(x.name for e in evaluations for x in e.tables[0].lines if not x.baseline))


def _scatter(axis: Axes, theme: Theme, lines: Sequence[Line], metric: str, names: Sequence[str]) -> None:
    placed = [(x, p) for x in lines if not x.baseline and (p := x.point(metric))]
    ahead = [p for x in front(lines, metric) if (p := x.point(metric))]
    most = max((tokens for _, (tokens, _) in placed), default=1.0)
    if ahead:
        best = [*ahead, (most, ahead[-1][1])]
        axis.step([x for x, _ in best], [y for _, y in best], where="post", color=theme["quiet"], linewidth=1)
    for line, (tokens, value) in placed:
        i = names.index(line.name)
        colour, marker = theme["colours"][i % len(theme["colours"])], MARKERS[i % len(MARKERS)]
        low, high = (line.low, line.high) if metric == "accuracy" else (line.contrast_low, line.contrast_high)
        if low is not None and high is not None:
            axis.vlines(tokens, low, high, color=colour, linewidth=1, alpha=0.6)
        axis.plot([tokens], [value], marker, color=colour, markersize=6, label=_label(line.name), clip_on=False,
                  zorder=3)  # fmt: skip
    axis.axhline(0.5, color=theme["quiet"], linewidth=0.8, linestyle=":")
    if metric == "accuracy":
        for line, dashes in zip((x for x in lines if x.baseline), ("--", "-.", (0, (1, 3))), strict=False):
            if line.accuracy is not None:
                axis.axhline(line.accuracy, color=theme["quiet"], linewidth=0.9, linestyle=dashes,
                             label=_label(f"{line.name} (baseline)"))  # fmt: skip
    if most > 100:
        axis.set_xscale("symlog", linthresh=10, linscale=0.5)
        ticks = [0, *(k * 10**n for n in range(1, 7) for k in (1, 2, 5) if k * 10**n <= most * 1.3)]
        axis.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(-max(0.6, min(most, 10) / 15), most * 1.15 + 1)
    axis.set_xlabel("context tokens")
    axis.set_ylabel(metric)


def drawable(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those with a point of accuracy and one of contrast."""
    return [
        e for e in evaluations
        if all(any(x.point(m) for x in e.tables[0].lines if not x.baseline) for m in METRICS)
    ]  # fmt: skip


def _pareto(
    figure: Figure | SubFigure, theme: Theme, *, evaluation: Evaluation, metrics: Sequence[str], names: Sequence[str]
) -> None:
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        _scatter(axis, theme, evaluation.tables[0].lines, metric, names)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(metrics))


def _paretos(figure: Figure, theme: Theme, *, evaluations: Sequence[Evaluation], names: Sequence[str]) -> None:
    parts = figure.subfigures(len(evaluations), 1, squeeze=False)[:, 0]
    for part, evaluation in zip(parts, evaluations, strict=True):
        part.suptitle(_label(evaluation.title), x=0.02, ha="left")
        _pareto(part, theme, evaluation=evaluation, metrics=METRICS, names=names)


# all of them ----------------------------------------------------------------------------------------------
def pictures(sources: Sources) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the page shows (``curves``: of each group its picture in both themes; ``pareto``: the same by the
    evaluation's place and metric; ``left``: fields that are too many), and the files beside it, by name."""
    series = {n: s for n, s in (sources.metrics.series if sources.metrics else {}).items() if s.values}
    found, evaluations = groups(list(series)), drawable(sources.evaluations)
    drawn, names = found[:MOST], _names(evaluations)
    curves = [{"group": g, "images": _both(partial(_curves, drawn=[g], series=series), SMALL)} for g in drawn]
    pareto = {
        i: {m: _both(partial(_pareto, evaluation=e, metrics=[m], names=names), TALL) for m in METRICS}
        for i, e in enumerate(sources.evaluations)
        if e in evaluations
    }
    files, (wide, high), light = {}, SMALL, THEMES["light"]
    if drawn:
        size = (wide * min(COLUMNS, len(drawn)), high * -(-len(drawn) // COLUMNS))
        files[CURVES] = _png(partial(_curves, drawn=drawn, series=series), light, size, dpi=120)
    if evaluations:
        size = (wide * len(METRICS), TALL[1] * len(evaluations))
        files[PARETO] = _png(partial(_paretos, evaluations=evaluations, names=names), light, size, dpi=120)
    return {"curves": curves, "pareto": pareto, "left": [f for g in found[MOST:] for f in g.fields]}, files
