"""What must be in order on this device before anything else can be: one line each, in the order in which they fail."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from popi_edge.config import Settings
from popi_edge.errors import ConfigError, PopiError

OPEN = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is in order, and what was found, in words."""

    name: str
    ok: bool
    found: str


def checks(settings: Settings) -> Iterator[Check]:
    """Look at everything; what fails does not stop what comes after."""
    rooms: tuple[tuple[str, Callable[[Settings], str]], ...] = (
        ("python", _python), ("home", _home), ("store", _store), ("egress", _egress), ("lexicon", _lexicon),
        ("bundle", _bundle), ("engine", _engine), ("keyring", _keyring),
    )  # fmt: skip
    for name, look in rooms:
        try:
            yield Check(name, True, look(settings))
        except PopiError as e:
            yield Check(name, False, " ".join(str(e).split()))


def _python(_: Settings) -> str:
    from importlib.metadata import version

    return f"{sys.version.split()[0]}, popi-edge {version('popi-edge')}"


def _home(settings: Settings) -> str:
    home = settings.home
    if not home.exists():
        return f"{home}: not there yet, made when it is needed"
    if os.name == "posix":
        for path in (home, *home.iterdir()):
            mode = path.lstat().st_mode
            if mode & OPEN and not stat.S_ISLNK(mode) and path.name != "models":
                raise ConfigError(f"{path} can be read by others (mode {mode & 0o777:04o}); run: chmod go-rwx {path}")
    return f"{home}: yours alone"


def _store(settings: Settings) -> str:
    from popi_edge.store import Store

    if not settings.database.exists():
        return "empty"
    with Store.open(settings.database) as store:
        users = store.users()
        return f"{sum(map(store.count, users))} signals of {len(users)} user{'s' * (len(users) != 1)}"


def _egress(settings: Settings) -> str:
    from popi_edge.egress import EgressLog
    from popi_edge.store import Store

    if not settings.database.exists():
        return "nothing was sent"
    with Store.open(settings.database) as store:
        found = EgressLog(store).verify()
    if not found.ok:
        raise ConfigError(f"record {found.first_bad}: {found.why}")
    return f"{found.records} records, the chain holds"


def _lexicon(settings: Settings) -> str:
    from popi_edge.edge import Popi

    if not settings.database.exists():
        return "no words of your own"
    with Popi.open(home=settings.home) as me:
        return f"{len(me.lexicon.own)} words of your own"


def _bundle(settings: Settings) -> str:
    from popi_edge.models.bundle import open_bundle

    bundle = open_bundle(settings.model, settings)
    return f"{bundle.identity} on {bundle.model.name}"


def _engine(settings: Settings) -> str:
    from popi_edge.models.bundle import open_bundle

    engine = open_bundle(settings.model, settings).engine(settings.engine, threads=settings.threads)
    try:
        return f"{engine.name}: {engine.context_length:,} tokens of context"
    finally:
        engine.close()


def _keyring(_: Settings) -> str:
    import keyring

    return f"{type(keyring.get_keyring()).__module__}"
