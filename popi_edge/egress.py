"""The byte-exact, hash-chained record of everything sent.

A request is recorded, and committed, before its bytes go out; what came of it is a record of its own that
refers to it; so is the erasing of a body. ``meta`` is canonical JSON (RFC 8785) and

    hash = SHA-256( prev ‖ meta ‖ SHA-256(salt ‖ body) )          prev of the first record: 32 zero bytes

so that a body can go (with its salt, so that nobody can test guesses against the digest) and the chain still
holds. Secrets in headers are masked before anything is stored. The text of a reply is never stored, its
SHA-256 is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from popi_edge.errors import PopiError, StoreError
from popi_edge.signals import new_id, now

ZERO = bytes(32)
SALT_BYTES = 16
MASK = "***"
_SECRET_HEADER = re.compile(r"auth|cookie|key|token|secret|passw|credential|signature", re.IGNORECASE)


class HasTransaction(Protocol):
    """What the log needs of a store.

    A connection in autocommit mode, and a transaction that commits on leaving.
    """

    @property
    def conn(self) -> sqlite3.Connection: ...

    def transaction(self) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class Record:
    """One record. ``meta`` is what was sealed into the chain; ``body`` the exact bytes, None once erased."""

    seq: int
    id: str
    at: str
    meta: Mapping[str, Any]
    body: bytes | None = field(repr=False)
    prev: str
    hash: str

    @property
    def type(self) -> str:
        return str(self.meta["type"])

    def to_json(self) -> dict[str, Any]:
        """The record as one JSON object; the body as text, or base64 where it is not UTF-8."""
        out: dict[str, Any] = {**self.meta, "hash": self.hash, "prev": self.prev}
        if self.type == "request":
            try:
                out["body"] = None if self.body is None else self.body.decode()
            except UnicodeDecodeError:
                out["body_base64"] = base64.b64encode(self.body or b"").decode()
        return out


@dataclass(frozen=True)
class VerifyResult:
    """Whether the chain holds; if not, ``first_bad`` is the first record that does not fit, and ``why``."""

    ok: bool
    records: int
    first_bad: str | None = None
    why: str = ""


def mask_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with the value of every one that may carry a secret replaced."""
    return {name: MASK if _SECRET_HEADER.search(name) else value for name, value in headers.items()}


def chain_hash(prev: bytes, meta: bytes, body_digest: bytes) -> bytes:
    """SHA-256(prev ‖ meta ‖ body_digest).

    Both ends have 32 bytes, so no two inputs coincide.
    """
    return hashlib.sha256(prev + meta + body_digest).digest()


