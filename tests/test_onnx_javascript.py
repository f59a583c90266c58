"""The exported files in JavaScript, where node and npm's packages are there (POPI_NODE_MODULES names their folder)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench import onnx_javascript as js
from popi_export import optimum_way, to_onnx
from tests import onnx_models as make
from tests import tiny_hf

MODULES = Path(os.environ.get("POPI_NODE_MODULES", "node_modules"))
TEXT = "In 1999 we'll have 12,345 of them<|im_end|> Zwölf 😀"
BESIDE = ("tokenizer.json", "tokenizer_config.json", "config.json")


@pytest.mark.parametrize(
    ("architecture", "way"),
    [*((a, "direct") for a in tiny_hf.ARCHITECTURES), ("llama", "optimum"), ("gemma3", "optimum")],
)
def test_the_same_files_give_the_same_logits_and_tokens_in_javascript(
    architecture: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not installed is said; the rest must agree."""
    hf = tiny_hf.folder(tmp_path / "hf", architecture, seed=1)
    if way == "direct":
        model = to_onnx.export(make.f32(hf, tmp_path / "m.gguf"), tmp_path / "o", "fp32")[0]
    else:
        model = optimum_way.export(hf, tmp_path / "o", "fp32")[0]
    for name in BESIDE:
        shutil.copy(hf / name, tmp_path / "o" / name)
    found = js.compare(model, MODULES, TEXT, 12, {})
    expected = {r for r in js.SCRIPTS if js.missing(r, MODULES)}
    assert {line.split(":")[0] for line in found["not_covered"]} == expected
    with capsys.disabled():
        if expected and (architecture, way) == ("llama", "direct"):
            print(f"\nnot covered in JavaScript: {', '.join(found['not_covered'])}")
    for runtime in js.SCRIPTS.keys() - expected:
        said = found[runtime]
        assert said.get("tokens_alike") == said.get("of") and said["of"] > 3, (runtime, said)
        assert said.get("largest_difference", 0.0) < 1e-4 and said.get("ids_alike", True)


def test_an_adapter_is_fed_to_javascript_where_its_inputs_have_no_defaults(tmp_path: Path) -> None:
    hf = tiny_hf.folder(tmp_path / "hf", "llama", seed=1)
    gguf = make.f32(hf, tmp_path / "m.gguf")
    lora, merged = make.lora(hf, tmp_path / "infer.gguf", 5)
    model = to_onnx.export(gguf, tmp_path / "o", "fp32", adapters={"infer": lora}, defaults=False)[0]
    arrays = js.adapter_arrays(lora, gguf)
    want = make.torch_logits(merged, make.IDS)[-1]
    assert np.abs(js.in_python(model, make.IDS, 1, arrays)[1][0] - want).max() < 2e-4 * np.abs(want).max()
    for runtime in ("onnxruntime-node", "onnxruntime-web"):
        if not js.missing(runtime, MODULES):
            got = js.by_names(runtime, MODULES, model, make.IDS, 1, arrays)[2][0]
            assert np.abs(got - want).max() < 2e-4 * np.abs(want).max()
