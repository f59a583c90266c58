"""The byte-exact, hash-chained record of everything sent.

A request is recorded, and committed, before its bytes go out; what came of it is a record of its own that
refers to it; so are the erasing of a body and the beginning of a new head. ``meta`` is canonical JSON (RFC 8785);
``egress_chain`` says how a record's hash is made, so that a body can go (with its salt, so that nobody can test
guesses against the digest) and the chain still holds. Secrets in headers are masked before anything is stored. The
text of a reply is never stored, its SHA-256 is.

Writing is two-phase, so that a crash is told from tampering. In one transaction, which is also the lock: the head
must fit the log's last record, or nothing is written; then the record; then the head, with the record as *pending*;
COMMIT. In a second one: the head, with the record as its last. That is three calls of the keyring for a record (one
read, two writes), so six for a request and its outcome; erasing many bodies takes three in all.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

from popi_edge.egress_chain import COLUMNS, SALT_BYTES, Record, VerifyResult, chain_hash, check, record_of
from popi_edge.egress_head import START, Head, HeadKeeper, HeadLost, Point
from popi_edge.errors import PopiError, StoreError
from popi_edge.signals import new_id, now

MASK = "***"
_SECRET_HEADER = re.compile(r"auth|cookie|key|token|secret|passw|credential|signature", re.IGNORECASE)
Draft = tuple[dict[str, Any], bytes]
"""A record before it is written: what it says, and its body."""


class HasTransaction(Protocol):
    """What the log needs of a store.

    A connection in autocommit mode, a transaction that commits on leaving, and the database's path.
    """

    @property
    def conn(self) -> sqlite3.Connection: ...

    @property
    def path(self) -> Path: ...

    def transaction(self) -> AbstractContextManager[Any]: ...


def mask_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with the value of every one that may carry a secret replaced."""
    return {name: MASK if _SECRET_HEADER.search(name) else value for name, value in headers.items()}


