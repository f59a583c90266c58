"""Folders of four architectures and PEFT adapters become GGUF that llama.cpp computes as torch computes the folder.

Largest difference, relative to the largest logit: 2e-4, gemma3 2e-3. Torch reads the folder through transformers (and
peft), which share no code with what is tested. Every text is longer than gemma3's window.
"""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from popi_edge.engines.llama_cpp import LlamaCppEngine
from popi_edge.errors import ConfigError, ModelError
from popi_edge.models.gguf import Gguf
from popi_edge.models.names import LAYERS, gguf_name, hf_name
from popi_export import architectures, source
from popi_export.to_gguf import write_lora, write_model
from tests import tiny_hf

IDS = [7, 80, 200, 13, 13, 299, 45, 120, 270, 2, 260, 77] * 9
PRE = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2", "gemma3": "smollm"}


def torch_logits(model: Any, ids: list[int] = IDS) -> np.ndarray:
    import torch

    with torch.no_grad():
        out: np.ndarray = model(torch.tensor([ids])).logits[0].float().numpy()
    return out


def native_logits(path: Path, adapter: Path | None = None) -> np.ndarray:
    e = LlamaCppEngine(path, adapters={} if adapter is None else {"a": adapter}, threads=1, exact=True)
    out: np.ndarray = e._feed(e.lane(None if adapter is None else "a"), IDS, len(IDS))
    e.close()
    return out


