"""``popi export``: a trained checkpoint as a bundle for the device."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from popi_edge.cli.common import App, common
from popi_edge.errors import EngineError

NEEDED = ("torch", "gguf")


@click.command("export")
@click.argument("checkpoint", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--name", help="The bundle's name (default: the recipe's).")
@click.option("--version", default="0.1.0", show_default=True, help="The bundle's version.")
@click.option("--evaluation", metavar="FILE", type=click.Path(path_type=Path), help="A table (JSON) for the manifest.")
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
@common
def export(
    app: App, *, checkpoint: Path, out: Path, name: str | None, version: str, evaluation: Path | None, force: bool
) -> None:
    """Write the bundle's folder OUT from CHECKPOINT, a run's folder: for each role one adapter file
    for both engines."""
    if missing := [m for m in NEEDED if importlib.util.find_spec(m) is None]:
        raise EngineError(f"{' and '.join(missing)} not installed; run: pip install 'popi-edge[training,export]'")
    from popi_export import bundle

    bundle.refuse_taken(out, force)
    table = bundle.read_evaluation(evaluation) if evaluation is not None else None
    read = bundle.read(checkpoint, app.settings)
    name = name or read.recipe.name
    manifest = bundle.export(read, out, app.settings, name=name, version=version, evaluation=table, force=force)
    if read.step < read.recipe.train.steps:
        app.note(f"the run is at step {read.step} of {read.recipe.train.steps}")
    files = ", ".join(f"{r['file']} ({r['size']:,} bytes)" for r in manifest["roles"].values() if r)
    text = f"{out}: {manifest['name']} {manifest['version']}, {files}, read back alike"
    app.emit({"folder": str(out), **manifest}, text)
