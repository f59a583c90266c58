"""Our own bounded look at a safetensors file: where every tensor lies, before anything reads its numbers.

Checked: the header's length and nesting, names that stand twice, known types, shapes that fit their bytes, offsets
inside the file without gaps or overlaps. No more than the header is read, and no library parses the file. Not covered:
what the numbers are (hf.py refuses those that are not finite while it converts).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.errors import ModelError
from popi_export.bounded import parse_json

MAX_HEADER = 1 << 19
MAX_TENSORS = 4_096
"""In one file; a model of 126 layers has about 1,200. Counted before the header is parsed, which is what takes time."""
MAX_NAME = 256
MAX_DIMENSIONS = 8
HUGE = 1 << 48
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor: its type, its shape (rows first) and its bytes' place in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    path: Path
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read(path: Path) -> Header:
    """The header of a safetensors file. Raises ModelError with one line for whatever is wrong about it."""
    data, size = _head(path)
    if data.count(b"{") > MAX_TENSORS:
        raise ModelError(f"{path}: not a usable safetensors file: more than {MAX_TENSORS:,} tensors")
    value = parse_json(data, f"{path}: its header", most=MAX_HEADER)  # its length is bound enough
    metadata = value.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelError(f"{path}: its __metadata__ is not an object of texts")
    first = 8 + len(data)
    tensors = {name: _entry(path, name, entry, first) for name, entry in value.items()}
    if not tensors:
        raise ModelError(f"{path}: it holds no tensors")
    at = first
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].start):
        if entry.start != at:
            what = "overlaps another" if entry.start < at else "leaves a gap before it"
            raise ModelError(f"{path}: tensor {name!r:.80} {what}")
        at = entry.end
    if at != size:
        what = "truncated" if at > size else "followed by bytes that belong to no tensor"
        raise ModelError(f"{path}: its tensors end at {at:,} of {size:,} bytes: {what}")
    return Header(path, tensors, metadata)


def _head(path: Path) -> tuple[bytes, int]:
    """The header's bytes and the file's size."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(fd, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ModelError(f"{path}: not a plain file")
            size = about.st_size
            start = file.read(8)
            if len(start) < 8:
                raise ModelError(f"{path}: not a safetensors file: it has {size} bytes")
            length = struct.unpack("<Q", start)[0]
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise ModelError(f"{path}: not a usable safetensors file: a header of {length:,} bytes")
            return file.read(length), size
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file") from None
    except OSError as e:
        raise ModelError(f"{path}: cannot be read: {e.strerror or e}") from None


def _entry(path: Path, name: str, value: Any, first: int) -> Entry:
    def refuse(what: str) -> ModelError:
        return ModelError(f"{path}: tensor {name!r:.80} {what}")

    def whole(items: Any, most: int) -> bool:
        return isinstance(items, list) and len(items) <= most and all(type(i) is int and 0 <= i < HUGE for i in items)

    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise refuse("has a name that is none")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise refuse("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise refuse(f"has the unknown type {dtype!r:.40}")
    if not whole(shape, MAX_DIMENSIONS) or not whole(offsets, 2) or len(offsets) != 2:
        raise refuse("has a shape or offsets that are none")
    count = BYTES[dtype]
    for dimension in shape:
        count *= dimension
    if count == 0 or offsets[1] - offsets[0] != count:
        raise refuse(f"has {offsets[1] - offsets[0]:,} bytes, but its shape and type need {count:,}"[:160])
    return Entry(dtype, tuple(shape), first + offsets[0], first + offsets[1])
