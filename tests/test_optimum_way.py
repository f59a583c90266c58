"""optimum's export under the names of the direct one, and onnxruntime-genai on the direct one's files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from popi_edge.errors import ConfigError, ModelError
from popi_edge.models import onnx_check
from popi_edge.models.gguf import Gguf
from popi_export import genai, optimum_way, to_onnx
from tests import onnx_models as make
from tests import tiny_hf
from tests.onnx_models import IDS, Plain, far, torch_logits

GENAI = """
import json, sys
import numpy as np
import onnxruntime_genai as og
folder, adapter, ids, text = json.loads(sys.argv[1])
model = og.Model(folder)
params = og.GeneratorParams(model)
params.set_search_options(max_length=len(ids) + 20)
made = og.Generator(model, params)
if adapter:
    adapters = og.Adapters(model)
    adapters.load(adapter, "infer")
    made.set_active_adapter(adapters, "infer")
made.append_tokens(np.array(ids, np.int32))
while not made.is_done():
    made.generate_next_token()
print(json.dumps([made.get_sequence(0).tolist()[len(ids):], og.Tokenizer(model).encode(text).tolist()]))
"""
TEXT = "In 1999 we'll have 12,345 of them<|im_end|> Zwölf 😀"


@pytest.mark.parametrize("architecture", tiny_hf.ARCHITECTURES)
def test_optimums_float_graph_is_torchs_under_the_names_of_the_direct_one(architecture: str, tmp_path: Path) -> None:
    hf = tiny_hf.folder(tmp_path / "hf", architecture, seed=1)
    [model] = optimum_way.export(hf, tmp_path / "o", "fp32")
    want, plain = torch_logits(tiny_hf.load(hf)), Plain(model)
    assert far(plain.logits(IDS, (30, 1, 13, *[1] * 8)), want) < 2e-4
    direct = Plain(to_onnx.export(make.f32(hf, tmp_path / "m.gguf"), tmp_path / "d", "fp32")[0])
    assert plain.inputs == direct.inputs
    assert set(plain.outputs) == set(direct.outputs)
    onnx_check.check(model)
    assert [f.name for f in (tmp_path / "o").iterdir()] == ["model-fp32.onnx"]
    short = IDS[5:26]  # padded on the left its positions are 0 to 20, whatever its places are
    ids, mask = np.array([IDS[:40], [0] * 19 + short]), np.array([[1] * 40, [0] * 19 + [1] * 21])
    got, _ = plain.run(ids, mask, np.maximum(mask.cumsum(1) - 1, 0), plain.empty(2))
    assert far(got[0], want[:40]) < 2e-4 and far(got[1, 19:], plain.logits(short)) < 2e-4


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_optimums_quantized_graphs_leave_no_matrix_in_float(architecture: str, kind: Any, tmp_path: Path) -> None:
    """The tied head neither; what the embedding is made of stays, in 4 bits, in float32."""
    hf = tiny_hf.folder(tmp_path / "hf", architecture, seed=1)
    [model] = optimum_way.export(hf, tmp_path / "o", kind)
    proto = onnx.load(str(model))
    weights = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2}
    assert not [n for n in proto.graph.node if n.op_type == "MatMul" and weights & set(n.input)]
    layers = len([n for n in proto.graph.node if n.op_type == "MatMulNBits"])
    assert layers == 7 * json.loads((hf / "config.json").read_text())["num_hidden_layers"] + 1
    want, got = torch_logits(tiny_hf.load(hf)), Plain(model).logits(IDS, (30, 1))
    assert make.divergence(want, got) < (0.05 if kind == "int8" else 1.5)
    assert make.divergence(want, got) < make.divergence(want, np.zeros_like(want)) / 2


def test_a_float_file_that_is_there_is_quantized_and_a_large_model_s_weights_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that optimum exports once more; a large model may be small when it is quantized."""
    hf = tiny_hf.folder(tmp_path / "hf", "llama", seed=1)
    [whole] = optimum_way.export(hf, tmp_path / "f", "fp32")
    before = whole.read_bytes()
    [anew] = optimum_way.export(hf, tmp_path / "a", "int8")
    monkeypatch.setattr(optimum_way, "INSIDE", whole.stat().st_size - 1)
    [beside, data] = optimum_way.export(hf, tmp_path / "b", "fp32")
    assert data.name == "model-fp32.onnx.data" and data.stat().st_size > beside.stat().st_size
    assert data.stat().st_mode == beside.stat().st_mode
    monkeypatch.setattr(optimum_way, "_float", None)
    for number, found in enumerate((whole, beside)):
        [model] = optimum_way.export(hf, tmp_path / f"q{number}", "int8", whole=found)
        assert np.array_equal(Plain(model).logits(IDS, (30, 1)), Plain(anew).logits(IDS, (30, 1)))
    assert whole.read_bytes() == before and len(list((tmp_path / "f").iterdir())) == 1


def test_what_optimum_cannot_export_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    hf = tiny_hf.folder(tmp_path / "hf", "llama", seed=1)
    with pytest.raises(ConfigError, match="no kind"):
        optimum_way.export(hf, tmp_path / "o", "fp16")  # type: ignore[arg-type]
    gguf = make.f32(hf, tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match="not a gguf"):
        optimum_way.export(gguf, tmp_path / "o", "fp32")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "model-fp32.onnx").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="is there already"):
        optimum_way.export(hf, tmp_path / "o", "fp32")
    assert (tmp_path / "o" / "model-fp32.onnx").read_bytes() == b"mine"
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    with pytest.raises(ModelError):
        optimum_way.export(hf, tmp_path / "other", "fp32")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("architecture", tiny_hf.ARCHITECTURES)
def test_onnxruntime_genai_runs_the_direct_files_as_they_are(architecture: str, tmp_path: Path) -> None:
    hf = tiny_hf.folder(tmp_path / "hf", architecture, seed=1)
    gguf, out = make.f32(hf, tmp_path / "m.gguf"), tmp_path / "o"
    lora, adapted = make.lora(hf, tmp_path / "infer.gguf", 5)
    model, _, adapter = to_onnx.export(gguf, out, "fp32", adapters={"infer": lora})
    genai.write(out, Gguf(gguf), model.name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(hf / name, out / name)
    for torch_model, active in ((tiny_hf.load(hf), None), (adapted, str(adapter))):
        with torch.no_grad():
            feeds = {"input_ids": torch.tensor([IDS[:20]]), "attention_mask": torch.ones(1, 20)}
            whole = torch_model.generate(**feeds, max_new_tokens=20, do_sample=False, eos_token_id=[0, 2])[0].tolist()
        job = json.dumps([str(out), active, IDS[:20], TEXT])
        done = subprocess.run([sys.executable, "-c", GENAI, job], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
        tokens, ids = json.loads(done.stdout.splitlines()[-1])
        ended = [t for t in whole[20:] if t not in (0, 2)]
        assert [t for t in tokens if t not in (0, 2)] == ended and len(ended) > 1
        assert ids == Tokenizer.from_file(str(hf / "tokenizer.json")).encode(TEXT).ids
