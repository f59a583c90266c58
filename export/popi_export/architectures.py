"""What llama, qwen2, qwen3 and gemma3 look like in GGUF: metadata, tensors with their shapes, and how a tensor's
numbers differ from Hugging Face's (llama's rotary rows are interleaved, gemma3's norms hold 1 + w).

Names are popi_edge.models.names'. Gemma's embedding scale is no number in the file: llama.cpp multiplies by
sqrt(hidden) itself. Not covered: other architectures, mixtures of experts, biases other than qwen2's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ModelError
from popi_edge.models.gguf import STRING, UINT32, Gguf
from popi_edge.models.names import BIASED, LAYERS, gguf_name
from popi_edge.models.precheck import LAYERS as LAYERS_MOST

Array = NDArray[np.float32]
Field = tuple[str, int, Any]
"""A metadata entry: key, GGUF type, value; an array's value is a list or numpy array."""
FLOAT32, BOOL, ARRAY = 6, 7, 9
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
"""Hugging Face's ``model_type`` → GGUF's architecture."""
ACTIVATION = {"llama": "silu", "qwen2": "silu", "qwen3": "silu", "gemma3": "gelu_pytorch_tanh"}
PERIOD = 6
"""Gemma 3: every sixth layer sees everything; what llama.cpp assumes where a file says nothing."""
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's stretched rope: waves longer than the old context by ``low`` are slowed by ``factor``."""

    factor: float
    low: float
    high: float
    old_context: int


@dataclass(frozen=True)
class Config:
    """A model's sizes, whatever wrote them. ``local`` says for each layer of gemma3 whether it sees a window only."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    vocabulary: int
    epsilon: float
    rope_base: float
    tied: bool
    linear: float = 1.0
    """Positions are divided by this (linear rope scaling), in gemma3 on layers that see everything."""
    scaling: Llama3Scaling | None = None
    local: tuple[bool, ...] = ()
    window: int = 0
    local_base: float = 10_000.0


def metadata(c: Config) -> list[Field]:
    """The model's own entries, without the tokenizer's."""
    arch = c.architecture
    out: list[Field] = [("general.architecture", STRING, arch)]
    sizes = {
        "block_count": c.layers,
        "context_length": c.context,
        "embedding_length": c.hidden,
        "feed_forward_length": c.ffn,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "rope.dimension_count": c.head_dim,
        "vocab_size": c.vocabulary,
    }
    out += [(f"{arch}.{key}", UINT32, value) for key, value in sizes.items()]
    out.append((f"{arch}.attention.layer_norm_rms_epsilon", FLOAT32, c.epsilon))
    out.append((f"{arch}.rope.freq_base", FLOAT32, c.rope_base))
    if c.linear != 1.0:
        out += [(f"{arch}.rope.scaling.type", STRING, "linear"), (f"{arch}.rope.scaling.factor", FLOAT32, c.linear)]
    if arch == "gemma3":
        out.append((f"{arch}.attention.sliding_window", UINT32, c.window))
        out.append((f"{arch}.rope.freq_base_swa", FLOAT32, c.local_base))
        if c.local != tuple((i + 1) % PERIOD != 0 for i in range(c.layers)):
            out.append((f"{arch}.attention.sliding_window_pattern", ARRAY, [bool(x) for x in c.local]))
    return out


def tensors(c: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Hugging Face's name and shape of every tensor of such a model, in the order in which the file holds them."""
    q, kv, h = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.hidden
    shapes: Mapping[str, tuple[int, ...]] = {
        "self_attn.q_proj": (q, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, q), "mlp.gate_proj": (c.ffn, h), "mlp.up_proj": (c.ffn, h), "mlp.down_proj": (h, c.ffn),
        "self_attn.q_norm": (c.head_dim,), "self_attn.k_norm": (c.head_dim,),
    }  # fmt: skip
    yield "model.embed_tokens.weight", (c.vocabulary, h)
    for i in range(c.layers):
        for part in LAYERS[c.architecture]:
            shape = shapes.get(part, (h,))
            yield f"model.layers.{i}.{part}.weight", shape
            if part in BIASED.get(c.architecture, ()):
                yield f"model.layers.{i}.{part}.bias", shape[:1]
    yield "model.norm.weight", (h,)
    if not c.tied:
        yield "lm_head.weight", (c.vocabulary, h)


def permute(rows: Array, heads: int) -> Array:
    """Hugging Face's half-split rotary rows → llama.cpp's interleaved order, on axis 0."""
    out = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(out.reshape(rows.shape))


