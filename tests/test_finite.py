"""A model whose weights are no numbers is refused before a library sees it: GGUF of every type, ONNX, adapters."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx import external_data_helper as outside

from bench import _tamper_whole as whole
from bench.export_hostile import Traps
from popi_edge.engines.base import open_engine
from popi_edge.errors import ModelError
from popi_edge.models import bundle, finite, onnx_adapter_check, onnx_check, precheck
from popi_edge.models.gguf import BLOCKS, Gguf, Tensor
from popi_export.quantize import quantize
from tests import tiny as make

NAN, INF = float("nan"), float("inf")


def numbers(kind: str, data: bytes) -> Any:
    """What the ``gguf`` package makes of a tensor's bytes."""
    if kind in ("F32", "F16"):
        return np.frombuffer(data, "<f4" if kind == "F32" else "<f2")
    with np.errstate(all="ignore"):
        return gguf.dequantize(np.frombuffer(data, np.uint8)[None], gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize(("kind", "per", "size"), BLOCKS.values(), ids=[b[0] for b in BLOCKS.values()])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), blocks=st.integers(1, 40))
def test_of_every_type_what_is_refused_is_what_dequantizes_to_no_number(
    kind: str, per: int, size: int, seed: int, blocks: int
) -> None:
    data = np.random.default_rng(seed).integers(0, 256, blocks * size, np.uint8)
    tensor = Tensor("x", kind, (1, blocks * per), data)
    assert finite.finite(tensor) == bool(np.isfinite(numbers(kind, data.tobytes())).all())
    assert finite.finite(Tensor("x", kind, (1, blocks * per), np.zeros_like(data)))


def test_every_place_of_a_long_tensor_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "CHUNK", 100)
    for kind, size, code in (("F32", 4, "<f"), ("F16", 2, "<e"), ("Q8_0", 34, "<e")):
        per = next(b[1] for b in BLOCKS.values() if b[0] == kind)
        for block in range(30):
            data = bytearray(30 * size)
            data[block * size : block * size + struct.calcsize(code)] = struct.pack(code, -INF)
            assert not finite.finite(Tensor("x", kind, (1, 30 * per), np.frombuffer(data, np.uint8))), (kind, block)
            if size < 9:
                assert not finite.nan(bytes(data), kind, 0, len(data))
                data[block * size : (block + 1) * size] = struct.pack(code, NAN)
                assert finite.nan(bytes(data), kind, 0, len(data)), (kind, block)


def poisoned(path: Path, out: Path, name: str, value: float) -> Path:
    """The file with one value, or one block's scale, that is no number."""
    tensor, data = Gguf(path).tensors[name], bytearray(path.read_bytes())
    at, code = data.index(tensor.data.tobytes()), "<f" if tensor.type == "F32" else "<e"
    data[at : at + struct.calcsize(code)] = struct.pack(code, value)
    out.write_bytes(data)
    return out


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_no_engine_gets_it(kind: str, value: float, tiny: tuple[Path, Any], tmp_path: Path) -> None:
    quantize(tiny[0], tmp_path / "good.gguf", kind)
    bad = poisoned(tmp_path / "good.gguf", tmp_path / "bad.gguf", "blk.1.ffn_up.weight", value)
    wanted = r"bad.gguf: blk.1.ffn_up.weight holds a value that is not finite \(NaN or infinite\)$"
    with Traps() as traps:
        for engine in ("onnx", "llama_cpp"):
            with pytest.raises(ModelError, match=wanted):
                open_engine(engine, bad, adapters={}, threads=1)
    assert traps.reached == []
    with pytest.raises(ModelError, match=wanted):
        precheck.any_file(bad)


