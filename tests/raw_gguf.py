"""GGUF headers written byte by byte, right or wrong: an own small writer for the tests of the reader."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge.models.gguf import NUMPY, SCALARS, Gguf

CODES = {np.dtype(text): code for code, text in NUMPY.items()}
KINDS = {"F32": 0, "F16": 1, "Q4_1": 3, "Q8_0": 8}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind: int, given: Any) -> bytes:
    """One metadata value with its type; lists and arrays as GGUF arrays."""
    head = struct.pack("<I", kind)
    if kind == 8:
        return head + text(given)
    if kind != 9:
        return head + struct.pack(SCALARS[kind], given)
    if isinstance(given, list):
        return head + struct.pack("<IQ", 8, len(given)) + b"".join(map(text, given))
    return head + struct.pack("<IQ", CODES[given.dtype], len(given)) + given.tobytes()


def tensor(name: str | bytes, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's entry; ``shape`` rows first."""
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def build(
    fields: Mapping[str, tuple[int, Any]], tensors: Sequence[bytes], data: bytes, *, align: int = 32, version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:  # fmt: skip
    """A whole file; ``counts`` (tensors, keys) may lie."""
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(fields))))
    head += b"".join(text(k) + value(*v) for k, v in fields.items()) + b"".join(tensors)
    return head + bytes(-len(head) % align) + data


def parts(path: Path) -> tuple[dict[str, tuple[int, Any]], list[tuple[str, tuple[int, ...], int, int]], bytes]:
    """A file's fields, tensors (name, shape, type, offset) and data: what ``build`` takes."""
    file = Gguf(path)
    data = path.read_bytes()
    first = len(data) - sum(-(-t.data.nbytes // 32) * 32 for t in file.tensors.values())
    heads, at = [], 0
    for t in file.tensors.values():
        heads.append((t.name, t.shape, KINDS[t.type], at))
        at += -(-t.data.nbytes // 32) * 32
    return {k: (file.types[k], v) for k, v in file.fields.items()}, heads, data[first:]