def rotary_heads(target: str, c: Config) -> int | None:
    """How many heads' rows of a GGUF tensor are interleaved; None where rows stay as they are."""
    if c.architecture != "llama":
        return None
    return {"attn_q": c.heads, "attn_k": c.kv_heads}.get(target.rsplit(".", 2)[-2])


def to_gguf(name: str, value: Array, c: Config) -> Array:
    """A tensor's numbers as GGUF has them, given Hugging Face's name and numbers."""
    target = gguf_name(name, c.architecture)
    heads = rotary_heads(target, c)
    if heads is not None:
        return permute(value, heads)
    return value + np.float32(1) if c.architecture == "gemma3" and value.ndim == 1 else value


def lora_to_gguf(module: str, a: Array, b: Array, c: Config) -> tuple[str, Array, Array]:
    """An adapter's layer as GGUF has it: the tensor's name, A [r, in] and B [out, r]."""
    target = gguf_name(f"{module}.weight", c.architecture)
    heads = rotary_heads(target, c)
    return target, a, b if heads is None else permute(b, heads)


def from_gguf(target: str, value: Array, c: Config) -> Array:
    """The opposite of ``to_gguf``, given GGUF's name and numbers."""
    heads = rotary_heads(target, c)
    if heads is not None:
        n = value.shape[0] // heads
        halves = value.reshape(heads, n // 2, 2, *value.shape[1:]).swapaxes(1, 2)
        return np.ascontiguousarray(halves.reshape(value.shape))
    return value - np.float32(1) if c.architecture == "gemma3" and value.ndim == 1 else value


def config_of(file: Gguf) -> Config:
    """The sizes that a GGUF model's metadata states. Raises ModelError for another architecture or what is odd."""
    arch = file.need("general.architecture", str)
    if arch not in LAYERS:
        raise ModelError(f"{file.path}: {arch!r:.40} is not one of {', '.join(LAYERS)}")

    def get(key: str, kind: type, default: Any = None) -> Any:
        name = f"{arch}.{key}"
        return file.need(name, kind) if default is None or name in file.fields else default

    heads, hidden = get("attention.head_count", int), get("embedding_length", int)
    layers, kind = get("block_count", int), get("rope.scaling.type", str, "none")
    if kind not in ("none", "linear") or not 1 <= layers <= LAYERS_MOST or not 1 <= heads <= hidden:
        raise ModelError(f"{file.path}: its sizes or its rope scaling ({kind!r:.40}) are not supported")
    head_dim = get("attention.key_length", int, hidden // heads)
    if {get("attention.value_length", int, head_dim), get("rope.dimension_count", int, head_dim)} != {head_dim}:
        raise ModelError(f"{file.path}: heads whose values or rotary part have another size are not supported")
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path}: it has no embedding")
    local: tuple[bool, ...] = ()
    if arch == "gemma3":
        said = file.fields.get(f"{arch}.attention.sliding_window_pattern", PERIOD)
        local = tuple(bool(said[i]) if isinstance(said, np.ndarray) else (i + 1) % int(said) != 0
                      for i in range(layers))  # fmt: skip
    return Config(
        architecture=arch, layers=layers, hidden=hidden, heads=heads,
        kv_heads=get("attention.head_count_kv", int, heads),
        head_dim=head_dim, ffn=get("feed_forward_length", int),
        context=get("context_length", int), vocabulary=file.tensors["token_embd.weight"].shape[0],
        epsilon=get("attention.layer_norm_rms_epsilon", float), rope_base=get("rope.freq_base", float, 10_000.0),
        tied="output.weight" not in file.tensors,
        linear=get("rope.scaling.factor", float, 1.0) if kind == "linear" else 1.0,
        local=local, window=get("attention.sliding_window", int, 0) if arch == "gemma3" else 0,
        local_base=get("rope.freq_base_swa", float, 10_000.0),
    )  # fmt: skip


def rope_factors(c: Config) -> Array | None:
    """What llama.cpp divides each rotary frequency by, [head_dim / 2]; None without llama 3's scaling."""
    s = c.scaling
    if s is None:
        return None
    waves = 2 * math.pi * c.rope_base ** (np.arange(0, c.head_dim, 2, dtype=np.float64) / c.head_dim)
    blend = np.clip((s.old_context / waves - s.low) / (s.high - s.low), 0, 1)
    """1: a short wave, kept; 0: a long one, slowed by the whole factor."""
    return np.asarray(1 / ((1 - blend) / s.factor + blend), np.float32)
