"""A bounded walk over an ONNX file, before any library parses it. Nothing is copied; weights are read once, for NaN.

Refused: what is not protobuf or not ONNX's (unknown fields too: a library might know them); absurd counts, lengths and
nesting; tensors whose data is not as long as their shape; initializers that stand twice; external data outside the
model's folder, behind links, beyond the file's end, or at an address in memory; nodes that load compiled code or call
themselves; NaN among the numbers of a tensor. Not covered: whether the graph makes sense, what memory it needs while it
runs, infinities (a mask may hold them), and NaN in float16 that is written as whole numbers.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

from popi_edge.errors import ModelError
from popi_edge.models import finite
from popi_edge.models.gguf import mapped
from popi_edge.models.onnx_schema import BITS, NAMES, REFUSED, SCHEMA, STRING

MAX_FILE = (1 << 31) - 1
"""Protobuf's own limit."""
MAX_FIELDS = 1_000_000
MAX_NODES = 100_000
MAX_FUNCTIONS = 1_024
MAX_DEPTH = 32
MAX_NAME, MAX_TEXT = 1 << 16, 1 << 20
MAX_RANK = 16
MAX_VALUES = 1 << 40
LOCATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
NUMBER = re.compile(r"[0-9]{1,15}")
FIXED = {"float": (5, 4), "double": (1, 8)}
TYPED: dict[int, frozenset[int]] = {
    4: frozenset({1, 14}),
    5: frozenset({2, 3, 4, 5, 6, 9, 10, *range(16, 27)}),
    6: frozenset({STRING}),
    7: frozenset({7}),
    10: frozenset({11, 15}),
    11: frozenset({12, 13}),
}
"""Which data types each of a tensor's typed fields may hold."""
COMPLEX = (14, 15)
FLOATS = {1: "F32", 10: "F16", 11: "F64", 14: "F32", 15: "F64", 16: "BF16"}
"""Data types that can be NaN, as ``finite`` names their numbers."""
Span = tuple[int, int]


@dataclass
class Found:
    """What a walk counted: ``types`` are the tensors by data type, constants inside nodes too. ``external`` lists
    (file, offset, length) of the tensors whose data is beside the model."""

    nodes: int = 0
    tensors: int = 0
    types: dict[str, int] = field(default_factory=dict)
    external: list[tuple[str, int, int]] = field(default_factory=list)
    calls: dict[tuple[str, str], set[tuple[str, str]]] = field(default_factory=dict)


