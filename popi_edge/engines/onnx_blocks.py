"""The blocks of a GGUF tensor in the layout of ONNX Runtime's MatMulNBits: every value is carried over exactly.

Q4_1 has a scale d and a minimum m a block: w = d·q + m = d·(q − 8) + (m + 8d). The first term is MatMulNBits with its
fixed zero point 8, the second a product of each block's input sum with (m + 8d): exact, and as fast as 4-bit alone.
Q6_K is eight bits in blocks of 16, its scale the product of a block's and a part's. Not covered: other quantizations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ModelError
from popi_edge.models.gguf import Tensor

FLOATS = ("F32", "F16")
READ = (*FLOATS, "Q4_0", "Q4_1", "Q8_0", "Q6_K")


@dataclass
class Quantized:
    """One linear layer's rows in blocks of ``block`` values: q [N, B, bytes], scale [N, B], offset [N, B] or None
    (both float32). A value is (q − 2^(bits − 1)) · scale + offset; four bits stand in pairs, the first one low."""

    bits: int
    block: int
    q: NDArray[np.uint8]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32] | None

    @property
    def form(self) -> tuple[int, int]:
        """What parts of one product must share."""
        return self.bits, self.block


def repack(tensor: Tensor) -> Quantized | NDArray[np.float32]:
    """The blocks of a tensor [N, K], or plain float32 for F32/F16. Exact. Raises ModelError for another type."""
    if tensor.type in FLOATS:
        return tensor.dequantize()
    if tensor.type not in READ:
        raise ModelError(f"tensor {tensor.name} is {tensor.type}; the onnx engine reads {', '.join(READ)}")
    blocks = tensor.blocks()
    if tensor.type == "Q6_K":
        return _q6_k(blocks)
    scale = blocks[..., :2].copy().view("<f2").astype(np.float32)[..., 0]
    if tensor.type == "Q8_0":
        return Quantized(8, 32, blocks[..., 2:] ^ np.uint8(0x80), scale, None)
    nibbles = blocks[..., 2 if tensor.type == "Q4_0" else 4 :]
    low, high = nibbles & 15, nibbles >> 4  # elements 0..15 and 16..31; MatMulNBits wants neighbours in one byte
    halves = [low[..., 0::2] | low[..., 1::2] << 4, high[..., 0::2] | high[..., 1::2] << 4]
    q = np.concatenate(halves, axis=-1).astype(np.uint8)
    if tensor.type == "Q4_0":
        return Quantized(4, 32, q, scale, None)
    return Quantized(4, 32, q, scale, blocks[..., 2:4].copy().view("<f2").astype(np.float32)[..., 0] + 8 * scale)


def _q6_k(blocks: NDArray[np.uint8]) -> Quantized:
    """256 values: four low bits [128 bytes], two high bits [64], sixteen int8 scales, one float16 scale."""
    n, b = blocks.shape[:2]
    low, high = blocks[..., :128].reshape(n, b, 2, 2, 32), blocks[..., 128:192].reshape(n, b, 2, 1, 32)
    four = np.concatenate([low & 15, low >> 4], axis=3)
    two = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    q = (four | two << 4).astype(np.uint8) + np.uint8(128 - 32)
    parts = blocks[..., 192:208].copy().view(np.int8).astype(np.float32)
    scale = parts * blocks[..., 208:210].copy().view("<f2").astype(np.float32)
    return Quantized(8, 16, q.reshape(n, b * 16, 16), scale.reshape(n, b * 16), None)


def values(part: Quantized) -> NDArray[np.float32]:
    """The numbers that blocks stand for, [N, K]: for tests, and for rows that are read on the host."""
    q = part.q if part.bits == 8 else np.stack([part.q & 15, part.q >> 4], axis=-1).reshape(*part.q.shape[:2], -1)
    out = (q.astype(np.float32) - np.float32(1 << part.bits - 1)) * part.scale[..., None]
    if part.offset is not None:
        out += part.offset[..., None]
    return np.asarray(out.reshape(len(q), -1), np.float32)
