"""``popi report``: a run as one page for people to read, with plots."""

from __future__ import annotations

from pathlib import Path

import click

from popi_edge.cli.common import App, common

PathType = click.Path(path_type=Path)


@click.command("report")
@click.argument("run", metavar="RUN", type=PathType)
@click.option(
    "--eval", "evaluations", multiple=True, metavar="DIR", type=PathType,
    help="What popi eval --out wrote; may be given several times (default: those in RUN/eval).",
)  # fmt: skip
@click.option(
    "--before", metavar="FILE", type=PathType,
    help="Summaries of the same rows from before training (default: RUN/before.jsonl, if it is there).",
)  # fmt: skip
@click.option("--out", metavar="DIR", type=PathType, help="Where page and plots go (default: RUN/report).")
@click.option("--force", is_flag=True, help="Replace an earlier report.")
@common
def report(
    app: App, *, run: Path, evaluations: tuple[Path, ...], before: Path | None, out: Path | None, force: bool
) -> None:
    """A run on one page: curves, evaluations, summaries before and after, failures."""
    from popi_training import report as reports
    from popi_training.report_sources import read

    folder = out or run / "report"
    sources = read(run, evaluations, before)
    reports.refuse(folder, force)
    made, missing = reports.made(sources)
    written = reports.write(made, folder)
    for line in missing:
        app.note(line)
    found = {
        "run": sources.folder,
        "files": [str(path) for path in written],
        "evaluations": [e.title for e in sources.evaluations],
        "missing": missing,
    }
    app.emit(found, lambda: "\n".join(f"wrote {path}" for path in written))
