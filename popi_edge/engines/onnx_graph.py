"""From a GGUF (llama, qwen2, qwen3, gemma3) to a graph that ONNX Runtime runs: nothing is requantized.

The same layers serve the engine, which feeds embedded rows and shares its KV buffers, and the exporter, which overrides
what goes in and out. Not covered: mixtures of experts, other kinds of rope scaling than linear, soft caps.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from popi_edge.engines.onnx_blocks import READ, Quantized, repack
from popi_edge.engines.onnx_proto import FLOAT, INT32, INT64, Attribute, Graph
from popi_edge.engines.onnx_shape import Shape, unpermute
from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf, Tensor

__all__ = ["GROUPS", "MS", "ROPE_FACTORS", "Builder", "Part", "Shape", "unpermute"]
MS = "com.microsoft"
GROUPS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "o": ("attn_output",),
    "gu": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
ROPE_FACTORS = "rope_freqs.weight"
MASKED = -1e30
"""Added to the score of a place that may not be seen: finite, so that a row of nothing else stays finite."""
Part = Quantized | NDArray[np.float32]


class Builder:
    """Writes the graph of one model; ``hooks`` names the groups of linear layers (``0.qkv``) that get inputs for a
    low-rank adapter. ``level`` is MatMulNBits' accuracy level; ``positions`` how long a context can be."""

    def __init__(
        self, gguf: Gguf, *, level: int, hooks: Collection[str] = (), positions: int = 0, graph: Graph | None = None
    ) -> None:
        self.gguf, self.shape, self.level, self.hooks = gguf, Shape.of(gguf), level, hooks
        self.positions = positions or self.shape.context
        self.graph = graph or Graph()
        self.hook_shapes: dict[str, tuple[int, int]] = {}
        self.used: set[str] = set()

    def tensor(self, name: str) -> Tensor:
        if name not in self.gguf.tensors:
            raise ModelError(f"{self.gguf.path}: it lacks the tensor {name}")
        found = self.gguf.tensors[name]
        if found.shape != self.shape.of_tensor(name):
            raise ModelError(f"{self.gguf.path}: {name} has the shape {found.shape}, which its metadata does not give")
        self.used.add(name)
        return found

    def rows(self, name: str) -> Part:
        """A matrix in Hugging Face's order of rows."""
        packed, heads = repack(self.tensor(name)), self.shape.permuted_heads(name)
        if heads is None:
            return packed
        if not isinstance(packed, Quantized):
            return self.shape.plain_rows(name, packed)
        for part in ("q", "scale", "offset"):
            value = getattr(packed, part)
            if value is not None:
                setattr(packed, part, unpermute(value, heads))
        return packed

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm's or a bias's values. Raises ModelError where they are not plain floats."""
        tensor = self.tensor(name)
        if tensor.type not in ("F32", "F16"):
            raise ModelError(f"{self.gguf.path}: {name} is {tensor.type}, where plain floats belong")
        return self.shape.plain_rows(name, tensor.dequantize())

    # linear layers -----------------------------------------------------------------------------------------------
    def sums(self, x: str, parts: list[Part], out: str) -> str | None:
        """The sums of x over each block, where a part has an offset for each."""
        if not any(isinstance(p, Quantized) and p.offset is not None for p in parts):
            return None
        split = self.reshape(x, [0, 0, -1, 32], out + ".split")
        axes = self.graph.constant("last_axis", np.array([-1], np.int64))
        return self.graph.node("ReduceSum", [split, axes], out + ".sums", attributes={"keepdims": 0})

    def reshape(self, x: str, shape: list[int], out: str) -> str:
        """x in another shape: 0 keeps a size, -1 takes what is left."""
        name = self.graph.constant("shape." + "_".join(map(str, shape)), np.array(shape, np.int64))
        return self.graph.node("Reshape", [x, name], out)

    def product(self, x: str, parts: list[Part], out: str) -> str:
        """x @ Wᵀ for rows of ``parts`` one under the other: one product where they are of one form."""
        sums = self.sums(x, parts, out)
        forms = {p.form if isinstance(p, Quantized) else None for p in parts}
        if len(forms) == 1:
            return self._alike(x, sums, parts, out)
        pieces = [self._alike(x, sums, [p], f"{out}.part{i}") for i, p in enumerate(parts)]
        return self.graph.node("Concat", pieces, out, attributes={"axis": -1})

    def _alike(self, x: str, sums: str | None, parts: list[Part], out: str) -> str:
        quantized = [p for p in parts if isinstance(p, Quantized)]
        if not quantized:
            whole = np.concatenate([p for p in parts if not isinstance(p, Quantized)])
            return self.graph.node("MatMul", [x, self.graph.weight(out + ".w", whole.T)], out)
        q = self.graph.weight(out + ".q", np.concatenate([p.q for p in quantized]))
        scale = np.concatenate([p.scale for p in quantized])
        d = self.graph.weight(out + ".d", scale.reshape(-1))
        needs = any(p.offset is not None for p in quantized)
        y = self.nbits(x, q, d, quantized[0], scale.shape, out + ".y" if needs else out)
        if not needs or sums is None:
            return y
        offset = np.concatenate([p.offset if p.offset is not None else np.zeros_like(p.scale) for p in quantized])
        fix = self.graph.node("MatMul", [sums, self.graph.weight(out + ".m", offset.T)], out + ".fix")
        return self.graph.node("Add", [y, fix], out)

    def nbits(self, x: str, q: str, d: str, form: Quantized, scales: tuple[int, ...], out: str) -> str:
        """The product with blocks around the middle zero point; ``scales`` is [N, B]."""
        n, blocks = scales
        size = {"K": blocks * form.block, "N": n, "bits": form.bits, "block_size": form.block}
        attributes: dict[str, Attribute] = {**size, "accuracy_level": self.level}
        return self.graph.node("MatMulNBits", [x, q, d], out, domain=MS, attributes=attributes)

    def linear(self, layer: int, group: str, x: str, out: str) -> str:
        """One fused group of linear layers, with its biases and its adapter hook."""
        g = self.graph
        names = [f"blk.{layer}.{name}" for name in GROUPS[group]]
        parts = [self.rows(name + ".weight") for name in names]
        biased = any(name + ".bias" in self.gguf.tensors for name in names)
        hook = f"{layer}.{group}" if f"{layer}.{group}" in self.hooks else None
        y = self.product(x, parts, out + ".base" if biased or hook else out)
        sizes = [self.shape.of_tensor(name + ".weight") for name in names]
        if biased:
            values = [
                self.vector(name + ".bias") if name + ".bias" in self.gguf.tensors else np.zeros(n, np.float32)
                for name, (n, _) in zip(names, sizes, strict=True)
            ]
            bias = g.weight(out + ".bias", np.concatenate(values))
            y = g.node("Add", [y, bias], out + ".biased" if hook else out)
        if not hook:
            return y
        self.hook_shapes[hook] = (k, n) = (sizes[0][1], sum(size[0] for size in sizes))
        a, b = self.hook_inputs(hook, k, n)
        low = g.node("MatMul", [x, a], out + ".lora_a")
        return g.node("Add", [y, g.node("MatMul", [low, b], out + ".lora")], out)

    def hook_inputs(self, hook: str, k: int, n: int) -> tuple[str, str]:
        """The names of a hook's A [K, r] and B [r, N], as inputs that must be fed."""
        rank = f"r.{hook}"
        a = self.graph.input(f"lora.{hook}.a", FLOAT, [k, rank])
        return a, self.graph.input(f"lora.{hook}.b", FLOAT, [rank, n])

    # the rest of a layer -----------------------------------------------------------------------------------------
    def norm(self, x: str, name: str, out: str) -> str:
        gamma = self.graph.weight(out + ".gamma", self.vector(name))
        attributes = {"epsilon": self.shape.epsilon}
        return self.graph.node("SimplifiedLayerNormalization", [x, gamma], out, attributes=attributes)

    def skip_norm(self, skip: str, x: str, name: str, out: str) -> tuple[str, str]:
        """The norm of x + skip, and x + skip."""
        added = out + ".sum"
        gamma = self.graph.weight(out + ".gamma", self.vector(name))
        attributes = {"epsilon": self.shape.epsilon}
        op = "SkipSimplifiedLayerNormalization"
        self.graph.node(op, [x, skip, gamma], [out, "", "", added], domain=MS, attributes=attributes)
        return out, added

    def frequencies(self, local: bool) -> NDArray[np.float64]:
        """The angle of one position for each pair of a head; llama 3 slows some by what stands in a tensor."""
        found = self.shape.frequencies(local)
        if ROPE_FACTORS not in self.gguf.tensors or self.shape.architecture != "llama":
            return found
        factors = self.vector(ROPE_FACTORS)
        if not (factors >= 1e-3).all():
            raise ModelError(f"{self.gguf.path}: {ROPE_FACTORS} holds what is no factor")
        return found / factors

    def heads(self, i: int, qkv: str) -> list[str]:
        """Q, K and V of a layer, Q and K with their heads normalized where the architecture does that."""
        s, parts = self.shape, [f"{p}.{i}" for p in "qkv"]
        widths = np.array([s.heads, s.kv_heads, s.kv_heads], np.int64) * s.head_dim
        self.graph.node("Split", [qkv, self.graph.constant("widths", widths)], parts, attributes={"axis": -1})
        if not s.head_norms:
            return parts
        for at, part in enumerate("qk"):
            split = self.reshape(parts[at], [0, 0, -1, s.head_dim], f"{part}.{i}.heads")
            normed = self.norm(split, f"blk.{i}.attn_{part}_norm.weight", f"{part}.{i}.normed")
            parts[at] = self.reshape(normed, [0, 0, -1], f"{part}.{i}.flat")
        return parts

    def attention(self, i: int, qkv: str, past: list[str], outs: list[str]) -> str:
        """Rotated by the operator itself, from tables; ``outs`` are the names of its result and of the new KV."""
        q_k_v = self.heads(i, qkv) if self.shape.head_norms else [qkv, "", ""]
        local = self.shape.is_local(i)
        tables = ["rope.local.cos", "rope.local.sin"] if local else ["rope.cos", "rope.sin"]
        bias = ["", "window"] if local else []
        return self.gqa(i, [*q_k_v, *past, "seqlens_k", "total", *tables, *bias], outs, rotary=1)

    def window(self, x: str) -> str:
        """What keeps a new position of ``x`` [b, n, …] from seeing places outside its window, [1, 1, n, total].

        The operator's own window is one place wider: whether it counts the position itself has changed over time.
        """
        g = self.graph
        zero, one = g.constant("zero", np.array(0, np.int64)), g.constant("one", np.array(1, np.int64))
        g.node("Cast", ["total"], "window.total", attributes={"to": INT64})
        g.node("Shape", [x], "window.shape")
        g.node("Gather", ["window.shape", one], "window.new")
        g.node("Sub", ["window.total", "window.new"], "window.past")
        g.node("Range", [zero, "window.total", one], "window.keys")
        g.node("Range", ["window.past", "window.total", one], "window.queries")
        column = self.reshape("window.queries", [-1, 1], "window.column")
        g.node("Sub", [column, "window.keys"], "window.distance")
        size = g.constant("window.size", np.array(self.shape.window, np.int64))
        g.node("GreaterOrEqual", ["window.distance", size], "window.outside")
        masked, open_ = g.constant("masked", np.array(MASKED, np.float32)), g.constant("open", np.array(0, np.float32))
        g.node("Where", ["window.outside", masked, open_], "window.flat")
        return g.node("Unsqueeze", ["window.flat", g.constant("outer", np.array([0, 1], np.int64))], "window")

    def gqa(self, i: int, inputs: list[str], outs: list[str], *, rotary: int) -> str:
        s = self.shape
        attributes: dict[str, Attribute] = {
            "num_heads": s.heads, "kv_num_heads": s.kv_heads, "do_rotary": rotary, "scale": s.attention_scale,
            "local_window_size": s.window + 1 if s.is_local(i) else -1,
        }  # fmt: skip
        return self.graph.node("GroupQueryAttention", inputs, outs, domain=MS, attributes=attributes)

    def activation(self, gate: str, out: str) -> str:
        if self.shape.gemma:
            return self.graph.node("Gelu", [gate], out, attributes={"approximate": "tanh"})
        return self.graph.node("QuickGelu", [gate], out, domain=MS, attributes={"alpha": 1.0})

    def layer(self, i: int, x: str, skip: str) -> tuple[str, str]:
        """One layer: what it adds to the stream, and the stream without it."""
        g, s, block = self.graph, self.shape, f"blk.{i}"
        h = self.norm(x, f"{block}.attn_norm.weight", f"n.{i}") if i == 0 else ""
        if i:
            h, x = self.skip_norm(skip, x, f"{block}.attn_norm.weight", f"n.{i}")
        qkv = self.linear(i, "qkv", h, f"qkv.{i}")
        past, present = self.cache(i)
        attended = self.attention(i, qkv, past, [f"attn.{i}", *present])
        o = self.linear(i, "o", attended, f"o.{i}")
        if s.gemma:
            o = self.norm(o, f"{block}.post_attention_norm.weight", f"o.{i}.normed")
        h, x = self.skip_norm(x, o, f"{block}.ffn_norm.weight", f"m.{i}")
        gate, up = f"gate.{i}", f"up.{i}"
        gu = self.linear(i, "gu", h, f"gu.{i}")
        g.node("Split", [gu], [gate, up], attributes={"axis": -1, "num_outputs": 2})
        active = g.node("Mul", [self.activation(gate, f"active.{i}"), up], f"act.{i}")
        down = self.linear(i, "down", active, f"down.{i}")
        if s.gemma:
            down = self.norm(down, f"{block}.post_ffw_norm.weight", f"down.{i}.normed")
        return down, x

    # the whole ---------------------------------------------------------------------------------------------------
    def build(self) -> Graph:
        """The whole model, every tensor of the file in it. Raises ModelError."""
        g, s = self.graph, self.shape
        x = self.front()
        if s.embedding_scale != 1.0:
            x = g.node("Mul", [x, g.constant("embedding_scale", np.array(s.embedding_scale, np.float32))], "scaled")
        skip = x
        for i in range(s.layers):
            x, skip = self.layer(i, x, skip)
        h, _ = self.skip_norm(skip, x, "output_norm.weight", "final")
        self.head(self.wanted(h))
        unknown = sorted(self.gguf.tensors.keys() - self.used)
        if unknown:
            raise ModelError(f"{self.gguf.path}: the onnx engine does not know its tensor {unknown[0]!r:.80}")
        return g

    def front(self) -> str:
        """The inputs: ``x`` [1, n, hidden], the number of positions, and the first one whose logits are wanted."""
        g, s = self.graph, self.shape
        if (embedding := self.tensor("token_embd.weight")).type not in READ:
            raise ModelError(f"{self.gguf.path}: its embedding is {embedding.type}; known: {', '.join(READ)}")
        x = g.input("x", FLOAT, [1, "n", s.hidden])
        g.input("seqlens_k", INT32, [1])
        g.input("total", INT32, [])
        g.input("first", INT64, [1])
        if any(s.local):
            self.window(x)
        for local, name in ((False, "rope"), (True, "rope.local")):
            if not local or any(s.local):
                angles = np.outer(np.arange(self.positions, dtype=np.float64), self.frequencies(local))
                g.weight(name + ".cos", np.cos(angles).astype(np.float32))
                g.weight(name + ".sin", np.sin(angles).astype(np.float32))
        return x

    def cache(self, i: int) -> tuple[list[str], list[str]]:
        """Names of a layer's old and new keys and values: one buffer each, longer than what is in it."""
        shape: list[int | str] = [1, self.shape.kv_heads, "c", self.shape.head_dim]
        past = [self.graph.input(f"past.{i}.{p}", FLOAT, shape) for p in "kv"]
        present = [f"present.{i}.{p}" for p in "kv"]
        for name in present:
            self.graph.output(name, FLOAT, shape)
        return past, present

    def wanted(self, h: str) -> str:
        """The positions whose logits are wanted."""
        end = self.graph.constant("end", np.array([1 << 40], np.int64))
        return self.graph.node("Slice", [h, "first", end, self.graph.constant("step", np.array([1], np.int64))], "last")

    def head(self, x: str) -> None:
        """``logits`` [1, m, vocabulary]."""
        tied = "output.weight" not in self.gguf.tensors
        self.product(x, [self.rows("token_embd.weight" if tied else "output.weight")], "logits")
        self.graph.output("logits", FLOAT, [1, "m", self.shape.vocabulary])
