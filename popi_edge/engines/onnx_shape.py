"""The sizes of a model, from its GGUF metadata, and what sets llama, qwen2, qwen3 and gemma3 apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf

Array = NDArray[np.generic]
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
PERIOD = 6
"""Of gemma3's layers every sixth sees everything, the others a window, where the file says nothing else."""
ROPE_BASE = 10_000.0
GEMMA_27B = 62
"""Layers of the one gemma3 that scales its attention by hidden / heads, not by the size of a head."""
REFUSED = (
    "attention.scale", "attn_logit_softcapping", "embedding_scale", "expert_count", "final_logit_softcapping",
    "logit_scale", "residual_scale",
)  # fmt: skip
"""Metadata that would change what is computed, and that the graph does not have."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. ``window`` is how many positions a local layer sees, ``local`` which layers are (none where
    it is empty); ``rope_factor`` divides the positions of a layer that sees everything."""

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
    architecture: str = "llama"
    window: int = 0
    local: tuple[bool, ...] = ()
    local_rope_base: float = ROPE_BASE
    rope_factor: float = 1.0

    @classmethod
    def of(cls, gguf: Gguf) -> Shape:
        """Read and check them. Raises ModelError for another architecture or nonsense."""
        arch = gguf.need("general.architecture", str)
        if arch not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ModelError(f"{gguf.path}: the onnx engine runs {known}, not {arch}; try the engine llama_cpp")

        def get(key: str, default: int | None = None) -> int:
            if default is not None and f"{arch}.{key}" not in gguf.fields:
                return default
            return int(gguf.need(f"{arch}.{key}", int))

        heads, hidden = get("attention.head_count"), get("embedding_length")
        for key in REFUSED:
            if gguf.fields.get(f"{arch}.{key}"):
                raise ModelError(f"{gguf.path}: {arch}.{key} is not supported by the onnx engine")
        head_dim = get("attention.key_length", hidden // max(heads, 1))
        rows = gguf.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in gguf.tensors else 0
        shape = cls(
            layers=get("block_count"),
            hidden=hidden,
            heads=heads,
            kv_heads=get("attention.head_count_kv", heads),
            head_dim=head_dim,
            ffn=get("feed_forward_length"),
            context=get("context_length"),
            vocabulary=rows,
            rope_base=_rope_base(gguf, f"{arch}.rope.freq_base"),
            epsilon=float(gguf.need(f"{arch}.attention.layer_norm_rms_epsilon", float)),
            architecture=arch,
            window=get("attention.sliding_window", 0) if arch == "gemma3" else 0,
            local=_local(gguf, arch, get("block_count")),
            local_rope_base=_rope_base(gguf, f"{arch}.rope.freq_base_swa"),
            rope_factor=_rope_factor(gguf, arch),
        )
        limits = (shape.layers, hidden, heads, shape.kv_heads, head_dim, shape.ffn, shape.context, rows)
        if not all(1 <= n <= 1 << 20 for n in limits) or heads % shape.kv_heads or head_dim % 2:
            raise ModelError(f"{gguf.path}: its sizes make no sense")
        if any(shape.local) and not 1 <= shape.window <= 1 << 20:
            raise ModelError(f"{gguf.path}: its local layers have no window")
        others = {get("attention.value_length", head_dim), get("rope.dimension_count", head_dim)}
        if others != {head_dim}:
            raise ModelError(f"{gguf.path}: keys, values and rotated parts of different sizes are not supported")
        return shape

    @property
    def gemma(self) -> bool:
        """Whether the layers have gemma's norms after attention and feed-forward, and its tanh-shaped gelu."""
        return self.architecture == "gemma3"

    @property
    def head_norms(self) -> bool:
        """Whether every head of Q and K is normalized before it is rotated."""
        return self.architecture in ("qwen3", "gemma3")

    @property
    def embedding_scale(self) -> float:
        """What the embedding's rows are multiplied by."""
        return float(self.hidden**0.5) if self.gemma else 1.0

    @property
    def attention_scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        whole = self.hidden / self.heads if self.gemma and self.layers == GEMMA_27B else self.head_dim
        return float(whole**-0.5)

    def is_local(self, layer: int) -> bool:
        """Whether a layer sees only its window."""
        return bool(self.local) and self.local[layer]

    def frequencies(self, local: bool) -> NDArray[np.float64]:
        """The angle in radians by which one position turns each pair of a head, shape [head_dim / 2]."""
        base, factor = (self.local_rope_base, 1.0) if local else (self.rope_base, self.rope_factor)
        inverse = base ** (-np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        return np.asarray(inverse / factor)

    def of_tensor(self, name: str) -> tuple[int, ...]:
        """The shape that a tensor of such a model must have, rows first."""
        part, kind = name.split(".")[-2:]
        if part == "rope_freqs":
            return (self.head_dim // 2,)
        if part.endswith("norm"):
            return (self.head_dim if part in ("attn_q_norm", "attn_k_norm") else self.hidden,)
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
        return (out,) if kind == "bias" else (out, into)

    def permuted_heads(self, name: str) -> int | None:
        """How many heads' rows a tensor holds in llama.cpp's own order; None where its order is the plain one."""
        if self.architecture != "llama":
            return None
        return {"attn_q": self.heads, "attn_k": self.kv_heads}.get(name.split(".")[2] if name.count(".") > 2 else "")

    def plain_rows(self, name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of a tensor, or of an adapter's B for it, from llama.cpp's order to Hugging Face's."""
        heads = self.permuted_heads(name)
        return rows if heads is None else np.asarray(unpermute(rows, heads), np.float32)


def _local(gguf: Gguf, arch: str, layers: int) -> tuple[bool, ...]:
    """Which of gemma3's layers see a window only. Raises ModelError for a pattern that does not fit."""
    if arch != "gemma3":
        return ()
    key = f"{arch}.attention.sliding_window_pattern"
    said = gguf.fields.get(key, PERIOD)
    if isinstance(said, np.ndarray) and said.dtype == np.bool_ and len(said) == layers:
        return tuple(bool(x) for x in said)
    if type(said) is not int or said < 1 or layers > 1 << 20:
        raise ModelError(f"{gguf.path}: {key} fits no {layers} layers")
    return tuple((i + 1) % said != 0 for i in range(layers))


def _rope_base(gguf: Gguf, key: str) -> float:
    """Rope's base. Raises ModelError where it is no number that makes sense."""
    value = gguf.fields.get(key, ROPE_BASE)
    if not isinstance(value, float) or not 1e-3 <= value <= 1e12:
        raise ModelError(f"{gguf.path}: {key} is absurd ({str(value)[:40]})")
    return value


def _rope_factor(gguf: Gguf, arch: str) -> float:
    """The factor of linear rope scaling. Raises ModelError for another kind of scaling."""
    prefix = f"{arch}.rope.scaling"
    kind = gguf.fields.get(f"{prefix}.type", "none")
    known = {"none": set(), "linear": {f"{prefix}.factor"}}.get(kind if isinstance(kind, str) else "")
    given = {k for k in gguf.fields if k.startswith(prefix)} - {f"{prefix}.type"}
    if known is None or given - known:
        raise ModelError(f"{gguf.path}: rope scaling ({str(kind)[:40]}) is not supported by the onnx engine")
    factor = float(gguf.need(f"{prefix}.factor", float)) if kind == "linear" else 1.0
    if not 1.0 <= factor <= 1024.0:
        raise ModelError(f"{gguf.path}: {prefix}.factor is absurd ({factor:g})")
    return factor


def unpermute(rows: Array, heads: int) -> Array:
    """Undo llama.cpp's interleaving of rotary rows: axis 0 back to Hugging Face's half-split order."""
    n = rows.shape[0] // heads
    return rows.reshape(heads, n // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
