"""Where signals and summaries live: one SQLite file on the device, reached through sqlite-utils.

Every change is one transaction that is on the disk (WAL, ``synchronous=FULL``) before the call returns.
Signals are append-only: ``seq`` only grows and is never given twice. What is deleted is overwritten:
``secure_delete`` for free pages, then a VACUUM, because SQLite leaves stale copies of rows in pages that
were split or merged, then the write-ahead log is cut to nothing. ``user_version`` is 1 while that is still
to be done, so that the next ``open`` makes up for a crash in between. It does not protect against somebody
who reads the raw disk, or a backup.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlite_utils

from popi_edge.database import Claimed, claim, explain, moved, prepare
from popi_edge.errors import SignalError, StoreError
from popi_edge.signals import KINDS, Signal, from_json
from popi_edge.versions import Versions

if TYPE_CHECKING:
    from popi_edge.encryption import Passphrase

ERASED = "a signal that it was made from was deleted"
TIMEOUT = 5.0
"""Seconds to wait for another program's lock."""
PAGE = 200
TRIES = 20
"""How often a file that is replaced while it is opened (popi store) is opened anew."""


@dataclass(frozen=True)
class StoredSignal:
    """A signal and its place in the order of insertion."""

    seq: int
    signal: Signal


@dataclass(frozen=True)
class Added:
    """Ids that are new, how many were duplicates, and the indexes of those whose id is another signal's."""

    added: tuple[str, ...]
    duplicates: int
    conflicts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Deleted:
    """How many rows went. ``scrubbed`` is False where another program's lock put off the overwriting."""

    signals: int
    summaries: int
    scrubbed: bool = True


