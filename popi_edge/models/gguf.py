"""A bounded reader of GGUF headers: nothing is trusted, no count exceeds what the file could hold, and time and memory
are bounded by fixed limits, however large the file is.

Covered: GGUF versions 2 and 3, little endian, every metadata type, F32/F16/Q4_0/Q4_1/Q8_0 data as numpy views.
Not covered: writing, big-endian files, and the contents of other quantizations (their bytes are still bounded).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import sys
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ModelError

MAX_KEYS = 4_096
MAX_TENSORS = 65_536
MAX_STRING = 1 << 20
MAX_ARRAY = 1 << 21
MAX_TEXTS = 1 << 21
"""Strings in all arrays together: the largest vocabularies have a quarter of a million tokens and twice the merges."""
MAX_HEADER = 1 << 27
MAX_KEY, MAX_NAME = 256, 63
"""Bytes of a key and of a tensor's name (llama.cpp's own limit)."""
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
NUMPY = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
CODES = {np.dtype(text): code for code, text in NUMPY.items()}
UINT32, STRING, ARRAY = 4, 8, 9
BLOCKS = {  # ggml type: (name, values in a block, bytes in a block)
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor: ``shape`` in row-major order (rows first), ``data`` its raw bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def blocks(self) -> NDArray[np.uint8]:
        """The raw blocks, shape [rows, blocks in a row, bytes in a block]."""
        _, per, size = next(b for b in BLOCKS.values() if b[0] == self.type)
        return self.data.reshape(-1, self.shape[-1] // per, size)

    def dequantize(self) -> NDArray[np.float32]:
        """The values as float32 in ``shape``. Raises ModelError for a type that is not covered."""
        if self.type == "F32":
            return self.data.view("<f4").reshape(self.shape)
        if self.type == "F16":
            return self.data.view("<f2").astype(np.float32).reshape(self.shape)
        blocks = self.blocks()
        scale = blocks[..., :2].copy().view("<f2").astype(np.float32)
        if self.type == "Q8_0":
            return (blocks[..., 2:].view(np.int8) * scale).reshape(self.shape)
        if self.type in ("Q4_0", "Q4_1"):
            head = 2 if self.type == "Q4_0" else 4
            low, high = blocks[..., head:] & 15, blocks[..., head:] >> 4
            q = np.concatenate([low, high], axis=-1).astype(np.float32)
            if self.type == "Q4_0":
                return ((q - 8) * scale).reshape(self.shape)
            low_end = blocks[..., 2:4].copy().view("<f2").astype(np.float32)
            return (q * scale + low_end).reshape(self.shape)
        raise ModelError(f"tensor {self.name} is {self.type}, which this engine cannot read")


def mapped(path: Path) -> mmap.mmap:
    """A model's file, mapped and not read. Raises ModelError, also for an empty one."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: cannot be read: {e}") from None


class _Cursor:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self.size = data, path, 0, len(data)
        self.texts = 0

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: not a usable GGUF file: {what}")

    def take(self, n: int) -> bytes:
        if n < 0 or self.at + n > self.size:
            raise self.fail("it is truncated")
        if self.at + n > MAX_HEADER:
            raise self.fail(f"its header is longer than {MAX_HEADER:,} bytes")
        out = self.data[self.at : self.at + n]
        self.at += n
        return out

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        n = self.number("<Q")
        if n > MAX_STRING:
            raise self.fail(f"a string of {n:,} bytes")
        return self.take(n).decode("utf-8", "replace")

    def name(self, limit: int) -> str:
        """A key or a tensor's name: printable ASCII, not empty."""
        text = self.text()
        if not 1 <= len(text) <= limit or not text.isascii() or not text.isprintable():
            raise self.fail(f"a name of {len(text):,} characters that is none: {text!r:.40}")
        return text

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise self.fail(f"an unknown metadata type {kind}")
        inner, n = self.number("<I"), self.number("<Q")
        if n > MAX_ARRAY:
            raise self.fail(f"an array of {n:,} items")
        if inner in NUMPY:
            kind_ = np.dtype(NUMPY[inner])
            return np.frombuffer(self.take(n * kind_.itemsize), kind_)
        if inner != STRING:
            raise self.fail("an array of arrays" if inner == ARRAY else f"an array of the unknown type {inner}")
        self.texts += n
        if self.texts > MAX_TEXTS:
            raise self.fail(f"more than {MAX_TEXTS:,} strings")
        return [self.text() for _ in range(n)]


