"""Tensor names: Hugging Face's ↔ GGUF's, for llama, qwen2, qwen3 and gemma3."""

from __future__ import annotations

import re
from collections.abc import Mapping

from popi_edge.errors import ModelError

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
LAYERS: Mapping[str, Mapping[str, str]] = {
    "llama": LAYER,
    "qwen2": LAYER,
    "qwen3": LAYER | HEAD_NORMS,
    "gemma3": LAYER
    | HEAD_NORMS
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}
"""What a layer is made of, by GGUF architecture."""
BIASED: Mapping[str, tuple[str, ...]] = {"qwen2": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
"""Which of it has a bias."""
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str, architecture: str = "llama") -> str:
    """Hugging Face's tensor name → GGUF's. Raises ModelError for a name that is not that architecture's."""
    layers = LAYERS.get(architecture, {})
    stem, _, end = name.rpartition(".")
    if end == "weight" and stem in TOP:
        return f"{TOP[stem]}.weight"
    found = re.fullmatch(r"model\.layers\.(\d{1,4})\.(.+)", stem)
    if found and (
        (end == "weight" and found[2] in layers) or (end == "bias" and found[2] in BIASED.get(architecture, ()))
    ):
        return f"blk.{int(found[1])}.{layers[found[2]]}.{end}"
    raise ModelError(f"{name!r:.100} is no tensor of a {architecture} model")


def hf_name(name: str, architecture: str = "llama") -> str:
    """GGUF's tensor name → Hugging Face's. Raises ModelError for a name that is not that architecture's."""
    stem, _, end = name.rpartition(".")
    top = {ours: theirs for theirs, ours in TOP.items()}
    found = re.fullmatch(r"blk\.(\d{1,4})\.(.+)", stem)
    if found:
        part = {ours: theirs for theirs, ours in LAYERS.get(architecture, {}).items()}.get(found[2], "")
        guess = f"model.layers.{int(found[1])}.{part}.{end}"
    else:
        guess = f"{top.get(stem, stem)}.{end}"
    if gguf_name(guess, architecture) != name:
        raise ModelError(f"{name!r:.100} is no tensor of a {architecture} model")
    return guess
