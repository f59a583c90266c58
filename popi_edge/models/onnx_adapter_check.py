"""A bounded walk over an ONNX Runtime adapter (``.onnx_adapter``, a FlatBuffer) before any library parses it.

Refused: what is not one; tables, vectors and names that leave the file or lie crooked in it; parameters that stand
twice, overlap, have absurd shapes or data that is not as long as their shape, or hold NaN. Not covered: whether they
fit a model.
"""

from __future__ import annotations

import mmap
import struct
from itertools import pairwise
from math import prod
from pathlib import Path

from popi_edge.errors import ModelError
from popi_edge.models import finite
from popi_edge.models.gguf import mapped

IDENTIFIER = b"TORT"
VERSION = 1
MAX_FILE = (1 << 31) - 1
"""FlatBuffers' own limit."""
MAX_PARAMETERS = 65_536
MAX_NAME, MAX_RANK, MAX_VALUES = 1_024, 8, 1 << 40
BYTES = {1: 4, 10: 2}
"""Bytes of one value by data type: float32 and float16."""
FLOATS = {1: "F32", 10: "F16"}


class _Walk:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.size = data, path, len(data)

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: not a usable ONNX Runtime adapter: {what}")

    def number(self, code: str, at: int) -> int:
        if at < 0 or at + struct.calcsize(code) > self.size:
            raise self.fail("it is truncated")
        value: int = struct.unpack_from(code, self.data, at)[0]
        return value

    def follow(self, at: int) -> int:
        """Where the offset at ``at`` leads: always forwards."""
        to = at + self.number("<I", at)
        if to <= at or to % 4:
            raise self.fail("an offset that leads nowhere")
        return to

    def table(self, at: int, fields: int) -> list[int]:
        """The places of a table's fields, 0 for one that is not there."""
        vtable = at - self.number("<i", at)
        size, length = self.number("<H", vtable), self.number("<H", vtable + 2)
        if vtable % 2 or size < 4 or size % 2 or vtable + size > self.size or at + length > self.size:
            raise self.fail("a table that is none")
        places = [self.number("<H", vtable + 4 + 2 * i) if 4 + 2 * i < size else 0 for i in range(fields)]
        if size > 4 + 2 * fields or any(p and not 4 <= p <= length - 4 for p in places):
            raise self.fail("a table with fields that it cannot have")
        return [at + p if p else 0 for p in places]

    def vector(self, field: int, width: int, limit: int) -> tuple[int, int]:
        """Start and count of a vector's items of ``width`` bytes."""
        if not field:
            raise self.fail("a part is missing")
        at = self.follow(field)
        count = self.number("<I", at)
        if count > limit or at + 4 + count * width > self.size or (at + 4) % min(width, 8):
            raise self.fail(f"a list of {count:,} items")
        return at + 4, count

    def parameter(self, at: int) -> tuple[str, int, int, str]:
        """Name, and start, length and kind of a parameter's data."""
        name, dims, kind, raw = self.table(at, 4)
        start, length = self.vector(name, 1, MAX_NAME)
        text = self.data[start : start + length].decode("latin-1")
        if not text or not text.isascii() or not text.isprintable() or self.number("<B", start + length):
            raise self.fail(f"a parameter's name that is none: {text!r:.40}")
        first, rank = self.vector(dims, 8, MAX_RANK)
        shape = [self.number("<q", first + 8 * i) for i in range(rank)]
        if any(not 0 <= d <= MAX_VALUES for d in shape) or prod(shape) > MAX_VALUES:
            raise self.fail(f"a parameter of the absurd shape {str(shape)[:60]}")
        code = self.number("<i", kind) if kind else 0
        width = BYTES.get(code)
        if width is None:
            raise self.fail("a parameter that holds no floats")
        begin, count = self.vector(raw, 1, MAX_FILE)
        if count != prod(shape) * width:
            raise self.fail(f"a parameter's data has {count:,} bytes where its shape takes {prod(shape) * width:,}")
        return text, begin, count, FLOATS[code]


def check(path: Path) -> list[str]:
    """The names of an adapter's parameters. Raises ModelError saying what is wrong with the file."""
    data = mapped(path)
    walk = _Walk(data, path)
    if len(data) > MAX_FILE or data[4:8] != IDENTIFIER:
        raise walk.fail("it does not say that it is one, or is too large")
    version, _, _, parameters = walk.table(walk.follow(0), 4)
    if not version or walk.number("<i", version) != VERSION:
        raise walk.fail(f"its format is not {VERSION}")
    start, count = walk.vector(parameters, 4, MAX_PARAMETERS)
    found = [walk.parameter(walk.follow(start + 4 * i)) for i in range(count)]
    if len({f[0] for f in found}) != len(found):
        raise walk.fail("a parameter stands twice")
    for (_, at, length, _), (name, other, _, _) in pairwise(sorted(found, key=lambda f: f[1:])):
        if at + length > other:
            raise walk.fail(f"the parameter {name!r:.80} overlaps another")
    for name, at, length, kind in found:
        if finite.nan(data, kind, at, length):
            raise walk.fail(f"the parameter {name!r:.80} holds NaN")
    return [f[0] for f in found]
