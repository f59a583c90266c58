"""``popi record KIND`` keeps one signal; ``popi import FILE`` keeps those that another program wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from popi_edge.cli.common import App, common, progress, user_option
from popi_edge.errors import SignalError
from popi_edge.signals import KINDS, Message, Signal, to_json

FORMATS = ("auto", "jsonl", "alignx", "oasst", "iterater")


@click.group()
def record() -> None:
    """Keep one signal: what you chose, rated, edited, said, wrote, discussed or are."""


def _kind(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every kind, and the name of the kind from the function's."""
    for option in (
        click.option("--at", help="When it was, as RFC 3339 with a time zone (default: now)."),
        click.option("--source", default="cli", show_default=True, help="Where it comes from."),
        user_option,
        common,
    ):
        function = option(function)
    return record.command(function.__name__)(function)


def _keep(app: App, kind: str, at: str | None, **fields: Any) -> None:
    if at is not None:
        fields["at"] = at
    signal: Signal = KINDS[kind](**fields)
    with app.store() as store:
        done = store.add([signal])
    new = bool(done.added)
    human = f"recorded {kind} {signal.id}" if new else f"this {kind} is there already; nothing was added"
    app.emit({"added": new, "signal": to_json(signal) if new else None}, human)


@_kind
@click.option("--prompt", required=True, help="What was asked.")
@click.option("--chosen", required=True, help="The reply you prefer.")
@click.option("--rejected", required=True, help="The reply you like less.")
def comparison(app: App, **options: Any) -> None:
    """Of two replies to a prompt, the one you prefer."""
    _keep(app, "comparison", **options)


@_kind
@click.option("--prompt", required=True, help="What was asked.")
@click.option("--response", required=True, help="The reply.")
@click.option("--score", required=True, type=float, help="From 0 (worst) to 1 (best).")
def rating(app: App, **options: Any) -> None:
    """How good a reply was."""
    _keep(app, "rating", **options)


@_kind
@click.option("--prompt", required=True, help="What was asked.")
@click.option("--original", required=True, help="The reply as it came.")
@click.option("--edited", required=True, help="What you made of it.")
def edit(app: App, **options: Any) -> None:
    """A reply and what you changed it to."""
    _keep(app, "edit", **options)


@_kind
@click.argument("text")
def statement(app: App, **options: Any) -> None:
    """What you like or dislike, in your own words."""
    _keep(app, "statement", **options)


@_kind
@click.argument("text")
@click.option("--prompt", help="What it answers, if anything.")
def post(app: App, **options: Any) -> None:
    """Something you wrote elsewhere."""
    _keep(app, "post", **options)


@_kind
@click.option(
    "--message",
    "pairs",
    type=(str, str),
    multiple=True,
    required=True,
    metavar="ROLE TEXT",
    help="One turn; ROLE is user, assistant or system. Repeat it, in order.",
)
def conversation(app: App, pairs: tuple[tuple[str, str], ...], **options: Any) -> None:
    """A conversation you had."""
    turns = tuple(Message(role=role, content=text) for role, text in pairs)
    _keep(app, "conversation", messages=turns, **options)


@_kind
@click.argument("text")
def profile(app: App, **options: Any) -> None:
    """A description of you."""
    _keep(app, "profile", **options)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(FORMATS), default="auto", show_default=True)
@click.option("--user", help="Put everything under this user (default: whom the file says).")
@common
def import_(app: App, file: Path, format_: str, user: str | None) -> None:
    """Keep the signals of a FILE that another program wrote.

    jsonl has one signal a line, as ``popi signals export`` writes them. Lines that are wrong are named and
    left out, all others are kept, and the exit code is 1. Importing a file twice adds nothing.
    """
    from popi_edge.importers import import_file

    try:
        size = file.stat().st_size
    except (OSError, ValueError) as e:
        raise SignalError(f"cannot read {str(file)!r}: {getattr(e, 'strerror', None) or e}") from None
    with app.store() as store, progress(size, f"importing {file.name}") as bar:
        report = import_file(store, file, format_, user=user, seen=bar.update)
    wrong = [f"{file.name}, line {error.line}: {' '.join(error.error.split())}" for error in report.errors]
    alone = report.error_count == 1 and report.read > 0  # then the last line says it all
    for line in [] if alone else wrong:
        app.note(line)
    if report.error_count > len(report.errors):
        app.note(f"… and {report.error_count - len(report.errors):,} more errors")
    for reason, count in report.skipped.items():
        app.note(f"skipped {count:,}: {reason}")
    if report.read == 0:
        counted = f"; {report.error_count:,} lines are wrong" if report.error_count else ""
        raise SignalError(f"{file} holds no signal that could be read (as {report.format}){counted}")
    result = {
        "format": report.format,
        "read": report.read,
        "added": report.added,
        "duplicates": report.duplicates,
        "skipped": report.skipped,
        "users": len(report.users),
        "errors": [{"line": e.line, "field": e.field, "error": e.error} for e in report.errors],
        "error_count": report.error_count,
    }
    app.emit(result, lambda: _summary(result))
    if report.error_count:
        what = wrong[0] if alone else f"{file.name}: {report.error_count:,} lines are wrong"
        raise SignalError(f"{what} (left out; everything else is kept)")


def _summary(result: dict[str, Any]) -> str:
    head = "{format}: {read:,} read, {added:,} added, {duplicates:,} duplicates, {users:,} users"
    return head.format(**result) + f", {result['error_count']:,} errors"
