"""Reading JSON records from a file, one object a line or one array of objects, and signals from such records.

``records`` is what every format is read through: it streams, and gives each record or what is wrong with it
and on which line. A record that is broken never takes the ones after it along, as long as its braces and
quotes balance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from popi_edge.errors import SignalError
from popi_edge.signals import Signal, from_json

MAX_RECORD = 32 * 1024 * 1024
"""Longest record, in bytes; a longer one is an error of its own and is passed over without being held."""
CHUNK = 1024 * 1024
_MARK = re.compile(rb'["\\{}\[\]]')
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class LineError:
    """A record (or a part of one) that was not understood. ``line`` is where it begins, 1-based."""

    line: int
    error: str
    field: str | None = None


@dataclass(frozen=True)
class Skipped:
    """A record (or a part of one) that is well formed but says nothing to learn from, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Record:
    """One JSON object: ``row`` counts from 0, ``line`` from 1."""

    row: int
    line: int
    value: Mapping[str, Any]


Item = Signal | LineError | Skipped


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SignalError(f"{twice!r:.60} is there twice", field=twice[:60])
    return found


def _constant(name: str) -> Any:
    raise SignalError(f"{name} is not JSON")


def parse(blob: bytes) -> Mapping[str, Any]:
    """One JSON object, strictly: UTF-8, no key twice, no NaN. Raises SignalError."""
    try:
        value = json.loads(blob.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
    except UnicodeDecodeError as e:
        raise SignalError(f"not valid UTF-8 at byte {e.start + 1}") from None
    except json.JSONDecodeError as e:
        raise SignalError(f"not JSON: {e.msg} at character {e.pos + 1}") from None
    except RecursionError:
        raise SignalError("not a record: nested too deeply") from None
    except ValueError:
        raise SignalError("not a record: a number with too many digits") from None
    if not isinstance(value, dict):
        raise SignalError("not a JSON object")
    return value


def _lines(file: IO[bytes], seen: Callable[[int], None]) -> Iterator[tuple[int, bytes | None]]:
    """(line, bytes) for each line that is not blank; None for one longer than MAX_RECORD."""
    number = 0
    while blob := file.readline(MAX_RECORD + 1):
        number += 1
        seen(len(blob))
        whole = len(blob) <= MAX_RECORD
        while not blob.endswith(b"\n") and (rest := file.readline(CHUNK)):
            seen(len(rest))
            blob, whole = rest, False
        if not whole:
            yield number, None
        elif text := (blob.removeprefix(_BOM) if number == 1 else blob).strip():
            yield number, text


class _Array:
    """Finds where the objects of one JSON array begin and end, without parsing them."""

    def __init__(self) -> None:
        self.depth = 0
        self.quoted = False
        self.escaped_at = -1  # place of a character after a backslash, counted over the whole file
        self.closed = False

    def ends(self, chunk: bytes, base: int) -> Iterator[tuple[int, bool]]:
        """(place in chunk, True where an object starts or False one past where it ends)."""
        for match in _MARK.finditer(chunk):
            at, mark = match.start(), match.group()
            if self.quoted:
                if base + at == self.escaped_at:
                    continue
                if mark == b"\\":
                    self.escaped_at = base + at + 1
                elif mark == b'"':
                    self.quoted = False
            elif mark == b'"':
                self.quoted = True
            elif mark in (b"{", b"["):
                self.depth += 1
                if self.depth == 2:
                    yield at, True
            elif mark in (b"}", b"]"):
                self.depth -= 1
                if self.depth == 1:
                    yield at + 1, False
                elif self.depth <= 0:
                    self.closed = True
                    return


def _array(file: IO[bytes], seen: Callable[[int], None]) -> Iterator[tuple[int, bytes | None]]:
    """(line, bytes) for each element that is an object or a list; None for one longer than MAX_RECORD."""
    scan, base, line = _Array(), 0, 1
    held: list[bytes] = []
    size, start_line, inside = 0, 1, False
    while not scan.closed and (chunk := file.read(CHUNK)):
        seen(len(chunk))
        done = 0
        for place, starts in scan.ends(chunk, base):
            line += chunk.count(b"\n", done, place)
            if starts:
                held, size, start_line, inside = [], 0, line, True
            else:
                size += place - done
                held.append(chunk[done:place])
                yield start_line, (b"".join(held) if size <= MAX_RECORD else None)
                held, inside = [], False
            done = place
        line += chunk.count(b"\n", done)
        if inside:
            size += len(chunk) - done
            held = [*held, chunk[done:]] if size <= MAX_RECORD else []
        base += len(chunk)
    if not scan.closed:
        raise SignalError("the list ends half-way: the file is cut off", line=start_line if inside else line)


def records(path: Path, seen: Callable[[int], None] = lambda n: None) -> Iterator[Record | LineError]:
    """Every record of the file, in order; ``seen`` is told how many more bytes were read.

    Raises SignalError when the file cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if head.startswith(b"\x1f\x8b"):
                raise SignalError(f"{path} is compressed (gzip): unpack it first")
            file.seek(0)
            array = head.removeprefix(_BOM).lstrip().startswith(b"[")
            yield from _parsed(_array(file, seen) if array else _lines(file, seen))
    except OSError as e:
        raise SignalError(f"cannot read {path}: {e.strerror}") from None
    except ValueError as e:  # a NUL inside the path
        raise SignalError(f"cannot read {str(path)!r}: {e}") from None


def _parsed(found: Iterator[tuple[int, bytes | None]]) -> Iterator[Record | LineError]:
    row = 0
    while True:
        try:
            line, blob = next(found)
        except StopIteration:
            return
        except SignalError as e:  # a list that is cut off: what came before it stands
            yield LineError(e.line or 1, str(e))
            return
        try:
            if blob is None:
                raise SignalError(f"longer than {MAX_RECORD // 1024**2} MiB")
            yield Record(row, line, parse(blob))
        except SignalError as e:
            yield LineError(line, str(e), e.field)
        row += 1


def items(record: Record, user: str | None, source: str | None) -> Iterator[Item]:
    """The signal in one record: ``kind`` and the fields of ``signals.to_json``.

    ``user`` and ``source`` replace the record's own. Under another user it is another signal: it gets a new
    id.
    """
    value = dict(record.value)
    if user is not None:
        if value.get("user", "me") != user:
            value.pop("id", None)
        value["user"] = user
    if source is not None:
        value["source"] = source
    try:
        yield from_json(value, **({} if "source" in value else {"source": "import"}))
    except SignalError as e:
        yield LineError(record.line, str(e), e.field)
