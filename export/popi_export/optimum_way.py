"""A Hugging Face folder → ``model-KIND.onnx`` through optimum: standard operators, which transformers.js loads too.

It needs the extra ``optimum`` (torch, transformers 4.57, optimum-onnx). Inputs and outputs are those of to_onnx, which
has their names from here; gemma3 has no ``position_ids``. ``int8`` and ``int4`` quantize the float graph themselves:
ONNX Runtime's dynamic quantization, and MatMulNBits in blocks of 32, with the embedding left in float32. Not covered:
adapters (merge them first), GGUF files.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from popi_edge.errors import ConfigError, EngineError, ModelError
from popi_edge.models import onnx_check
from popi_export import source
from popi_export.onnx_file import written

Kind = Literal["fp32", "int8", "int4"]
NEEDED = ("optimum", "torch", "onnx", "onnx_ir")
INSIDE = 1 << 30
"""Bytes: a model with more weights than this gets them in a file beside it; transformers.js reads one file best."""


def export(folder: Path, out: Path, kind: Kind) -> list[Path]:
    """Write ``model-KIND.onnx`` (a large one with ``model-KIND.onnx.data``) into the folder ``out``; returns the files.

    Raises ConfigError (a kind that is none, what is no model's folder, a file that is there), ModelError (the folder,
    or optimum refused it), EngineError (the extra is not installed), StoreError. Nothing is left where it fails.
    """
    if kind not in ("fp32", "int8", "int4"):
        raise ConfigError(f"there is no kind {kind!r:.40}; choose fp32, int8, int4")
    if missing := [m for m in NEEDED if importlib.util.find_spec(m) is None]:
        raise EngineError(f"{' and '.join(missing)} not installed; run: pip install 'popi-edge[export,optimum]'")
    read = source.read(folder)
    if read.kind != "hf":
        raise ConfigError(f"{folder}: optimum exports a Hugging Face folder, not a {read.kind}")
    model = out / f"model-{kind}.onnx"
    files = [model, model.with_name(model.name + ".data")]
    with written(out, files):
        with tempfile.TemporaryDirectory(dir=out, prefix=".optimum-") as name:
            whole = _float(folder, Path(name))
            _save(whole if kind == "fp32" else _quantized(whole, kind), model)
        onnx_check.check(model)
    return [f for f in files if f.exists()]


def _float(folder: Path, work: Path) -> Path:
    """optimum's own export; a tied head stays a matrix of its own, since dynamic quantization skips it otherwise."""
    from optimum.exporters.onnx import main_export  # type: ignore[import-untyped,unused-ignore]

    with _silent():
        try:
            main_export(
                str(folder.resolve()), work, task="text-generation-with-past", local_files_only=True,
                trust_remote_code=False, do_validation=False, no_post_process=True,
            )  # fmt: skip
        except OSError:
            raise
        except Exception as e:  # optimum, torch and transformers raise whatever they like
            raise ModelError(f"{folder}: optimum cannot export it: {' '.join(str(e).split())[:200]}") from None
    return work / "model.onnx"


def _quantized(model: Path, kind: Kind) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    done = model.with_name(f"{kind}.onnx")
    large = _size(model) > INSIDE
    with _silent():
        if kind == "int8":
            quantize_dynamic(
                model, done, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=large
            )
        else:
            work = MatMulNBitsQuantizer(onnx.load(model), block_size=32, is_symmetric=True, accuracy_level=4)
            work.process()
            work.model.save_model_to_file(str(done), use_external_data_format=large)
    return done


@contextmanager
def _silent() -> Iterator[None]:
    """Neither log lines nor warnings: optimum and the quantizers tell of every node."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _size(model: Path) -> int:
    return sum(f.stat().st_size for f in model.parent.glob(model.name + "*"))


def _save(whole: Path, model: Path) -> None:
    """Under our names: one file, or a large one's weights in another beside it."""
    import onnx

    if _size(whole) <= INSIDE and not list(whole.parent.glob(whole.name + "_*")):
        shutil.move(whole, model)
        return
    proto: Any = onnx.load(whole)
    onnx.save_model(
        proto, model, save_as_external_data=True, all_tensors_to_one_file=True, location=model.name + ".data"
    )
