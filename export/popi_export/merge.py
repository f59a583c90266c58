"""A LoRA adapter into the weights of a float32 model, GGUF to GGUF: W + (alpha / r) · B·A, for any architecture.

Nothing is permuted: both files have llama.cpp's own order of rows. Not covered: quantized models (a merge into rounded
weights would be rounded again; make them float32 first), adapters on anything but matrices.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from popi_edge.engines.adapter import Adapter, read_adapter
from popi_edge.errors import ModelError, StoreError
from popi_edge.models import precheck
from popi_edge.models.gguf import ARRAY, NUMPY, STRING, Gguf, Tensor

LEFT_OUT = ("general.architecture", "general.alignment", "GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")
"""Keys that the writer itself writes."""
ITEMS = {np.dtype(code): kind for kind, code in NUMPY.items()}
"""A metadata array's numpy type → GGUF's."""


def merge(model: Path, adapter: Path, out: Path) -> int:
    """Write ``out`` from a float32 GGUF and an adapter for it; returns how many tensors changed.

    Raises ModelError: files that are none or do not fit, values that do not stay finite; StoreError: a full disk.
    """
    source = precheck.model(model)
    quantized = {t.type for t in source.tensors.values()} - {"F32"}
    if quantized:
        raise ModelError(f"{model}: an adapter is merged into float32 weights alone, not into {', '.join(quantized)}")
    lora = read_adapter(adapter, source)
    writer = gguf.GGUFWriter(out, source.need("general.architecture", str))
    try:
        _metadata(writer, source)
        for name, tensor in source.tensors.items():
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), tensor.data.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in source.tensors.values():  # one at a time: a large model's weights need not fit into memory
            writer.write_tensor_data(merged(tensor, lora))
    except OSError as e:
        raise StoreError(f"cannot write {out}: {e.strerror or e}") from None
    finally:
        writer.close()
    try:
        precheck.model(out)
    except ModelError as e:  # the writer's bulk of numbers is cut off without an error
        raise StoreError(f"{out} did not read back (is the disk full?): {e}") from None
    return len(lora.layers)


def merged(tensor: Tensor, lora: Adapter) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A tensor's values with the adapter's part added, in its shape. Raises ModelError where they are not finite."""
    values = tensor.dequantize()
    if tensor.name not in lora.layers:
        return values
    a, b = lora.layers[tensor.name]
    with np.errstate(over="ignore"):
        values = (values + np.float32(lora.scale) * (b @ a)).astype(np.float32)
    if not np.isfinite(values).all():
        raise ModelError(f"{tensor.name} with its adapter is too large for float32")
    return values


def _metadata(writer: gguf.GGUFWriter, source: Gguf) -> None:
    for key, value in source.fields.items():
        if key in LEFT_OUT:
            continue
        kind = gguf.GGUFValueType(source.types[key])
        if source.types[key] != ARRAY:
            writer.add_key_value(key, value, kind)
        elif isinstance(value, np.ndarray):
            writer.add_key_value(key, value.tolist(), kind, gguf.GGUFValueType(ITEMS[value.dtype]))
        else:
            writer.add_key_value(key, value, kind, gguf.GGUFValueType(STRING))
