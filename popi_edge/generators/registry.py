"""The generators that a person has added: ``generators.json`` in the data folder. Keys are never in it.

A key lives in the platform's keyring (service ``popi-edge``) or in an environment variable that the entry
names. In the keyring it is kept for the generator's name *and* host, so that changing the URL in the file
sends no key elsewhere.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from popi_edge.errors import ConfigError, GeneratorError
from popi_edge.generators import LOCAL

if TYPE_CHECKING:
    from popi_edge.generators.openai import OpenAIGenerator

FILE = "generators.json"
SERVICE = "popi-edge"
VERSION = 1
MAX_FILE_BYTES = 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One generator as it is kept. Seconds in ``timeout_s``. Raises ConfigError when a field makes no sense.

    ``trusted`` lets it see drafts, like a local one; ``allow_http`` permits plain HTTP to another machine.
    """

    name: str
    url: str
    model: str
    key_env: str | None = None
    key_keyring: bool = False
    trusted: bool = False
    allow_http: bool = False
    timeout_s: float = 120.0
    max_tokens: int | None = 512
    temperature: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        for name in ("key_keyring", "trusted", "allow_http"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"generator {self.name}: {name} must be true or false")
        _check_url(self.name, self.url, self.allow_http)
        if not isinstance(self.model, str) or not 0 < len(self.model) <= 300 or not self.model.isprintable():
            raise ConfigError(f"generator {self.name}: model must be a name of at most 300 characters")
        if self.key_env is not None and not (isinstance(self.key_env, str) and _VARIABLE.fullmatch(self.key_env)):
            # The value is not repeated: it may be the key itself, given by mistake.
            raise ConfigError(f"generator {self.name}: key_env must be the name of an environment variable")
        if self.key_env is not None and self.key_keyring:
            raise ConfigError(f"generator {self.name}: its key is either in a variable or in the keyring, not both")
        _check_number(self.name, "timeout_s", self.timeout_s, 0.1, 3600)
        if self.max_tokens is not None:
            _check_number(self.name, "max_tokens", self.max_tokens, 1, 1_000_000, whole=True)
        if self.temperature is not None:
            _check_number(self.name, "temperature", self.temperature, 0, 10)

    @property
    def remote(self) -> bool:
        return not self.trusted

    @property
    def keyring_user(self) -> str:
        return f"{self.name}@{urlsplit(self.url).netloc}"