class EgressLog:
    """The log over table ``egress``. Raises StoreError when it cannot be written or read.

    Not seen: a tail that was cut off, or a chain rewritten from some record on by who can write to the
    database (the head will be kept in the keyring), or anything that another program sent.
    """

    def __init__(self, store: sqlite3.Connection | HasTransaction, *, wait_s: float = 5.0) -> None:
        """``wait_s``: seconds to wait for a transaction of another thread on the same connection."""
        self._conn = store if isinstance(store, sqlite3.Connection) else store.conn
        self._begin = None if isinstance(store, sqlite3.Connection) else store.transaction
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
        with self._transaction():
            return self._append(meta, bytes(body))

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
        with self._transaction():
            self._need_request(request_id)
            if self._referring("outcome", request_id):
                raise StoreError(f"egress request {request_id} already has an outcome")
            return self._append(meta, b"")

    def erase(self, request_id: str) -> str:
        """Turn a request's body into a tombstone; the chain still verifies. Returns the id of that record.

        Free pages are overwritten; a write-ahead log or a backup may hold the bytes until it is itself
        replaced.
        """
        with _one_line():
            self._conn.execute("PRAGMA secure_delete = ON")
        with self._transaction():
            self._need_request(request_id)
            if self._referring("erase", request_id):
                raise StoreError(f"egress request {request_id} has been erased already")
            self._conn.execute("UPDATE egress SET body = NULL, salt = x'' WHERE id = ?", (request_id,))
            return self._append({"type": "erase", "request": request_id}, b"")

    # reading ------------------------------------------------------------------------------------------------
    def records(self, limit: int | None = None, *, user: str | None = None, kind: str | None = None) -> list[Record]:
        """The records in their order, or the last ``limit`` of those asked for.

        ``kind``: request, outcome or erase. With ``user``: requests of that user alone.
        """
        found: list[Record] = []
        with _one_line():
            for row in self._conn.execute(f"SELECT {_COLUMNS} FROM egress ORDER BY seq DESC"):
                if limit is not None and len(found) >= limit:
                    break
                record = _record(row)
                if user in (None, record.meta.get("user")) and kind in (None, record.type):
                    found.append(record)
        return found[::-1]

    def get(self, record_id: str) -> Record:
        """The record with this id, or with an id that starts so, if there is only one."""
        with _one_line():
            rows = self._conn.execute(
                f"SELECT {_COLUMNS} FROM egress WHERE substr(id, 1, ?) = ? LIMIT 2",
                (len(record_id), record_id),
            ).fetchall()
        if not record_id or not rows:
            raise StoreError(f"there is no egress record {record_id!r:.60}")
        if len(rows) > 1:
            raise StoreError(f"{record_id!r:.60} is the start of several egress records' ids; give more of it")
        return _record(rows[0])

    def outcome_of(self, request_id: str) -> Record | None:
        """The outcome of a request; None while there is none (under way, or the program ended before it)."""
        with _one_line():
            rows = self._referring("outcome", request_id)
        return _record(rows[0]) if rows else None

    def verify(self) -> VerifyResult:
        """Recompute the whole chain and compare every column of every record.

        Not seen: a cut tail, because the head is not yet kept anywhere else.
        """
        state = _Chain()
        with _one_line():
            for row in self._conn.execute(f"SELECT {_RAW} FROM egress ORDER BY seq"):
                why = state.follow(row)
                if why:
                    total = int(self._conn.execute("SELECT count(*) FROM egress").fetchone()[0])
                    return VerifyResult(False, total, str(row[1], "utf-8", "replace"), why)
        lost = [i for i in state.bodiless if i not in state.erased]
        if lost:
            return VerifyResult(False, state.count, lost[0], "its body is gone, but no record says that it was erased")
        return VerifyResult(True, state.count)

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

    def _append(self, meta: dict[str, Any], body: bytes) -> str:
        import rfc8785

        last = self._conn.execute("SELECT seq, hash FROM egress ORDER BY seq DESC LIMIT 1").fetchone()
        try:
            prev = bytes.fromhex(last[1]) if last else ZERO
        except (ValueError, TypeError):
            raise StoreError("the last egress record is damaged; see: popi egress verify") from None
        head = {"seq": last[0] + 1 if last else 1, "id": new_id(), "at": now()}
        try:
            text = cast(bytes, rfc8785.dumps(head | meta))
        except (rfc8785.CanonicalizationError, UnicodeError) as e:
            raise StoreError(f"the egress record cannot be written: {e}") from None
        salt = secrets.token_bytes(SALT_BYTES)
        digest = hashlib.sha256(salt + body).digest()
        self._conn.execute(
            f"INSERT INTO egress ({_COLUMNS}, body_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                head["seq"], head["id"], head["at"], text.decode(), salt, body, prev.hex(),
                chain_hash(prev, text, digest).hex(), digest.hex(),
            ),
        )  # fmt: skip
        return str(head["id"])

    def _need_request(self, request_id: str) -> None:
        row = self._conn.execute(f"SELECT {_COLUMNS} FROM egress WHERE id = ?", (request_id,)).fetchone()
        if row is None or _record(row).type != "request":
            raise StoreError(f"there is no egress request {request_id!r:.60}")

    def _referring(self, kind: str, request_id: str) -> list[Any]:
        return self._conn.execute(
            f"SELECT {_COLUMNS} FROM egress WHERE json_extract(meta, '$.type') = ? "
            "AND json_extract(meta, '$.request') = ? AND seq > (SELECT seq FROM egress WHERE id = ?)",
            (kind, request_id, request_id),
        ).fetchall()


