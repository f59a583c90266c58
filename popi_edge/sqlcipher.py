"""SQLCipher's connection, made to raise what ``sqlite3`` raises. Needs the extra ``encrypted``; imported only for it.

The package's exceptions are none of ``sqlite3``'s and carry no error code; here each becomes ``sqlite3``'s of the same
name, with the ``sqlite_errorname`` that its message stands for, so that nothing else has to know which library runs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sqlcipher3 import dbapi2

NAMES = {
    "is locked": "SQLITE_BUSY", "is full": "SQLITE_FULL", "I/O error": "SQLITE_IOERR",
    "is not a database": "SQLITE_NOTADB", "malformed": "SQLITE_CORRUPT", "readonly database": "SQLITE_READONLY",
    "unable to open": "SQLITE_CANTOPEN",
}  # fmt: skip
"""What SQLite's English message holds → its error's name."""


@contextmanager
def _as_sqlite3() -> Iterator[None]:
    try:
        yield
    except dbapi2.Error as e:
        made = getattr(sqlite3, type(e).__name__, sqlite3.DatabaseError)(*e.args)
        made.sqlite_errorname = next((name for words, name in NAMES.items() if words in str(e)), "SQLITE_ERROR")
        raise made from None


class Cursor(dbapi2.Cursor):  # type: ignore[misc]
    """A cursor whose every step raises ``sqlite3``'s exceptions."""

    def execute(self, *args: Any) -> Any:
        with _as_sqlite3():
            return super().execute(*args)

    def executemany(self, *args: Any) -> Any:
        with _as_sqlite3():
            return super().executemany(*args)

    def fetchone(self) -> Any:
        with _as_sqlite3():
            return super().fetchone()

    def fetchmany(self, *args: Any, **options: Any) -> Any:
        with _as_sqlite3():
            return super().fetchmany(*args, **options)

    def fetchall(self) -> Any:
        with _as_sqlite3():
            return super().fetchall()

    def __next__(self) -> Any:
        with _as_sqlite3():
            return super().__next__()


class Connection(dbapi2.Connection):  # type: ignore[misc]
    """A connection of such cursors."""

    @property
    def in_transaction(self) -> bool:
        with _as_sqlite3():
            return bool(super().in_transaction)

    def cursor(self, factory: Any = Cursor) -> Any:
        with _as_sqlite3():
            return super().cursor(factory)

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def close(self) -> None:
        with _as_sqlite3():
            super().close()


def connect(path: Path, key: str | None, timeout: float) -> sqlite3.Connection:
    """Open a file; ``key`` as SQLCipher takes it (None: the file is a plain one), ``timeout`` in seconds.

    Nothing is read yet: a wrong key shows at the first statement. Raises sqlite3.Error.
    """
    options = {"timeout": timeout, "isolation_level": None, "check_same_thread": False}
    with _as_sqlite3():
        conn = dbapi2.connect(str(path), factory=Connection, **options)
    conn.execute("PRAGMA cipher_log = off").fetchall()  # it would write to stderr what the exception says
    if key is not None:
        conn.execute(f"PRAGMA key = {quoted(key)}").fetchall()
    return cast(sqlite3.Connection, conn)


def quoted(text: str) -> str:
    """A literal of SQL."""
    return "'" + text.replace("'", "''") + "'"
