"""From a llama GGUF to a graph that ONNX Runtime runs: nothing is requantized, every block is carried over exactly.

Q4_1 has a scale d and a minimum m a block: w = d·q + m = d·(q − 8) + (m + 8d). The first term is MatMulNBits with its
fixed zero point 8, the second a product of each block's input sum with (m + 8d): exact, and as fast as 4-bit alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from popi_edge.engines.onnx_proto import FLOAT, INT32, INT64, Graph
from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf, Tensor

MS = "com.microsoft"
Array = NDArray[np.generic]
GROUPS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gu": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a llama model, from its metadata."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    vocabulary: int
    rope_base: float
    epsilon: float

    @classmethod
    def of(cls, gguf: Gguf) -> Shape:
        """Read and check them. Raises ModelError for another architecture or nonsense."""
        arch = gguf.need("general.architecture", str)
        if arch != "llama":
            raise ModelError(f"{gguf.path}: the onnx engine runs llama models, not {arch}; try the engine llama_cpp")

        def get(key: str, default: int | None = None) -> int:
            if default is not None and f"llama.{key}" not in gguf.fields:
                return default
            return int(gguf.need(f"llama.{key}", int))

        heads, hidden = get("attention.head_count"), get("embedding_length")
        scaling = [k for k in gguf.fields if k.startswith("llama.rope.scaling") and gguf.fields[k] != "none"]
        if scaling:
            raise ModelError(f"{gguf.path}: rope scaling ({scaling[0]}) is not supported by the onnx engine")
        rows = gguf.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in gguf.tensors else 0
        shape = cls(
            layers=get("block_count"),
            hidden=hidden,
            heads=heads,
            kv_heads=get("attention.head_count_kv", heads),
            head_dim=get("attention.key_length", hidden // max(heads, 1)),
            ffn=get("feed_forward_length"),
            context=get("context_length"),
            vocabulary=rows,
            rope_base=float(gguf.fields.get("llama.rope.freq_base", 10_000.0)),
            epsilon=float(gguf.need("llama.attention.layer_norm_rms_epsilon", float)),
        )
        limits = (shape.layers, hidden, heads, shape.kv_heads, shape.head_dim, shape.ffn, shape.context, rows)
        if not all(1 <= n <= 1 << 20 for n in limits) or heads % shape.kv_heads or shape.head_dim % 2:
            raise ModelError(f"{gguf.path}: its sizes make no sense")
        return shape

    def of_tensor(self, name: str) -> tuple[int, ...]:
        """The shape that a tensor of such a model must have, rows first."""
        part = name.split(".")[-2]
        if part.endswith("norm"):
            return (self.hidden,)
        out = {
            "attn_q": self.heads * self.head_dim,
            "attn_k": self.kv_heads * self.head_dim,
            "attn_v": self.kv_heads * self.head_dim,
            "attn_output": self.hidden,
            "ffn_gate": self.ffn,
            "ffn_up": self.ffn,
            "ffn_down": self.hidden,
        }.get(part, self.vocabulary)
        into = {"attn_output": self.heads * self.head_dim, "ffn_down": self.ffn}.get(part, self.hidden)
        return out, into

    def plain_rows(self, name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of a tensor, or of an adapter's B for it, from llama.cpp's order to Hugging Face's."""
        heads = {".attn_q.": self.heads, ".attn_k.": self.kv_heads}.get(name[name.find(".attn_") :][:8])
        return rows if heads is None else np.asarray(unpermute(rows, heads), np.float32)


def unpermute(rows: Array, heads: int) -> Array:
    """Undo llama.cpp's interleaving of rotary rows: axis 0 back to Hugging Face's half-split order."""
    n = rows.shape[0] // heads
    return rows.reshape(heads, n // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@dataclass
class Quantized:
    """One linear layer's rows in blocks: q [N, B, bytes], scale [N, B], offset [N, B] or None (all float32)."""

    bits: int
    q: NDArray[np.uint8]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32] | None


def repack(tensor: Tensor) -> Quantized | NDArray[np.float32]:
    """The blocks of a tensor [N, K] in MatMulNBits' layout, or plain float32 for F32/F16. Exact."""
    if tensor.type in ("F32", "F16"):
        return tensor.dequantize()
    if tensor.type not in ("Q4_0", "Q4_1", "Q8_0"):
        raise ModelError(f"tensor {tensor.name} is {tensor.type}; the onnx engine reads F32, F16, Q4_0, Q4_1, Q8_0")
    blocks = tensor.blocks()
    scale = blocks[..., :2].copy().view("<f2").astype(np.float32)[..., 0]
    if tensor.type == "Q8_0":
        return Quantized(8, blocks[..., 2:] ^ np.uint8(0x80), scale, None)
    nibbles = blocks[..., 2 if tensor.type == "Q4_0" else 4 :]
    low, high = nibbles & 15, nibbles >> 4  # elements 0..15 and 16..31; MatMulNBits wants neighbours in one byte
    halves = [low[..., 0::2] | low[..., 1::2] << 4, high[..., 0::2] | high[..., 1::2] << 4]
    q = np.concatenate(halves, axis=-1).astype(np.uint8)
    if tensor.type == "Q4_0":
        return Quantized(4, q, scale, None)
    return Quantized(4, q, scale, blocks[..., 2:4].copy().view("<f2").astype(np.float32)[..., 0] + 8 * scale)


