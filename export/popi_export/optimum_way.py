"""A Hugging Face folder → ``model-KIND.onnx`` through optimum, in float32 of standard operators alone.

It needs the extra ``optimum`` (torch, transformers 4.57, optimum-onnx). Inputs and outputs are those of to_onnx, which
has their names from here; optimum leaves ``position_ids`` out of gemma3's, so that its config is ours there. ``int8``
and ``int4`` quantize the float graph themselves: MatMulNBits in blocks of 32, with the embedding left in float32. (ONNX
Runtime's dynamic quantization, of standard operators, has one scale for all activations of a product, which SmolLM2's
outliers ruin: a mean KL of 0.55 nats, and 0.09 with ``down_proj`` left alone, against 0.005.) Not covered: adapters
(merge them first), GGUF files.
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
BITS = {"int8": 8, "int4": 4}
INSIDE = 1 << 30
"""Bytes: a model with more weights than this gets them in a file beside it; transformers.js reads one file best."""


def export(folder: Path, out: Path, kind: Kind, *, whole: Path | None = None) -> list[Path]:
    """Write ``model-KIND.onnx`` (a large one with ``model-KIND.onnx.data``) into the folder ``out``; returns the files.
    ``whole`` is the folder's fp32 file where that is made already.

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
            found = whole or _float(folder, read.config.architecture, Path(name))
            _save(found if kind == "fp32" else _quantized(found, BITS[kind], Path(name) / f"{kind}.onnx"), model)
        onnx_check.check(model)
    return [f for f in files if f.exists()]


def _float(folder: Path, architecture: str, work: Path) -> Path:
    """optimum's own export; a tied head stays a matrix of its own, since dynamic quantization skips it otherwise."""
    from optimum.exporters.onnx import main_export  # type: ignore[import-untyped,unused-ignore]

    with _silent():
        try:
            main_export(
                str(folder.resolve()), work, task="text-generation-with-past", local_files_only=True,
                trust_remote_code=False, do_validation=False, no_post_process=True,
                custom_onnx_configs={"model": _with_positions(folder)} if architecture == "gemma3" else None,
            )  # fmt: skip
        except OSError:
            raise
        except Exception as e:  # optimum, torch and transformers raise whatever they like
            raise ModelError(f"{folder}: optimum cannot export it: {' '.join(str(e).split())[:200]}") from None
    return work / "model.onnx"


def _quantized(model: Path, bits: int, done: Path) -> Path:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    with _silent():
        how = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=bits)
        work = MatMulNBitsQuantizer(onnx.load(model), algo_config=how)
        work.process()
        work.model.save_model_to_file(str(done), use_external_data_format=_size(model) > INSIDE)
    return done


def _with_positions(folder: Path) -> Any:
    """optimum's config of gemma3 with ``position_ids``, which its graph would count from the past otherwise: rows that
    are padded on the left could not be told where they begin, and the names would not be the direct graph's."""
    from optimum.exporters.onnx.model_configs import (  # type: ignore[import-untyped,unused-ignore]
        Gemma3TextOnnxConfig,
    )
    from transformers import AutoConfig

    class WithPositions(Gemma3TextOnnxConfig):  # type: ignore[misc,no-any-unimported,unused-ignore]
        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {**super().inputs, "position_ids": {0: "batch_size", 1: "sequence_length"}}

    config = AutoConfig.from_pretrained(str(folder.resolve()), local_files_only=True, trust_remote_code=False)
    return WithPositions(config, task="text-generation", use_past=True, use_past_in_inputs=True)


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

    inside = _size(whole) <= INSIDE
    if inside and len(list(whole.parent.glob(whole.name + "*"))) == 1:
        shutil.move(whole, model)
        return
    proto: Any = onnx.load(whole)
    if inside:
        onnx.save_model(proto, model)
    else:
        data = model.with_name(model.name + ".data")
        onnx.save_model(proto, model, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name)
        data.chmod(model.stat().st_mode)  # else its owner's alone
