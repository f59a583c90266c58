"""The records of the egress log and the chain that they make: what each must be to continue the one before it.

    hash = SHA-256( prev ‖ meta ‖ SHA-256(salt ‖ body) )          prev of the first record: 32 zero bytes
    mac  = HMAC-SHA-256( key of the head, hash )                  of every record that is younger than the head

The hashes alone show a change that was made by hand; who computes them anew is found by the MACs, and who cuts the
tail or puts back an older copy by the head (``egress_head``). It does NOT see what another program sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from popi_edge.egress_head import Head, Point
from popi_edge.errors import StoreError

ZERO = bytes(32)
SALT_BYTES = 16
COLUMNS = "seq, id, at, meta, salt, body, prev, hash"
# As raw bytes with their types, so that a damaged column is a finding and not an exception of the decoder.
_NAMES = ("id", "at", "meta", "salt", "body", "body_digest", "prev", "hash", "mac")
RAW = "seq, " + ", ".join(f"CAST({c} AS BLOB), typeof({c})" for c in _NAMES)
_TYPES = {"salt": ("blob",), "body": ("blob", "null"), "mac": ("text", "null")}
_REFERRING = ("outcome", "erase")


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


def record_of(row: tuple[Any, ...]) -> Record:
    """A row of COLUMNS as a Record. Raises StoreError when its meta is damaged."""
    seq, record_id, at, meta, _salt, body, prev, digest = row
    try:
        parsed = json.loads(meta)
        if not isinstance(parsed["type"], str):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise StoreError(f"egress record {record_id!r:.60} is damaged; see: popi egress verify") from None
    return Record(seq, record_id, at, parsed, None if body is None else bytes(body), prev, digest)


@dataclass(frozen=True)
class VerifyResult:
    """Whether the log is whole.

    If not, ``why`` says what is wrong; ``number`` is the place (from 1) of the first record that is not what was
    written there, and ``first_bad`` its id (None where that record is missing, or where the head alone is lost).
    ``head``: kept; new (nothing is in the log, or no head was begun yet); missing, unreachable, damaged; off (a log
    without one). ``where`` is its place in words, ``chain_holds`` what could be checked without it, ``interrupted``
    whether a write was found half-way and settled, ``anchors`` the records with which a person began a new head.
    """

    ok: bool
    records: int
    first_bad: str | None = None
    why: str = ""
    number: int | None = None
    head: str = "off"
    where: str = ""
    chain_holds: bool = True
    interrupted: bool = False
    anchors: tuple[str, ...] = ()


def chain_hash(prev: bytes, meta: bytes, body_digest: bytes) -> bytes:
    """SHA-256(prev ‖ meta ‖ body_digest).

    Both ends have 32 bytes, so no two inputs coincide.
    """
    return hashlib.sha256(prev + meta + body_digest).digest()


class Chain:
    """Follows the chain record by record; what it keeps is how far it came and the ids seen."""

    def __init__(self, head: Head | None) -> None:
        """``head``: whose MACs the records must have; None leaves MACs alone."""
        self._known = head
        self.count = 0
        self.hash = ZERO
        self.requests: set[str] = set()
        self.bodiless: dict[str, int] = {}
        self.erased: set[str] = set()
        self.anchors: list[str] = []

    def follow(self, row: tuple[Any, ...]) -> str:
        """Why this row (of the columns RAW) does not continue the chain; empty if it does."""
        c = dict(zip(_NAMES, row[1::2], strict=True))
        for name, kind in zip(_NAMES, row[2::2], strict=True):
            if kind not in _TYPES.get(name, ("text",)):
                return f"its {name} is of type {kind}"
        if c["prev"] != self.hash.hex().encode():
            return "it does not follow the record before it: one was removed, inserted or moved"
        digest = self._digest(c)
        if isinstance(digest, str):
            return digest
        found = chain_hash(self.hash, c["meta"], digest)
        if c["hash"] != found.hex().encode():
            return "its hash does not match its content"
        why = self._check_mac(c) or self._check_meta(row[0], c)
        if not why:
            self.count += 1
            self.hash = found
        return why

    def lost_body(self) -> tuple[str, int] | None:
        """The first record, with its number, whose body is gone without a record of that; call it at the end."""
        return next(((i, n) for i, n in self.bodiless.items() if i not in self.erased), None)

    def _check_mac(self, c: dict[str, bytes]) -> str:
        if self._known is None or self.count < self._known.since:
            return ""
        if c["mac"] is None:
            return "it has no MAC: popi did not write it"
        if c["mac"] != self._known.record_mac(c["hash"].decode()).encode():
            return "its MAC is not popi's: it was written or changed by something else"
        return ""

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
        except (ValueError, RecursionError):
            return "its meta is not JSON, or its id or at not text"
        if not isinstance(meta, dict) or (meta.get("seq"), meta.get("id"), meta.get("at")) != (seq, record_id, at):
            return "its seq, id or at is not the one in its meta"
        if seq != self.count + 1:
            return f"it says that it is record {seq}, but it is the {self.count + 1}. one"
        kind, target = meta.get("type"), str(meta.get("request"))
        if kind in _REFERRING and target not in self.requests:
            return "it refers to a request that is not before it"
        if kind == "request":
            self.requests.add(record_id)
        elif kind == "anchor":
            self.anchors.append(record_id)
        elif kind not in _REFERRING:
            return "it is of no known type"
        if kind == "erase":
            if target not in self.bodiless:
                return "it says that a body was erased which is still there"
            self.erased.add(target)
        if c["body"] is None:
            self.bodiless[record_id] = seq
        return ""


Bad = tuple[str | None, int, str]
"""The first bad record: its id (None: it is missing), its number, and why."""


def check(conn: sqlite3.Connection, head: Head | None, found: VerifyResult) -> VerifyResult:
    """``found``, completed by what the chain shows, and by its end where the head is there. Writes nothing."""
    chain = Chain(head)
    bad = _follow(conn, chain)
    if bad is None and head is not None:
        bad = _beyond(conn, head, Point(chain.count, chain.hash.hex()))
    lost = chain.lost_body() if bad is None else None
    if lost is not None:
        bad = (*lost, "its body is gone, but no record says that it was erased")
    total = int(conn.execute("SELECT count(*) FROM egress").fetchone()[0])
    done = replace(found, records=total, anchors=tuple(chain.anchors))
    if bad is None:
        return done
    return replace(done, ok=False, first_bad=bad[0], number=bad[1], why=bad[2], chain_holds=False)


def _follow(conn: sqlite3.Connection, chain: Chain) -> Bad | None:
    for row in conn.execute(f"SELECT {RAW} FROM egress ORDER BY seq"):
        why = chain.follow(row)
        if why:
            return str(row[1], "utf-8", "replace"), chain.count + 1, why
    return None


def _beyond(conn: sqlite3.Connection, head: Head, tail: Point) -> Bad | None:
    """What the head says of a chain that holds and ends at ``tail``."""
    known = head.last.number
    if head.fits(tail):
        return None
    if tail.number < known:
        which = f"record {known} is" if known == tail.number + 1 else f"records {tail.number + 1} to {known} are"
        return None, tail.number + 1, f"{which} missing: the tail was cut, or an older copy was put in its place"
    if tail.number > known:
        row = conn.execute("SELECT id FROM egress WHERE seq = ?", (known + 1,)).fetchone()
        return row[0], known + 1, f"the head knows of {known} records alone: an older head was put in its place"
    return None, tail.number, "the last record is not the one that the head names"
