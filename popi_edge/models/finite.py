"""Is every weight a number? What neither llama.cpp nor ONNX Runtime asks: they would answer with NaN.

Floats are looked at themselves, blocks of a GGUF by their scales, which is all of them that can be NaN or infinite.
Each byte is read once, a chunk at a time, so it takes about as long as reading the file does. Not covered: numbers that
are finite and yet too large for what is computed with them (an engine says so when such a model answers).
"""

from __future__ import annotations

from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ModelError
from popi_edge.models.gguf import BLOCKS, Gguf, Tensor

Buffer = bytes | mmap
CHUNK = 1 << 21
"""Bytes that are looked at together."""
SIZES = {name: size for name, _, size in BLOCKS.values()}
HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS",
                     "IQ3_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)), "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,),
}  # fmt: skip
"""Where in a block its scales are, as float16."""
EXPONENT = {"F32": ("<u4", 0x7F80_0000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F64": ("<u8", 0x7FF << 52)}
"""The bits that are all set in what is no finite number."""


class NotFinite(ModelError):
    """A model that holds NaN or an infinity."""


def check(file: Gguf) -> None:
    """Raises NotFinite naming the first tensor that holds NaN or an infinity."""
    read = 0
    for tensor in file.tensors.values():
        if not finite(tensor):
            raise NotFinite(f"{file.path}: {tensor.name} holds a value that is not finite (NaN or infinite)")
        read += tensor.data.nbytes
        if read > CHUNK:
            file.drop_pages()  # they would count as this process's memory, once more when the engine maps the file
            read = 0
    file.drop_pages()


def finite(tensor: Tensor) -> bool:
    """Whether every value of a tensor is a finite number."""
    size = SIZES[tensor.type]
    step = max(1, CHUNK // size) * size
    return all(_chunk(tensor.type, size, tensor.data[i : i + step]) for i in range(0, tensor.data.nbytes, step))


def _chunk(kind: str, size: int, data: NDArray[np.uint8]) -> bool:
    if kind in EXPONENT:
        dtype, exponent = EXPONENT[kind]
        return _below(data.view(dtype), exponent)
    words = data.view("<u2").reshape(-1, size // 2)
    if kind == "IQ1_M":  # one scale, four bits of it in each of the block's last four words
        parts = words[:, -4:] >> np.array([12, 8, 4, 0], np.uint16) & np.array([15, 240, 3840, 61440], np.uint16)
        return _below(np.bitwise_or.reduce(parts, axis=1), 0x7C00)
    return all(_below(words[:, at // 2], 0x7C00) for at in HALVES[kind])


def nan(data: Buffer, kind: str, start: int, length: int) -> bool:
    """Whether any of the numbers of ``kind`` in ``length`` bytes from ``start`` on is NaN."""
    dtype, exponent = EXPONENT[kind]
    size = np.dtype(dtype).itemsize
    for at in range(start, start + length, CHUNK):
        bits = np.frombuffer(data, dtype, min(CHUNK, start + length - at) // size, at)
        if len(bits) and int((bits & bits.dtype.type((1 << 8 * size - 1) - 1)).max()) > exponent:
            return True
    return False


def _below(bits: NDArray[Any], exponent: int) -> bool:
    return int((bits & bits.dtype.type(exponent)).max()) < exponent