class _Walk:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.fields, self.found = data, path, 0, Found()
        self.beside: set[tuple[str, int, int, int]] = set()

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: not a usable ONNX file: {what}")

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of at most 64 bits and where it ends."""
        value = 0
        for i in range(10):
            if at + i >= end:
                raise self.fail("it is truncated")
            byte = self.data[at + i]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value & (1 << 64) - 1, at + i + 1
        raise self.fail("a number without an end")

    def message(self, name: str, at: int, end: int) -> Iterator[tuple[int, str, int | Span]]:
        """The fields of a message: number, kind, and a number's value or the span of the rest."""
        schema, seen = SCHEMA[name], set()
        while at < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise self.fail(f"more than {MAX_FIELDS:,} fields")
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            kind = schema.get(number)
            if kind is None:
                raise self.fail(f"the unknown field {number} in {name}")
            single = not kind.startswith("*")
            kind = kind.lstrip("*")
            if single and number in seen:
                raise self.fail(f"field {number} of {name} stands twice")
            seen.add(number)
            if wire == 0 and kind == "int":
                value, at = self.varint(at, end)
                yield number, kind, value
                continue
            if kind in FIXED and wire == FIXED[kind][0]:
                size = FIXED[kind][1]
            elif wire == 2 and (not single or kind not in ("int", *FIXED)):
                size, at = self.varint(at, end)
            else:
                raise self.fail(f"field {number} of {name} has the wrong type")
            if size > end - at:
                raise self.fail("it is truncated")
            yield number, kind, (at, at + size)
            at += size

    def text(self, span: Span, limit: int = MAX_NAME) -> str:
        if span[1] - span[0] > limit:
            raise self.fail(f"a text of {span[1] - span[0]:,} bytes")
        try:
            return self.data[span[0] : span[1]].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("a text that is not UTF-8") from None

    def walk(self, name: str, at: int, end: int, depth: int = 0) -> None:
        """Check a message and everything in it."""
        if name in REFUSED:
            raise self.fail(f"{REFUSED[name]}, which no model for a device has")
        if depth > MAX_DEPTH:
            raise self.fail(f"nested more than {MAX_DEPTH} deep")
        if name == "TensorProto":
            self.tensor(at, end)
            return
        names: set[str] = set()
        for number, kind, value in self.message(name, at, end):
            if isinstance(value, int):
                continue
            if kind in SCHEMA:
                self.walk(kind, *value, depth + 1)
                if name == "GraphProto" and number == 5:
                    self.once(names, *value)
            elif kind == "text":
                self.text(value, MAX_TEXT)
            elif kind == "int":
                self.packed(value)
            elif kind in FIXED and (value[1] - value[0]) % FIXED[kind][1]:
                raise self.fail("a list of numbers is cut off")
        if name in ("NodeProto", "FunctionProto"):
            self.operator(name, at, end)

    def packed(self, span: Span) -> int:
        """How many numbers a packed list holds."""
        count, longest = 0, 0
        for start in range(span[0], span[1], 1 << 20):
            part = np.frombuffer(self.data, np.uint8, min(1 << 20, span[1] - start), start)
            count += int((part < 128).sum())
            longest = int(part[-1])
        if longest > 127:
            raise self.fail("a list of numbers is cut off")
        return count

    def once(self, names: set[str], at: int, end: int) -> None:
        """An initializer's name, which may not stand twice in its graph."""
        for number, _, value in self.message("TensorProto", at, end):
            if number == 8 and not isinstance(value, int):
                name = self.text(value)
                if name in names:
                    raise self.fail(f"the initializer {name!r:.80} stands twice")
                names.add(name)

    def operator(self, name: str, at: int, end: int) -> None:
        """Count a node, and note which functions call which."""
        texts = {n: self.text(v) for n, k, v in self.message(name, at, end) if k == "text" and not isinstance(v, int)}
        if name == "FunctionProto":
            own = (plain(texts.get(10, "")), texts.get(1, ""))
            if own in self.found.calls or len(self.found.calls) == MAX_FUNCTIONS:
                raise self.fail(f"the function {own[1]!r:.80} stands twice, or there are more than {MAX_FUNCTIONS:,}")
            self.found.calls[own] = set(self.callees("FunctionProto", at, end))
            return
        self.found.nodes += 1
        if self.found.nodes > MAX_NODES:
            raise self.fail(f"more than {MAX_NODES:,} nodes")
        if texts.get(4) == "EPContext":
            raise self.fail("a node that loads compiled code (EPContext)")

    def callees(self, name: str, at: int, end: int) -> Iterator[tuple[str, str]]:
        """(domain, operator) of every node in a function, subgraphs included."""
        for _, kind, value in self.message(name, at, end):
            if kind not in ("NodeProto", "AttributeProto", "GraphProto") or isinstance(value, int):
                continue
            if kind == "NodeProto":
                inner = self.message(kind, *value)
                texts = {n: self.text(v) for n, k, v in inner if k == "text" and not isinstance(v, int)}
                yield plain(texts.get(7, "")), texts.get(4, "")
            yield from self.callees(kind, *value)

    def tensor(self, at: int, end: int) -> None:
        """A tensor: its data must be as long as its shape says."""
        self.found.tensors += 1
        dims, kind, external, where = [], 0, 0, {}
        raw: Span | None = None
        typed: dict[int, int] = {}
        for number, form, value in self.message("TensorProto", at, end):
            if number == 1:
                dims += [value] if isinstance(value, int) else self.numbers(value)
                if len(dims) > MAX_RANK:
                    raise self.fail(f"a tensor of more than {MAX_RANK} dimensions")
            elif number in (2, 14) and isinstance(value, int):
                kind, external = (value, external) if number == 2 else (kind, value)
            elif number in TYPED:
                typed[number] = typed.get(number, 0) + self.count(form, value)
            elif isinstance(value, int):
                continue
            elif number in (8, 12):
                self.text(value, MAX_TEXT)
            elif number == 9:
                raw = value
            elif number == 13:
                key, text = self.entry(value)
                if key in where:
                    raise self.fail(f"the place of a tensor's data says {key!r:.40} twice")
                where[key] = text
            elif number in (3, 16):
                self.walk(form, *value, MAX_DEPTH)
        if kind not in BITS and kind != STRING:
            raise self.fail(f"a tensor of the unknown type {kind}")
        self.found.types[NAMES[kind]] = self.found.types.get(NAMES[kind], 0) + 1
        values = prod(dims)
        if values > MAX_VALUES or any(d > MAX_VALUES for d in dims):
            raise self.fail(f"a tensor of the absurd shape {str(dims)[:60]}")
        if (raw is not None) + len(typed) + bool(external or where) > 1:
            raise self.fail("a tensor has its data in two places")
        self.data_of(kind, values, raw, typed, where if external or where else None)

    def data_of(
        self, kind: int, values: int, raw: Span | None, typed: dict[int, int], where: dict[str, str] | None
    ) -> None:
        """Compare the length of a tensor's data with the number of its values."""
        length = -(-values * BITS.get(kind, 0) // 8)
        if where is not None:
            if kind == STRING:
                raise self.fail("a tensor of strings outside the model")
            self.external(where, length, kind)
        elif raw is not None:
            if kind == STRING or raw[1] - raw[0] != length:
                raise self.fail(f"a tensor's data has {raw[1] - raw[0]:,} bytes where its shape takes {length:,}")
            self.numeric(self.data, kind, *raw)
        elif typed or values:
            [(number, count)] = typed.items() if typed else [(0, 0)]
            need = length if BITS.get(kind, 8) < 8 else values * (2 if kind in COMPLEX else 1)
            if kind not in TYPED.get(number, ()) or count != need:
                raise self.fail(f"a tensor's data has {count:,} values where its shape takes {need:,}")

    def count(self, form: str, value: int | Span) -> int:
        if isinstance(value, int) or form == "bytes":
            return 1
        return self.packed(value) if form == "int" else self.floats(form, value)

    def floats(self, form: str, span: Span) -> int:
        n, rest = divmod(span[1] - span[0], FIXED[form][1])
        if rest:
            raise self.fail("a list of numbers is cut off")
        self.numeric(self.data, 1 if form == "float" else 11, *span)
        return n

    def numeric(self, data: mmap.mmap, kind: int, start: int, end: int) -> None:
        if kind in FLOATS and finite.nan(data, FLOATS[kind], start, end - start):
            raise self.fail("a tensor that holds NaN")

    def numbers(self, span: Span) -> list[int]:
        """A short packed list (a shape)."""
        if span[1] - span[0] > 10 * MAX_RANK:
            raise self.fail(f"a tensor of more than {MAX_RANK} dimensions")
        out, at = [], span[0]
        while at < span[1]:
            value, at = self.varint(at, span[1])
            out.append(value)
        return out

    def entry(self, span: Span) -> tuple[str, str]:
        texts = {n: self.text(v) for n, _, v in self.message("StringStringEntryProto", *span) if not isinstance(v, int)}
        return texts.get(1, ""), texts.get(2, "")

    def external(self, where: dict[str, str], length: int, kind: int) -> None:
        """Data beside the model: a plain file of the same folder that holds all of it."""
        location = where.get("location", "")
        if where.keys() - {"location", "offset", "length", "checksum"} or not LOCATION.fullmatch(location):
            raise self.fail(f"a tensor's data at {location!r:.80}, which is not a file beside the model")
        numbers = where.get("offset", "0"), where.get("length", str(length))
        if not all(NUMBER.fullmatch(n) for n in numbers) or int(numbers[1]) != length:
            raise self.fail(f"a tensor's data at {location} has the wrong length or offset")
        file = self.path.parent / location
        if file.is_symlink() or not file.is_file():
            raise self.fail(f"a tensor's data at {location!r:.80}, which is not a plain file beside the model")
        if file.samefile(self.path):
            raise self.fail("a tensor's data inside the model's own file")
        if int(numbers[0]) + length > file.stat().st_size:
            raise self.fail(f"a tensor's data lies beyond the end of {location}")
        self.found.external.append((location, int(numbers[0]), length))
        if length and kind in FLOATS:
            self.beside.add((location, int(numbers[0]), length, kind))

    def overlaps(self) -> None:
        """Two tensors may share the same data, not parts of it."""
        for (a, start, n), (b, other, _) in pairwise(sorted(set(self.found.external))):
            if a == b and start + n > other:
                raise self.fail(f"tensors overlap in {a}")

    def weights(self) -> None:
        """The numbers beside the model, what several tensors share once."""
        name, data = "", self.data
        for location, start, length, kind in sorted(self.beside):
            if location != name:
                name, data = location, mapped(self.path.parent / location)
            self.numeric(data, kind, start, start + length)

    def loops(self) -> None:
        """No function may call itself, not through others either: whoever inlines them would not end."""
        left = {name: calls & self.found.calls.keys() for name, calls in self.found.calls.items()}
        while left:
            ends = {name for name, calls in left.items() if not calls & left.keys()}
            if not ends:
                raise self.fail("a function that calls itself")
            left = {name: calls for name, calls in left.items() if name not in ends}


def plain(domain: str) -> str:
    """ONNX's own operators have two names for their domain."""
    return "" if domain == "ai.onnx" else domain


def check(path: Path) -> Found:
    """Walk over an ONNX file. Raises ModelError saying what is wrong with it."""
    data = mapped(path)
    walk = _Walk(data, path)
    if len(data) > MAX_FILE:
        raise walk.fail(f"it has {len(data):,} bytes, more than protobuf can")
    walk.walk("ModelProto", 0, len(data))
    if not any(number == 7 for number, _, _ in walk.message("ModelProto", 0, len(data))):
        raise walk.fail("it has no graph")
    walk.overlaps()
    walk.loops()
    walk.weights()
    return walk.found