def test_nor_an_adapter(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    make.adapter(tmp_path / "good.gguf", tiny[1].config, seed=1, rank=2)
    bad = poisoned(tmp_path / "good.gguf", tmp_path / "bad.gguf", "blk.0.attn_q.weight.lora_b", NAN)
    with pytest.raises(ModelError, match=r"bad.gguf: blk.0.attn_q.weight.lora_b holds a value that is not finite"):
        open_engine("onnx", tiny[0], adapters={"x": bad}, threads=1)


def test_looking_takes_little_memory(tmp_path: Path) -> None:
    data = np.zeros(8 * finite.CHUNK, np.uint8)
    tracemalloc.start()
    try:
        assert finite.finite(Tensor("x", "F32", (len(data) // 4,), data))
        assert tracemalloc.get_traced_memory()[1] < 2 * finite.CHUNK
    finally:
        tracemalloc.stop()


def test_what_was_looked_at_is_given_back(tmp_path: Path) -> None:
    out = gguf.GGUFWriter(tmp_path / "many.gguf", "llama")
    for i in range(64):
        out.add_tensor(f"blk.{i}.x", np.ones((256, 256), np.float32))  # 256 KiB each, far below a chunk
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    file = Gguf(tmp_path / "many.gguf")
    finite.check(file)
    assert _resident("many.gguf") < 1024
    assert all(tensor.data.sum() for tensor in file.tensors.values())
    assert _resident("many.gguf") > 15 * 1024


def _resident(name: str) -> int:
    """KiB of a mapped file that are in memory."""
    at, found = "", 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            at = rest
        elif first == "Rss:" and at.endswith(name):
            found += int(rest.split()[0])
    return found


@pytest.mark.parametrize("name", ["model-F32.gguf", "infer.gguf", "model-fp32.onnx.data", "infer-fp32.onnx_adapter"])
def test_a_bundle_whose_hashes_are_right_is_refused_too(name: str, tmp_path: Path) -> None:
    place = whole.bundle(tmp_path / "b", 3)
    assert bundle.verified(place).manifest["name"] == "w3"
    data = bytearray((place / name).read_bytes())
    if name.endswith(".gguf"):
        tensor = next(t for t in Gguf(place / name).tensors.values() if len(t.shape) == 2).data.tobytes()
        at = data.index(tensor)
        data[at : at + 4] = b"\xff" * 4
    else:
        at = 0 if name.endswith(".data") else data.index(struct.pack("<f", 3.0))
        data[at : at + 4] = struct.pack("<f", NAN)
    (place / name).write_bytes(data)
    table = json.loads((place / "manifest.json").read_text())
    next(e for e in whole.entries(table) if e["file"] == name).update(whole.entry(place / name))
    (place / "manifest.json").write_text(json.dumps(table))
    with pytest.raises(ModelError, match=r"not finite|holds NaN"):
        bundle.verified(place)


# ONNX --------------------------------------------------------------------------------------------------------------
def graph(path: Path, *weights: TensorProto, beside: bool = False) -> Path:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Identity", [weights[0].name], ["y"])
    one = helper.make_graph([node], "g", [], [y], list(weights))
    model = helper.make_model(one, opset_imports=[helper.make_opsetid("", 21)])
    if beside:
        outside.convert_model_to_external_data(model, location=path.name + ".data", size_threshold=0)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.complex64])
@pytest.mark.parametrize("how", ["raw", "typed", "beside"])
def test_nan_in_an_onnx_model(kind: type, how: str, tmp_path: Path) -> None:
    def weight(last: float) -> TensorProto:
        array = np.array([[1, 2, 3], [4, 5, last]], kind)
        if how != "typed":
            return numpy_helper.from_array(array, "w")
        code = TensorProto.FLOAT if kind == np.float16 else helper.np_dtype_to_tensor_dtype(array.dtype)  # type: ignore[comparison-overlap]
        return helper.make_tensor("w", code, [2, 3], array.reshape(-1))

    for value in (6.0, -INF):  # a mask may hold infinities
        onnx_check.check(graph(tmp_path / f"good{value}.onnx", weight(value), beside=how == "beside"))
    with pytest.raises(ModelError, match=r"bad.onnx: not a usable ONNX file: a tensor that holds NaN$"):
        precheck.any_file(graph(tmp_path / "bad.onnx", weight(NAN), beside=how == "beside"))


def test_what_many_tensors_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a small file would have a large one read as often as it likes."""
    weights = []
    for i in range(50):
        weight = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[9])
        for key, value in (("location", "x.data"), ("offset", "4"), ("length", "36")):
            weight.external_data.add(key=key, value=value)
        weight.data_location = TensorProto.EXTERNAL
        weights.append(weight)
    (tmp_path / "x.data").write_bytes(bytes(40))
    looked, real = [], finite.nan
    monkeypatch.setattr(finite, "nan", lambda *a: looked.append(a[2:]) or real(*a))
    assert len(onnx_check.check(graph(tmp_path / "m.onnx", *weights)).external) == 50
    assert looked == [(4, 36)]


def test_nan_in_an_onnx_adapter(tmp_path: Path) -> None:
    for value in (1.0, NAN):
        kept = ort.AdapterFormat()
        arrays = {"a": np.ones((2, 3), np.float32), "b": np.array([[2, value]], np.float16)}
        kept.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in arrays.items()})
        kept.export_adapter(str(tmp_path / f"{value}.onnx_adapter"))
    assert sorted(onnx_adapter_check.check(tmp_path / "1.0.onnx_adapter")) == ["a", "b"]
    with pytest.raises(ModelError, match="not a usable ONNX Runtime adapter: the parameter 'b' holds NaN"):
        precheck.any_file(tmp_path / "nan.onnx_adapter")
