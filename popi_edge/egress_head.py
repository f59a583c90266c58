"""The head of the egress log: how far it goes, kept outside the database so that a cut tail shows.

    keyring   service ``popi-edge``, name ``egress-head:`` and the database's path; asked first
    file      ``NAME.egress-head`` beside the database, mode 0600; where no keyring can be used. Two lines of SLOT
              bytes, written in turn, so that a write that is cut off leaves the head before it

One text holds all of it: a random key of 32 bytes; number and hash of the last record that is known to be in the
database; the same of one that was about to be (``pending``); how many records are older than the key (``since``); and
HMAC-SHA-256 under the key over these. Under the same key each record has a MAC of its own, so that also a chain that
was computed anew is told from popi's, record by record.

It does NOT protect against who can write to the keyring, nor, where the head is in the file, against who can write to
the data folder: such a one can put back an older copy of both, or make new ones.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from popi_edge.errors import StoreError

SERVICE = "popi-edge"
VERSION = 1
KEY_BYTES = 32
SLOT = 1024
KEYRING, FILE = "keyring", "file"


class HeadLost(StoreError):
    """The head that should be there cannot be had. ``state`` is missing, unreachable or damaged."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class Point(NamedTuple):
    """How far a chain goes: the number of its last record, and that one's hash in hex (0 and zeros: an empty log)."""

    number: int
    hash: str


START = Point(0, "0" * 64)