class Builder:
    """Writes the graph of one model; ``hooks`` adds inputs for a low-rank adapter on every linear layer."""

    def __init__(self, gguf: Gguf, *, level: int, hooks: bool) -> None:
        self.gguf, self.shape, self.level, self.hooks = gguf, Shape.of(gguf), level, hooks
        self.graph = Graph()
        self.hook_shapes: dict[str, tuple[int, int]] = {}

    def tensor(self, name: str) -> Tensor:
        if name not in self.gguf.tensors:
            raise ModelError(f"{self.gguf.path}: it lacks the tensor {name}")
        found = self.gguf.tensors[name]
        if found.shape != self.shape.of_tensor(name):
            raise ModelError(f"{self.gguf.path}: {name} has the shape {found.shape}, which its metadata does not give")
        return found

    def _rows(self, name: str) -> Quantized | NDArray[np.float32]:
        packed = repack(self.tensor(name))
        if not re.search(r"attn_[qk]\.weight$", name):
            return packed
        heads = self.shape.heads if "attn_q" in name else self.shape.kv_heads
        if not isinstance(packed, Quantized):
            return unpermute(packed, heads)  # type: ignore[return-value]
        for part in ("q", "scale", "offset"):
            value = getattr(packed, part)
            if value is not None:
                setattr(packed, part, unpermute(value, heads))
        return packed

    def _product(self, x: str, sums: str | None, parts: list[Quantized | NDArray[np.float32]], out: str) -> str:
        """x @ Wᵀ for rows of ``parts`` one under the other; ``sums`` are x's block sums, where they are needed."""
        if not all(isinstance(p, Quantized) and p.bits == getattr(parts[0], "bits", 0) for p in parts):
            arrays = [self._float(p) for p in parts]
            return self.graph.node("MatMul", [x, self.graph.weight(out + ".w", np.concatenate(arrays).T)], out)
        quantized = [p for p in parts if isinstance(p, Quantized)]
        q = np.concatenate([p.q for p in quantized])
        scale = np.concatenate([p.scale for p in quantized])
        bits = quantized[0].bits
        n, blocks = scale.shape
        attributes = {"K": blocks * 32, "N": n, "bits": bits, "block_size": 32, "accuracy_level": self.level}
        needs = any(p.offset is not None for p in quantized)
        y = self.graph.node(
            "MatMulNBits",
            [x, self.graph.weight(out + ".q", q), self.graph.weight(out + ".d", scale.reshape(-1))],
            out + ".y" if needs else out,
            domain=MS,
            attributes=attributes,
        )
        if not needs:
            return y
        offset = np.concatenate([p.offset if p.offset is not None else np.zeros_like(p.scale) for p in quantized])
        assert sums is not None
        fix = self.graph.node("MatMul", [sums, self.graph.weight(out + ".m", offset.T)], out + ".fix")
        return self.graph.node("Add", [y, fix], out)

    @staticmethod
    def _float(part: Quantized | NDArray[np.float32]) -> NDArray[np.float32]:
        if not isinstance(part, Quantized):
            return part
        raise ModelError("one layer mixes float and quantized rows; the onnx engine cannot fuse them")

    def linear(self, layer: int, group: str, x: str, out: str) -> str:
        """One fused group of linear layers, with its adapter hook."""
        g = self.graph
        parts = [self._rows(f"blk.{layer}.{name}.weight") for name in GROUPS[group]]
        sums = None
        if any(isinstance(p, Quantized) and p.offset is not None for p in parts):
            split = g.node("Reshape", [x, "block_shape"], out + ".split")
            sums = g.node("ReduceSum", [split, "last_axis"], out + ".sums", attributes={"keepdims": 0})
        if not self.hooks:
            return self._product(x, sums, parts, out)
        base = self._product(x, sums, parts, out + ".base")
        name = f"{layer}.{group}"
        n = sum(self.tensor(f"blk.{layer}.{p}.weight").shape[0] for p in GROUPS[group])
        k = self.tensor(f"blk.{layer}.{GROUPS[group][0]}.weight").shape[1]
        self.hook_shapes[name] = (k, n)
        a = g.input(f"lora.{name}.a", FLOAT, [k, f"r.{name}"])
        b = g.input(f"lora.{name}.b", FLOAT, [f"r.{name}", n])
        low = g.node("MatMul", [x, a], out + ".lora_a")
        return g.node("Add", [base, g.node("MatMul", [low, b], out + ".lora")], out)

    def _norm(self, name: str) -> str:
        return self.graph.weight(name, self.tensor(name).dequantize())

    def _rope(self) -> tuple[str, str]:
        s = self.shape
        inverse = s.rope_base ** (-np.arange(0, s.head_dim, 2, dtype=np.float64) / s.head_dim)
        angles = np.outer(np.arange(s.context, dtype=np.float64), inverse)
        cos = self.graph.weight("rope.cos", np.cos(angles).astype(np.float32))
        return cos, self.graph.weight("rope.sin", np.sin(angles).astype(np.float32))

    def build(self) -> Graph:
        """The whole model: ``x`` [1, n, hidden] → ``logits`` [1, n − first, vocabulary], with growing KV buffers."""
        g, s = self.graph, self.shape
        if (s.hidden % 32 or s.ffn % 32) and any(t.type not in ("F32", "F16") for t in self.gguf.tensors.values()):
            raise ModelError(f"{self.gguf.path}: hidden size {s.hidden} is no multiple of 32")
        x = g.input("x", FLOAT, [1, "n", s.hidden])
        g.input("seqlens_k", INT32, [1])
        g.input("total", INT32, [])
        g.input("first", INT64, [1])
        g.constant("block_shape", np.array([0, 0, -1, 32], np.int64))
        g.constant("last_axis", np.array([-1], np.int64))
        g.constant("one", np.array([1], np.int64))
        g.constant("end", np.array([1 << 40], np.int64))
        cos, sin = self._rope()
        eps = {"epsilon": s.epsilon}
        h = g.node("SimplifiedLayerNormalization", [x, self._norm("blk.0.attn_norm.weight")], "n.0", attributes=eps)
        skip = x
        for i in range(s.layers):
            if i:
                norm = self._norm(f"blk.{i}.attn_norm.weight")
                h, skip = self._skip_norm(skip, "down." + str(i - 1), norm, f"n.{i}")
            qkv = self.linear(i, "qkv", h, f"qkv.{i}")
            kv: list[int | str] = [1, s.kv_heads, "c", s.head_dim]
            past = [g.input(f"past.{i}.{p}", FLOAT, kv) for p in ("k", "v")]
            outs = [f"attn.{i}", f"present.{i}.k", f"present.{i}.v"]
            for name in outs[1:]:
                g.output(name, FLOAT, kv)
            g.node(
                "GroupQueryAttention",
                [qkv, "", "", *past, "seqlens_k", "total", cos, sin],
                outs,
                domain=MS,
                attributes={"num_heads": s.heads, "kv_num_heads": s.kv_heads, "do_rotary": 1},
            )
            o = self.linear(i, "o", outs[0], f"o.{i}")
            h, skip = self._skip_norm(skip, o, self._norm(f"blk.{i}.ffn_norm.weight"), f"m.{i}")
            gate, up = f"gate.{i}", f"up.{i}"
            gu = self.linear(i, "gu", h, f"gu.{i}")
            g.node("Split", [gu], [gate, up], attributes={"axis": -1, "num_outputs": 2})
            silu = g.node("QuickGelu", [gate], f"silu.{i}", domain=MS, attributes={"alpha": 1.0})
            self.linear(i, "down", g.node("Mul", [silu, up], f"act.{i}"), f"down.{i}")
        h, _ = self._skip_norm(skip, f"down.{s.layers - 1}", self._norm("output_norm.weight"), "final")
        last = g.node("Slice", [h, "first", "end", "one"], "last")
        self._head(last)
        g.output("logits", FLOAT, [1, "m", s.vocabulary])
        return g

    def _skip_norm(self, skip: str, x: str, gamma: str, out: str) -> tuple[str, str]:
        added = out + ".sum"
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [x, skip, gamma],
            [out, "", "", added],
            domain=MS,
            attributes={"epsilon": self.shape.epsilon},
        )
        return out, added

    def _head(self, x: str) -> None:
        name = "output.weight" if "output.weight" in self.gguf.tensors else "token_embd.weight"
        part = repack(self.tensor(name))
        sums = None
        if isinstance(part, Quantized) and part.offset is not None:
            split = self.graph.node("Reshape", [x, "block_shape"], "logits.split")
            sums = self.graph.node("ReduceSum", [split, "last_axis"], "logits.sums", attributes={"keepdims": 0})
        self._product(x, sums, [part], "logits")
