"""What every command shares: ``--home`` and ``--json``, output to stdout, progress to stderr, one-line errors."""

from __future__ import annotations

import functools
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from popi_edge.config import Settings, load, make_home
from popi_edge.errors import ConfigError

if TYPE_CHECKING:
    from popi_edge.egress import EgressLog
    from popi_edge.store import Store

LATER = "another program has the store open: overwriting what was deleted is put off until the next command"


@dataclass(frozen=True)
class App:
    """Handed to every command as its first argument."""

    settings: Settings
    json: bool

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store under ``--home``, closed on leaving."""
        from popi_edge.store import Store

        make_home(self.settings.home)
        store = Store.open(self.settings.database, passphrase=ask_passphrase)
        try:
            yield store
        finally:
            store.close()

    def emit(self, data: Any, human: str | Callable[[], str]) -> None:
        """Print the result: JSON under ``--json``, else the text for people."""
        if self.json:
            click.echo(json.dumps(data, ensure_ascii=False, indent=1, default=str))
        else:
            text = human if isinstance(human, str) else human()
            if text:
                click.echo(text)

    def note(self, text: str) -> None:
        """A line of progress, to stderr."""
        click.echo(text, err=True)


def launch(main: Callable[[], int | None]) -> NoReturn:
    """Run a program and exit with what it returns; with 1 and without a word where nobody reads its output any more, as
    behind ``| head``."""
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends
        sys.exit(1)
    sys.exit(code)


def at_least(least: int) -> Callable[[str], int]:
    """What argparse makes of a word: a whole number, no smaller than that."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            from argparse import ArgumentTypeError

            raise ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    number.__name__ = "whole number"  # argparse's word for it
    return number


def at_terminal() -> bool:
    """Whether there is somebody who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


@functools.cache
def ask_passphrase() -> str:
    """The store's passphrase, asked once a command; empty where nobody is there."""
    return str(click.prompt("Passphrase of the store", hide_input=True, err=True)) if at_terminal() else ""


def insist(app: App, yes: bool, question: str, nothing: str) -> None:
    """Ask on stderr unless ``yes``. Raises ConfigError, saying that ``nothing`` happened, without a clear yes."""
    if yes:
        return
    try:
        sure = click.confirm(question, err=True)
    except click.Abort:  # nobody there to answer
        app.note("")
        sure = False
    if not sure:
        raise ConfigError(f"not confirmed: {nothing} (--yes does not ask)")


def tell_head(app: App, log: EgressLog) -> None:
    """Say it once, when the head of the egress log had to be begun in a file."""
    keeper = log.keeper
    if keeper is not None and keeper.made and keeper.place == "file":
        app.note(f"popi: the egress log's head is kept in {keeper.where()}")


def printable(text: str) -> str:
    """Foreign text without what a terminal would obey."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def progress(length: int | None, label: str) -> Any:
    """A click progress bar on stderr (silent when stderr is not a terminal)."""
    return click.progressbar(length=length, label=label, file=sys.stderr)


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--home`` and ``--json`` and hand it an App."""

    @click.option("--home", type=click.Path(path_type=Path), help="The data folder (or POPI_HOME).")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @functools.wraps(function)
    def command(*args: Any, home: Path | None, as_json: bool, **options: Any) -> Any:
        return function(App(load(home), as_json), *args, **options)

    return command


def user_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--user NAME`` (default: me)."""
    return click.option("--user", default="me", show_default=True, help="Whose signals and summary.")(function)
