"""The base model in torch, on exactly the weights that the device runs: a GGUF file, dequantized to float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge.engines.adapter import Adapter
from popi_edge.engines.onnx_graph import ROPE_FACTORS, Shape
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
    if s.architecture != "llama" or s.rope_factor != 1.0 or ROPE_FACTORS in gguf.tensors:
        raise ModelError(f"{path}: training runs on llama models without rope scaling")
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


def with_lora(
    model: Any, rank: int, alpha: float, seed: int, targets: Iterable[str] = TARGETS, *, adapter: str = "infer"
) -> Any:
    """The model with a fresh LoRA adapter (peft) of that name on its linear layers, drawn by ``seed``; on a model that
    has adapters already one more, frozen as long as another one is active."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, bias="none",  # type: ignore[arg-type]
    )  # fmt: skip
    if isinstance(model, PeftModel):
        model.add_adapter(adapter, config)
        return model
    return get_peft_model(model, config, adapter_name=adapter)


def lora_parameters(model: Any, adapter: str = "infer") -> dict[str, Any]:
    """An adapter's parameters by Hugging Face module name: ``NAME.lora_a`` [r, in] and ``NAME.lora_b`` [out, r]."""
    out = {}
    for name, parameter in model.named_parameters():
        for kind in ("A", "B"):
            end = f".lora_{kind}.{adapter}.weight"
            if name.endswith(end):
                out[name.removeprefix("base_model.model.").removesuffix(end) + f".lora_{kind.lower()}"] = parameter
    return out


def lora_state(model: Any, adapter: str = "infer") -> dict[str, np.ndarray]:
    """Copies of an adapter's arrays, by the names of ``lora_parameters``."""
    from popi_training import shards

    return {name: shards.array(p) for name, p in lora_parameters(model, adapter).items()}


def load_lora(model: Any, state: Mapping[str, np.ndarray], adapter: str = "infer") -> None:
    """Put arrays of ``lora_state`` back. Raises ModelError where names or shapes differ."""
    from popi_training import shards

    named = lora_parameters(model, adapter)
    if set(named) != set(state):
        raise ModelError("the adapter is for another model: its layers have other names")
    for name, value in state.items():
        if named[name].shape != value.shape:
            raise ModelError(f"the adapter is for another model: {name} has shape {value.shape}")
        shards.put(named[name], value)


def start_lora(model: Any, start: Adapter, shape: Shape, adapter: str = "infer") -> None:
    """Begin with an adapter that was exported. Raises ModelError where its layers are not the model's."""
    modules = {gguf_name(n.rsplit(".", 1)[0] + ".weight"): n.rsplit(".", 1)[0] for n in lora_parameters(model, adapter)}
    if set(modules) != set(start.layers):
        raise ModelError("the adapter to start from has other layers than are trained")
    state: dict[str, np.ndarray] = {}
    for name, module in modules.items():
        a, b = start.layers[name]
        state |= {f"{module}.lora_a": a, f"{module}.lora_b": shape.plain_rows(name, b)}
    load_lora(model, state, adapter)


def lora_layers(state: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Module name → (A, B), as the exporter takes them."""
    modules = sorted({n.rsplit(".", 1)[0] for n in state})
    return {m: (state[f"{m}.lora_a"], state[f"{m}.lora_b"]) for m in modules}
