"""One frozen settings object: a flag wins over the environment, that over ``config.toml``, then a default."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError

MOST = {"threads": 1024, "drafts": 64}


@dataclass(frozen=True)
class Settings:
    """Where things are, which engine runs with which bundle (``model``). ``threads`` None lets the engine choose.

    ``drafts``: of how many drafts a summary is chosen (``popi_edge.drafts``); None: as many as the bundle says.
    ``known``: a summary is made of the bundle's own sentences (``popi_edge.summarize.choose``), or word by word; None:
    of these, where it has any, but for who did nothing than choose between two replies.
    ``trusted_keys``: public keys; where there are any, a bundle that none of them signed is refused unread.
    ``guard``: rule → block, mask or ask (``popi_edge.guard.policy``), a table ``[guard]`` of the file alone.
    """

    home: Path
    engine: str = "onnx"
    model: str = "popi-smol"
    threads: int | None = None
    drafts: int | None = None
    known: bool | None = None
    closed_vocabulary: bool = True
    trusted_keys: tuple[str, ...] = ()
    guard: Mapping[str, str] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.home / "popi.db"

    @property
    def models(self) -> Path:
        return self.home / "models"


def default_home() -> Path:
    """``POPI_HOME``, else the platform's folder for user data."""
    if os.environ.get("POPI_HOME"):
        return Path(os.environ["POPI_HOME"]).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("popi-edge", appauthor=False))


def _convert(name: str, value: Any, where: str) -> Any:
    if name in MOST:
        text = str(value)
        if not text.isdecimal() or not 1 <= int(text) <= MOST[name]:
            raise ConfigError(f"{where}: {name} is {value!r}; it must be a whole number from 1 to {MOST[name]}")
        return int(text)
    if name in ("closed_vocabulary", "known"):
        if str(value).lower() not in ("true", "false", "1", "0"):
            raise ConfigError(f"{where}: {name} is {value!r}; it must be true or false")
        return str(value).lower() in ("true", "1")
    if name == "trusted_keys":
        return _keys(value, where)
    if name == "guard":
        from popi_edge.guard.policy import Policy

        return Policy.of(value, where).actions
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: {name} must be text")
    if name == "engine" and value not in ("onnx", "llama_cpp"):
        raise ConfigError(f"{where}: engine is {value!r}; it must be onnx or llama_cpp")
    return value


def _keys(value: Any, where: str) -> tuple[str, ...]:
    """Public keys: a list in TOML, words with spaces or commas between them in a variable."""
    from popi_edge.models.signing import is_key

    keys = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(keys, (list, tuple)) or not keys:
        raise ConfigError(f"{where}: trusted_keys must be a list of public keys; leave it out to require no signature")
    for key in keys:
        if not is_key(key):
            raise ConfigError(f"{where}: trusted_keys: {key!r:.80} is not a public key (ed25519:…)")
    return tuple(keys)


def load(home: str | Path | None = None, **flags: Any) -> Settings:
    """The settings in force. Raises ConfigError, naming the file or variable at fault."""
    try:
        place = Path(home).expanduser() if home else default_home()
    except RuntimeError as e:  # ~somebody who is not there
        raise ConfigError(f"the data folder: {e}") from None
    names = {f.name for f in fields(Settings)} - {"home"}
    chosen: dict[str, Any] = {}
    path = place / "config.toml"
    try:  # also looking can fail: a folder that may not be entered
        table: Mapping[str, Any] = tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{path}: {e}") from None
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    for key, value in table.items():
        if key not in names:
            raise ConfigError(f"{path}: unknown setting {key!r} (known: {', '.join(sorted(names))})")
        chosen[key] = _convert(key, value, str(path))
    for name in names - {"guard"}:
        variable = f"POPI_{name.upper()}"
        if os.environ.get(variable):
            chosen[name] = _convert(name, os.environ[variable], variable)
    chosen |= {k: _convert(k, v, f"--{k}") for k, v in flags.items() if v is not None}
    return Settings(home=place, **chosen)


def make_home(home: Path) -> Path:
    """Create the data folder for its owner alone (0700), or find it so. Raises ConfigError.

    A folder that group or others may enter, list or write is refused. Not covered: systems without such modes
    (Windows), access lists that do not show in them, another owner, and whoever may rename the folders above it.
    """
    make_folder(home)
    if os.name == "posix":
        try:
            mode = home.stat().st_mode
        except OSError as e:
            raise ConfigError(f"cannot look at the data folder {home}: {e.strerror}") from None
        if mode & 0o077:
            import shlex

            mend = f"chmod go-rwx {shlex.quote(str(home))}"
            raise ConfigError(f"the data folder {home} is open to others (mode {mode & 0o777:04o}); run: {mend}")
    return home


def make_folder(folder: Path) -> Path:
    """Create a folder, of the data folder's or that itself, for its owner alone (0700). Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise ConfigError(f"cannot make the data folder {folder}: {e.strerror}") from None
    except ValueError as e:  # a NUL inside the path
        raise ConfigError(f"cannot make the data folder {str(folder)!r}: {e}") from None
    return folder
