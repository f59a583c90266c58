"""``popi store``: encryption at rest of the signals, the summaries and the egress log (extra ``encrypted``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from popi_edge.cli.common import App, ask_passphrase, at_terminal, common
from popi_edge.config import make_home
from popi_edge.errors import ConfigError

if TYPE_CHECKING:
    from popi_edge.encryption import Key

NEW = "POPI_NEW_PASSPHRASE"
KEPT = "the old key could not be taken out of the keyring; nothing is under it any more"
key_option = click.option(
    "--key", "kind", type=click.Choice(["keyring", "passphrase"]),
    help="Where the key comes from: random and kept in the system's keyring, or from a passphrase.",
)  # fmt: skip


@click.group()
def store() -> None:
    """Encrypt the store at rest. Words of your own, settings, generators and models are not in it."""


def _kind(app: App) -> str | None:
    """What the store's key is: keyring, passphrase, None for a plain store. Raises ConfigError where there is none."""
    from popi_edge.database import claim
    from popi_edge.encryption import kind_of

    make_home(app.settings.home)
    if not app.settings.database.exists():
        raise ConfigError(f"there is no store yet: {app.settings.database} is made by the first command that needs it")
    claimed = claim(app.settings.database)
    return kind_of(claimed.start) if claimed.encrypted else None


def _change(app: App, kind: str | None, variable: str, done: str) -> None:
    from popi_edge.convert import change
    from popi_edge.encryption import in_keyring

    new = None if kind is None else in_keyring() if kind == "keyring" else _new_passphrase(variable)
    if not change(app.settings.database, new, ask_passphrase):
        app.note(f"popi: {KEPT}")
    app.emit(_state(app, kind), f"{app.settings.database}: {done}")


def _new_passphrase(variable: str) -> Key:
    from popi_edge.encryption import from_passphrase

    text = os.environ.get(variable)
    if not text and not at_terminal():
        raise ConfigError(f"the new passphrase is expected in {variable}, or at a terminal")
    return from_passphrase(text or click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True))


def _state(app: App, kind: str | None) -> dict[str, Any]:
    return {"database": str(app.settings.database), "encrypted": kind is not None, "key": kind}


@store.command()
@common
def status(app: App) -> None:
    """Say whether the store is encrypted, and where its key comes from. Opens nothing and needs no key."""
    kind = _kind(app)
    words = {None: "not encrypted", "keyring": "encrypted, its key is in the system's keyring",
             "passphrase": "encrypted with a passphrase"}  # fmt: skip
    app.emit(_state(app, kind), f"{app.settings.database}: {words[kind]}")


@store.command()
@key_option
@common
def encrypt(app: App, kind: str | None) -> None:
    """Encrypt the store; by default with a random key in the system's keyring.

    A passphrase is read from POPI_PASSPHRASE or at the terminal. Who loses the key loses the store: export first.
    """
    if (found := _kind(app)) is not None:
        raise ConfigError(f"{app.settings.database} is encrypted already (key: {found}); a new key: popi store rekey")
    _change(app, kind or "keyring", "POPI_PASSPHRASE", "encrypted")


@store.command()
@common
def decrypt(app: App) -> None:
    """Make the store a plain one again. Its key is taken out of the keyring, also for copies of the encrypted file."""
    if _kind(app) is None:
        raise ConfigError(f"{app.settings.database} is not encrypted")
    _change(app, None, "", "not encrypted any more")


@store.command()
@key_option
@common
def rekey(app: App, kind: str | None) -> None:
    """Write the store anew under a new key, of the same kind unless --key says another.

    A new passphrase is read from POPI_NEW_PASSPHRASE or at the terminal. An old key leaves the keyring: copies of the
    file that are under it can then no longer be opened.
    """
    if (found := _kind(app)) is None:
        raise ConfigError(f"{app.settings.database} is not encrypted: popi store encrypt")
    _change(app, kind or found, NEW, "under a new key")