class Store(Versions):
    """One open database. Use it as a context manager, or ``close`` it. Raises StoreError, SignalError."""

    def __init__(self, conn: sqlite3.Connection, path: Path) -> None:
        self.conn = conn
        self.path = path
        self.db: Any = sqlite_utils.Database(conn, recursive_triggers=False, execute_plugins=False)
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path | str, *, timeout: float = TIMEOUT, passphrase: Passphrase = None) -> Store:
        """Open the database at ``path``, made (mode 0600) and migrated when needed; ``timeout`` in seconds.

        ``passphrase``: of an encrypted one, or who is asked for it where POPI_PASSPHRASE is not set. Raises
        StoreError when it is locked, damaged, another program's or from a newer popi-edge, when its folder is
        missing or cannot be written, when the disk is full, and when an encrypted one's key cannot be had.
        """
        path = Path(path)
        for _ in range(TRIES):
            claimed = claim(path)
            try:
                store = cls._open(path, claimed, timeout, passphrase)
            except StoreError:
                if moved(path, claimed):
                    continue
                raise
            if not moved(path, claimed):
                return store
            store.close()
        raise StoreError(f"{path} is being replaced by another program; try again when it is done")

    @classmethod
    def _open(cls, path: Path, claimed: Claimed, timeout: float, passphrase: Passphrase) -> Store:
        if claimed.encrypted:
            from popi_edge import encryption

            conn = encryption.connect(path, encryption.key_of(path, claimed.start, passphrase), timeout)
        else:
            try:
                conn = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
            except sqlite3.Error as e:
                raise explain(e, path) from None
        try:
            prepare(conn, path, timeout)
            store = cls(conn, path)
            if conn.execute("PRAGMA user_version").fetchone()[0]:
                conn.execute("PRAGMA busy_timeout = 0")  # overwriting can wait; opening should not
                store._scrub()
                conn.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
            if claimed.encrypted:
                from popi_edge.convert import sweep

                sweep(path)  # what a killed 'popi store decrypt' had written so far
        except sqlite3.Error as e:
            conn.close()
            raise explain(e, path) from None
        except BaseException:
            conn.close()
            raise
        return store

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        with self._errors():
            self.conn.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise explain(e, self.path) from None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing: BEGIN IMMEDIATE … COMMIT, ROLLBACK on any error. One inside another joins it."""
        with self._lock, self._errors():
            if self.conn.in_transaction:
                yield self.conn
                return
            self.conn.execute("BEGIN IMMEDIATE")
            try:
                yield self.conn
                self.conn.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have rolled back by itself, on a full disk for one
                    if self.conn.in_transaction:
                        self.conn.execute("ROLLBACK")
                raise

    def _rows(self, table: str, where: str, args: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
        with self._lock, self._errors():
            return list(self.db[table].rows_where(where, list(args), **options))

    # signals ------------------------------------------------------------------------------------------------
    def add(self, signals: Iterable[Signal], *, strict: bool = True) -> Added:
        """Append signals, all in one transaction; a duplicate (same user, kind and content) is left out.

        Raises SignalError when an id already belongs to another signal, and then adds none; with
        ``strict=False`` such signals are left out and listed in ``conflicts``.
        """
        added: list[str] = []
        conflicts: list[int] = []
        duplicates = 0
        with self.transaction():
            for index, signal in enumerate(signals):
                outcome = self._insert(signal)
                if outcome == "added":
                    added.append(signal.id)
                elif outcome == "duplicate":
                    duplicates += 1
                elif strict:
                    raise SignalError(f"id {signal.id} already belongs to another signal", field="id")
                else:
                    conflicts.append(index)
        return Added(tuple(added), duplicates, tuple(conflicts))

    def _insert(self, signal: Signal) -> str:
        digest = signal.content_hash()
        body = json.dumps(signal.content(), ensure_ascii=False, separators=(",", ":"))
        done = self.db.execute(
            "INSERT OR IGNORE INTO signals (id, user, kind, at, source, hash, body) VALUES (?,?,?,?,?,?,?)",
            [signal.id, signal.user, signal.kind, signal.at, signal.source, digest, body],
        )
        if done.rowcount:
            return "added"
        where = "user = ? AND kind = ? AND hash = ?"
        same = self.db["signals"].count_where(where, [signal.user, signal.kind, digest])
        return "duplicate" if same else "conflict"

    def _signal(self, row: dict[str, Any]) -> StoredSignal:
        head = {k: row[k] for k in ("kind", "id", "at", "source", "user")}
        try:
            return StoredSignal(row["seq"], from_json(head | json.loads(row["body"])))
        except (ValueError, TypeError, SignalError) as e:
            raise StoreError(f"{self.path}: signal {row['id']} is damaged ({e})") from None

    def signals(
        self,
        user: str = "me",
        *,
        kinds: Iterable[str] | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[StoredSignal]:
        """A user's signals, oldest first; at most ``limit``: the first ones, or with ``newest`` the last."""
        where, args = self._filter(user, kinds)
        if limit is not None and limit < 0:
            raise StoreError(f"limit is {limit}; it cannot be negative")
        rows = self._rows("signals", where, args, order_by="seq desc" if newest else "seq", limit=limit)
        return [self._signal(row) for row in (reversed(rows) if newest else rows)]

    def each(
        self, user: str = "me", *, kinds: Iterable[str] | None = None, after: int = -1
    ) -> Iterator[StoredSignal]:
        """Like ``signals``, a page at a time, for stores larger than memory; those with a ``seq`` above ``after``.

        Holds no lock between pages.
        """
        where, args = self._filter(user, kinds)
        last = after
        where += " AND seq > ?"
        while rows := self._rows("signals", where, [*args, last], order_by="seq", limit=PAGE):
            yield from map(self._signal, rows)
            last = rows[-1]["seq"]

    def _filter(self, user: str, kinds: Iterable[str] | None) -> tuple[str, list[Any]]:
        if kinds is None:
            return "user = ?", [user]
        names = list(kinds)
        for name in names:
            if name not in KINDS:
                raise SignalError(f"kind is {name!r:.60}; it must be one of {', '.join(KINDS)}", field="kind")
        return f"user = ? AND kind IN ({', '.join('?' * len(names))})", [user, *names]

    def get(self, id: str) -> StoredSignal:
        """The signal with this id. Raises StoreError when there is none."""
        rows = self._rows("signals", "id = ?", [id])
        if not rows:
            raise StoreError(f"there is no signal {id!r:.80}")
        return self._signal(rows[0])

    def count(self, user: str = "me") -> int:
        """How many signals a user has."""
        with self._lock, self._errors():
            return int(self.db["signals"].count_where("user = ?", [user]))

    def extent(self, user: str = "me") -> tuple[int, int]:
        """How many signals a user has, and the highest ``seq`` among them (-1: none). As it only grows, the two tell
        whether anything was added or deleted since."""
        with self._lock, self._errors():
            sql = "SELECT count(*), coalesce(max(seq), -1) FROM signals WHERE user = ?"
            count, last = self.db.execute(sql, [user]).fetchone()
            return int(count), int(last)

    def users(self) -> list[str]:
        """Everyone who has a signal or a summary, in alphabetical order."""
        with self._lock, self._errors():
            found = self.db.execute("SELECT user FROM signals UNION SELECT user FROM summaries ORDER BY user")
            return [row[0] for row in found.fetchall()]

    # deleting -----------------------------------------------------------------------------------------------
    def delete(self, ids: Iterable[str]) -> Deleted:
        """Delete signals, and erase every summary made from one of them (it stays as a stale, empty version).

        Raises StoreError when an id is not there; then nothing is deleted. Takes time in proportion to the
        store (it is rewritten). What was already sent, and the egress record of it, is not touched.
        """
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return Deleted(0, 0)
        users: set[str] = set()
        with self.transaction():
            for id in wanted:
                row = self.db.execute("SELECT user FROM signals WHERE id = ?", [id]).fetchone()
                if row is None:
                    raise StoreError(f"there is no signal {id!r:.80}; nothing was deleted")
                users.add(row[0])
                self.db.execute("DELETE FROM signals WHERE id = ?", [id])
            summaries = sum(self._erase(user, set(wanted)) for user in users)
            self.db.execute("PRAGMA user_version = 1")
        return Deleted(len(wanted), summaries, self._scrub())

    def _erase(self, user: str, ids: set[str]) -> int:
        erased = 0
        sql = "UPDATE summaries SET text = '', tokens = 0, overruled = '[]', status = 'stale', reason = ? WHERE id = ?"
        for row in self._rows("summaries", "user = ? AND status != 'stale'", [user]):
            if not ids.isdisjoint(json.loads(row["signal_ids"])):
                erased += 1
                self.db.execute(sql, [ERASED, row["id"]])
        return erased

    def purge(self, user: str) -> Deleted:
        """Delete a user's signals and summaries. Like ``delete``, it leaves the egress log alone."""
        with self.transaction():
            signals = self.db.execute("DELETE FROM signals WHERE user = ?", [user]).rowcount
            summaries = self.db.execute("DELETE FROM summaries WHERE user = ?", [user]).rowcount
            self.db.execute("PRAGMA user_version = 1")
        return Deleted(signals, summaries, self._scrub())

    def scrub(self) -> bool:
        """Overwrite what another part of popi deleted in this file; as ``Deleted.scrubbed``."""
        return self._scrub()

    def _scrub(self) -> bool:
        """Overwrite what was deleted; False when that had to be put off (the next ``open`` tries again)."""
        with self._lock:
            try:
                self.conn.execute("VACUUM")
                if self.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    return False
                self.conn.execute("PRAGMA user_version = 0")
            except sqlite3.Error:  # locked, no room for the copy, or inside the caller's own transaction
                return False
            return True
