"""Models and LoRA adapters → GGUF, on the ``gguf`` package's writer.

Covered: llama, qwen2, qwen3 and gemma3 in float32 and float16, tensor by tensor, so that memory holds about one;
adapters beside the model or merged into it. Quantizing is quantize.py's.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGUFValueType
from numpy.typing import NDArray

from popi_edge.errors import ConfigError, ModelError, StoreError
from popi_edge.files import cause
from popi_edge.models.gguf import CODES, Gguf
from popi_edge.models.names import gguf_name
from popi_export.architectures import ARRAY, Config, lora_to_gguf, permute
from popi_export.peft_adapter import Lora
from popi_export.source import Source

Array = NDArray[np.float32]
KINDS: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16}
FILE_TYPE = {"F32": 0, "F16": 1}
"""``general.file_type`` as llama.cpp numbers it."""


def write_model(path: Path, source: Source, kind: str, *, merge: str | None = None) -> None:
    """Write the base of ``source`` to ``path`` in float32 or, as llama.cpp does, its matrices in float16.

    ``merge`` names an adapter of the source that is added to its weights. ``path`` appears whole or not at all. Raises
    ConfigError (another kind, no such adapter), ModelError (a value that is not finite or too large for float16),
    StoreError (the disk).
    """
    if kind not in KINDS:
        raise ConfigError(f"a model is written as {' or '.join(KINDS)} here, not as {kind!r:.40}")
    if merge is not None and merge not in source.adapters:
        raise ConfigError(f"{source.path} has no adapter {merge!r:.40}")
    added = merged(source.adapters[merge], source.config) if merge is not None else {}
    parts = list(source.tensors())
    with _drafted(path) as draft:
        writer = gguf.GGUFWriter(draft, source.config.architecture)
        try:
            for key, code, value in source.fields:
                if key != "general.architecture":
                    _field(writer, key, code, value)
            writer.add_file_type(FILE_TYPE[kind])
            for name, shape, _ in parts:
                dtype = np.dtype(KINDS[kind] if len(shape) > 1 else np.float32)
                writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, shape, load in parts:
                value = load()
                if name in added:
                    value = value + added[name]()
                writer.write_tensor_data(_rounded(value, kind if len(shape) > 1 else "F32", name, source.path))
        finally:
            writer.close()


def merged(lora: Lora, config: Config) -> dict[str, Callable[[], Array]]:
    """What an adapter adds to each GGUF tensor: (alpha / rank)·B·A, computed when asked for."""
    out: dict[str, Callable[[], Array]] = {}
    scale = np.float32(lora.alpha / lora.rank)
    for module, pair in lora.layers.items():
        target, a, b = lora_to_gguf(module, *pair, config)
        out[target] = lambda a=a, b=b: (b @ a) * scale  # type: ignore[misc]
    return out


def _rounded(value: Array, kind: str, name: str, path: Path) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(value, KINDS[kind])
    if not np.isfinite(out).all():
        what = "after merging" if kind == "F32" else "as float16"
        raise ModelError(f"{path}: {name} holds values that are not finite {what}")
    return out


def _field(writer: gguf.GGUFWriter, key: str, code: int, value: Any) -> None:
    """One metadata entry; arrays keep their numbers' type."""
    kind = GGUFValueType(code)
    if code != ARRAY:
        writer.add_key_value(key, value, kind)
    elif len(value):
        inner = GGUFValueType(CODES[value.dtype]) if isinstance(value, np.ndarray) else None
        writer.add_key_value(key, value.tolist() if isinstance(value, np.ndarray) else list(value), kind, inner)


@contextmanager
def _drafted(path: Path) -> Iterator[Path]:
    """A draft beside ``path`` that takes its place once it reads back; gone when anything fails."""
    draft = path.with_name(f".{path.name[:40]}-{uuid.uuid4().hex[:12]}")
    try:
        yield draft
        Gguf(draft)  # also a full disk, which the writer may not notice
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as e:
        raise StoreError(f"cannot write {path}: {cause(e)}") from None
    finally:
        with suppress(OSError):
            draft.unlink()


def write_llama(
    path: Path,
    weights: Mapping[str, Array],
    config: Any,
    *,
    tokens: Sequence[str],
    merges: Sequence[str],
    types: Sequence[int],
    eos: int,
    chat_template: str,
    pre: str = "smollm",
    half: bool = False,
) -> None:
    """Write a llama model; ``config`` is a transformers LlamaConfig, ``weights`` its state dict as numpy arrays."""
    writer = gguf.GGUFWriter(path, "llama")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_merges(list(merges))
    writer.add_token_types(list(types))
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template)
    for name, value in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = gguf_name(name)
        n = _heads(target, heads, kv_heads)
        array = permute(value, n) if n else value
        writer.add_tensor(target, array.astype(np.float16) if half and array.ndim == 2 else array)
    _finish(writer)


def write_adapter(
    path: Path,
    layers: Mapping[str, tuple[Array, Array]],
    *,
    alpha: float,
    heads: int,
    kv_heads: int,
    architecture: str = "llama",
    half: bool = True,
) -> None:
    """Write a LoRA adapter, f16 by default: one file that llama.cpp and the onnx engine both read.

    ``layers`` maps Hugging Face module names (``model.layers.0.self_attn.q_proj``) to A [r, K] and B [N, r].
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    kind = np.float16 if half else np.float32
    for module, (a, b) in layers.items():
        target = gguf_name(module + ".weight", architecture)
        n = _heads(target, heads, kv_heads) if architecture == "llama" else None
        writer.add_tensor(target + ".lora_a", np.ascontiguousarray(a, kind))
        writer.add_tensor(target + ".lora_b", (permute(b, n) if n else np.ascontiguousarray(b)).astype(kind))
    _finish(writer)


def write_lora(path: Path, lora: Lora, config: Config, *, half: bool = True) -> None:
    """Write an adapter of a Source. Raises ModelError where float16 cannot hold it."""
    if half and any(np.abs(x).max() > np.finfo(np.float16).max for pair in lora.layers.values() for x in pair):
        raise ModelError("the adapter holds values that float16 cannot hold")
    write_adapter(
        path, lora.layers, alpha=lora.alpha, heads=config.heads, kv_heads=config.kv_heads,
        architecture=config.architecture, half=half,
    )  # fmt: skip


def _heads(name: str, heads: int, kv_heads: int) -> int | None:
    return heads if ".attn_q." in name else kv_heads if ".attn_k." in name else None


def _finish(writer: gguf.GGUFWriter) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
