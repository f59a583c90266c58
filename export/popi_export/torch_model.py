"""The torch model of a GGUF or of a Hugging Face folder, in float32: what exports are compared with.

Covered: llama, qwen2, qwen3, gemma3, every quantization that the ``gguf`` package dequantizes, folders as transformers
4 and 5 write them. A folder of transformers 4 is loaded by transformers itself: no reading of ours is in between.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.engines.adapter import read_adapter
from popi_edge.errors import ModelError
from popi_edge.models import precheck
from popi_edge.models.names import gguf_name
from popi_export import architectures, hf, source
from popi_export.architectures import Config
from popi_export.beside import config_json
from popi_export.bounded import read_json

Array = NDArray[np.float32]


def config(c: Config) -> Any:
    """transformers' configuration of such a model."""
    values = config_json(c)
    return importlib.import_module("transformers").AutoConfig.for_model(values.pop("model_type"), **values)


def _filled(c: Config, weights: Iterable[tuple[str, Callable[[], Array]]]) -> Any:
    """The model with weights by Hugging Face's names. Raises ModelError where one is missing or does not fit."""
    import torch

    t: Any = importlib.import_module("transformers")
    model = t.AutoModelForCausalLM.from_config(config(c)).eval()
    left = dict(model.named_parameters())
    with torch.no_grad():
        for name, load in weights:
            parameter = left.pop(name, None)
            value = load()
            if parameter is None or tuple(parameter.shape) != value.shape:
                raise ModelError(f"{name} is no tensor of such a {c.architecture} model")
            parameter.copy_(torch.from_numpy(np.array(value)))
    if left:
        raise ModelError(f"the model lacks {next(iter(left))}")
    return model


def from_gguf(path: Path, adapter: Path | None = None) -> Any:
    """The model of a GGUF, dequantized, W + (alpha / r)·B·A where a GGUF adapter has a layer. Raises ModelError."""
    file = precheck.model(path)
    c = architectures.config_of(file)
    if architectures.ROPE_FACTORS in file.tensors:
        raise ModelError(f"{path}: torch cannot be told of a GGUF's own rope factors; give the folder that it is from")
    lora = read_adapter(adapter, file) if adapter is not None else None
    used = set()

    def value(name: str) -> Array:
        key = gguf_name(name, c.architecture)
        if key not in file.tensors:
            raise ModelError(f"{path}: it has no {key}")
        found = source.dequantize(file.tensors[key])
        if lora is not None and key in lora.layers:
            a, b = lora.layers[key]
            found = found + b @ a * np.float32(lora.scale)
            used.add(key)
        return architectures.from_gguf(key, found, c)

    names = [name for name, _ in architectures.tensors(c)]
    model = _filled(c, ((name, lambda n=name: value(n)) for name in names))  # type: ignore[misc]
    if lora is not None and (left := sorted(set(lora.layers) - used)):
        raise ModelError(f"{adapter}: {left[0]} is not a layer of {path}")
    return model


def from_folder(path: Path, adapter: Path | None = None) -> Any:
    """A Hugging Face folder's model, and on it a PEFT adapter's folder. Raises ModelError; nothing is executed."""
    from popi_training.folder import load_model

    c, weights = hf.read_config(path), hf.Weights(path)
    hf.check(c, weights)
    if "rope_parameters" in read_json(path / hf.CONFIG, hf.MAX_CONFIG):
        names = [name for name, _ in architectures.tensors(c)]
        model = _filled(c, ((name, lambda n=name: weights.load(n)) for name in names))  # type: ignore[misc]
    else:
        model = load_model(path)
    if adapter is None:
        return model
    from peft import PeftModel

    from popi_export import peft_adapter

    peft_adapter.check(peft_adapter.read(adapter), c, adapter)
    try:
        return PeftModel.from_pretrained(model, str(adapter), local_files_only=True).eval()
    except Exception as e:  # peft and safetensors raise many kinds
        raise ModelError(f"{adapter}: {type(e).__name__}: {' '.join(str(e).split())[:120]}") from None