class EgressLog:
    """The log over table ``egress``. Raises StoreError when it cannot be written or read.

    Of a store, the head is kept by ``keeper`` (that of the store's path where none is given); over a bare connection
    without a keeper there is no head, and a cut tail is not seen. What the head itself cannot do: ``egress_head``.
    """

    def __init__(
        self,
        store: sqlite3.Connection | HasTransaction,
        *,
        keeper: HeadKeeper | None = None,
        wait_s: float = 5.0,
    ) -> None:
        """``wait_s``: seconds to wait for a transaction of another thread on the same connection."""
        bare = isinstance(store, sqlite3.Connection)
        self._conn = store if isinstance(store, sqlite3.Connection) else store.conn
        self._begin = None if isinstance(store, sqlite3.Connection) else store.transaction
        self.keeper = keeper if bare or keeper is not None else HeadKeeper(cast(HasTransaction, store).path)
        self._wait_s = wait_s

    # writing ------------------------------------------------------------------------------------------------
    def request(
        self,
        generator: str,
        destination: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        user: str,
        summary_version: int | None,
        summary_id: str | None = None,
        method: str = "POST",
    ) -> str:
        """Record what is about to be sent, commit it, and return its id.

        Call this before the first byte goes out.
        """
        meta = {
            "type": "request",
            "generator": generator,
            "destination": destination,
            "method": method,
            "headers": mask_headers(headers),
            "user": user,
            "summary_id": summary_id,
            "summary_version": summary_version,
            "body_bytes": len(body),
        }
        return self._write(lambda: [(meta, bytes(body))])[0]

    def outcome(
        self,
        request_id: str,
        *,
        status: str,
        http_status: int | None = None,
        error: str | None = None,
        reply: str | None = None,
        elapsed_ms: int | None = None,
    ) -> str:
        """Record what came of a request, once.

        ``status`` is ok or failed. Of ``reply`` only the SHA-256 is kept.
        """
        if status not in ("ok", "failed"):
            raise ValueError(f"status {status!r} is neither ok nor failed")
        text = None if reply is None else reply.encode("utf-8", "surrogatepass")
        meta = {
            "type": "outcome",
            "request": request_id,
            "status": status,
            "http_status": http_status,
            "error": error,
            "reply_bytes": None if text is None else len(text),
            "reply_sha256": None if text is None else hashlib.sha256(text).hexdigest(),
            "elapsed_ms": elapsed_ms,
        }

        def make() -> list[Draft]:
            self._need_request(request_id)
            if self._referring("outcome", request_id):
                raise StoreError(f"egress request {request_id} already has an outcome")
            return [(meta, b"")]

        return self._write(make)[0]

    def erase(self, *request_ids: str) -> list[str]:
        """Turn requests' bodies into tombstones, all or none; the chain still verifies. Returns those records' ids.

        What stays: when, where and for whom, how many bytes, and that it failed, not what the provider said. Free pages
        are overwritten; the write-ahead log, and copies in pages that were split, are when the store next scrubs.
        """
        with _one_line():
            self._conn.execute("PRAGMA secure_delete = ON")

        wanted = list(dict.fromkeys(request_ids))

        def make() -> list[Draft]:
            for request_id in wanted:
                self._need_request(request_id)
                if self._referring("erase", request_id):
                    raise StoreError(f"egress request {request_id} has been erased already")
                self._conn.execute("UPDATE egress SET body = NULL, salt = x'' WHERE id = ?", (request_id,))
            self._conn.execute("PRAGMA user_version = 1")  # the store's own mark that it is to be scrubbed
            return [({"type": "erase", "request": request_id}, b"") for request_id in wanted]

        return self._write(make) if wanted else []

    def unfit(self) -> str:
        """Why nothing can be written on (the head is lost, or names another end); empty where it can."""
        with self._transaction():
            try:
                self._admit(self._tail(damaged=True))
            except StoreError as e:
                return str(e)
        return ""

    def anchor(self) -> str:
        """Begin a new head on the log as it is; the log itself says so in a record, whose id is returned.

        For a person who knows why it is ``unfit``; StoreError where it is not. What the chain shows as broken stays so.
        """
        keeper, why = self._need_keeper(), self.unfit()
        with self._transaction():
            tail, known = self._tail(damaged=True), None
            try:
                self._admit(tail)
                raise StoreError("the head fits the egress log: there is nothing to begin anew")
            except _Unfit as e:
                known = e.head
            except HeadLost:
                pass
            meta = {"type": "anchor", "why": why, "expected": known.last.number if known else None}
            head = known.at(tail) if known else Head.new(tail)  # its key stays: older records keep their MACs
            record_id, end = self._append(tail, head, meta, b"")
            keeper.begin(replace(head, pending=end))
        self._settle(head, end)
        return record_id

    # reading ------------------------------------------------------------------------------------------------
    def records(self, limit: int | None = None, *, user: str | None = None, kind: str | None = None) -> list[Record]:
        """The records in their order, or the last ``limit`` of those asked for.

        ``kind``: request, outcome, erase or anchor. With ``user``: requests of that user alone.
        """
        found: list[Record] = []
        with _one_line():
            for row in self._conn.execute(f"SELECT {COLUMNS} FROM egress ORDER BY seq DESC"):
                if limit is not None and len(found) >= limit:
                    break
                record = record_of(row)
                if user in (None, record.meta.get("user")) and kind in (None, record.type):
                    found.append(record)
        return found[::-1]

    def get(self, record_id: str) -> Record:
        """The record with this id, or with an id that starts so, if there is only one."""
        with _one_line():
            rows = self._conn.execute(
                f"SELECT {COLUMNS} FROM egress WHERE substr(id, 1, ?) = ? LIMIT 2",
                (len(record_id), record_id),
            ).fetchall()
        if not record_id or not rows:
            raise StoreError(f"there is no egress record {record_id!r:.60}")
        if len(rows) > 1:
            raise StoreError(f"{record_id!r:.60} is the start of several egress records' ids; give more of it")
        return record_of(rows[0])

    def outcome_of(self, request_id: str) -> Record | None:
        """The outcome of a request; None while there is none (under way, or the program ended before it)."""
        with _one_line():
            rows = self._referring("outcome", request_id)
        return record_of(rows[0]) if rows else None

    def with_body(self, *, user: str | None = None, summary_ids: Iterable[str] | None = None) -> list[str]:
        """Ids of the requests whose body is still there: of a user, or sent under one of these summaries.

        A damaged record, of which nobody can say whose it is, is always among them.
        """
        wanted = None if summary_ids is None else {None, *summary_ids}
        sql = (
            "SELECT id, CASE WHEN json_valid(meta) THEN coalesce(json_extract(meta, '$.summary_id'), '') END "
            "FROM egress WHERE body IS NOT NULL AND CASE WHEN json_valid(meta) THEN "
            "json_extract(meta, '$.type') = 'request' AND ? IN (json_extract(meta, '$.user'), '') ELSE 1 END "
            "ORDER BY seq"
        )
        with _one_line():
            found = self._conn.execute(sql, (user or "",)).fetchall()
        return [i for i, summary_id in found if wanted is None or summary_id in wanted]

    def verify(self) -> VerifyResult:
        """Recompute the whole chain, compare every column of every record, and the end with the head.

        Holds the log's lock meanwhile. A write that a crash interrupted is settled: the head is brought up to it.
        """
        with self._transaction():
            head, found = self._look()
            done = check(self._conn, head, found)
            if done.ok and head is not None and head.pending is not None:
                self._need_keeper().write(head.at(self._tail()))
                return replace(done, interrupted=True)
            return done

    def _look(self) -> tuple[Head | None, VerifyResult]:
        """The head, and the result as far as it depends on it alone."""
        keeper = self.keeper
        if keeper is None:
            return None, VerifyResult(True, 0)
        try:
            head = keeper.read()
            if head is None and self._has_macs():
                raise keeper.lost()
        except HeadLost as e:
            return None, VerifyResult(False, 0, why=str(e), head=e.state, where=keeper.where())
        return head, VerifyResult(True, 0, head="new" if head is None else "kept", where=keeper.where())

    # shared -------------------------------------------------------------------------------------------------
    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _one_line():
            end = time.monotonic() + self._wait_s
            while self._conn.in_transaction:  # joining it would leave the record uncommitted as the bytes go out
                if time.monotonic() >= end:
                    raise StoreError("the egress log cannot be written while another transaction is open")
                time.sleep(0.005)
            if self._begin is not None:
                with self._begin():
                    yield
                return
            self._conn.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._conn.execute("COMMIT")
            except BaseException:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
                raise

    def _write(self, make: Callable[[], Sequence[Draft]]) -> list[str]:
        """Append what ``make`` gives, all or none, under the two phases of the head; returns the records' ids."""
        ids = []
        with self._transaction():
            end = self._tail()
            try:
                head = self._admit(end)
            except (HeadLost, _Unfit) as e:
                raise StoreError(f"{e}; so nothing is written or sent; see: popi egress verify") from None
            for meta, body in make():
                record_id, end = self._append(end, head, meta, body)
                ids.append(record_id)
            if head is not None:
                self._need_keeper().write(replace(head, pending=end))
        if head is not None:
            self._settle(head, end)
        return ids

    def _admit(self, tail: Point) -> Head | None:
        """The head under which to write on from ``tail``. Raises StoreError when it is lost or does not fit."""
        if self.keeper is None:
            return None
        head = self.keeper.read()
        if head is None:
            if self._has_macs():
                raise self.keeper.lost()
            return Head.new(tail)  # nothing was written yet, or only by a popi that kept no head
        if not head.fits(tail):
            ends = tail.number if tail.number != head.last.number else "another one"
            raise _Unfit(
                f"the egress log was changed: its head names record {head.last.number} as the last, but it ends with "
                f"{ends}",
                head,
            )
        return head.at(tail)

    def _settle(self, head: Head, end: Point) -> None:
        """The second phase. Under the lock, so that no other process is between its own two."""
        with self._transaction():
            tail = self._tail()
            if tail == end:
                self._need_keeper().write(head.at(end))
            elif tail.number <= end.number:
                raise StoreError("the egress log was changed while it was written; see: popi egress verify")
            # else another process has written on, and the head with it

    def _need_keeper(self) -> HeadKeeper:
        if self.keeper is None:
            raise StoreError("this egress log is one without a head")
        return self.keeper

    def _tail(self, *, damaged: bool = False) -> Point:
        """Number and hash of the last record. Raises StoreError where it has none; if ``damaged`` may be, zeros."""
        last = self._conn.execute("SELECT seq, hash FROM egress ORDER BY seq DESC LIMIT 1").fetchone()
        if last is None:
            return START
        if isinstance(last[1], str) and re.fullmatch("[0-9a-f]{64}", last[1]):
            return Point(*last)
        if not damaged:
            raise StoreError("the last egress record is damaged; see: popi egress verify")
        return Point(last[0], START.hash)

    def _has_macs(self) -> bool:
        return self._conn.execute("SELECT 1 FROM egress WHERE mac IS NOT NULL LIMIT 1").fetchone() is not None

    def _append(self, tail: Point, head: Head | None, meta: dict[str, Any], body: bytes) -> tuple[str, Point]:
        import rfc8785

        prev = bytes.fromhex(tail.hash)
        first = {"seq": tail.number + 1, "id": new_id(), "at": now()}
        try:
            text = cast(bytes, rfc8785.dumps(first | meta))
        except (rfc8785.CanonicalizationError, UnicodeError) as e:
            raise StoreError(f"the egress record cannot be written: {e}") from None
        salt = secrets.token_bytes(SALT_BYTES)
        digest = hashlib.sha256(salt + body).digest()
        end = Point(tail.number + 1, chain_hash(prev, text, digest).hex())
        self._conn.execute(
            f"INSERT INTO egress ({COLUMNS}, body_digest, mac) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                end.number, first["id"], first["at"], text.decode(), salt, body, tail.hash, end.hash, digest.hex(),
                None if head is None else head.record_mac(end.hash),
            ),
        )  # fmt: skip
        return str(first["id"]), end

    def _need_request(self, request_id: str) -> None:
        row = self._conn.execute(f"SELECT {COLUMNS} FROM egress WHERE id = ?", (request_id,)).fetchone()
        if row is None or record_of(row).type != "request":
            raise StoreError(f"there is no egress request {request_id!r:.60}")

    def _referring(self, kind: str, request_id: str) -> list[Any]:
        return self._conn.execute(
            f"SELECT {COLUMNS} FROM egress WHERE seq > (SELECT seq FROM egress WHERE id = ?) AND CASE WHEN "
            "json_valid(meta) THEN json_extract(meta, '$.type') = ? AND json_extract(meta, '$.request') = ? END",
            (request_id, kind, request_id),
        ).fetchall()


class _Unfit(StoreError):
    """The head is there, and names another end than the log has."""

    def __init__(self, message: str, head: Head) -> None:
        super().__init__(message)
        self.head = head


@contextmanager
def _one_line() -> Iterator[None]:
    """SQLite's complaints (locked, disk full, damaged) as one StoreError."""
    try:
        yield
    except PopiError:
        raise
    except (sqlite3.Error, OverflowError) as e:
        raise StoreError(f"the egress log: {e}") from None
