"""A PEFT LoRA adapter's folder, read strictly: adapter_config.json and adapter_model.safetensors, without peft.

Covered: plain and rank-stabilised LoRA on the linear layers. Refused: DoRA and other kinds, biases, whole modules saved
beside, ranks that differ by layer, pickles, and starts that changed the base (PiSSA and the like).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ModelError
from popi_export import hf
from popi_export.architectures import Config, tensors
from popi_export.bounded import read_json

Array = NDArray[np.float32]
CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG = 1 << 18
MAX_RANK = 1024
HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "revision", "target_modules", "exclude_modules", "task_type", "use_rslora",
    "ensure_weight_tying",
})  # fmt: skip
"""Keys that are read here, or that only say how it was trained or for which modules (the file's tensors tell)."""
STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin that leave the base as it is."""


@dataclass(frozen=True)
class Lora:
    """``layers`` maps Hugging Face module names to A [rank, in] and B [out, rank]; added is (alpha / rank)·B·A."""

    layers: Mapping[str, tuple[Array, Array]]
    alpha: float
    rank: int


def read(folder: Path) -> Lora:
    """An adapter's folder. Raises ModelError for what is missing, not finite, or not plain LoRA."""
    path = folder / CONFIG
    value = read_json(path, MAX_CONFIG)
    if value.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type {value.get('peft_type')!r:.40} is not LORA")
    for key, given in value.items():
        if given and (key not in HARMLESS and not (key == "bias" and given == "none")):
            raise ModelError(f"{path}: {key} is {given!r:.60}, which is not supported")
    if (start := value.get("init_lora_weights", True)) not in STARTS:
        raise ModelError(f"{path}: it began as {start!r:.40}, which changed its base")
    rank, alpha = value.get("r"), value.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise ModelError(f"{path}: r must be a whole number from 1 to {MAX_RANK:,}, not {rank!r:.40}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1e6:
        raise ModelError(f"{path}: lora_alpha must be a number above 0, not {alpha!r:.40}")
    weights = hf.Weights(folder, single=FILE, index=FILE + ".index.json")
    parts: dict[str, dict[str, Array]] = {}
    for name in weights.shapes:
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B)\.weight", name)
        if not found:
            raise ModelError(f"{folder / FILE}: {name!r:.100} is no part of a LoRA on a linear layer")
        parts.setdefault(found[1], {})[found[2]] = weights.load(name)
    layers = {}
    for module, pair in parts.items():
        a, b = pair.get("A"), pair.get("B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise ModelError(f"{folder / FILE}: {module!r:.100} has no A and B of rank {rank}")
        layers[module] = a, b
    return Lora(layers, float(alpha) * (rank**0.5 if value.get("use_rslora") else 1.0), rank)


def check(lora: Lora, config: Config, path: Path) -> None:
    """Raises ModelError unless every layer is a linear layer of the base, in its shape."""
    shapes = {name.removesuffix(".weight"): shape for name, shape in tensors(config) if name.endswith("_proj.weight")}
    for module, (a, b) in lora.layers.items():
        if module not in shapes:
            raise ModelError(f"{path}: its base has no linear layer {module!r:.100}")
        if (b.shape[0], a.shape[1]) != shapes[module]:
            raise ModelError(f"{path}: {module} is {b.shape[0]} x {a.shape[1]}, but {shapes[module]} in its base")
