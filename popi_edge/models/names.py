"""Tensor names: Hugging Face's ↔ GGUF's, for llama models."""

from __future__ import annotations

import re

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
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """Hugging Face's tensor name → GGUF's. Raises ModelError for a name that is not llama's."""
    stem = name.removesuffix(".weight")
    if stem in TOP:
        return TOP[stem] + ".weight"
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if not found or found[2] not in LAYER:
        raise ModelError(f"{name} is no tensor of a llama model")
    return f"blk.{found[1]}.{LAYER[found[2]]}.weight"
