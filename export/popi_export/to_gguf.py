"""Llama checkpoints and LoRA adapters → GGUF, on the ``gguf`` package's writer.

Covered: float32/float16 llama weights; LoRA on the linear layers. Not covered yet: other architectures, quantizing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from popi_edge.models.names import gguf_name

Array = NDArray[np.float32]


def permute(rows: Array, heads: int) -> Array:
    """Hugging Face's half-split rotary rows → llama.cpp's interleaved order, on axis 0."""
    out = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(out.reshape(rows.shape))


def _heads(name: str, heads: int, kv_heads: int) -> int | None:
    return heads if ".attn_q." in name else kv_heads if ".attn_k." in name else None


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
        target = gguf_name(module + ".weight")
        n = _heads(target, heads, kv_heads)
        writer.add_tensor(target + ".lora_a", np.ascontiguousarray(a, kind))
        writer.add_tensor(target + ".lora_b", (permute(b, n) if n else np.ascontiguousarray(b)).astype(kind))
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
