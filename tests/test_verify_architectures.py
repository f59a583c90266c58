"""llama, qwen2, qwen3 and gemma3: a folder and what was written of it, by every engine, merged and with the adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from popi_edge.errors import ModelError
from popi_edge.models.gguf import Gguf
from popi_export import fuzz, source, to_onnx
from popi_export.quantize import quantize
from popi_export.runners import TorchRunner
from popi_export.to_gguf import write_lora, write_model
from popi_export.verify import Candidate, verify, windows
from popi_training.limits import Limits
from tests import tiny_hf

TEXTS = windows([(11 * i + i * i) % 470 for i in range(128)], size=64)
LIMITS = Limits(kl={"F32": 1e-6, "fp32": 1e-6, "Q8_0": 0.05}, perplexity={}, agreement={"F32": 0.98, "fp32": 0.98})


@pytest.mark.parametrize("architecture", tiny_hf.ARCHITECTURES)
def test_what_is_written_is_the_model(architecture: str, tmp_path: Path) -> None:
    folder = tiny_hf.folder(tmp_path / "hf", architecture)
    peft = tiny_hf.peft_adapter(tmp_path / "peft", folder)
    found, adapted = source.read(folder), source.read(peft, base=folder)
    f32, q8, lora = tmp_path / "model-F32.gguf", tmp_path / "model-Q8_0.gguf", tmp_path / "adapter.gguf"
    write_model(f32, found, "F32")
    write_model(tmp_path / "merged-F32.gguf", adapted, "F32", merge="adapter")
    write_lora(lora, adapted.adapters["adapter"], adapted.config, half=False)
    quantize(f32, q8, "Q8_0")
    onnx = to_onnx.export(f32, tmp_path, "fp32", adapters={"adapter": lora})
    where = {"beside": (onnx[1],), "tokenizer": folder / "tokenizer.json"}
    candidates = [
        Candidate("F32", "llama.cpp", f32),
        Candidate("F32", "popi-onnx", f32),
        Candidate("Q8_0", "llama.cpp", q8),
        Candidate("fp32", "onnxruntime", onnx[0], **where),  # type: ignore[arg-type]
        Candidate("F32", "llama.cpp", f32, "adapter", lora),
        Candidate("F32", "llama.cpp", tmp_path / "merged-F32.gguf", "adapter"),
        Candidate("fp32", "onnxruntime", onnx[0], "adapter", onnx[2], **where),  # type: ignore[arg-type]
    ]
    report = verify(
        candidates, lambda role: TorchRunner.folder(folder, peft if role else None), TEXTS, limits=LIMITS,
        tokenizer=fuzz.of_json(folder / "tokenizer.json"), special=fuzz.controls(Gguf(f32)), strings=400,
    )  # fmt: skip
    assert report.failures == () and all(r.tokenizer and r.tokenizer.differing == 0 for r in report.rows)
    assert report.rows[2].parity.kl > 1e-7
    plain = verify(candidates[4:5], lambda role: TorchRunner.folder(folder), TEXTS, limits=LIMITS)
    assert not plain.ok  # without its adapter the reference is another model


@pytest.mark.parametrize("architecture", tiny_hf.ARCHITECTURES)
def test_torch_reads_a_gguf_as_the_folder_that_it_is_from(architecture: str, tmp_path: Path) -> None:
    folder = tiny_hf.folder(tmp_path / "hf", architecture, tied=architecture == "gemma3")
    peft = tiny_hf.peft_adapter(tmp_path / "peft", folder)
    adapted = source.read(peft, base=folder)
    write_model(tmp_path / "m.gguf", adapted, "F32")
    write_lora(tmp_path / "a.gguf", adapted.adapters["adapter"], adapted.config, half=False)
    for theirs, ours in ((None, None), (peft, tmp_path / "a.gguf")):
        a = TorchRunner.folder(folder, theirs).logits(TEXTS[0])
        b = TorchRunner.gguf(tmp_path / "m.gguf", ours).logits(TEXTS[0])
        assert np.abs(a - b).max() < 1e-4
    quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q6_K")  # rows of 64 fall back; the head is Q8_0
    assert np.abs(TorchRunner.gguf(tmp_path / "q.gguf").logits(TEXTS[0]) - a).max() > 1e-4


def test_k_quants_are_dequantized_as_llama_cpp_does(tmp_path: Path) -> None:
    folder = tiny_hf.folder(tmp_path / "hf", "qwen3", hidden=256)
    write_model(tmp_path / "m.gguf", source.read(folder), "F32")
    for kind in ("Q4_K_M", "IQ4_NL"):
        quantize(tmp_path / "m.gguf", tmp_path / kind, kind)
        quantize(tmp_path / kind, tmp_path / f"{kind}-F32", "F32")
        a, b = (TorchRunner.gguf(tmp_path / name).logits(TEXTS[0]) for name in (kind, f"{kind}-F32"))
        assert np.abs(a - b).max() < 1e-4


def test_a_config_of_transformers_5_is_read_with_its_rope(tmp_path: Path) -> None:
    folder = tiny_hf.folder(tmp_path / "hf", "llama")
    wanted = TorchRunner.folder(folder).logits(TEXTS[0])
    new = {"rope_theta": 50_000.0, "rope_type": "default"}
    tiny_hf.edit(folder / "config.json", rope_theta=..., rope_scaling=..., rope_parameters=new)
    assert np.abs(TorchRunner.folder(folder).logits(TEXTS[0]) - wanted).max() < 1e-5
    tiny_hf.edit(folder / "config.json", rope_parameters=new | {"rope_theta": 10_000.0})
    assert np.abs(TorchRunner.folder(folder).logits(TEXTS[0]) - wanted).max() > 1e-2
    tiny_hf.edit(folder / "config.json", hidden_size=32)
    with pytest.raises(ModelError):
        TorchRunner.folder(folder)
