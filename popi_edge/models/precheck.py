"""Our own bounded look at a file of a user's before llama.cpp or ONNX Runtime sees it: GGUF or ONNX, model or adapter.

Counts, lengths, types, offsets, nesting and names are checked in bounded memory and time, and that sizes and tensors
fit each other (``fit``); then that every weight is a number (``finite``), which reads the file once. Not covered: what
the weights compute, memory that a well-formed model needs while it runs, and whoever writes to the file between this
and its use.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from popi_edge.errors import ModelError
from popi_edge.models import finite, fit, onnx_adapter_check, onnx_check
from popi_edge.models.gguf import ARRAY, STRING, Gguf

INTEGERS = frozenset({0, 1, 2, 3, 4, 5, 10, 11})
FLOATS = frozenset({6, 12})
LAYERS = 512
SIZES = {
    "block_count": (1, LAYERS),
    "context_length": (0, 1 << 24),
    "embedding_length": (0, 1 << 17),
    "feed_forward_length": (0, 1 << 20),
    "vocab_size": (0, 1 << 22),
    "attention.head_count": (0, 1 << 12),
    "attention.head_count_kv": (0, 1 << 12),
    "attention.key_length": (0, 1 << 14),
    "attention.value_length": (0, 1 << 14),
    "rope.dimension_count": (0, 1 << 14),
    "expert_count": (0, 256),
    "expert_used_count": (0, 256),
    "expert_group_count": (0, 256),
    "expert_group_used_count": (0, 256),
}
"""The smallest and largest size of each that is not absurd: llama.cpp ends the whole process at some others."""
PER_LAYER = frozenset(
    {"feed_forward_length", "attention.head_count", "attention.head_count_kv", "expert_used_count"}
)
FACTORS = {
    "attention.layer_norm_rms_epsilon": (0.0, 1.0),
    "attention.layer_norm_epsilon": (0.0, 1.0),
    "rope.freq_base": (1e-3, 1e12),
}
TEXTS = ("general.type", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template")
IDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")


def model(path: Path) -> Gguf:
    """A GGUF model, its header and its weights checked. Raises ModelError."""
    file = Gguf(path)
    architecture = file.need("general.architecture", str)
    if len(architecture) > 64 or not architecture.isascii() or not architecture.isprintable():
        raise ModelError(f"{path}: an architecture of no name: {architecture!r:.40}")
    if file.fields.get("split.count", 0) not in (0, 1):
        raise ModelError(f"{path}: a part of a split model, which would open its other parts; merge them first")
    largest = {
        name: _size(file, f"{architecture}.{name}", limits, name in PER_LAYER) for name, limits in SIZES.items()
    }
    _experts(path, largest)
    for name, (low, high) in FACTORS.items():
        value = file.fields.get(key := f"{architecture}.{name}", low)
        if file.types.get(key, 6) not in FLOATS or not low <= value <= high:
            raise ModelError(f"{path}: {key} is absurd ({str(value)[:40]})")
    _vocabulary(file)
    fit.check(file)
    finite.check(file)
    return file


def _size(file: Gguf, key: str, limits: tuple[int, int], per_layer: bool) -> int:
    """The size, the largest where each layer has its own; 0 where there is none."""
    kind, value = file.types.get(key), file.fields.get(key)
    if kind is None:
        return 0
    if kind == ARRAY and per_layer and isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        values = [int(v) for v in value[: LAYERS + 1]]
    elif kind in INTEGERS and isinstance(value, int):
        values = [value]
    else:
        raise ModelError(f"{file.path}: {key} is no whole number")
    if len(values) > LAYERS or any(not limits[0] <= v <= limits[1] for v in values):
        raise ModelError(f"{file.path}: {key} is absurd ({str(value)[:40]})")
    return max(values, default=0)


def _experts(path: Path, size: dict[str, int]) -> None:
    """A mixture of experts uses some of them, in groups of one size; llama.cpp ends the process where it does not."""
    count, used = size["expert_count"], size["expert_used_count"]
    groups, groups_used = size["expert_group_count"], size["expert_group_used_count"]
    fits = used <= count and bool(used) == bool(count) and (groups < count or groups == 0)
    if groups > 1:
        fits = fits and count % groups == 0 and 0 < groups_used < groups
    if not fits:
        raise ModelError(f"{path}: it uses {used} of {count} experts, {groups_used} of {groups} groups: absurd")


def _vocabulary(file: Gguf) -> None:
    """The types of what a tokenizer is made from, and that its end tokens are in it."""
    for key in TEXTS:
        if file.types.get(key, STRING) != STRING:
            raise ModelError(f"{file.path}: {key} is no text")
    tokens, types = file.fields.get("tokenizer.ggml.tokens"), file.fields.get("tokenizer.ggml.token_type")
    if types is not None and not (isinstance(types, np.ndarray) and isinstance(tokens, list)):
        raise ModelError(f"{file.path}: tokenizer.ggml.token_type is no list of numbers")
    for key in IDS:
        value = file.fields.get(key, 0)
        if key in file.types and (file.types[key] not in INTEGERS or not 0 <= value < len(tokens or ())):
            raise ModelError(f"{file.path}: {key} is no token of its vocabulary")


def adapter(path: Path) -> Gguf:
    """A LoRA adapter, checked as far as it can be without its base. Raises ModelError."""
    file = Gguf(path)
    if file.fields.get("general.type") != "adapter" or file.fields.get("adapter.type") != "lora":
        raise ModelError(f"{path}: not a LoRA adapter")
    file.need("general.architecture", str)
    alpha = file.need("adapter.lora.alpha", float)
    if not np.isfinite(alpha):
        raise ModelError(f"{path}: adapter.lora.alpha is not finite")
    for name, tensor in file.tensors.items():
        if not name.endswith((".lora_a", ".lora_b")) or len(tensor.shape) != 2:
            raise ModelError(f"{path}: the tensor {name!r:.80} is not part of a LoRA adapter")
    finite.check(file)
    return file


def any_file(path: Path) -> dict[str, object]:
    """Check a file of any kind by how it begins (ONNX models do not say so); returns what it is. Raises ModelError."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror}") from None
    if start[4:] == onnx_adapter_check.IDENTIFIER:
        return {"kind": "ONNX Runtime adapter", "parameters": len(onnx_adapter_check.check(path))}
    if start[:4] != b"GGUF":
        try:
            found = onnx_check.check(path)
        except ModelError as e:
            if path.suffix == ".onnx":
                raise
            raise ModelError(str(e).replace("not a usable ONNX", "no GGUF file, and not a usable ONNX")) from None
        beside = sorted({name for name, _, _ in found.external})
        return {"kind": "ONNX model", "tensors": found.tensors, "nodes": found.nodes, "files_beside": beside}
    lora = Gguf(path).fields.get("general.type") == "adapter"
    file_ = adapter(path) if lora else model(path)
    return {"kind": "GGUF adapter" if lora else "GGUF model", "tensors": len(file_.tensors), "keys": len(file_.fields)}
