"""GGUF → ONNX without torch computes what torch computes, for every architecture, kind and adapter."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from popi_edge.engines.llama_cpp import LlamaCppEngine
from popi_edge.engines.onnx import OnnxEngine
from popi_edge.errors import ConfigError, ModelError, StoreError
from popi_edge.models import onnx_check
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_export import snippets, to_onnx
from popi_training.base import dequantized
from tests import onnx_models as make
from tests import tiny as tiny_llama
from tests import tiny_hf
from tests.onnx_models import IDS, Plain, far, torch_logits

GROWING = (30, 1, 13, *[1] * 8)
EXACT = 2e-4
PROSE = (
    "The ferry left at noon with two bicycles, a crate of pears and nobody at the rail. By the time it had passed the "
    "light the wind had turned, and the captain, who had seen worse, put the kettle on and told the boy to count the "
    "pears again. There were fewer of them than there had been in the harbour."
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def folder(made: Path, architecture: str, *, tied: bool = True, hidden: int = 64) -> Path:
    path = made / f"{architecture}-{tied}-{hidden}"
    return make.once(lambda p: tiny_hf.folder(p, architecture, seed=1, tied=tied, hidden=hidden), path)


def gguf(folder: Path) -> Path:
    return make.once(lambda p: make.f32(folder, p), folder.with_name(folder.name + ".gguf"))


def engine_logits(path: Path, **options: Any) -> np.ndarray:
    engine = OnnxEngine(path, adapters=options.pop("adapters", {}), threads=1, **options)
    try:
        lane = engine.lane(next(iter(engine._adapters), None))
        return np.concatenate([engine._feed(lane, IDS[:25], 25), engine._feed(lane, IDS, len(IDS) - 25)])
    finally:
        engine.close()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", tiny_hf.ARCHITECTURES)
def test_float_weights_give_torch_logits_in_the_graph_and_in_the_engine(
    architecture: str, tied: bool, made: Path, tmp_path: Path
) -> None:
    hf = folder(made, architecture, tied=tied)
    want = torch_logits(tiny_hf.load(hf))
    files = to_onnx.export(gguf(hf), tmp_path, "fp32", adapters={})
    assert [f.name for f in files] == ["model-fp32.onnx", "model-fp32.onnx.data"] and all(f.is_file() for f in files)
    plain = Plain(files[0])
    for pieces in ((), GROWING):
        got = plain.logits(IDS, pieces)
        assert far(got, want) < EXACT and (got.argmax(-1) == want.argmax(-1)).all()
    assert far(engine_logits(gguf(hf)), want) < EXACT


def test_half_weights_are_carried_over_too(made: Path, tmp_path: Path) -> None:
    hf = folder(made, "qwen3")
    to_f16 = tmp_path / "f16.gguf"
    make.write_model(to_f16, make.source.read(hf), "F16")
    want = torch_logits(make.torch_on(to_f16, hf))
    [model, _] = to_onnx.export(to_f16, tmp_path / "o", "fp32")
    assert far(Plain(model).logits(), want) < EXACT < far(torch_logits(tiny_hf.load(hf)), want) * 10


@pytest.mark.parametrize(("kind", "blocks"), [("int8", "Q8_0"), ("int4", "Q4_1"), ("int4", "Q4_0")])
@pytest.mark.parametrize("architecture", tiny_hf.ARCHITECTURES)
def test_quantized_weights_are_exact_at_level_0_and_as_near_as_llama_cpp_at_level_4(
    architecture: str, kind: Any, blocks: str, made: Path, tmp_path: Path
) -> None:
    """Level 4 rounds activations to int8, as llama.cpp does: the mean KL is at most twice llama.cpp's."""
    hf = folder(made, architecture, tied=architecture != "qwen2")
    path = make.quantized(gguf(hf), tmp_path / "m.gguf", blocks)
    want = torch_logits(make.torch_on(path, hf))
    exact = Plain(to_onnx.export(path, tmp_path / "0", kind, level=0)[0]).logits(IDS, GROWING)
    assert far(exact, want) < EXACT and (exact.argmax(-1) == want.argmax(-1)).all()
    assert far(engine_logits(path, level=0), want) < EXACT
    fast = Plain(to_onnx.export(path, tmp_path / "4", kind)[0]).logits()
    peer = LlamaCppEngine(path, adapters={}, threads=1, exact=True)
    theirs = make.divergence(want, peer._feed(peer.lane(None), IDS, len(IDS)))
    peer.close()
    assert 0 < make.divergence(want, fast) < 2 * theirs


