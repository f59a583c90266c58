"""``genai_config.json``: what onnxruntime-genai needs beside the direct ONNX files, which it runs as they are.

Seen with 0.18: llama, qwen2, qwen3, gemma3, and adapters through its own ``Adapters``. It also wants
``tokenizer.json`` and ``tokenizer_config.json`` in the folder. Not covered: optimum's files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from popi_edge.engines.onnx_shape import Shape
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer

FILE = "genai_config.json"
TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}


def config(gguf: Gguf, model: str, ends: tuple[int, ...] | None = None) -> dict[str, Any]:
    """The settings for the ONNX file named ``model`` that was made from ``gguf``; greedy unless the caller says else.

    ``ends`` are the ids that end a text, the runtime's own where not given. Raises ModelError.
    """
    shape = Shape.of(gguf)
    ends = ends or Tokenizer(gguf).eos_ids
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": model,
        "head_size": shape.head_dim,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    whole = {
        "bos_token_id": int(gguf.fields.get("tokenizer.ggml.bos_token_id", ends[0])),
        "context_length": shape.context,
        "decoder": decoder,
        "eos_token_id": list(ends),
        "pad_token_id": int(gguf.fields.get("tokenizer.ggml.padding_token_id", ends[0])),
        "type": TYPES[shape.architecture],
        "vocab_size": shape.vocabulary,
    }
    search = {"do_sample": False, "max_length": shape.context, "num_beams": 1, "past_present_share_buffer": False}
    return {"model": whole, "search": search}


def write(out: Path, gguf: Gguf, model: str, ends: tuple[int, ...] | None = None) -> Path:
    """Write the file into the folder ``out``. Raises ModelError."""
    path = out / FILE
    path.write_text(json.dumps(config(gguf, model, ends), indent=1) + "\n", "utf-8")
    return path
