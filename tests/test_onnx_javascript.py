"""The exported files in JavaScript, where node (or Chromium) and npm's packages are there (POPI_NODE_MODULES)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench import onnx_browser as browser
from bench import onnx_javascript as js
from popi_export import optimum_way, to_onnx
from tests import onnx_models as make
from tests import tiny_hf

MODULES = Path(os.environ.get("POPI_NODE_MODULES", "node_modules"))
TEXT = "In 1999 we'll have 12,345 of them<|im_end|> Zwölf 😀"
BESIDE = ("tokenizer.json", "tokenizer_config.json", "config.json")


def exported(folder: Path, architecture: str, way: str) -> Path:
    """A tiny model as float32 ONNX, and what programs want beside it."""
    hf = tiny_hf.folder(folder / "hf", architecture, seed=1)
    if way == "direct":
        model = to_onnx.export(make.f32(hf, folder / "m.gguf"), folder / "o", "fp32")[0]
    else:
        model = optimum_way.export(hf, folder / "o", "fp32")[0]
    for name in BESIDE:
        shutil.copy(hf / name, folder / "o" / name)
    return model


@pytest.mark.parametrize(
    ("architecture", "way"),
    [*((a, "direct") for a in tiny_hf.ARCHITECTURES), ("llama", "optimum"), ("gemma3", "optimum")],
)
def test_the_same_files_give_the_same_logits_and_tokens_in_javascript(
    architecture: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not installed is said; the rest must agree."""
    model = exported(tmp_path, architecture, way)
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


@pytest.mark.parametrize(("architecture", "way"), [("llama", "direct"), ("llama", "optimum")])
def test_the_same_files_give_the_same_logits_and_tokens_in_a_browser(
    architecture: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Headless Chromium: what is not installed is said; the rest must agree."""
    model = exported(tmp_path, architecture, way)
    found = browser.compare(model, MODULES, TEXT, 12, {}, ("wasm", "transformers"))
    expected = {r for r in ("wasm", "transformers") if browser.missing(r, MODULES)}
    assert {line.split(":")[0] for line in found["not_covered"]} == expected
    with capsys.disabled():
        if expected and way == "direct":
            print(f"\nnot covered in a browser: {', '.join(found['not_covered'])}")
    for runtime in {"wasm", "transformers"} - expected:
        said = found[runtime]
        assert said.get("tokens_alike") == said.get("of") and said["of"] > 3, (runtime, said)
        assert said.get("largest_difference", 0.0) < 1e-4 and said.get("ids_alike", True)


def test_a_page_is_given_files_of_the_three_folders_alone(tmp_path: Path) -> None:
    for name in ("model/m.onnx", "modules/a/b.mjs", "secret"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    with browser.Page(tmp_path / "model" / "m.onnx", tmp_path / "modules", {}, {"a": np.zeros(2, np.float32)}) as page:
        assert page.file("/model/m.onnx") == tmp_path / "model" / "m.onnx"
        assert page.file("/modules/a/b.mjs") == tmp_path / "modules" / "a" / "b.mjs"
        assert page.file("/onnx_greedy.mjs") is not None and page.texts["/adapter/a"] == bytes(8)
        for path in ("/model/../secret", "/model/link", "/secret", "/../tests/conftest.py", "/model", "/modules/a"):
            assert page.file(path) is None, path
