"""Commands that training adds to ``popi`` through the entry points ``popi.commands``: ``popi eval``."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from popi_edge.cli.common import App, common
from popi_edge.errors import ConfigError

if TYPE_CHECKING:
    from popi_training.evaluate.choice import Chooser
    from popi_training.evaluate.data import Dataset

FORMATS = ("alignx", "onestopenglish", "corpus")
HALVES = ("dev", "final", "all")
MOST_PEOPLE = 100_000
"""Of the controlled world, that are drawn for one table."""
IN_WORLD = ("limit", "seed", "out", "summaries", "home", "as_json")
"""Options of ``popi eval`` that a run of the controlled world takes."""


class Meter:
    """Progress on stderr with the time left: a bar on a terminal, else a line now and then."""

    EVERY = 60.0
    """Seconds between two lines where stderr is not a terminal."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: click._termui_impl.ProgressBar[str] | None = None
        self._done, self._began, self._told = 0, 0.0, 0.0

    def __call__(self, stage: str, work: int, whole: int, figures: str = "") -> None:
        now = time.monotonic()
        if stage != self._stage:
            self.close()
            self._stage, self._done, self._began, self._told = stage, 0, now, now
            if sys.stderr.isatty():
                self._bar = click.progressbar(
                    length=whole, label=stage, file=sys.stderr, show_eta=True, item_show_func=lambda shown: shown or ""
                )
                self._bar.render_progress()
        self._done += work
        if self._bar is not None:
            self._bar.update(work, figures)
        elif self._done >= whole or now - self._told >= self.EVERY:
            self._told = now
            left = (now - self._began) / self._done * (whole - self._done)
            shown = f" ({figures})" if figures else ""
            click.echo(f"{stage}: {self._done / whole:.0%}, {left / 60:.0f} min left{shown}", err=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None


@click.command("eval")
@click.argument("trained", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--bundle", metavar="B", help="A bundle's name, folder or GGUF file (default: the default bundle).")
@click.option(
    "--data", metavar="FILE", type=click.Path(exists=True, path_type=Path),
    help="Pairs to choose between, with each user's signals; for format corpus the corpus' folder.",
)  # fmt: skip
@click.option("--format", "format_", type=click.Choice(FORMATS), help="What the file is.")
@click.option(
    "--half", default="all", show_default=True, type=click.Choice(HALVES),
    help="Which prompts: dev may be looked at while developing, final is for the end.",
)  # fmt: skip
@click.option(
    "--set", "part", default="prompts", show_default=True, metavar="NAME",
    help="Of our own corpus: prompts, phrasings, users, combinations, dimensions, kind-KIND or signals-N.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=2), metavar="N", help="So many rows, drawn by the seed.")
@click.option("--seed", default=0, show_default=True, help="Draws rows, donors and intervals.")
@click.option("--engine", type=click.Choice(["onnx", "llama_cpp"]), help="The engine (default: the setting).")
@click.option("--generator", metavar="URL", help="Have the LLM at this OpenAI-compatible URL choose, in both orders.")
@click.option("--generator-model", metavar="NAME", help="The model's name there (default: default).")
@click.option("--generator-key-env", metavar="VAR", help="The environment variable that holds its key.")
@click.option(
    "--without", multiple=True, type=click.Choice(["raw", "untrained_summary", "shuffled_summary"]),
    help="Leave a condition out; raw signals cost the most.",
)  # fmt: skip
@click.option("--profile", is_flag=True, help="Add a second table, with each row's profile among the signals.")
@click.option(
    "--out", "--resume", "out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
    help="Keep every finished unit and the result there; a run that was cut off goes on.",
)  # fmt: skip
@click.option(
    "--summaries", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Write the summaries there, one JSON object a line.",
)  # fmt: skip
@common
def evaluate(
    app: App,
    *,
    trained: Path | None,
    bundle: str | None,
    data: Path | None,
    format_: str | None,
    half: str,
    part: str,
    limit: int | None,
    seed: int,
    engine: str | None,
    generator: str | None,
    generator_model: str | None,
    generator_key_env: str | None,
    without: tuple[str, ...],
    profile: bool,
    out: Path | None,
    summaries: Path | None,
) -> None:
    """Which of two replies would the person choose? Accuracy and contrast under every kind of context.

    RUN: a run's folder, evaluated as the bundle that it would be exported to; one of the controlled world brings its
    own people and needs no --data.
    """
    from popi_training.evaluate import choice, report, run
    from popi_training.evaluate.data import load
    from popi_training.evaluate.journal import refuse_unwritable, write_json

    kept = [folder for folder in (out, summaries and summaries.parent) if folder is not None]
    if trained is not None and bundle is not None:
        raise click.UsageError("give a run or --bundle, not both")
    if trained is not None and of_world(trained):
        if given := _given():
            raise click.UsageError(
                f"a run of the controlled world is evaluated in its own world, without {', '.join(given)}"
            )
        if limit is not None and limit > MOST_PEOPLE:
            raise ConfigError(f"limit is {limit}; of the controlled world at most {MOST_PEOPLE:,} people are drawn")
        refuse_unwritable(*kept)
        found = in_world(trained, limit, seed)
        if summaries is not None:
            run.write_listing(summaries, found.after)
        if out is not None:
            write_json(out / "result.json", found.result)
        app.emit(found.result, found.text)
        return
    if data is None or format_ is None:
        raise click.UsageError("--data and --format say what to evaluate on")
    if generator is None and (generator_model or generator_key_env):
        raise click.UsageError("--generator-model and --generator-key-env need --generator")
    chooser = choice.open_chooser(generator, generator_model, generator_key_env) if generator is not None else None
    rows = load(data, format_, half=half, limit=limit, seed=seed, part=part)
    if profile and not any(r.profile for r in rows.rows):
        raise ConfigError(f"{data}: no row has a profile, so --profile adds no table")
    refuse_unwritable(*kept)
    with _exported(app, trained) if trained is not None else nullcontext(bundle) as opened:
        result, listing = _evaluated(app, rows, opened, engine, seed, profile, out, chooser, without)
    result |= {"half": half, "limit": limit}
    if summaries is not None:
        run.write_listing(summaries, listing)
    if out is not None:
        write_json(out / "result.json", result)
    app.emit(result, lambda: report.text(result) + ("\n\n" + choice.text(result["generator"]) if chooser else ""))


def _given() -> list[str]:
    """Options that were given on the command line and mean nothing to the controlled world."""
    context = click.get_current_context()
    asked = [p for p in context.command.params if isinstance(p, click.Option) and p.name not in IN_WORLD]
    return [p.opts[0] for p in asked if context.get_parameter_source(str(p.name)) is ParameterSource.COMMANDLINE]


def of_world(run: Path) -> bool:
    """Whether a run is one of the controlled world."""
    from popi_training import recipe as recipes

    return recipes.read(run / "recipe.toml").data.world


@dataclass(frozen=True)
class Evaluated:
    """A result, its table for reading, and the summaries after training and before, as they are listed."""

    result: dict[str, Any]
    text: str
    after: list[dict[str, Any]]
    before: list[dict[str, Any]]


def in_world(run: Path, users: int | None, seed: int) -> Evaluated:
    """Every test part of the world; result and summaries are those of the first, with all tables under ``parts``."""
    from popi_training.cli_train import require

    require()
    from popi_training import world_eval

    trainer = world_eval.open_trained(run)
    (table, after, before), *rest = (
        world_eval.examined(trainer, part, users or 400, seed=seed) for part in world_eval.PARTS
    )
    tables = [table, *(other for other, _, _ in rest)]
    result = table | {"step": trainer.step, "parts": tables}
    return Evaluated(result, "\n".join(map(world_eval.text, tables)), after, before)


def _evaluated(
    app: App, rows: Dataset, bundle: str | None, engine: str | None = None, seed: int = 0, profile: bool = False,
    out: Path | None = None, chooser: Chooser | None = None, without: Sequence[str] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """The result of a bundle on rows, and its summaries; by ``chooser`` where one is to choose."""
    from popi_training.evaluate import choice, run
    from popi_training.evaluate.journal import Journal

    pair = run.open_pair(bundle, engine, app.settings)
    settings = pair.settings(rows, seed) | (chooser.settings() if chooser else {})
    with closing(pair.engine), closing(Meter()) as meter, Journal(out, settings) as journal:
        if chooser is None:
            return run.evaluate(rows, pair, journal, seed=seed, profile=profile, advance=meter, without=without)
        return choice.evaluate(
            rows, pair, journal, chooser, seed=seed, profile=profile, advance=meter, without=without
        )


def on_corpus(app: App, bundle: str, corpus: Path, rows: int, before: str) -> Evaluated:
    """So many rows of a corpus' held-out prompts, drawn by seed 0, by a bundle and, the summaries alone, by what it
    began as."""
    from popi_training.evaluate import report
    from popi_training.evaluate.conditions import CONDITIONS
    from popi_training.evaluate.data import load

    data = load(corpus, "corpus", limit=rows, part="prompts")
    result, after = _evaluated(app, data, bundle)
    result |= {"half": "all", "limit": rows}
    others = [c for c in CONDITIONS if c != "summary"]
    return Evaluated(result, report.text(result), after, _evaluated(app, data, before, without=others)[1])


@contextmanager
def _exported(app: App, run: Path) -> Iterator[str]:
    """The folder of the bundle that a run would be exported to, as long as it is looked at."""
    from popi_training.cli_train import require

    require()
    from popi_export import bundle

    with tempfile.TemporaryDirectory(prefix="popi-eval-") as folder:
        read, out = bundle.read(run, app.settings), Path(folder) / "bundle"
        bundle.export(read, out, app.settings, name=read.recipe.name, version=f"0.0.{read.step}")
        yield str(out)