def test_a_six_bit_head_is_carried_over(made: Path, tmp_path: Path) -> None:
    """llama.cpp's 4-bit files have it where rows are multiples of 256 values."""
    for tied in (True, False):
        hf = folder(made, "llama", tied=tied, hidden=256)
        path = make.quantized(gguf(hf), tmp_path / f"{tied}.gguf", "Q4_0")
        assert Gguf(path).tensors["token_embd.weight" if tied else "output.weight"].type == "Q6_K"
        want = torch_logits(make.torch_on(path, hf))
        assert far(Plain(to_onnx.export(path, tmp_path / f"o{tied}", "int4", level=0)[0]).logits(), want) < EXACT
        assert far(engine_logits(path, level=0), want) < EXACT


@pytest.mark.parametrize("architecture", tiny_hf.ARCHITECTURES)
def test_adapters_kept_apart_are_switched_on_and_off(architecture: str, made: Path, tmp_path: Path) -> None:
    hf = folder(made, architecture)
    loras = {role: make.lora(hf, tmp_path / f"{role}.gguf", i) for i, role in enumerate(("infer", "generate"))}
    paths = {role: path for role, (path, _) in loras.items()}
    model, _, *files = to_onnx.export(gguf(hf), tmp_path / "o", "fp32", adapters=paths)
    assert [f.name for f in files] == ["infer-fp32.onnx_adapter", "generate-fp32.onnx_adapter"]
    base, plain = torch_logits(tiny_hf.load(hf)), Plain(model)
    assert not {i.name for i in plain.session.get_inputs() if i.name.startswith("lora.")}
    off = plain.logits(IDS, GROWING)
    assert far(off, base) < EXACT
    for role, file in zip([*loras, "infer"], [*files, files[0]], strict=True):
        want = torch_logits(loras[role][1])
        got = plain.logits(IDS, GROWING, file)
        assert far(got, want) < EXACT and (got.argmax(-1) == want.argmax(-1)).all() and far(got, base) > 0.1
        assert far(engine_logits(gguf(hf), adapters={role: paths[role]}), want) < EXACT
    assert np.array_equal(plain.logits(IDS, GROWING), off)