def check_name(name: Any) -> None:
    """Raise ConfigError unless ``name`` can be a generator's."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r:.80} cannot be a generator's name: letters, digits, '.', '_' and '-', at most 64")
    if name.lower() == LOCAL:
        raise ConfigError("the name 'local' is taken: it is the model in this process")


def _check_number(who: str, name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"generator {who}: {name} must be {kind} from {low:g} to {high:,}")


def _check_url(who: str, url: Any, allow_http: bool) -> None:
    def wrong(text: str) -> ConfigError:
        return ConfigError(f"generator {who}: the URL {text}")

    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url or len(url) > 2000:
        raise wrong("must be plain ASCII without spaces (write other names in punycode)")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise wrong("has a host or port that makes no sense") from None
    if parts.scheme not in ("http", "https"):
        raise wrong("must start with http:// or https://")
    if "@" in parts.netloc:
        raise wrong("must not hold a user name or password; use --key-env or --key-stdin")
    if not host or parts.netloc.endswith(":"):
        raise wrong("has a host or port that makes no sense")
    if "?" in url or "#" in url:
        raise wrong("must have no '?' and no '#' (a key in it would be stored); use --key-env or --key-stdin")
    if parts.scheme == "http" and not allow_http and not is_loopback(host):
        raise wrong(f"would send to {host} in clear text; use https, or say --allow-http")


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine by its very name (nothing is looked up)."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# the file ---------------------------------------------------------------------------------------------------
def load(home: Path) -> dict[str, Entry]:
    """The entries by name, in the order they were added.

    Raises ConfigError, naming the file and what is wrong.
    """
    path = home / FILE
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: not JSON ({' '.join(str(e).split())[:100]})") from None
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    if not isinstance(value, dict) or value.get("version") != VERSION or not isinstance(value.get("generators"), list):
        raise ConfigError(f"{path}: must be an object with version {VERSION} and a list of generators")
    found: dict[str, Entry] = {}
    for item in value["generators"]:
        try:
            entry = _entry(item)
        except ConfigError as e:
            raise ConfigError(f"{path}: {e}") from None
        if entry.name in found:
            raise ConfigError(f"{path}: generator {entry.name} is in it twice")
        found[entry.name] = entry
    return found


def _entry(item: Any) -> Entry:
    if not isinstance(item, dict):
        raise ConfigError("an entry is not an object")
    known = {f.name for f in fields(Entry)}
    for name in item:
        if name not in known:
            raise ConfigError(f"an entry has the unknown field {name!r:.60}")
    for name in ("name", "url", "model"):
        if name not in item:
            raise ConfigError(f"an entry has no {name}")
    return Entry(**item)


def _save(home: Path, entries: dict[str, Entry]) -> None:
    """Write the file in one step, for its owner alone."""
    from popi_edge.config import make_home
    from popi_edge.files import whole_file

    make_home(home)
    text = json.dumps({"version": VERSION, "generators": [asdict(e) for e in entries.values()]}, indent=1)
    try:
        with whole_file(home / FILE) as file:
            file.write(text.encode() + b"\n")
    except OSError as e:
        raise ConfigError(f"{home / FILE}: cannot be written ({e.strerror})") from None


def add(home: Path, entry: Entry, *, key: str | None = None) -> None:
    """Add an entry.

    ``key`` goes to the keyring, for which ``entry.key_keyring`` must be set. Raises ConfigError.
    """
    entries = load(home)
    if entry.name in entries:
        raise ConfigError(f"there is a generator {entry.name} already; remove it first")
    if (key is not None) != entry.key_keyring:
        raise ConfigError(f"generator {entry.name}: a key for the keyring must be given, and only for the keyring")
    if key is not None:
        _keyring("set_password", entry, key)
    try:
        _save(home, entries | {entry.name: entry})
    except ConfigError:
        if key is not None:
            with contextlib.suppress(ConfigError):
                _keyring("delete_password", entry)
        raise


def remove(home: Path, name: str) -> Entry:
    """Remove an entry, and its key from the keyring. Raises ConfigError, also when the key could not be removed."""
    entries = load(home)
    entry = entries.pop(name, None)
    if entry is None:
        raise _unknown(name, entries)
    _save(home, entries)
    if entry.key_keyring:
        try:
            if _keyring("get_password", entry) is not None:
                _keyring("delete_password", entry)
        except ConfigError as e:
            raise ConfigError(f"{name} was removed, but perhaps not its key: {e}") from None
    return entry


def open_generator(home: Path, name: str) -> OpenAIGenerator:
    """The generator of that name, with its key.

    Raises ConfigError; GeneratorError when its key is not to be had.
    """
    from popi_edge.generators.openai import OpenAIGenerator

    entries = load(home)
    if name not in entries:
        raise _unknown(name, entries)
    e = entries[name]
    return OpenAIGenerator(
        name=e.name, url=e.url, model=e.model, key=_key(e), trusted=e.trusted,
        timeout_s=e.timeout_s, max_tokens=e.max_tokens, temperature=e.temperature,
    )  # fmt: skip


def _unknown(name: str, entries: dict[str, Entry]) -> ConfigError:
    return ConfigError(f"there is no generator {name!r:.80} (known: {', '.join([LOCAL, *entries])})")


# keys -------------------------------------------------------------------------------------------------------
def _key(entry: Entry) -> str | None:
    if entry.key_env is not None:
        key = os.environ.get(entry.key_env, "").strip()
        if not key:
            raise GeneratorError(f"generator {entry.name}: its key is expected in {entry.key_env}, which is not set")
        return key
    if entry.key_keyring:
        found = _keyring("get_password", entry)
        if not found:
            raise GeneratorError(
                f"generator {entry.name}: the keyring has no key for it at {urlsplit(entry.url).netloc}; "
                "remove it and add it again with --key-stdin"
            )
        return found
    return None


def _keyring(action: str, entry: Entry, *secret: str) -> str | None:
    import keyring
    import keyring.errors

    try:
        result = getattr(keyring, action)(SERVICE, entry.keyring_user, *secret)
    except keyring.errors.KeyringError as e:
        # Only the kind: a backend's message might hold what it was given.
        raise ConfigError(
            f"generator {entry.name}: the system's keyring cannot be used ({type(e).__name__}); "
            "keep the key in an environment variable and name it with --key-env"
        ) from None
    return result if isinstance(result, str) else None
