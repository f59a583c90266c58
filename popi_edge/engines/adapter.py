"""A LoRA adapter in GGUF form, as both engines read it: llama.cpp natively, ONNX Runtime through this reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ModelError
from popi_edge.models import precheck
from popi_edge.models.gguf import Gguf

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Adapter:
    """``layers`` maps a base tensor (``blk.0.attn_q.weight``) to (A [r, K], B [N, r]); ``scale`` is alpha / r."""

    layers: Mapping[str, Pair]
    scale: float
    sha256: str


def read_adapter(path: Path, base: Gguf) -> Adapter:
    """Read and check an adapter against its base. Raises ModelError.

    Rows of B for Q and K are in llama.cpp's rotary order, as in the base's own tensors.
    """
    file = precheck.adapter(path)
    if file.fields.get("general.architecture") != base.fields.get("general.architecture"):
        raise ModelError(f"{path}: made for another architecture")
    alpha = float(file.need("adapter.lora.alpha", float))
    layers: dict[str, Pair] = {}
    for name in file.tensors:
        target = name.rsplit(".", 1)[0]
        if target in layers:
            continue
        ends = [file.tensors.get(f"{target}.{end}") for end in ("lora_a", "lora_b")]
        if ends[0] is None or ends[1] is None or target not in base.tensors:
            raise ModelError(f"{path}: {target} has no counterpart")
        a, b = ends[0].dequantize(), ends[1].dequantize()
        n, k = base.tensors[target].shape
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != k or b.shape[0] != n or a.shape[0] != b.shape[1]:
            raise ModelError(f"{path}: {target} has the wrong shape for this base")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ModelError(f"{path}: {target} holds values that are not finite")
        layers[target] = (a, b)
    ranks = {a.shape[0] for a, _ in layers.values()}
    if len(ranks) != 1:
        raise ModelError(f"{path}: its layers differ in rank")
    return Adapter(layers=layers, scale=alpha / ranks.pop(), sha256=file.sha256)