def test_an_adapter_of_some_layers_gets_inputs_for_them_only(made: Path, tmp_path: Path) -> None:
    """A layer's B may also be fed as an ordinary input, with the same bits."""
    hf = folder(made, "llama")
    whole, _ = make.lora(hf, tmp_path / "whole.gguf", 3)
    read = make.source.read(whole.with_suffix(""), base=hf)
    [lora] = read.adapters.values()
    few = {n: pair for n, pair in lora.layers.items() if n in ("model.layers.1.self_attn.v_proj",)}
    make.write_lora(tmp_path / "few.gguf", type(lora)(**(vars(lora) | {"layers": few})), read.config, half=False)
    model, _, file = to_onnx.export(gguf(hf), tmp_path / "o", "fp32", adapters={"few": tmp_path / "few.gguf"})
    plain = Plain(model)
    assert [i.name for i in plain.session.get_overridable_initializers()] == ["lora.1.qkv.a", "lora.1.qkv.b"]
    [(a, b)] = few.values()
    wide = np.zeros((4, 64 + 32 + 32), np.float32)
    wide[:, -32:] = b.T * lora.alpha / 4
    fed = plain.logits(**{"lora.1.qkv.a": np.ascontiguousarray(a.T), "lora.1.qkv.b": wide})
    assert np.array_equal(plain.logits(adapter=file), fed) and far(fed, plain.logits()) > 1e-3
    bare = Plain(to_onnx.export(gguf(hf), tmp_path / "fed", "fp32", adapters={"few": tmp_path / "few.gguf"},
                                defaults=False)[0])  # fmt: skip
    assert [i.name for i in bare.session.get_inputs() if "lora" in i.name] == ["lora.1.qkv.a", "lora.1.qkv.b"]
    assert np.array_equal(bare.logits(**{"lora.1.qkv.a": np.ascontiguousarray(a.T), "lora.1.qkv.b": wide}), fed)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_padded_batch_is_each_of_its_rows_alone(architecture: str, side: str, made: Path, tmp_path: Path) -> None:
    """Also one token later; more than one new token on a past is refused by ONNX Runtime, not computed wrong."""
    plain = Plain(to_onnx.export(gguf(folder(made, architecture)), tmp_path, "fp32")[0])
    rows, n = [IDS[:40], IDS[5:26], IDS[3:36]], 40
    places = [slice(n - len(r), n) if side == "left" else slice(0, len(r)) for r in rows]
    ids, mask = np.zeros((3, n), np.int64), np.zeros((3, n), np.int64)
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[i, place], mask[i, place] = row, 1
    got, past = plain.run(ids, mask, np.maximum(mask.cumsum(1) - 1, 0), plain.empty(3))
    assert np.isfinite(got).all()
    lengths = mask.sum(1, keepdims=True)
    more, _ = plain.run([[5], [6], [7]], np.hstack([mask, np.ones((3, 1))]), lengths, past)
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        alone = plain.logits([*row, 5 + i])
        if architecture == "gemma3" and side == "right":  # its window is counted over places, padding included
            assert far(got[i, place], alone[:-1]) < EXACT
            continue
        assert far(np.vstack([got[i, place], more[i]]), alone) < EXACT
    with pytest.raises(Exception, match="batch_size must be 1"):
        plain.run([[5, 5]] * 3, np.hstack([mask, np.ones((3, 2))]), lengths + np.arange(2), past)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
        ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 5, "full_attention"]}),
        ("gemma3", {"rope_local_base_freq": 500.0}),
    ],
)  # fmt: skip
def test_rope_scaling_and_window_patterns_are_torchs(
    architecture: str, changes: dict[str, Any], made: Path, tmp_path: Path
) -> None:
    hf = tiny_hf.folder(tmp_path / "hf", architecture, seed=1)
    before = torch_logits(tiny_hf.load(hf))
    tiny_hf.edit(hf / "config.json", **changes)
    want = torch_logits(tiny_hf.load(hf))
    path = make.f32(hf, tmp_path / "m.gguf")
    assert far(Plain(to_onnx.export(path, tmp_path / "o", "fp32")[0]).logits(IDS, GROWING), want) < EXACT
    assert far(engine_logits(path), want) < EXACT < far(before, want)


# the files ---------------------------------------------------------------------------------------------------------
def test_the_names_are_those_of_optimums_export(made: Path, tmp_path: Path) -> None:
    model, data = to_onnx.export(gguf(folder(made, "qwen2")), tmp_path, "fp32")
    proto = onnx.load(str(model), load_external_data=False)
    pasts = [f"past_key_values.{i}.{p}" for i in range(3) for p in ("key", "value")]
    assert [i.name for i in proto.graph.input] == ["input_ids", "attention_mask", "position_ids", *pasts]
    assert {o.name for o in proto.graph.output} == {"logits", *(p.replace("past_key_values", "present") for p in pasts)}
    found = onnx_check.check(model)
    assert found.nodes == len(proto.graph.node) and {name for name, _, _ in found.external} == {data.name}
    assert sum(n for _, _, n in {*found.external}) <= data.stat().st_size < 2 * sum(n for _, _, n in {*found.external})


