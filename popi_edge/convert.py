"""``popi store encrypt|decrypt|rekey``: the store written anew under another key, then put in place of the old.

No other program may have the store open: it is taken out of WAL mode (which ends the log) under an exclusive lock,
held until the new file is in place. That one is written whole, read back through its key and compared row by row,
synced, and then renamed over the old one, so that a crash at any point leaves one of the two. Whoever opened the path
meanwhile finds that another file lies there and opens that (``Store.open``). The old file is then overwritten.

NOT covered: what a disk or file system keeps of a file that was overwritten (SSDs, snapshots, backups), and the blocks
of the old file where a crash came between renaming and overwriting.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, suppress
from itertools import zip_longest
from pathlib import Path

from popi_edge import encryption
from popi_edge.database import claim, explain, moved, prepare
from popi_edge.encryption import KEYRING, Key, Passphrase
from popi_edge.errors import StoreError

TIMEOUT = 5.0
CHUNK = 1 << 20


def draft_of(path: Path) -> Path:
    """Where the new file is written."""
    return path.with_name(f".{path.name}-draft")


def sweep(path: Path) -> None:
    """Remove what a killed conversion left. Call it with the store open: then none is under way."""
    with suppress(FileNotFoundError):
        draft_of(path).unlink()


def change(path: Path, new: Key | None, passphrase: Passphrase = None, *, timeout: float = TIMEOUT) -> bool:
    """Put the store under the key ``new`` (None: plain). False where the old key could not be taken out of the keyring.

    ``passphrase``: the present one, as in ``Store.open``. Raises StoreError; the store is then as it was, and of the
    two keys the keyring keeps the one that it is under.
    """
    path = path.resolve()
    old: Key | None = None
    cleared = True
    try:
        claimed = claim(path)
        old = encryption.key_of(path, claimed.start, passphrase) if claimed.encrypted else None
        _convert(path, old, new, timeout)
    finally:
        start = claim(path).start
        for key in (old, new):
            if key is not None and key.kind == KEYRING and key.salt != start:
                cleared = encryption.forget(key) and cleared
    return cleared


def _convert(path: Path, old: Key | None, new: Key | None, timeout: float) -> None:
    draft = draft_of(path)
    try:
        with ExitStack() as held:  # the connection is closed first: closing the other file would give up its lock
            claimed = claim(path)
            before = held.enter_context(path.open("r+b", buffering=0))
            conn = encryption.connect(path, old, timeout)
            held.callback(conn.close)
            _alone(conn, path, timeout)
            if moved(path, claimed):
                raise StoreError(f"{path} was replaced by another program; nothing was changed")
            sweep(path)
            try:
                _write(conn, draft, new)
                _compare(conn, draft, new)
                _sync(draft)
                if os.name == "nt":  # where an open file cannot be replaced, which keeps others' safe too
                    held.close()
                draft.replace(path)
            except BaseException:
                with suppress(OSError):
                    draft.unlink()
                raise
            _sync_folder(path.parent)
            if not before.closed:
                _overwrite(before.fileno())
    except sqlite3.Error as e:
        raise explain(e, path) from None
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}; see: popi store status") from None


def _alone(conn: sqlite3.Connection, path: Path, timeout: float) -> None:
    """Be the only one to have it open, until the connection is closed. Raises sqlite3.Error, StoreError."""
    prepare(conn, path, timeout)
    conn.execute("PRAGMA main.locking_mode = EXCLUSIVE").fetchall()
    conn.execute("PRAGMA main.journal_mode = DELETE").fetchall()  # busy where another one has the log open
    conn.execute("BEGIN EXCLUSIVE")
    conn.execute("COMMIT")  # the lock stays
    if conn.execute("PRAGMA main.journal_mode").fetchone()[0] != "delete":
        raise StoreError(f"{path} is locked by another program; try again when it is done")


def _attach(conn: sqlite3.Connection, draft: Path, key: Key | None) -> None:
    conn.execute("ATTACH DATABASE ? AS draft KEY ?", (str(draft), key.secret if key else ""))


def _write(conn: sqlite3.Connection, draft: Path, key: Key | None) -> None:
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    _attach(conn, draft, key)
    if key is not None:
        conn.execute(f"PRAGMA draft.cipher_salt = \"x'{key.salt.hex()}'\"").fetchall()
    conn.execute("PRAGMA draft.journal_mode = OFF").fetchall()  # a draft that is cut off is thrown away
    conn.execute("PRAGMA draft.synchronous = OFF")  # synced as a whole
    conn.execute("BEGIN")
    conn.execute("SELECT sqlcipher_export('draft')").fetchall()
    conn.execute("COMMIT")
    conn.execute(f"PRAGMA draft.user_version = {_user_version(conn, 'main')}")
    conn.execute("DETACH DATABASE draft")


def _compare(conn: sqlite3.Connection, draft: Path, key: Key | None) -> None:
    """Open the draft as it will be opened. Raises StoreError unless it holds what the store holds."""
    _attach(conn, draft, key)
    same = conn.execute("PRAGMA draft.integrity_check").fetchall() == [("ok",)]
    same = same and _user_version(conn, "main") == _user_version(conn, "draft")
    schema = "SELECT type, name, tbl_name, sql FROM {}.sqlite_master ORDER BY name"
    objects = conn.execute(schema.format("main")).fetchall()
    same = same and objects == conn.execute(schema.format("draft")).fetchall()
    for kind, name, _, _ in objects:
        if same and kind == "table":
            rows = (conn.execute(f'SELECT * FROM {base}."{name}" ORDER BY rowid') for base in ("main", "draft"))
            same = all(a == b for a, b in zip_longest(*rows))
    if not same:
        raise StoreError("the copy is not what the store holds; the store was left as it is")
    conn.execute("DETACH DATABASE draft")


def _user_version(conn: sqlite3.Connection, base: str) -> int:
    return int(conn.execute(f"PRAGMA {base}.user_version").fetchone()[0])


def _sync(file: Path) -> None:
    with file.open("r+b") as out:
        os.fsync(out.fileno())


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system opens folders
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _overwrite(file: int) -> None:
    """Zeros over what was the store, unless it still has a name elsewhere (a hard link: somebody's copy)."""
    found = os.fstat(file)
    if found.st_nlink:
        return
    os.lseek(file, 0, os.SEEK_SET)
    for start in range(0, found.st_size, CHUNK):
        os.write(file, bytes(min(CHUNK, found.st_size - start)))
    os.fsync(file)