@dataclass(frozen=True)
class Head:
    """What is known of a log from outside it. Records up to ``since`` are older than the key and have no MAC."""

    key: bytes = field(repr=False)
    since: int
    last: Point
    pending: Point | None = None

    @classmethod
    def new(cls, last: Point) -> Head:
        """A head with a new key, on a log that goes as far as ``last``."""
        return cls(secrets.token_bytes(KEY_BYTES), last.number, last)

    def fits(self, tail: Point) -> bool:
        """Whether a log that ends at ``tail`` is whole: the last record known, or the one that was pending."""
        return tail in (self.last, self.pending)

    def at(self, tail: Point) -> Head:
        """The same head, with ``tail`` as the last record and nothing pending."""
        return replace(self, last=tail, pending=None)

    def record_mac(self, chain_hash: str) -> str:
        """The MAC, in hex, of the record with this hash."""
        return self._mac(b"popi-edge egress record\0" + chain_hash.encode())

    def _mac(self, data: bytes) -> str:
        return hmac.new(self.key, data, hashlib.sha256).hexdigest()

    def _sealed_part(self) -> dict[str, Any]:
        return {"version": VERSION, "since": self.since, "last": self.last, "pending": self.pending}

    def to_text(self) -> str:
        """As it is kept: one line of JSON, about 400 characters (a keyring may take no more than 1,280)."""
        part = self._sealed_part()
        mac = self._mac(b"popi-edge egress head\0" + json.dumps(part).encode())
        return json.dumps({**part, "key": self.key.hex(), "mac": mac}, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Head:
        """The inverse of ``to_text``. Raises ValueError for anything that it did not write."""
        try:
            found = json.loads(text)
            pending = None if found["pending"] is None else Point(*found["pending"])
            head = cls(bytes.fromhex(found["key"]), found["since"], Point(*found["last"]), pending)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError("it is not what popi wrote") from None
        if head.to_text() != text:
            raise ValueError("its MAC does not match")
        return head


class HeadKeeper:
    """Where one database's head is kept. Call it inside that database's write transaction alone: that is its lock.

    ``place`` (KEYRING, FILE, or None: none kept yet) and ``trouble`` (why the keyring could not be asked; empty where
    it could) are those of the last ``read``; ``made`` is whether ``write`` had to begin one. A ``read`` asks the
    keyring once, a ``write`` once (the very first one twice: whether the keyring really keeps it is looked at).
    """

    def __init__(self, database: Path, *, use_keyring: bool = True) -> None:
        """``use_keyring=False``: the file alone, for a store that nobody keeps."""
        self.file = database.with_name(database.name.removesuffix(".db") + ".egress-head")
        self.name = "egress-head:" + os.path.normcase(database.resolve())
        self._use_keyring = use_keyring
        self.place: str | None = None
        self.trouble = "" if use_keyring else "not asked"
        self.made = False
        self._turn = 0

    def read(self) -> Head | None:
        """The head, None where none is kept. Raises HeadLost when it is damaged, StoreError for an unreadable file."""
        text = self._from_keyring()
        self.place = KEYRING
        if text is None:
            slots = self._from_file()
            self.place = FILE if slots else None
            if not slots:
                return None
            heads = [(turn, head) for turn, head in map(_slot, slots) if head is not None]
            self._turn, head = max(heads, default=(0, None), key=lambda found: found[0])
            if head is not None:
                return head
        try:
            return Head.from_text(text or "")
        except ValueError as e:
            raise HeadLost(f"the egress log's head in {self.where()} is damaged: {e}", "damaged") from None

    def lost(self) -> HeadLost:
        """What to raise where there should be a head and ``read`` found none."""
        if self.trouble and self._use_keyring:
            why = f"the keyring cannot be used ({self.trouble}), and {self.file} is not there"
            return HeadLost(f"the egress log's head cannot be read: {why}", "unreachable")
        return HeadLost(f"the egress log's head is lost: neither the keyring nor {self.file} has it", "missing")

    def write(self, head: Head) -> None:
        """Keep the head where it was read from; the first one in the keyring if that works, else in the file."""
        text = head.to_text()
        if self.place is None:
            self.made = True
            self.place = KEYRING if self._begin_in_keyring(text) else FILE
            if self.place == KEYRING:
                return
        if self.place == FILE:
            self._to_file(text, sync=head.pending is not None)  # a lost second phase is settled by what comes next
            return
        import keyring

        try:
            keyring.set_password(SERVICE, self.name, text)
        except Exception as e:  # only the kind: a backend's message might hold what it was given
            raise StoreError(f"the keyring did not take the egress log's head ({type(e).__name__})") from None

    def begin(self, head: Head) -> None:
        """Keep a head that is not the successor of the one read; where is chosen anew, and the old one goes."""
        self.place = None
        self.write(head)
        if self.place == KEYRING:
            with contextlib.suppress(OSError):
                self.file.unlink()

    def where(self) -> str:
        """The place in words."""
        if self.place == KEYRING:
            import keyring

            return f"the keyring ({keyring.get_keyring().name})"
        if self.place is None:
            return "no place yet"
        why = f" ({self.trouble})" if self.trouble and self._use_keyring else ""
        return f"{self.file} (mode 0600), not in a keyring{why}: who can write to that folder can change log and head"

    # the two places -----------------------------------------------------------------------------------------
    def _from_keyring(self) -> str | None:
        if not self._use_keyring:
            return None
        import keyring

        try:
            found: str | None = keyring.get_password(SERVICE, self.name)
        except Exception as e:  # backends raise more than KeyringError
            self.trouble = type(e).__name__
            return None
        self.trouble = ""
        return found

    def _begin_in_keyring(self, text: str) -> bool:
        """Whether the keyring takes it and gives it back (the null backend forgets without a word)."""
        if not self._use_keyring or self.trouble:
            return False
        import keyring

        try:
            keyring.set_password(SERVICE, self.name, text)
            if keyring.get_password(SERVICE, self.name) == text:
                return True
            self.trouble = "it does not keep what it is given"
        except Exception as e:
            self.trouble = type(e).__name__
        return False

    def _from_file(self) -> list[bytes]:
        try:
            with self.file.open("rb") as file:
                found = file.read(2 * SLOT)
        except FileNotFoundError:
            return []
        except OSError as e:
            raise StoreError(f"cannot read {self.file}: {e.strerror}") from None
        return [found[:SLOT], found[SLOT:]]

    def _to_file(self, text: str, *, sync: bool) -> None:
        """Into the slot whose turn it is; ``sync``: on the disk when this returns."""
        self._turn += 1
        line = f"{self._turn} {text}".encode().ljust(SLOT - 1) + b"\n"
        try:
            if not self.file.exists():
                self._new_file(line)
                return
            flags = os.O_RDWR | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(self.file, flags), "r+b", buffering=0) as file:
                if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
                    self.file.chmod(0o600)
                file.seek(self._turn % 2 * SLOT)
                if file.write(line) != SLOT:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if sync:
                    getattr(os, "fdatasync", os.fsync)(file.fileno())
        except OSError as e:
            raise StoreError(f"cannot write the egress log's head to {self.file}: {e.strerror}") from None

    def _new_file(self, line: bytes) -> None:
        """Both slots, whole or not at all, and the folder's entry on the disk too."""
        from popi_edge.files import whole_file

        with whole_file(self.file) as out:
            out.write(line * 2)
        with contextlib.suppress(OSError):  # not every system opens folders
            folder = os.open(self.file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _slot(line: bytes) -> tuple[int, Head | None]:
    """A slot's turn and head; (0, None) for one that is empty, cut off or damaged."""
    turn, _, text = line.decode("utf-8", "replace").strip().partition(" ")
    try:
        return int(turn), Head.from_text(text)
    except ValueError:
        return 0, None
