"""``popi train`` and ``popi runs``: train by a recipe, go on, check, replay; look at what was trained.

Nothing here loads torch before it is needed: ``popi train --check`` works without it.
"""

from __future__ import annotations

import datetime
import importlib.util
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from popi_edge.cli.common import App, common
from popi_edge.errors import ConfigError, EngineError
from popi_training import checking
from popi_training.cli import Meter
from popi_training.evaluate.report import aligned
from popi_training.runfolder import METRICS, RECIPE, RUN, differences, read_metrics, read_run

if TYPE_CHECKING:
    from popi_training import cli
    from popi_training.recipe import Recipe

NEEDED = ("torch", "transformers", "peft")
SHOWN = 5
"""Differences that a replay shows before it only counts them."""
PathType = click.Path(path_type=Path)


def require(needed: tuple[str, ...] = NEEDED) -> None:
    """Raises EngineError where a package is not installed; loads none."""
    if missing := [m for m in needed if importlib.util.find_spec(m) is None]:
        raise EngineError(f"{' and '.join(missing)} not installed; run: pip install 'popi-edge[training]'")


def trainer_module() -> Any:
    """``popi_training.train``. Raises EngineError where a package that it needs is not installed."""
    require()
    from popi_training import train

    return train


@click.command("train")
@click.argument("recipe", metavar="RECIPE", type=PathType)
@click.option("--out", metavar="DIR", type=PathType, help="The run's folder (default: runs/NAME); a run there goes on.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), metavar="M", help="Stop after M, and save.")
@click.option("--until", type=click.IntRange(min=1), metavar="STEP", help="Stop after this step, and save.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where to train (default: cpu).")
@click.option("--workers", type=click.IntRange(0, 64), default=0, help="Processes that make batches ahead.")
@click.option(
    "--finish", type=click.IntRange(2, 100_000), metavar="N",
    help="At the recipe's end also write bundle, table (N rows of held-out prompts; N people of the world) and report.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Train nothing: say what it would be trained on.")
@click.option("--replay", type=click.IntRange(min=1), metavar="N", help="Train N steps apart and compare.")
@click.option("--against", metavar="METRICS", type=PathType, help="The run, or its metrics.jsonl, to compare with.")
@common
def train(
    app: App,
    *,
    recipe: Path,
    out: Path | None,
    minutes: float | None,
    until: int | None,
    device: str,
    workers: int,
    finish: int | None,
    check: bool,
    replay: int | None,
    against: Path | None,
) -> None:
    """Train by a recipe, or go on with a run that was stopped."""
    from popi_training import recipe as recipes

    if minutes is not None and math.isnan(minutes):
        raise click.UsageError("--minutes must be a number")
    if (replay is None) != (against is None):
        raise click.UsageError("--replay and --against go together")
    trained = any(o is not None for o in (out, minutes, until, finish)) or device != "cpu" or workers
    if sum([check, replay is not None, bool(trained)]) > 1:
        raise click.UsageError("--check and --replay stand alone")
    read = recipes.read(recipe)
    if check:
        found = checking.checked(read, recipe, app.settings)
        app.emit(found, lambda: checking.text(found))
    elif replay is not None and against is not None:
        _replay(app, read, recipe, replay, against)
    else:
        _train(app, read, recipe, out or Path("runs") / read.name, minutes, until, device, workers, finish)


def _train(
    app: App, recipe: Recipe, where: Path, out: Path, minutes: float | None, until: int | None, device: str,
    workers: int, finish: int | None,
) -> None:  # fmt: skip
    module = trainer_module()
    if finish:
        require((*NEEDED, "gguf"))
        _refuse_finish(recipe, where, out)
    trainer = module.open_run(recipe, where, app.settings, device)
    meter = Meter()
    try:
        done = module.run(
            trainer, out, until=until or recipe.train.steps, minutes=minutes, tell=_telling(meter, "training"),
            workers=workers,
        )
    finally:
        meter.close()
    if not trainer.team.main:
        return
    result = _run(out) | {"done": done}
    made = _finish(app, recipe, where, out, finish) if finish and done else {}
    app.emit(result | made, lambda: "\n".join([_end_text(result), *(f"{k:7} {v}" for k, v in made.items())]))


def _refuse_finish(recipe: Recipe, where: Path, run: Path) -> None:
    """Raises ConfigError for models that no bundle can hold, for a corpus that the table cannot be made from, and where
    bundle or report would replace what is none."""
    from popi_edge.models.bases import BASES
    from popi_export import bundle
    from popi_training import report, warm
    from popi_training.evaluate.data import PROMPTS, load

    if not recipe.data.world:
        if recipe.base.name not in BASES:
            raise ConfigError(f"{where}: base.name: --finish makes a bundle, and devices know only {', '.join(BASES)}")
        if recipe.lora.full:
            raise ConfigError(f"{where}: lora.full: --finish makes a bundle, which holds adapters and no whole models")
        load(warm.corpus_folder(recipe, where), "corpus", limit=2, part=PROMPTS)
    bundle.refuse_taken(run / "bundle", force=True)
    report.refuse(run / "report", force=True)


def _finish(app: App, recipe: Recipe, where: Path, run: Path, rows: int) -> dict[str, str]:
    """Bundle, table, summaries and report of a run that is done, in its folder; what is there already is made anew."""
    from popi_training import cli, report, report_sources
    from popi_training.evaluate.journal import write_json
    from popi_training.evaluate.run import write_listing

    out = run / "bundle"
    if recipe.data.world:
        from popi_export import whole

        whole.export(run, out, name=recipe.name, version=f"0.0.{_run(run)['step']}")
        found = cli.in_world(run, rows, 0)
    else:
        found = _on_corpus(app, recipe, where, run, rows)
    app.note(found.text)
    folder = run / "eval" / "finish"
    write_json(folder / report_sources.RESULT, found.result)
    write_listing(folder / report_sources.LISTING, found.after)
    write_listing(run / report_sources.BEFORE, found.before)
    written = report.write(report.made(report_sources.read(run, (), None))[0], run / "report")
    return {
        "bundle": str(out),
        "table": str(folder / report_sources.RESULT),
        "report": str(next(p for p in written if p.suffix == ".html")),
    }


def _on_corpus(app: App, recipe: Recipe, where: Path, run: Path, rows: int) -> cli.Evaluated:
    """A run's bundle, made in its folder, and what the run began as, on held-out prompts of its corpus."""
    from popi_export import bundle
    from popi_training import cli, warm

    read, out = bundle.read(run, app.settings), run / "bundle"
    bundle.export(read, out, app.settings, name=recipe.name, version=f"0.0.{read.step}", force=True)
    with tempfile.TemporaryDirectory(prefix="popi-began-") as folder:
        before = recipe.base.name
        if "infer" in read.began:
            before = str(Path(folder) / "bundle")
            began = replace(read, step=0, layers=read.began)
            bundle.export(began, Path(before), app.settings, name=recipe.name, version="0.0.0")
        return cli.on_corpus(app, str(out), warm.corpus_folder(recipe, where), rows, before)


TOLD = ("loss", "reward", "accuracy", "dpo_accuracy", "kl", "length", "leak", "identity", "contrast")
"""The figures of a step that its progress shows."""


def _telling(meter: Meter, stage: str) -> Callable[[int, int, Mapping[str, Any]], None]:
    """The trainer's progress on a meter that counts only the steps of this call, as their time is measured."""
    whole: list[int] = []

    def tell(step: int, last: int, line: Mapping[str, Any]) -> None:
        whole.append(last - step + 1)
        meter(stage, 1, whole[0], ", ".join(f"{key} {line[key]:.3g}" for key in TOLD if key in line))

    return tell


def _end_text(result: dict[str, Any]) -> str:
    state = "done" if result["done"] else f"the same command goes on to step {result['steps']}"
    figures = {"loss": result["loss"], **result["dev"]}
    shown = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in figures.items() if value is not None)
    return f"step {result['step']} of {result['steps']}: {shown}\nIt lies in {result['folder']}; {state}."