@pytest.mark.parametrize(("kind", "blocks"), [("fp32", None), ("int8", "Q8_0"), ("int4", "Q4_1")])
def test_a_tied_embedding_stands_in_the_file_once(kind: Any, blocks: str | None, made: Path, tmp_path: Path) -> None:
    """What looks tokens up and what makes logits read the same bytes, scales too."""
    for tied in (True, False):
        path = gguf(folder(made, "llama", tied=tied))
        if blocks:
            path = make.quantized(path, tmp_path / f"{tied}.gguf", blocks)
        graph = onnx.load(str(to_onnx.export(path, tmp_path / f"o{tied}", kind)[0]), load_external_data=False).graph
        beside = [t for t in graph.initializer if t.external_data]
        where = {t.name: {e.key: e.value for e in t.external_data}["offset"] for t in beside}
        look_up = next(n for n in graph.node if n.op_type.startswith("Gather") and "input_ids" in n.input)
        head = next(n for n in graph.node if n.output[0] in ("logits", "logits.y") and n.op_type != "Add")
        looked, made_from = ({where[n] for n in node.input if n in where} for node in (look_up, head))
        assert len(looked) == (2 if blocks else 1) and (looked == made_from) == tied


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(made: Path, tmp_path: Path) -> None:
    hf = folder(made, "llama")
    whole = gguf(hf)
    small = make.quantized(whole, tmp_path / "q8.gguf", "Q8_0")
    out = tmp_path / "o"
    for path, kind, why in ((whole, "int8", "its layers are F32"), (whole, "int4", "F32"), (small, "fp32", "Q8_0"),
                            (small, "int4", "its layers are Q8_0")):  # fmt: skip
        with pytest.raises(ModelError, match=f"{kind} is made from .*{why}"):
            to_onnx.export(path, out, kind)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no kind 'int2'"):
        to_onnx.export(whole, out, "int2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="accuracy level"):
        to_onnx.export(whole, out, "fp32", level=1)
    lora, _ = make.lora(folder(made, "qwen2"), tmp_path / "a.gguf", 0)
    with pytest.raises(ModelError, match="another architecture"):
        to_onnx.export(whole, out, "fp32", adapters={"infer": lora})
    with pytest.raises(ConfigError, match="adapter's name"):
        to_onnx.export(whole, out, "fp32", adapters={"../infer": lora})
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(whole.read_bytes().replace(b"blk.2.ffn_norm.weight", b"blk.2.ffn_nose.weight"))
    with pytest.raises(ModelError, match=r"lacks the tensor blk\.2\.ffn_norm"):
        to_onnx.export(odd, out, "fp32")
    assert not out.exists() or not list(out.iterdir())
    files = to_onnx.export(whole, out, "fp32")
    before = [f.read_bytes() for f in files]
    with pytest.raises(ConfigError, match="is there already"):
        to_onnx.export(whole, out, "fp32")
    assert [f.read_bytes() for f in files] == before


def test_a_tensor_or_a_setting_that_the_graph_does_not_have_is_refused(made: Path, tmp_path: Path) -> None:
    hf = folder(made, "qwen2")
    source = make.source.read(hf)
    for key, code, value, why in (
        ("qwen2.attention.scale", 6, 0.5, "is not supported"), ("qwen2.rope.scaling.type", 8, "yarn", "yarn"),
        ("qwen2.attention.value_length", 4, 8, "metadata gives"), ("qwen2.rope.freq_base_swa", 8, "x", "absurd"),
        ("qwen2.rope.scaling.type", 4, 7, "not supported"),
    ):  # fmt: skip
        fields = [f for f in source.fields if f[0] != key] + [(key, code, value)]
        path = tmp_path / f"{key}.gguf"
        make.write_model(path, type(source)(**(vars(source) | {"fields": fields})), "F32")
        with pytest.raises(ModelError, match=why):
            to_onnx.export(path, tmp_path / "o", "fp32")
    lied = tmp_path / "lied.gguf"
    lied.write_bytes(gguf(hf).read_bytes().replace(b"blk.1.attn_q.bias", b"blk.1.attn_x.bias"))
    with pytest.raises(ModelError, match=r"it lacks the tensor blk\.1\.attn_q\.bias"):
        to_onnx.export(lied, tmp_path / "o", "fp32")


# a third party -----------------------------------------------------------------------------------------------------
def test_the_plain_script_continues_as_torch_does(made: Path, tmp_path: Path) -> None:
    """It runs in an interpreter that cannot see this repository."""
    hf = folder(made, "llama")
    lora, merged = make.lora(hf, tmp_path / "infer.gguf", 5)
    model, _, adapter = to_onnx.export(gguf(hf), tmp_path / "o", "fp32", adapters={"infer": lora})
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / "o" / name).write_bytes((hf / name).read_bytes())
    tokenizer = Tokenizer(Gguf(gguf(hf)))
    ids = tokenizer.encode("Prefers short answers.")
    for torch_model, more in ((tiny_hf.load(hf), []), (merged, [str(adapter)])):
        with torch.no_grad():
            whole = torch_model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)),
                                         max_new_tokens=64, do_sample=False, eos_token_id=2)[0].tolist()  # fmt: skip
        want = [t for t in whole[len(ids) :] if t != 2]
        command = [sys.executable, "-I", str(snippets.PLAIN_ONNXRUNTIME), str(model), "Prefers short answers.", *more]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        hf_tokenizer = __import__("tokenizers").Tokenizer.from_file(str(hf / "tokenizer.json"))
        assert done.stdout == hf_tokenizer.decode(want) + "\n" and len(want) > 3


