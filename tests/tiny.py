"""Tiny models that the tests make: a random llama with its own byte-level vocabulary, and random adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from popi_export.to_gguf import write_adapter, write_llama
from popi_training.micro import TEMPLATE, vocabulary

TEXT = [
    "Prefers short, direct answers with concrete examples and plain words.",
    "Explain how a heat pump works, step by step, and say why each step is needed.",
    "It's a fine day; we'll walk 12 miles!\n\nThen: rest, read, and eat.",
] * 20
MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def llama(
    path: Path, *, seed: int = 0, tied: bool = True, half: bool = False, context: int = 1024, hidden: int = 96,
    heads: int = 6, ffn: int = 160, layers: int = 4,
) -> Any:  # fmt: skip
    """Write a random llama as GGUF; returns the torch model with the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens, merges, types = vocabulary(TEXT, 400)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=context,
        rope_theta=50_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim == 2 else 0.1) + (p.ndim == 1))
            if half and p.ndim == 2:
                p.copy_(p.half().float())
            assert torch.isfinite(p).all(), name
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    write_llama(
        path, weights, config, tokens=tokens, merges=merges, types=types, eos=2, chat_template=TEMPLATE, half=half
    )
    return model


def adapter(
    path: Path, config: Any, *, seed: int, rank: int = 4, scale: float = 0.3, alpha: float = 8.0, half: bool = True
) -> Any:
    """Write a random LoRA adapter on every linear layer; returns {module: (A, B)}, rounded to f16."""
    rng = np.random.default_rng(seed)
    kv = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    h, f = config.hidden_size, config.intermediate_size
    sizes = dict(zip(MODULES, [(h, h), (kv, h), (kv, h), (h, h), (f, h), (f, h), (h, f)], strict=True))
    layers = {}
    for i in range(config.num_hidden_layers):
        for module, (n, k) in sizes.items():
            a = rng.normal(0, 1 / np.sqrt(k), (rank, k)).astype(np.float16).astype(np.float32)
            b = rng.normal(0, scale, (n, rank)).astype(np.float16).astype(np.float32)
            layers[f"model.layers.{i}.{module}"] = (a, b)
    write_adapter(
        path, layers, alpha=alpha, heads=config.num_attention_heads, kv_heads=config.num_key_value_heads,
        half=half,
    )
    return layers


def merged(model: Any, layers: Any, *, alpha: float = 8.0) -> Any:
    """A copy of the torch model with an adapter merged in: W + (alpha / r)·B·A."""
    import copy

    import torch

    out = copy.deepcopy(model)
    with torch.no_grad():
        for module, (a, b) in layers.items():
            weight = out.get_submodule(module).weight
            weight += torch.from_numpy(b @ a * (alpha / a.shape[0]))
    return out