def _replay(app: App, recipe: Recipe, where: Path, steps: int, against: Path) -> None:
    module = trainer_module()
    if steps > recipe.train.steps:
        raise ConfigError(f"the recipe has {recipe.train.steps} steps; {steps} cannot be replayed")
    metrics = against / METRICS if against.is_dir() else against
    if not (theirs := read_metrics(metrics)):
        raise ConfigError(f"{metrics}: no line of metrics to compare with")
    trainer = module.open_run(recipe, where, app.settings)
    meter = Meter()
    with tempfile.TemporaryDirectory(prefix="popi-replay-") as folder:
        try:
            module.run(trainer, Path(folder), until=steps, minutes=None, tell=_telling(meter, "replaying"))
        finally:
            meter.close()
        found = differences(read_metrics(Path(folder) / METRICS), theirs)
    more = f"\nand {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    good = f"{steps} steps agree bit for bit"
    app.emit({"steps": steps, "differences": found}, good if not found else "\n".join(found[:SHOWN]) + more)
    if found:
        click.get_current_context().exit(1)


def _run(folder: Path) -> dict[str, Any]:
    """A run's figures: step, steps, last loss, last figures on development users, when. Raises ConfigError."""
    from popi_training import recipe as recipes

    require(("torch",))
    metrics = read_metrics(folder / METRICS)
    recipe = recipes.read(folder / RECIPE)
    last = metrics[-1] if metrics else {"step": 0}
    dev: dict[str, Any] = next((m for m in reversed(metrics) if "dev_loss" in m), {})
    figures = {k: v for k, v in dev.items() if k.startswith("dev_")}
    try:
        seconds = (folder / METRICS).stat().st_mtime
    except OSError as e:
        raise ConfigError(f"cannot read {folder}: {e.strerror}") from None
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return {
        "name": recipe.name,
        "folder": str(folder),
        "step": last["step"],
        "steps": recipe.train.steps,
        "loss": last.get("loss"),
        "dev": figures,
        "when": when.isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


@click.group()
def runs() -> None:
    """What was trained."""


dir_option = click.option(
    "--dir", "folder", default="runs", show_default=True, type=PathType, help="Where the runs lie."
)


@runs.command("list")
@dir_option
@common
def list_(app: App, *, folder: Path) -> None:
    """Runs: how far, and the last figures."""
    rows, odd = [], []
    for path in sorted(p.parent for p in folder.glob("*/run.json")):
        try:
            rows.append(_run(path))
        except ConfigError as e:
            odd.append(str(e))
    for line in odd:
        app.note(line)
    figures = list(dict.fromkeys(key for r in rows for key in r["dev"]))
    head = ("name", "step", "loss", *figures, "when")
    cells = [
        (
            Path(r["folder"]).name,
            f"{r['step']}/{r['steps']}",
            *map(_figure, (r["loss"], *(r["dev"].get(f) for f in figures))),
            str(r["when"]),
        )
        for r in rows
    ]
    app.emit(rows, lambda: aligned([head, *cells]) if rows else f"no runs in {folder}")


@runs.command()
@click.argument("name", metavar="NAME")
@dir_option
@click.option("--every", default=20, show_default=True, type=click.IntRange(min=1), help="Show each so many-th step.")
@common
def show(app: App, *, name: str, folder: Path, every: int) -> None:
    """One run: its recipe, what it was made from, its metrics."""
    path = folder / name if (folder / name).is_dir() else Path(name)
    if not (path / RUN).is_file():
        raise ConfigError(f"there is no run {name!r:.80} in {folder}")
    facts = _run(path)
    metrics = read_metrics(path / METRICS)
    kept = [m for i, m in enumerate(metrics, 1) if m["step"] % every == 0 or i in (1, len(metrics)) or "dev_loss" in m]
    try:
        made_from = read_run(path)
        recipe = (path / RECIPE).read_text("utf-8")
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path / RECIPE}: not a run: {e}") from None
    keys = tuple(k for k in dict.fromkeys(k for m in metrics for k in m) if k != "seconds")
    cells = [tuple(_figure(m.get(key)) for key in keys) for m in kept]

    def text() -> str:
        rows = [f"{key}: {value}" for key, value in made_from.items() if key != "name"]
        head = f"{facts['folder']}: step {facts['step']} of {facts['steps']}, {facts['when']}"
        return "\n\n".join([head, "\n".join(rows), recipe.strip(), aligned([keys, *cells])])

    app.emit(facts | {"made_from": made_from, "recipe": recipe, "metrics": metrics}, text)


def _figure(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
