"""One SQLite file: made for its owner alone, looked at before it is touched, its errors in plain words."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from popi_edge.errors import StoreError
from popi_edge.migrations import LATEST, migrate, version

KEYED, WORDED = b"\x93PK\x01", b"\x93PP\x01"
"""How an encrypted store's file begins: its key is in the keyring, or a passphrase (``popi_edge.encryption``)."""
MARK_BYTES, SALT_BYTES = 4, 16


class Claimed(NamedTuple):
    """A file's first bytes (none: it is new), and the number of what lies at its path."""

    start: bytes
    inode: int

    @property
    def encrypted(self) -> bool:
        return self.start[:MARK_BYTES] in (KEYED, WORDED)


def explain(error: sqlite3.Error, path: Path) -> StoreError:
    """What an SQLite error means for the person, on one line."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreError(f"{path} is locked by another program; try again when it is done")
    if name.startswith("SQLITE_IOERR") and _full(path):
        return StoreError(f"the disk is full, and to read {path} takes a little room, too; nothing was changed")
    if name.startswith("SQLITE_FULL"):
        return StoreError(f"the disk is full; the change to {path} was not made")
    if name.startswith("SQLITE_IOERR"):
        return StoreError(f"the disk failed ({error}); the change to {path} was not made")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return StoreError(f"{path} is not a popi database, or it is damaged ({error})")
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return StoreError(f"cannot write {path}: check that its folder exists and is writable ({error})")
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return StoreError(f"the store {path} is closed")
    return StoreError(f"{path}: {error}")


def _full(path: Path) -> bool:
    """Whether the disk has no room for the index of the write-ahead log, which SQLite makes even to read (32 KiB; an
    I/O error is all that it says then)."""
    try:
        return shutil.disk_usage(path.parent).free < 2**16
    except OSError:
        return False


def claim(path: Path) -> Claimed:
    """Make the file if need be, for its owner alone (SQLite gives -wal and -shm the same mode), and look how it begins.

    Do not call it while this process holds a lock on the file: closing a descriptor gives up all of them (POSIX).
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            found = os.fstat(file)
            start = os.read(file, SALT_BYTES)
        finally:
            os.close(file)
        if os.name == "posix" and found.st_mode & 0o077:
            path.chmod(0o600)
        return Claimed(start, found.st_ino)
    except IsADirectoryError:
        raise StoreError(f"{path} is a folder, not a database") from None
    except FileNotFoundError:
        raise StoreError(f"cannot open {path}: the folder {path.parent} does not exist") from None
    except OSError as e:
        raise StoreError(f"cannot open {path}: {e.strerror}") from None
    except ValueError as e:  # a NUL inside the path
        raise StoreError(f"cannot open {str(path)!r}: {e}") from None


def moved(path: Path, claimed: Claimed) -> bool:
    """Whether another file lies there by now: the store was encrypted, decrypted or given a new key meanwhile."""
    try:
        return path.stat().st_ino != claimed.inode
    except OSError:
        return True


def prepare(conn: sqlite3.Connection, path: Path, timeout: float) -> None:
    """Look before touching: a newer or another program's database is left exactly as it was found."""
    found = version(conn)
    if found > LATEST:
        migrate(conn, str(path))  # raises, with the words for it
    foreign = found == 0 and conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    if foreign and version(conn) == 0:  # asked again: another popi may have just made it
        raise StoreError(f"{path} is another program's database, not one of popi's")
    deadline = time.monotonic() + timeout
    while True:  # the switch to WAL does not wait for a lock by itself
        try:
            conn.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute("PRAGMA secure_delete = ON").fetchone()
    conn.execute("PRAGMA temp_store = MEMORY")  # else VACUUM copies signals into the temporary folder
    migrate(conn, str(path))
