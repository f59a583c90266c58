"""What must be in order on this device before anything else can be: one line each, in the order in which they fail."""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from popi_edge.config import Settings
from popi_edge.errors import ConfigError, PopiError
from popi_edge.models.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from popi_edge.encryption import Passphrase

OPEN = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is in order, and what was found, in words."""

    name: str
    ok: bool
    found: str


def checks(settings: Settings, passphrase: Passphrase = None) -> Iterator[Check]:
    """Look at everything; what fails does not stop what comes after. ``passphrase`` as in ``Store.open``."""
    bundle = functools.cache(lambda: open_bundle(settings.model, settings))
    rooms: tuple[tuple[str, Callable[[], str]], ...] = (
        ("python", _python), ("home", lambda: _home(settings.home)),
        ("store", lambda: _store(settings.database, passphrase)),
        ("egress", lambda: _egress(settings.database, passphrase)), ("lexicon", lambda: _lexicon(settings.home)),
        ("bundle", lambda: f"{bundle().identity} on {bundle().model.name}"),
        ("engine", lambda: _engine(bundle(), settings)), ("keyring", _keyring),
    )  # fmt: skip
    for name, look in rooms:
        try:
            yield Check(name, True, look())
        except PopiError as e:
            yield Check(name, False, " ".join(str(e).split()))


def _python() -> str:
    from importlib.metadata import version

    return f"{sys.version.split()[0]}, popi-edge {version('popi-edge')}"


def _home(home: Path) -> str:
    if not home.exists():
        return f"{home}: not there yet, made when it is needed"
    if os.name != "posix":
        return f"{home}: who may read it is not looked at on this system"
    for path in (home, *home.iterdir()):
        mode = path.lstat().st_mode
        if mode & OPEN and not stat.S_ISLNK(mode) and path.name != "models":
            raise ConfigError(f"{path} can be read by others (mode {mode & 0o777:04o}); run: chmod go-rwx {path}")
    return f"{home}: yours alone"


def _store(database: Path, passphrase: Passphrase) -> str:
    from popi_edge.store import Store

    if not database.exists():
        return "empty"
    with Store.open(database, passphrase=passphrase) as store:
        users = store.users()
        return f"{sum(map(store.count, users))} signals of {len(users)} user{'s' * (len(users) != 1)}"


def _egress(database: Path, passphrase: Passphrase) -> str:
    from popi_edge.egress import EgressLog
    from popi_edge.store import Store

    if not database.exists():
        return "nothing was sent"
    with Store.open(database, passphrase=passphrase) as store:
        found = EgressLog(store).verify()
    if not found.ok:
        raise ConfigError(f"record {found.first_bad}: {found.why}")
    return f"{found.records} records, the chain holds"


def _lexicon(home: Path) -> str:
    from popi_edge import own_words
    from popi_edge.vocabulary import Lexicon

    return f"{len(Lexicon.load(own_words.read(home)).own)} words of your own"


def _engine(bundle: Bundle, settings: Settings) -> str:
    engine = bundle.engine(settings.engine, threads=settings.threads)
    try:
        return f"{engine.name}: {engine.context_length:,} tokens of context"
    finally:
        engine.close()


def _keyring() -> str:
    import keyring

    return f"{type(keyring.get_keyring()).__module__}"