def apart(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.fixture(scope="module", params=tiny_hf.ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder named by its architecture, an adapter's folder beside it."""
    path = tmp_path_factory.mktemp("hf") / request.param
    tiny_hf.folder(path, request.param, vocabulary=PRE[request.param], tied=request.param != "llama")
    tiny_hf.peft_adapter(path.with_name("adapter"), path, seed=2)
    return path


def tolerance(folder: Path) -> float:
    return 2e-3 if folder.name == "gemma3" else 2e-4


def test_llama_cpp_computes_the_folder(folder: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", source.read(folder), "F32")
    want = torch_logits(tiny_hf.load(folder))
    assert want.std() > 1
    assert apart(native_logits(tmp_path / "m.gguf"), want) < tolerance(folder)


def test_an_adapter_kept_and_merged(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = folder.with_name("adapter")
    found = source.read(adapter, base=folder)
    write_model(tmp_path / "base.gguf", found, "F32")
    write_lora(tmp_path / "a.gguf", found.adapters["adapter"], found.config, half=False)
    write_model(tmp_path / "merged.gguf", found, "F32", merge="adapter")
    want = torch_logits(PeftModel.from_pretrained(tiny_hf.load(folder), str(adapter)).eval())
    assert apart(native_logits(tmp_path / "base.gguf", tmp_path / "a.gguf"), want) < tolerance(folder)
    assert apart(native_logits(tmp_path / "merged.gguf"), want) < tolerance(folder)
    assert apart(native_logits(tmp_path / "base.gguf"), want) > 0.3  # the adapter matters


def test_float16_halves_the_matrices_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    for kind in ("F32", "F16"):
        write_model(tmp_path / f"{kind}.gguf", source.read(folder), kind)
    whole, half = (Gguf(tmp_path / f"{kind}.gguf").tensors for kind in ("F32", "F16"))
    assert list(whole) == list(half)
    for name, tensor in half.items():
        assert tensor.type == ("F32" if len(tensor.shape) == 1 else "F16")
        kind = np.float16 if len(tensor.shape) > 1 else np.float32
        assert np.array_equal(tensor.dequantize(), whole[name].dequantize().astype(kind).astype(np.float32))


def test_a_gguf_is_a_source_too(folder: Path, tmp_path: Path) -> None:
    """Written again in float32 it is the same file, with its adapter merged the same as from the folder."""
    adapter = folder.with_name("adapter")
    write_model(tmp_path / "m.gguf", source.read(folder), "F32")
    write_model(tmp_path / "again.gguf", source.read(tmp_path / "m.gguf"), "F32")
    first, again = Gguf(tmp_path / "m.gguf"), Gguf(tmp_path / "again.gguf")
    assert str(first.fields) == str(again.fields) and first.types == again.types
    assert all(np.array_equal(t.data, again.tensors[n].data) for n, t in first.tensors.items())
    for name, base in (("a", folder), ("b", tmp_path / "m.gguf")):
        write_model(tmp_path / f"{name}.gguf", source.read(adapter, base=base), "F32", merge="adapter")
    a, b = Gguf(tmp_path / "a.gguf"), Gguf(tmp_path / "b.gguf")
    assert all(np.array_equal(t.data, b.tensors[n].data) for n, t in a.tensors.items())


def test_a_wrong_rope_base_would_be_seen(folder: Path, tmp_path: Path) -> None:
    found = source.read(folder)
    arch = found.config.architecture
    keys = [f"{arch}.rope.freq_base"] + [f"{arch}.rope.freq_base_swa"] * (arch == "gemma3")
    want = torch_logits(tiny_hf.load(folder))
    for wrong in keys:
        fields = [(k, code, 77_777.0 if k == wrong else v) for k, code, v in found.fields]
        write_model(tmp_path / "m.gguf", replace(found, fields=fields), "F32")
        assert apart(native_logits(tmp_path / "m.gguf"), want) > 10 * tolerance(folder), wrong


def test_names_are_those_of_the_gguf_package(folder: Path) -> None:
    config = source.read(folder).config
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == folder.name)
    table = gguf.get_tensor_name_map(arch, config.layers)
    names = [name for name, _ in architectures.tensors(config)]
    assert len(names) == len(set(names)) > 9 * config.layers
    for name in names:
        stem, end = name.rsplit(".", 1)
        assert gguf_name(name, folder.name) == f"{table.get_name(stem)}.{end}"
        assert hf_name(gguf_name(name, folder.name), folder.name) == name


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.q_proj.bias",
                                  "model.layers.0.mlp.weight", "model.layers.00000.input_layernorm.weight",
                                  "layers.0.input_layernorm.weight", "weight", ""])  # fmt: skip
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(ModelError, match="is no tensor of a llama model"):
        gguf_name(name)
    with pytest.raises(ModelError):
        hf_name(name.replace("model.layers", "blk"))
    assert set(LAYERS) == set(tiny_hf.ARCHITECTURES)


@pytest.mark.parametrize(("architecture", "options"), [
    ("qwen3", {"tied": False}), ("qwen2", {"shard": "100KB"}), ("llama", {"extra": 7}),
    ("gemma3", {"dtype": "bfloat16"}), ("llama", {"dtype": "float16"}),
    ("qwen2", {"dtype": "bfloat16", "tied": False, "extra": 1, "shard": "60KB"}),
])  # fmt: skip
def test_folders_of_many_kinds(architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    """An untied head, several files with an index, rows without a token, half precision."""
    path = tiny_hf.folder(tmp_path / architecture, architecture, seed=5, **options)
    assert len(list(path.glob("*.safetensors"))) > 1 or "shard" not in options
    found = source.read(path)
    write_model(tmp_path / "m.gguf", found, "F32")
    assert apart(native_logits(tmp_path / "m.gguf"), torch_logits(tiny_hf.load(path))) < tolerance(path)
    tokens = Gguf(tmp_path / "m.gguf").fields["tokenizer.ggml.tokens"]
    extra = options.get("extra", 0)
    assert [t.startswith("[PAD") for t in tokens[-8:]] == [False] * (8 - extra) + [True] * extra
    assert ("output.weight" in Gguf(tmp_path / "m.gguf").tensors) == (not options.get("tied", True))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(("architecture", "scaling"), [
    ("llama", LLAMA3), ("llama", {"type": "linear", "factor": 2.0}), ("qwen3", {"rope_type": "linear", "factor": 4.0}),
    ("gemma3", {"rope_type": "linear", "factor": 8.0}),
])  # fmt: skip
def test_rope_scaling_is_llama_cpps(architecture: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / architecture, architecture)
    plain = torch_logits(tiny_hf.load(path))
    tiny_hf.edit(path / "config.json", rope_scaling=scaling)
    want = torch_logits(tiny_hf.load(path))
    write_model(tmp_path / "m.gguf", source.read(path), "F32")
    assert apart(want, plain) > 0.01
    assert apart(native_logits(tmp_path / "m.gguf"), want) < tolerance(path)


def test_gemma_with_another_pattern_of_layers(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "gemma3", "gemma3")
    kinds = ["full_attention" if i in (0, 3) else "sliding_attention" for i in range(7)]
    tiny_hf.edit(path / "config.json", layer_types=kinds, rope_local_base_freq=3_000.0, sliding_window=24)
    write_model(tmp_path / "m.gguf", source.read(path), "F32")
    assert apart(native_logits(tmp_path / "m.gguf"), torch_logits(tiny_hf.load(path))) < 2e-3
    got, want = source.read(tmp_path / "m.gguf").config, source.read(path).config
    assert got == replace(want, epsilon=got.epsilon) and got.epsilon == np.float32(want.epsilon)


def as_transformers_5(path: Path) -> None:
    """Rewrite config.json as transformers 5 has it."""
    value = json.loads((path / "config.json").read_text("utf-8"))
    whole = {"rope_type": "default", "rope_theta": value["rope_theta"]}
    if "rope_local_base_freq" in value:
        near = {"rope_type": "default", "rope_theta": value["rope_local_base_freq"]}
        whole = {"full_attention": whole, "sliding_attention": near}
    tiny_hf.edit(path / "config.json", rope_theta=..., rope_scaling=..., rope_local_base_freq=...,
                 rope_parameters=whole, transformers_version="5.0.0")  # fmt: skip


@pytest.mark.parametrize("architecture", tiny_hf.ARCHITECTURES)
def test_what_transformers_5_writes_becomes_the_same_file(architecture: str, tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / architecture, architecture)
    write_model(tmp_path / "4.gguf", source.read(path), "F16")
    as_transformers_5(path)
    write_model(tmp_path / "5.gguf", source.read(path), "F16")
    assert (tmp_path / "4.gguf").read_bytes() == (tmp_path / "5.gguf").read_bytes()


def test_memory_holds_about_one_tensor(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "qwen3", "qwen3", hidden=256)
    found = source.read(path)
    tracemalloc.start()
    write_model(tmp_path / "m.gguf", found, "F32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sizes = [t.data.nbytes for t in Gguf(tmp_path / "m.gguf").tensors.values()]
    assert peak < 3 * max(sizes) < sum(sizes) / 3


def poison(file: Path, name: str, value: float) -> None:
    """Put a number into the middle of a tensor of a safetensors file."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(file)
    arrays[name].reshape(-1)[arrays[name].size // 2] = value
    save_file(arrays, file)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_leave_no_file(value: float, tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "llama")
    poison(path / "model.safetensors", "model.layers.2.mlp.down_proj.weight", value)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"down_proj.weight' holds a value that is not finite"):
        write_model(tmp_path / "out" / "m.gguf", source.read(path), "F32")
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_too_large_for_float16_are_refused_there_only(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "llama")
    poison(path / "model.safetensors", "model.layers.2.mlp.down_proj.weight", 1e5)
    with pytest.raises(ModelError, match=r"blk.2.ffn_down.weight holds values that are not finite as float16"):
        write_model(tmp_path / "m.gguf", source.read(path), "F16")
    write_model(tmp_path / "m.gguf", source.read(path), "F32")


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "llama")
    adapter = tiny_hf.peft_adapter(tmp_path / "a", path)
    found = source.read(path)
    for call in (
        lambda: write_model(tmp_path / "m.gguf", found, "Q4_1"),
        lambda: write_model(tmp_path / "m.gguf", found, "F32", merge="infer"),
        lambda: source.read(adapter),
        lambda: source.read(path, base=path),
        lambda: source.read(adapter, base=adapter),
    ):
        with pytest.raises(ConfigError):
            call()
    assert not (tmp_path / "m.gguf").exists()


def test_the_file_that_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tiny_hf.folder(tmp_path / "m", "llama")
    write_model(tmp_path / "m.gguf", source.read(path), "F16")
    before = (tmp_path / "m.gguf").read_bytes()
    poison(path / "model.safetensors", "model.norm.weight", np.nan)
    with pytest.raises(ModelError):
        write_model(tmp_path / "m.gguf", source.read(path), "F16")
    assert (tmp_path / "m.gguf").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "m.gguf"]
