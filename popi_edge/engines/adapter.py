"""A LoRA adapter in GGUF form, as both engines read it: llama.cpp natively, ONNX Runtime through this reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from popi_edge.engines.onnx_graph import GROUPS
from popi_edge.engines.onnx_shape import Shape
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
        layers[target] = (a, b)
    ranks = {a.shape[0] for a, _ in layers.values()}
    if len(ranks) != 1:
        raise ModelError(f"{path}: its layers differ in rank")
    return Adapter(layers=layers, scale=alpha / ranks.pop(), sha256=file.sha256)


def hooks_of(adapter: Adapter, path: Path) -> set[str]:
    """The groups of linear layers (``0.qkv``) that an adapter changes. Raises ModelError where it changes others."""
    groups = {part: group for group, parts in GROUPS.items() for part in parts}
    found = set()
    for name in adapter.layers:
        names = name.split(".")
        if len(names) != 4 or names[2] not in groups or names[3] != "weight":
            raise ModelError(f"{path}: it changes {name!r:.80}, which is no linear layer of a block")
        found.add(f"{names[1]}.{groups[names[2]]}")
    return found


def fused(
    adapter: Adapter | None, shape: Shape, hook: str, k: int, n: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A [K, r] and B [r, N] of a fused group: the parts' A side by side, their B on the diagonal, alpha / r in B.

    The rank is 0 where the adapter has nothing for the group, or where there is no adapter.
    """
    layer, group = hook.split(".")
    parts = [f"blk.{layer}.{name}.weight" for name in GROUPS[group]]
    found = [adapter.layers[p] for p in parts if p in adapter.layers] if adapter else []
    rank = sum(a.shape[0] for a, _ in found)
    whole_a, whole_b = np.zeros((k, rank), np.float32), np.zeros((rank, n), np.float32)
    r = row = 0
    for part in parts:
        if adapter and part in adapter.layers:
            a, b = adapter.layers[part]
            whole_a[:, r : r + len(a)] = a.T
            whole_b[r : r + len(a), row : row + len(b)] = shape.plain_rows(part, b).T * adapter.scale
            r += len(a)
        row += shape.of_tensor(part)[0]
    return whole_a, whole_b
