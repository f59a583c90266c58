"""Quantized files hold what llama.cpp's quantizer makes of the source, say what fell back, and appear whole or not."""

from __future__ import annotations

import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from popi_edge.errors import ConfigError, ModelError, StoreError
from popi_edge.models.gguf import BLOCKS, Gguf
from popi_export import imatrix
from popi_export.activations import collect
from popi_export.imatrix import ImportanceMatrix
from popi_export.quantize import INTENDED, KINDS, explain, fallbacks, quantize, types
from tests import tiny as make

NUMBERS = {t.name: t for t in gguf.GGMLQuantizationType}


def floats(path: Path) -> dict[str, Any]:
    """Every tensor as float32, by the ``gguf`` package: another reader than ours."""
    return {
        name: dequantize(np.ascontiguousarray(t.data.reshape(t.shape[0], -1) if len(t.shape) > 1 else t.data),
                         NUMBERS[t.type]).reshape(t.shape)
        for name, t in Gguf(path).tensors.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose every row is a multiple of 256."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    make.llama(path, hidden=256, heads=8, ffn=512, layers=4)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_returned_is_what_another_reader_finds(wide: Path, kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    written = quantize(wide, out, kind)
    found: dict[str, int] = {}
    for t in gguf.GGUFReader(out).tensors:
        found[t.tensor_type.name] = found.get(t.tensor_type.name, 0) + 1
    assert dict(written) == found == dict(types(Gguf(out)))
    matrices = {t.type for t in Gguf(out).tensors.values() if len(t.shape) == 2}
    assert matrices <= INTENDED[kind] and (kind.removesuffix("_M") in matrices)
    assert fallbacks(Gguf(out), kind) == [] and explain(Gguf(out), kind) == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf"]


def test_each_kind_is_nearer_to_the_source_the_more_bits_it_has(wide: Path, tmp_path: Path) -> None:
    source, error = floats(wide), {}
    for kind in KINDS:
        quantize(wide, tmp_path / kind, kind)
        error[kind] = max(float(np.abs(source[n] - v).max()) for n, v in floats(tmp_path / kind).items())
    assert error["F32"] == 0 and error["F16"] < error["Q8_0"] < error["Q6_K"] < error["Q5_K_M"]
    assert error["Q5_K_M"] < min(error[k] for k in ("Q4_K_M", "Q4_1", "Q4_0", "IQ4_NL"))
    assert max(error.values()) < 0.2


def test_a_quantized_source_is_dequantized_first(wide: Path, tmp_path: Path) -> None:
    quantize(wide, tmp_path / "q4.gguf", "Q4_1")
    quantize(tmp_path / "q4.gguf", tmp_path / "direct.gguf", "Q8_0")
    written = quantize(tmp_path / "q4.gguf", tmp_path / "f32.gguf", "F32")
    assert set(written) == {"F32"}
    by_gguf, ours = floats(tmp_path / "q4.gguf"), floats(tmp_path / "f32.gguf")
    assert all(np.array_equal(by_gguf[n], ours[n]) for n in by_gguf)
    quantize(tmp_path / "f32.gguf", tmp_path / "through.gguf", "Q8_0")
    a, b = Gguf(tmp_path / "direct.gguf"), Gguf(tmp_path / "through.gguf")
    assert all(np.array_equal(a.tensors[n].data, t.data) for n, t in b.tensors.items())
    quantize(tmp_path / "q4.gguf", tmp_path / "again.gguf", "Q4_1")
    again, q4 = Gguf(tmp_path / "again.gguf"), Gguf(tmp_path / "q4.gguf")
    assert all(np.array_equal(again.tensors[n].data, t.data) for n, t in q4.tensors.items())


def test_metadata_is_kept(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    quantize(tiny[0], tmp_path / "out.gguf", "Q8_0")
    before, after = Gguf(tiny[0]).fields, Gguf(tmp_path / "out.gguf").fields
    added = {"general.file_type", "general.quantization_version"}
    assert {k: v for k, v in after.items() if k not in added}.keys() == before.keys() - added
    assert after["tokenizer.ggml.tokens"] == before["tokenizer.ggml.tokens"]
    assert after["tokenizer.chat_template"] == before["tokenizer.chat_template"]


def test_rows_that_fit_no_block_are_named_with_what_they_became(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    quantize(tiny[0], tmp_path / "k.gguf", "Q4_K_M")  # rows of 96 and 160; two of four layers get more bits
    assert explain(Gguf(tmp_path / "k.gguf"), "Q4_K_M") == (
        "Q4_K_M fell back: 22 tensors Q5_0 instead of Q4_K (rows of 96, no multiple of 256); "
        "3 tensors Q8_0 instead of Q6_K (rows of 96, no multiple of 256); "
        "2 tensors Q5_0 instead of Q4_K (rows of 160, no multiple of 256); "
        "2 tensors Q8_0 instead of Q6_K (rows of 160, no multiple of 256)"
    )
    make.llama(tmp_path / "odd.gguf", hidden=36, ffn=64, layers=1)
    written = quantize(tmp_path / "odd.gguf", tmp_path / "odd8.gguf", "Q8_0")
    assert written["F16"] == 7 and written["Q8_0"] == 1  # only ffn_down has rows of 64
    assert explain(Gguf(tmp_path / "odd8.gguf"), "Q8_0") == (
        "Q8_0 fell back: 7 tensors F16 instead of Q8_0 (rows of 36, no multiple of 32)"
    )


def test_blocks_are_those_of_the_gguf_package() -> None:
    for code, (name, values, size) in BLOCKS.items():
        kind = gguf.GGMLQuantizationType(code)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (name, values, size)
    assert {t for kinds in INTENDED.values() for t in kinds} <= {name for name, _, _ in BLOCKS.values()}


# importance ------------------------------------------------------------------------------------------------
def test_the_importance_matrix_is_what_torch_hooks_find(tiny: tuple[Path, Any]) -> None:
    import torch

    from popi_edge.models.names import gguf_name
    from popi_edge.models.tokenizer import Tokenizer

    path, model = tiny
    text = "Explain how a heat pump works, step by step. It's a fine day! " * 60
    ids = Tokenizer(Gguf(path)).encode(text)
    assert len(ids) > 1_024  # more than one chunk, the last one not full
    wanted: dict[str, Any] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":

            def hook(_: Any, x: Any, __: Any, key: str = gguf_name(name + ".weight")) -> None:
                square = x[0].double().square().sum((0, 1))
                wanted[key] = wanted.get(key, 0) + square

            hooks.append(module.register_forward_hook(hook))
    with torch.no_grad():
        for start in range(0, len(ids), 512):
            model(torch.tensor([ids[start : start + 512]]))
    for h in hooks:
        h.remove()
    found = collect(path, text, tokens=len(ids))
    assert found.tokens == len(ids) and set(found.values) == set(wanted)
    for name, value in found.values.items():
        assert value == pytest.approx(wanted[name].numpy() / len(ids), rel=1e-4)


def test_a_matrix_changes_the_file_and_lowers_the_weighted_error(wide: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = floats(wide)
    values = {n: rng.lognormal(0, 2, v.shape[1]).astype(np.float32)
              for n, v in source.items() if v.ndim == 2 and n.startswith("blk.")}  # fmt: skip
    quantize(wide, tmp_path / "plain.gguf", "Q4_K_M")
    quantize(wide, tmp_path / "weighed.gguf", "Q4_K_M", imatrix=ImportanceMatrix(values, 1, ""))
    plain, weighed = floats(tmp_path / "plain.gguf"), floats(tmp_path / "weighed.gguf")

    def error(made: dict[str, Any]) -> float:
        return sum(float((values[n] * (source[n] - made[n]) ** 2).sum()) for n in values)

    assert error(weighed) < 0.9 * error(plain)


def test_a_matrix_of_another_model_is_refused(wide: Path, tiny: tuple[Path, Any], tmp_path: Path) -> None:
    found = collect(tiny[0], "some words to calibrate on")
    with pytest.raises(ModelError, match="not of"):
        quantize(wide, tmp_path / "out.gguf", "Q4_0", imatrix=found)
    bad = ImportanceMatrix({"blk.0.attn_q.weight": np.full(96, np.nan, np.float32)}, 1, "")
    with pytest.raises(ModelError, match="no importance"):
        quantize(tiny[0], tmp_path / "out.gguf", "Q4_0", imatrix=bad)
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_survives_its_file_and_a_broken_file_is_refused(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    found, path = collect(tiny[0], "some words to calibrate on"), tmp_path / "m.npz"
    found.save(path)
    read = ImportanceMatrix.load(path)
    assert (read.tokens, read.text) == (found.tokens, found.text) and set(read.values) == set(found.values)
    assert all(np.array_equal(v, found.values[n]) for n, v in read.values.items())
    whole = path.read_bytes()
    for data in (b"", b"no", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ModelError, match="not an importance matrix"):
            ImportanceMatrix.load(path)
    np.savez(path, **{imatrix.MEMBER: np.array(["1", "2"], object)})  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="not an importance matrix"):
        ImportanceMatrix.load(path)


def test_calibration_text_is_ours_by_seed_or_the_users(tmp_path: Path) -> None:
    first = imatrix.calibration_text(0)
    assert first == imatrix.calibration_text(0) != imatrix.calibration_text(1)
    assert sorted(first.split("\n\n")) == sorted(imatrix.calibration_text(1).split("\n\n"))
    file = tmp_path / "mine.txt"
    file.write_text("mine", "utf-8")
    assert imatrix.calibration_text(0, file) == "mine"
    for data, why in ((b" \n", "empty"), (b"\xff", "not UTF-8")):
        file.write_bytes(data)
        with pytest.raises(ConfigError, match=why):
            imatrix.calibration_text(0, file)
    with pytest.raises(ConfigError, match="cannot read"):
        imatrix.calibration_text(0, tmp_path / "none.txt")


# what goes wrong -------------------------------------------------------------------------------------------
def test_wrong_arguments_and_sources_are_refused_and_nothing_is_left(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no quantization 'Q9'"):
        quantize(tiny[0], tmp_path / "out.gguf", "Q9")
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(ModelError):
        quantize(tmp_path / "junk.gguf", tmp_path / "out.gguf", "Q8_0")
    with pytest.raises(StoreError, match="cannot write"):
        quantize(tiny[0], tmp_path / "no" / "out.gguf", "Q8_0")
    (tmp_path / "there.gguf").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="there already"):
        quantize(tiny[0], tmp_path / "there.gguf", "Q8_0")
    assert (tmp_path / "there.gguf").read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["junk.gguf", "there.gguf"]


def test_another_alignment_is_refused_since_llama_cpp_would_write_it_wrongly(
    tiny: tuple[Path, Any], tmp_path: Path
) -> None:
    for alignment in (16, 64):
        path = tmp_path / f"{alignment}.gguf"
        reader, writer = gguf.GGUFReader(tiny[0]), gguf.GGUFWriter(path, "llama")
        writer.add_custom_alignment(alignment)
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert Gguf(path).tensors.keys() == Gguf(tiny[0]).tensors.keys()
        with pytest.raises(ModelError, match=f"aligned to {alignment} bytes"):
            quantize(path, tmp_path / "out.gguf", "Q8_0")


def edited(path: Path, out: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert len(old) == len(new) and old in data
    out.write_bytes(data.replace(old, new))
    return out


def test_what_llama_cpp_refuses_is_one_line(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    other = edited(tiny[0], tmp_path / "other.gguf", b"llama", b"lmmma")
    with pytest.raises(ModelError, match=r"other\.gguf: llama\.cpp did not make Q8_0 of it: .*lmmma") as caught:
        quantize(other, tmp_path / "out.gguf", "Q8_0")
    assert "\n" not in str(caught.value) and not (tmp_path / "out.gguf").exists()


def test_weights_that_are_no_numbers_are_refused(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    shutil.copy(tiny[0], bad)
    with bad.open("rb+") as file:
        file.seek(-64, 2)
        file.write(b"\xff" * 64)
    with pytest.raises(ModelError, match=r"bad\.gguf: .* holds a value that is not finite"):
        quantize(bad, tmp_path / "out.gguf", "Q8_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.gguf"]


def test_weights_that_float16_cannot_hold_are_refused(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    """Of a matrix, and of the scale of a block."""
    big, tensor = tmp_path / "big.gguf", Gguf(tiny[0]).tensors["blk.1.ffn_up.weight"]
    data = bytearray(tiny[0].read_bytes())
    at = data.index(tensor.data.tobytes())
    data[at : at + 4] = np.float32(1e8).tobytes()
    big.write_bytes(data)
    for kind in ("F16", "Q8_0"):
        with pytest.raises(ModelError, match=r"big\.gguf: (a weight of it is too large|llama\.cpp did not make)"):
            quantize(big, tmp_path / "out.gguf", kind)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.gguf"]


def test_an_abort_of_the_quantizer_is_an_error_of_ours(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that writes some bytes and ends as llama.cpp's GGML_ABORT ends it."""
    child = tmp_path / "child"
    child.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nopen(json.loads(sys.argv[3])['out'], 'w').write('GGUF')\n"
        "print('ggml.c:1: GGML_ASSERT(no) failed', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    with pytest.raises(ModelError, match=r"llama\.cpp did not make Q8_0 of it: ggml\.c:1: GGML_ASSERT\(no\) failed"):
        quantize(tiny[0], tmp_path / "out.gguf", "Q8_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["child"]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_full_disk_is_one_line_and_leaves_nothing(wide: Path, tmp_path: Path, share: float) -> None:
    quantize(wide, tmp_path / "whole.gguf", "Q8_0")
    size = (tmp_path / "whole.gguf").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), hard))
    try:
        with pytest.raises(StoreError, match=r"is the disk full\?"):
            quantize(wide, tmp_path / "out.gguf", "Q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.gguf"]