class Gguf:
    """A GGUF file's metadata (``fields``; ``types`` as GGUF numbers them) and tensors, mapped and not copied.

    Raises ModelError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = data = mapped(path)
        cursor = _Cursor(data, path)
        if cursor.take(4) != b"GGUF":
            raise cursor.fail("it does not start with GGUF")
        if (version := cursor.number("<I")) not in (2, 3):
            raise cursor.fail(f"version {version}")
        tensors, keys = cursor.number("<Q"), cursor.number("<Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise cursor.fail(f"it claims {tensors:,} tensors and {keys:,} keys")
        self.fields: dict[str, Any] = {}
        self.types: dict[str, int] = {}
        for _ in range(keys):
            key = cursor.name(MAX_KEY)
            if key in self.fields:
                raise cursor.fail(f"the key {key!r:.80} stands twice")
            self.types[key] = cursor.number("<I")
            self.fields[key] = cursor.value(self.types[key])
        self.tensors = self._tensors(cursor, tensors)

    def _tensors(self, cursor: _Cursor, count: int) -> dict[str, Tensor]:
        heads = []
        for _ in range(count):
            name, dims = cursor.name(MAX_NAME), cursor.number("<I")
            if not 1 <= dims <= 4:
                raise cursor.fail(f"tensor {name!r:.80} has {dims} dimensions")
            shape = tuple(cursor.number("<Q") for _ in range(dims))[::-1]
            heads.append((name, shape, cursor.number("<I"), cursor.number("<Q")))
        align = self.fields.get("general.alignment", 32)
        if self.types.get("general.alignment", UINT32) != UINT32 or not 1 <= align <= 4096 or align & (align - 1):
            raise cursor.fail(f"alignment {align!r:.40}")
        base = -(-cursor.at // align) * align
        out: dict[str, Tensor] = {}
        spans = []
        whole = np.frombuffer(self._map, np.uint8)
        for name, shape, code, offset in heads:
            if name in out:
                raise cursor.fail(f"the tensor {name!r:.80} stands twice")
            if code not in BLOCKS:
                raise cursor.fail(f"tensor {name!r:.80} has the unknown type {code}")
            kind, per, size = BLOCKS[code]
            values = 1
            for d in shape:
                values *= d
            if values == 0 or shape[-1] % per or offset % align:
                raise cursor.fail(f"tensor {name!r:.80} has an impossible shape or offset")
            start, length = base + offset, values // per * size
            if start + length > cursor.size:
                raise cursor.fail(f"tensor {name!r:.80} lies beyond its end (truncated?)")
            spans.append((start, length, name))
            out[name] = Tensor(name, kind, shape, whole[start : start + length])
        spans.sort()
        for (a, n, _), (b, _, second) in pairwise(spans):
            if a + n > b:
                raise cursor.fail(f"tensor {second!r:.80} overlaps another")
        return out

    def drop_pages(self) -> None:
        """Let the system take back the file's pages (they are read again when touched), where it can be told to."""
        if sys.platform != "win32":
            self._map.madvise(mmap.MADV_DONTNEED)

    def need(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """A metadata value that must be there. Raises ModelError naming the key."""
        value = self.fields.get(key)
        if not isinstance(value, kind):
            raise ModelError(f"{self.path}: its metadata lacks {key}")
        return value

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the whole file."""
        return hashlib.sha256(self._map).hexdigest()
