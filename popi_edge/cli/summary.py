"""``popi summary``: see, refresh, edit, approve the summary, and its history."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from popi_edge.cli.common import App, common, printable, user_option
from popi_edge.edge import Popi, PreferenceSummary
from popi_edge.errors import StoreError
from popi_edge.guard import Finding


@click.group()
def summary() -> None:
    """The short text about you: the only thing that ever leaves, once you approved it."""


def as_json(s: PreferenceSummary) -> dict[str, Any]:
    return asdict(s) | {"signal_ids": list(s.signal_ids)}


def as_text(s: PreferenceSummary) -> str:
    head = f"version {s.version} · {s.status} · {s.tokens} tokens · from {len(s.signal_ids)} signals · {s.model}"
    return f"{s.text or '(nothing)'}\n{head}" + (f"\n{s.reason}" if s.reason else "")


def open_popi(app: App) -> Popi:
    """The store and what is needed around it; at a terminal, the guard may ask."""
    asks = not app.json and sys.stdin.isatty() and sys.stderr.isatty()
    return Popi.open(home=app.settings.home, answer=overrule if asks else None)


def overrule(found: Finding) -> bool:
    """Ask whether a text may pass with this finding in it."""
    question = f"The guard found this: {printable(found.message)}. May it pass all the same?"
    return click.confirm(question, default=False, err=True)


@summary.command()
@user_option
@common
def show(app: App, user: str) -> None:
    """The newest version."""
    with open_popi(app) as me:
        found = me.summary(user)
    if found is None:
        raise StoreError(f"there is no summary of {user!r} yet; run: popi summary refresh")
    app.emit(as_json(found), lambda: as_text(found))


@summary.command()
@user_option
@common
def refresh(app: App, user: str) -> None:
    """Infer a new version from the signals. It stays a draft until you approve it."""
    with open_popi(app) as me:
        made = me.summarize(user)
    app.emit(as_json(made), lambda: as_text(made))


@summary.command()
@click.argument("text")
@click.option("--allow", multiple=True, metavar="WORD", help="Add a word to your own lexicon, so that it may be said.")
@user_option
@common
def edit(app: App, text: str, allow: tuple[str, ...], user: str) -> None:
    """Put it in your own words; what you write counts as approved."""
    with open_popi(app) as me:
        made = me.edit(text, user, allow=allow)
    app.emit(as_json(made), lambda: as_text(made))


@summary.command()
@click.option("--version", type=int, help="Another version than the newest.")
@user_option
@common
def approve(app: App, version: int | None, user: str) -> None:
    """Allow a draft to be sent to generators outside this device."""
    with open_popi(app) as me:
        made = me.approve(user, version)
    app.emit(as_json(made), lambda: as_text(made))


@summary.command()
@user_option
@common
def history(app: App, user: str) -> None:
    """Every version, the oldest first."""
    with open_popi(app) as me:
        rows = me.history(user)
    app.emit([as_json(r) for r in rows], lambda: "\n\n".join(as_text(r) for r in rows))
