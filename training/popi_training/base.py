"""The base model in torch, on exactly the weights that the device runs: a GGUF file, dequantized to float32."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge.engines.adapter import Adapter
from popi_edge.engines.onnx_graph import Shape
from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf
from popi_edge.models.names import gguf_name

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def dequantized(path: Path) -> Any:
    """The model of a GGUF file as a torch LlamaForCausalLM in float32, in eval mode.

    Raises ModelError for a file that is not a llama model in a quantization that the runtime knows.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    gguf = Gguf(path)
    s = Shape.of(gguf)
    config = LlamaConfig(
        vocab_size=s.vocabulary,
        hidden_size=s.hidden,
        intermediate_size=s.ffn,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        max_position_embeddings=s.context,
        rope_theta=s.rope_base,
        rms_norm_eps=s.epsilon,
        tie_word_embeddings="output.weight" not in gguf.tensors,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            key = gguf_name(name)
            if key not in gguf.tensors:
                raise ModelError(f"{path.name}: it has no tensor {key}")
            parameter.copy_(torch.from_numpy(np.array(s.plain_rows(key, gguf.tensors[key].dequantize()))))
    return model


def with_lora(model: Any, rank: int, alpha: float, seed: int, targets: Iterable[str] = TARGETS) -> Any:
    """The model with fresh LoRA adapters (peft) on its linear layers, drawn by ``seed``; only they are trained."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, bias="none")
    return get_peft_model(model, config)


def lora_state(model: Any) -> dict[str, np.ndarray]:
    """The adapter's arrays by Hugging Face module name: ``NAME.lora_a`` [r, in] and ``NAME.lora_b`` [out, r]."""
    out = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            out[_short(name)] = parameter.detach().cpu().numpy().copy()
    return out


def load_lora(model: Any, state: dict[str, np.ndarray]) -> None:
    """Put arrays of ``lora_state`` back. Raises ModelError where names or shapes differ."""
    import torch

    named = {_short(n): p for n, p in model.named_parameters() if p.requires_grad}
    if set(named) != set(state):
        raise ModelError("the adapter is for another model: its layers have other names")
    with torch.no_grad():
        for name, value in state.items():
            if named[name].shape != value.shape:
                raise ModelError(f"the adapter is for another model: {name} has shape {value.shape}")
            named[name].copy_(torch.from_numpy(value))


def start_lora(model: Any, adapter: Adapter, shape: Shape) -> None:
    """Begin with an adapter that was exported. Raises ModelError where its layers are not the model's."""
    modules = {gguf_name(n.rsplit(".", 1)[0] + ".weight"): n.rsplit(".", 1)[0] for n in lora_state(model)}
    if set(modules) != set(adapter.layers):
        raise ModelError("the adapter to start from has other layers than are trained")
    state = {}
    for name, module in modules.items():
        a, b = adapter.layers[name]
        state |= {f"{module}.lora_a": a, f"{module}.lora_b": shape.plain_rows(name, b)}
    load_lora(model, state)


def _short(name: str) -> str:
    kind = "lora_a" if ".lora_A." in name else "lora_b"
    return name.removeprefix("base_model.model.").split(".lora_")[0] + "." + kind


def lora_layers(state: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Module name → (A, B), as the exporter takes them."""
    modules = sorted({n.rsplit(".", 1)[0] for n in state})
    return {m: (state[f"{m}.lora_a"], state[f"{m}.lora_b"]) for m in modules}