def test_the_real_base_in_four_bits_is_exact_at_level_0_and_near_at_level_4(base: Path, tmp_path: Path) -> None:
    """Nothing is requantized: the file is about as large as its blocks (scales are float32, not float16)."""
    ids = Tokenizer(Gguf(base)).encode(PROSE)
    want = torch_logits(dequantized(base), ids)
    model, data = to_onnx.export(base, tmp_path / "4", "int4")
    assert data.stat().st_size < 1.2 * sum(t.data.size for t in Gguf(base).tensors.values())
    assert make.divergence(want, Plain(model).logits(ids)) < 5e-3
    exact = Plain(to_onnx.export(base, tmp_path / "0", "int4", level=0)[0]).logits(ids[:24])
    assert far(exact, want[:24]) < EXACT and (exact.argmax(-1) == want[:24].argmax(-1)).all()


def test_a_full_disk_is_one_line_and_leaves_nothing(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    """At every file in turn: the graph's weights, the graph, and the adapter, which ONNX Runtime writes itself."""
    lora = tmp_path / "lora.gguf"
    tiny_llama.adapter(lora, tiny[1].config, seed=1, rank=400)
    files = to_onnx.export(tiny[0], tmp_path / "good", "fp32", adapters={"infer": lora})
    sizes = [f.stat().st_size for f in files]
    assert sizes[0] < sizes[1] < sizes[2]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, said in (
        (sizes[1] // 2, r"cannot write .*out: "),
        (sizes[1], r"infer-fp32.onnx_adapter: ONNX Runtime could not write all of it \(is the disk full\?\)"),
        (sizes[2] - 1, r"infer-fp32.onnx_adapter: ONNX Runtime could not write all of it \(is the disk full\?\)"),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(StoreError, match=said):
                to_onnx.export(tiny[0], tmp_path / "out", "fp32", adapters={"infer": lora})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list((tmp_path / "out").iterdir()) == []
