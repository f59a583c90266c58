"""Do the sizes that a GGUF model states fit its tensors? What llama.cpp would find out only while it loads the file.

Covered: every tensor's name and shape of llama (mixtures of experts too), qwen2, qwen3 and gemma3; of another
architecture the embedding's rows and width, and that no layer is numbered beyond their count. Not covered: what the
weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf
from popi_edge.models.names import BIASED, LAYERS

Shapes = Mapping[str, tuple[int, ...]]
EMBEDDING = "token_embd.weight"


def check(file: Gguf) -> None:
    """Raises ModelError naming a tensor that is missing, unknown or not of the shape that the metadata gives it."""
    architecture = file.need("general.architecture", str)
    _embedding(file, architecture)
    if architecture in LAYERS:
        sizes = _Sizes.of(file, architecture)
        needed = sizes.tensors(file)
        if lacking := next((name for name in needed if name not in file.tensors), None):
            raise ModelError(f"{file.path}: it lacks the tensor {lacking}")
        for name, tensor in file.tensors.items():
            shape = needed.get(name) or sizes.optional(name, needed)
            if shape is None:
                raise ModelError(f"{file.path}: the tensor {name!r:.80} is not one of a {architecture} model")
            _same(file, name, tensor.shape, shape)


def _same(file: Gguf, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise ModelError(f"{file.path}: {name} has the shape {list(found)}, its metadata gives {list(wanted)}")


def _embedding(file: Gguf, architecture: str) -> None:
    """The embedding's rows and width, and the numbers of the layers, which say the same in every architecture."""
    tokens, found = file.fields.get("tokenizer.ggml.tokens"), file.tensors.get(EMBEDDING)
    if found is not None:
        rows = len(tokens) if isinstance(tokens, list) else found.shape[0]
        width = file.fields.get(f"{architecture}.embedding_length", found.shape[-1])
        _same(file, EMBEDDING, found.shape, (rows, width))
    layers = file.fields.get(f"{architecture}.block_count")
    numbers = {int(part[1]) for name in file.tensors if (part := name.split("."))[0] == "blk" and part[1:2] != []
               and part[1].isdecimal()}  # fmt: skip
    if layers is not None and numbers and max(numbers) >= layers:
        raise ModelError(f"{file.path}: it has a layer {max(numbers)}, but its metadata says {layers} layers")


@dataclass(frozen=True)
class _Sizes:
    """``heads``, ``kv_heads`` and ``ffn`` are those of each layer."""

    architecture: str
    hidden: int
    rows: int
    heads: list[int]
    kv_heads: list[int]
    ffn: list[int]
    head_dim: int
    value_dim: int
    rotated: int
    experts: int

    @classmethod
    def of(cls, file: Gguf, architecture: str) -> _Sizes:
        """Raises ModelError where one is missing, or they do not go together."""

        def get(key: str, default: int | None = None) -> int:
            name = f"{architecture}.{key}"
            return int(file.need(name, int)) if default is None or name in file.fields else default

        def each(key: str, default: list[int] | None = None) -> list[int]:
            value = file.fields.get(f"{architecture}.{key}")
            if isinstance(value, np.ndarray):
                if len(value) != layers:
                    raise ModelError(f"{file.path}: {architecture}.{key} is not one number for each of {layers} layers")
                return [int(n) for n in value]
            return default if default is not None and value is None else [get(key)] * layers

        layers, hidden = get("block_count"), get("embedding_length")
        heads = each("attention.head_count")
        kv_heads = each("attention.head_count_kv", heads)
        if not hidden or not all(n and k and n % k == 0 for n, k in zip(heads, kv_heads, strict=True)):
            raise ModelError(f"{file.path}: its sizes make no sense")
        head_dim = get("attention.key_length", hidden // heads[0])
        rotated = get("rope.dimension_count", head_dim)
        if rotated > head_dim or (architecture == "llama" and rotated != head_dim):
            raise ModelError(f"{file.path}: it rotates {rotated} of the {head_dim} numbers of a head")
        experts = get("expert_count", 0) if architecture == "llama" else 0
        rows = file.tensors[EMBEDDING].shape[0] if EMBEDDING in file.tensors else 0
        return cls(architecture, hidden, rows, heads, kv_heads, each("feed_forward_length"), head_dim,
                   get("attention.value_length", head_dim), rotated, experts)  # fmt: skip

    def tensors(self, file: Gguf) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor that the model cannot be without, rows first."""
        found: dict[str, tuple[int, ...]] = {EMBEDDING: (self.rows, self.hidden), "output_norm.weight": (self.hidden,)}
        for i in range(len(self.heads)):
            parts = self.layer(i)
            if f"blk.{i}.attn_qkv.weight" in file.tensors:  # the three as one
                rows = sum(parts.pop(name)[0] for name in ("attn_q", "attn_k", "attn_v"))
                parts["attn_qkv"] = (rows, self.hidden)
            found |= {f"blk.{i}.{name}.weight": shape for name, shape in parts.items()}
            biased = {LAYERS[self.architecture][part] for part in BIASED.get(self.architecture, ())}
            found |= {f"blk.{i}.{name}.bias": parts[name][:1] for name in biased & set(parts)}
        return found

    def layer(self, i: int) -> dict[str, tuple[int, ...]]:
        """Those of a layer, by their names in it."""
        h, f, e = self.hidden, self.ffn[i], self.experts
        q, k, v = self.heads[i] * self.head_dim, self.kv_heads[i] * self.head_dim, self.kv_heads[i] * self.value_dim
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q": (q, h), "attn_k": (k, h), "attn_v": (v, h), "attn_output": (h, q),
            "attn_q_norm": (self.head_dim,), "attn_k_norm": (self.head_dim,),
            "ffn_gate": (f, h), "ffn_up": (f, h), "ffn_down": (h, f),
        }  # fmt: skip
        parts = {name: shapes.get(name, (h,)) for name in LAYERS[self.architecture].values()}
        if not e:
            return parts
        dense = ("ffn_gate", "ffn_up", "ffn_down")
        experts = {"ffn_gate_inp": (e, h), **{f"{name}_exps": (e, *shapes[name]) for name in dense}}
        return {name: shape for name, shape in parts.items() if name not in dense} | experts

    def optional(self, name: str, needed: Shapes) -> tuple[int, ...] | None:
        """The shape of a tensor that such a model may have; None for one that it may not."""
        top: Shapes = {
            "output.weight": (self.rows, self.hidden), "output.bias": (self.rows,),
            **{f"{rope}.weight": (self.rotated // 2,)
               for rope in ("rope_freqs", "rope_factors_long", "rope_factors_short")},
        }  # fmt: skip
        stem, _, end = name.rpartition(".")
        matrix = needed.get(f"{stem}.weight", ())
        if len(matrix) == 2 and stem != "token_embd":
            return {"bias": matrix[:1], "scale": (1,)}.get(end)
        return top.get(name)