_COLUMNS = "seq, id, at, meta, salt, body, prev, hash"
# As raw bytes with their types, so that a damaged column is a finding and not an exception of the decoder.
_NAMES = ("id", "at", "meta", "salt", "body", "body_digest", "prev", "hash")
_RAW = "seq, " + ", ".join(f"CAST({c} AS BLOB), typeof({c})" for c in _NAMES)
_TYPES = {"salt": ("blob",), "body": ("blob", "null")}


class _Chain:
    """Follows the chain record by record; what it keeps is the head and the ids seen."""

    def __init__(self) -> None:
        self.count = 0
        self.head = ZERO
        self.requests: set[str] = set()
        self.bodiless: list[str] = []
        self.erased: set[str] = set()

    def follow(self, row: tuple[Any, ...]) -> str:
        """Why this row does not continue the chain; empty if it does."""
        c = dict(zip(_NAMES, row[1::2], strict=True))
        for name, kind in zip(_NAMES, row[2::2], strict=True):
            if kind not in _TYPES.get(name, ("text",)):
                return f"its {name} is of type {kind}"
        if c["prev"] != self.head.hex().encode():
            return "it does not follow the record before it: one was removed, inserted or moved"
        digest = self._digest(c)
        if isinstance(digest, str):
            return digest
        self.head = chain_hash(self.head, c["meta"], digest)
        if c["hash"] != self.head.hex().encode():
            return "its hash does not match its content"
        self.count += 1
        return self._check_meta(row[0], c)

    def _digest(self, c: dict[str, bytes]) -> bytes | str:
        """The body's digest, or why it is wrong. An erased body leaves only the digest."""
        if c["body"] is None:
            if c["salt"]:
                return "its body is gone, but no record says that it was erased"
            if not re.fullmatch(rb"[0-9a-f]{64}", c["body_digest"]):
                return "its body_digest is not a digest"
            return bytes.fromhex(c["body_digest"].decode())
        if len(c["salt"]) != SALT_BYTES:
            return f"its salt has {len(c['salt'])} bytes, not {SALT_BYTES}"
        digest = hashlib.sha256(c["salt"] + c["body"]).digest()
        if c["body_digest"] != digest.hex().encode():
            return "its body, salt or body_digest was changed"
        return digest

    def _check_meta(self, seq: int, c: dict[str, bytes]) -> str:
        try:
            meta = json.loads(c["meta"])
            record_id, at = c["id"].decode(), c["at"].decode()
        except ValueError:
            return "its meta is not JSON, or its id or at not text"
        if not isinstance(meta, dict) or (meta.get("seq"), meta.get("id"), meta.get("at")) != (
            seq,
            record_id,
            at,
        ):
            return "its seq, id or at is not the one in its meta"
        kind, target = meta.get("type"), str(meta.get("request"))
        if kind == "request":
            self.requests.add(record_id)
        elif kind not in ("outcome", "erase"):
            return "it is of no known type"
        elif target not in self.requests:
            return "it refers to a request that is not before it"
        if kind == "erase":
            if target not in self.bodiless:
                return "it says that a body was erased which is still there"
            self.erased.add(target)
        if c["body"] is None:
            self.bodiless.append(record_id)
        return ""


def _record(row: tuple[Any, ...]) -> Record:
    seq, record_id, at, meta, _salt, body, prev, digest = row
    try:
        parsed = json.loads(meta)
        if not isinstance(parsed["type"], str):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise StoreError(f"egress record {record_id!r:.60} is damaged; see: popi egress verify") from None
    return Record(seq, record_id, at, parsed, None if body is None else bytes(body), prev, digest)


@contextmanager
def _one_line() -> Iterator[None]:
    """SQLite's complaints (locked, disk full, damaged) as one StoreError."""
    try:
        yield
    except PopiError:
        raise
    except sqlite3.Error as e:
        raise StoreError(f"the egress log: {e}") from None
