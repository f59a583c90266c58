"""``popi signals``: look at what is kept, take it along, or delete it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from popi_edge.cli.common import LATER, App, common, insist, user_option
from popi_edge.errors import ConfigError, StoreError
from popi_edge.files import whole_file
from popi_edge.signals import KINDS, Signal, to_json

if TYPE_CHECKING:
    from popi_edge.store import Deleted

WIDTH = 60


@click.group()
def signals() -> None:
    """Look at your signals, take them along, or delete them."""


def one_line(text: str, width: int = WIDTH) -> str:
    """The start of a text for a terminal: one line, and nothing in it that a terminal would obey."""
    plain = "".join(c if c.isprintable() else " " for c in text[: width * 8])
    short = " ".join(plain.split())
    return short if len(short) <= width else short[: width - 1] + "…"


def _row(signal: Signal) -> str:
    return f"{signal.id}  {signal.kind:12}  {signal.at[:19]}Z  {one_line(' | '.join(signal.texts()))}"


@signals.command("list")
@common
@user_option
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, help="Only this (repeatable).")
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest so many.")
def list_(app: App, user: str, kinds: tuple[str, ...], limit: int | None) -> None:
    """Your signals, in the order they came in."""
    with app.store() as store:
        found = store.signals(user, kinds=kinds or None, limit=limit, newest=limit is not None)
    app.emit([to_json(s.signal) for s in found], lambda: "\n".join(_row(s.signal) for s in found))


@signals.command()
@common
@click.argument("id")
def show(app: App, id: str) -> None:
    """One signal, whole."""
    with app.store() as store:
        value = to_json(store.get(id).signal)
    app.emit(value, lambda: json.dumps(value, ensure_ascii=False, indent=1))


@signals.command()
@common
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--erase-sent", is_flag=True, help="Also the bodies of requests that went out with such a summary.")
def delete(app: App, ids: tuple[str, ...], erase_sent: bool) -> None:
    """Delete signals, and the text of every summary made from them.

    What was already sent stays in the egress log unless --erase-sent; the output says how much that is.
    """
    from popi_edge.egress import EgressLog

    with app.store() as store:
        rows = (r for user in store.users() for r in store.summaries(user))
        log = EgressLog(store)
        sent = log.with_body(summary_ids=[r.id for r in rows if not set(ids).isdisjoint(r.signal_ids)])
        if erase_sent:
            for id in ids:
                store.get(id)  # raises, before anything is erased, where one is not there
            log.erase(*sent)
        done = store.delete(ids)
    if not done.scrubbed:
        app.note(LATER)
    human = f"deleted {done.signals} signals; erased {done.summaries} summaries made from them"
    app.emit(_deleted(done, sent, erase_sent), human + _of_sent(app, sent, erase_sent, f"erase {' '.join(sent)}"))


@signals.command()
@common
@user_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-sent", is_flag=True, help="Leave what was sent in the egress log, with the summaries in it.")
def purge(app: App, user: str, yes: bool, keep_sent: bool) -> None:
    """Delete everything about a user: signals, summaries, and what requests held that were sent for them.

    That, when, where and how much was sent stays in the egress log, whose chain still holds.
    """
    from popi_edge.egress import EgressLog

    with app.store() as store:
        log = EgressLog(store)
        sent = log.with_body(user=user)
        bodies = "" if keep_sent else f" and the bodies of {len(sent)} sent requests"
        question = f"Delete {store.count(user)} signals and all summaries{bodies} of {one_line(user)!r} for good?"
        insist(app, yes, question, "nothing was deleted")
        if not keep_sent:
            log.erase(*sent)
        done = store.purge(user)
    if not done.scrubbed:
        app.note(LATER)
    human = f"deleted {done.signals} signals and {done.summaries} summaries of {one_line(user)}"
    rest = _of_sent(app, sent, not keep_sent, f"erase --user {shlex.quote(user)}")
    app.emit(_deleted(done, sent, not keep_sent), human + rest)


def _deleted(done: Deleted, sent: list[str], erased: bool) -> dict[str, Any]:
    bodies = {"sent_erased": len(sent) if erased else 0, "sent_kept": 0 if erased else len(sent)}
    return {"signals": done.signals, "summaries": done.summaries, "scrubbed": done.scrubbed, **bodies}


def _of_sent(app: App, sent: list[str], erased: bool, command: str) -> str:
    """What to add about the requests that were sent; where their bodies stay, a line on stderr says so."""
    if not sent:
        return ""
    if erased:
        return f"; erased the bodies of {len(sent)} sent requests"
    app.note(f"{len(sent)} sent requests keep such summaries in the egress log; to erase them: popi egress {command}")
    return ""


@signals.command()
@common
@user_option
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--force", is_flag=True, help="Overwrite FILE if it is there.")
def export(app: App, user: str, file: Path | None, force: bool) -> None:
    """Your signals as JSONL, to FILE or to stdout; ``popi import`` reads it back."""
    with app.store() as store:
        lines = (json.dumps(to_json(s.signal), ensure_ascii=False) + "\n" for s in store.each(user))
        if file is None:
            for line in lines:
                click.echo(line, nl=False)
            return
        if os.path.lexists(file) and not force:
            raise ConfigError(f"{file} is there already; --force overwrites it")
        count = write_lines(file, lines)
    app.emit({"file": str(file), "signals": count}, f"wrote {count} signals to {file}")


def write_lines(file: Path, lines: Iterable[str]) -> int:
    """Write a file whole or not at all, readable by its owner alone; how many lines. Raises StoreError."""
    count = 0
    try:
        with whole_file(file) as out:
            for line in lines:
                out.write(line.encode("utf-8"))
                count += 1
    except (OSError, ValueError) as e:
        raise StoreError(f"cannot write {str(file)!r}: {getattr(e, 'strerror', None) or e}") from None
    return count
