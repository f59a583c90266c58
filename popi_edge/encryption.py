"""An encrypted store: its key, and where that is kept. The cipher is SQLCipher's (extra ``encrypted``).

    keyring      256 random bits in the system's keyring: service ``popi-edge``, name ``store-key:`` and the last 12
                 bytes of the file's salt in hex, so that a file finds its key wherever it is moved on this device
    passphrase   SQLCipher's own derivation (PBKDF2-HMAC-SHA512, 256,000 rounds, the file's salt)

The salt is the file's first 16 bytes: a mark of popi's for one of the two, then 12 random ones. A plain store is
never looked at by this module. It does NOT protect what is not in the store (the person's own words, settings,
generators, models), nor against who can ask the keyring, read this process's memory or its environment, nor against
an older copy of the file: who has its key opens it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sqlite3
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from popi_edge.database import KEYED, MARK_BYTES, SALT_BYTES, WORDED, explain
from popi_edge.errors import ConfigError, StoreError

SERVICE = "popi-edge"
KEYRING, PASSPHRASE = "keyring", "passphrase"
VARIABLE = "POPI_PASSPHRASE"
KEY_BYTES = 32
Passphrase = str | Callable[[], str] | None
"""The passphrase, or who is asked for it where POPI_PASSPHRASE is not set."""


@dataclass(frozen=True)
class Key:
    """``secret`` as SQLCipher takes it; ``salt``: the first 16 bytes of the file that it opens."""

    secret: str = field(repr=False)
    salt: bytes

    @property
    def kind(self) -> str:
        return kind_of(self.salt)

    @property
    def name(self) -> str:
        """Its name in the keyring."""
        return f"store-key:{self.salt[MARK_BYTES:].hex()}"


def kind_of(start: bytes) -> str:
    """``keyring`` or ``passphrase``, by an encrypted file's first bytes."""
    return KEYRING if start.startswith(KEYED) else PASSPHRASE


def new_salt(mark: bytes) -> bytes:
    return mark + secrets.token_bytes(SALT_BYTES - MARK_BYTES)


def in_keyring() -> Key:
    """A new random key, kept in the keyring. Raises StoreError where that cannot be; nothing else holds such a key."""
    import keyring

    secret = secrets.token_hex(KEY_BYTES)
    key = Key(f"x'{secret}'", new_salt(KEYED))
    try:
        keyring.set_password(SERVICE, key.name, secret)
        why = "" if keyring.get_password(SERVICE, key.name) == secret else "it does not keep what it is given"
    except Exception as e:  # only the kind: a backend's message might hold what it was given
        why = type(e).__name__
    if why:
        raise StoreError(f"the system's keyring cannot be used ({why}); use a passphrase (--key passphrase)")
    return key


def from_passphrase(text: str, salt: bytes | None = None) -> Key:
    """The key that a passphrase stands for; ``salt`` is the file's, a new one for a new file. Raises ConfigError."""
    text = unicodedata.normalize("NFC", text)  # the same letters, whichever keyboard they come from
    if not text.strip() or "\0" in text or text.startswith("x'"):
        raise ConfigError("a passphrase cannot be blank, hold a NUL or begin with x'")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError("the passphrase is not UTF-8") from None
    return Key(text, salt or new_salt(WORDED))


def forget(key: Key) -> bool:
    """Take a key out of the keyring; whether it is gone."""
    import keyring

    with contextlib.suppress(Exception):
        keyring.delete_password(SERVICE, key.name)
        return True
    return False


def key_of(path: Path, start: bytes, passphrase: Passphrase = None) -> Key:
    """The key of an encrypted file with these first bytes. Raises StoreError where it cannot be had, ConfigError."""
    salt = start[:SALT_BYTES]
    if kind_of(salt) == PASSPHRASE:
        text = passphrase if isinstance(passphrase, str) else os.environ.get(VARIABLE)
        if not text and callable(passphrase):
            text = passphrase()
        if not text:
            raise StoreError(f"{path} is encrypted with a passphrase: set {VARIABLE}, or run popi at a terminal")
        return from_passphrase(text, salt)
    import keyring

    name = Key("", salt).name
    try:
        secret = keyring.get_password(SERVICE, name)
    except Exception as e:  # backends raise more than KeyringError
        why = type(e).__name__
        raise StoreError(f"{path} is encrypted, and the keyring with its key cannot be used ({why})") from None
    if secret is None:
        raise StoreError(f"{path} is encrypted, and the keyring ({keyring.get_keyring().name}) has no key {name}")
    if not re.fullmatch("[0-9a-f]{64}", secret):
        raise StoreError(f"{path} is encrypted, and its key in the keyring ({name}) is damaged")
    return Key(f"x'{secret}'", salt)


def connect(path: Path, key: Key | None, timeout: float) -> sqlite3.Connection:
    """Open the file, with a first look at whether the key fits (None: a plain file). Raises StoreError."""
    try:
        from popi_edge import sqlcipher
    except ImportError:
        raise StoreError(f"{path}: encryption needs SQLCipher; run: pip install 'popi-edge[encrypted]'") from None
    try:
        conn = sqlcipher.connect(path, key.secret if key else None, timeout)
    except sqlite3.Error as e:
        raise explain(e, path) from None
    try:
        conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as e:
        conn.close()
        if key is not None and getattr(e, "sqlite_errorname", "") == "SQLITE_NOTADB":
            which = "the passphrase" if key.kind == PASSPHRASE else "its key in the keyring"
            raise StoreError(f"{which} does not open {path}, or the file is damaged; nothing was changed") from None
        raise explain(e, path) from None
    return conn
