"""ONNX files of a user's are walked over before a library parses them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from onnx import TensorProto, helper, numpy_helper

from popi_edge.engines.onnx_proto import chunk, number, varint
from popi_edge.errors import ModelError
from popi_edge.models import onnx_check, precheck
from popi_edge.models.onnx_schema import BITS, REFUSED, SCHEMA

F, I64 = TensorProto.FLOAT, TensorProto.INT64
Change = Callable[[onnx.ModelProto], Any]
KINDS = {1: "double", 2: "float", 3: "int", 4: "int", 5: "int", 9: "text", 12: "bytes", 14: "int"}


def condition() -> onnx.NodeProto:
    """An If with a graph in each branch."""
    out = helper.make_tensor_value_info("branch", F, [2])
    node = helper.make_node("Constant", [], ["branch"], value=numpy_helper.from_array(np.ones(2, np.float32)))
    graph = helper.make_graph([node], "branch", [], [out])
    return helper.make_node("If", ["flag"], ["chosen"], then_branch=graph, else_branch=graph)


def model() -> onnx.ModelProto:
    """A graph with a branch, a function, lists, shapes, and an initializer of every common type."""
    every = [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64,
             np.uint64, np.bool_, np.complex64, np.complex128]  # fmt: skip
    weights = [numpy_helper.from_array(np.ones((3, 2), kind), f"raw.{kind.__name__}") for kind in every]
    for kind in every:
        typed = helper.make_tensor(f"typed.{kind.__name__}", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [3, 2],
                                   np.ones((3, 2), kind).reshape(-1))  # fmt: skip
        weights.append(typed)
    weights.append(helper.make_tensor("texts", TensorProto.STRING, [2], [b"a", b"b"]))
    weights.append(helper.make_tensor("nibbles", TensorProto.UINT4, [3], [1, 2, 3]))
    weights.append(helper.make_tensor("empty", F, [0, 4], []))
    nodes = [
        helper.make_node("Add", ["x", "raw.float32"], ["y"]), condition(),
        helper.make_node("Twice", ["y"], ["z"], domain="own"),
        helper.make_node("Lists", ["z"], ["w"], domain="own", weights=[1.0, 2.0], sizes=[1, 2], names=["a", "b"]),
    ]  # fmt: skip
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    inputs = [helper.make_tensor_value_info("x", F, ["n", 2]), flag]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("w", F, ["n", 2])], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("own", "Twice", ["a"], ["b"], body, opsets[:1])
    return helper.make_model(graph, opset_imports=opsets, functions=[twice])


def put(path: Path, proto: onnx.ModelProto | bytes) -> Path:
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as e:
        onnx_check.check(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)
    return str(e.value)


def counted(proto: onnx.ModelProto) -> tuple[int, int]:
    """Nodes and tensors anywhere in a model, by a walk over the ``onnx`` package's own objects."""
    nodes = tensors = 0
    todo: list[Any] = [proto]
    while todo:
        message = todo.pop()
        nodes += isinstance(message, onnx.NodeProto)
        tensors += isinstance(message, onnx.TensorProto)
        for field, value in message.ListFields():
            if field.message_type is not None:
                todo += list(value) if field.is_repeated else [value]
    return nodes, tensors


def test_the_schema_is_that_of_the_onnx_package() -> None:
    """Every message that can be in a model, every field, its kind, and whether it may stand more than once."""
    seen, todo = {}, [onnx.ModelProto.DESCRIPTOR]
    while todo:
        message = todo.pop()
        name = message.name
        if name in seen:
            continue
        seen[name] = {}
        for field in message.fields:
            kind = field.message_type.name if field.message_type else KINDS[field.type]
            seen[name][field.number] = "*" * field.is_repeated + kind
            todo += [field.message_type] if field.message_type else []
    assert seen == SCHEMA and set(REFUSED) <= set(SCHEMA)


def test_the_sizes_of_types_are_those_of_the_onnx_package() -> None:
    known = dict(TensorProto.DataType.items())
    left_out = {"UNDEFINED", "STRING", "FLOAT6E2M3", "FLOAT6E3M2"}
    assert {v for k, v in known.items() if k not in left_out} == set(BITS)
    for name, code in known.items():
        if code in BITS:
            values = np.zeros(8, helper.tensor_dtype_to_np_dtype(code))
            assert len(numpy_helper.from_array(values).raw_data) == BITS[code], name


def test_what_the_onnx_package_writes_passes(tmp_path: Path) -> None:
    proto = model()
    onnx.checker.check_model(proto, full_check=False, check_custom_domain=False)
    found = onnx_check.check(put(tmp_path / "m.onnx", proto))
    assert (found.nodes, found.tensors) == counted(proto) and found.external == []
    assert precheck.any_file(tmp_path / "m.onnx")["kind"] == "ONNX model"


def test_data_beside_the_model_passes(tmp_path: Path) -> None:
    proto = model()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = onnx_check.check(tmp_path / "m.onnx")
    assert {name for name, _, _ in found.external} == {"w.bin"} and len(found.external) == 14
    assert precheck.any_file(tmp_path / "m.onnx")["files_beside"] == ["w.bin"]


# what is refused ---------------------------------------------------------------------------------------------------
def outside(location: str, **more: str) -> onnx.TensorProto:
    tensor = TensorProto(name="out", data_type=F, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": location} | more).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def add(*tensors: onnx.TensorProto) -> Change:
    return lambda m: m.graph.initializer.extend(tensors)


def deep(m: onnx.ModelProto, levels: int = 40) -> None:
    graph = m.graph
    for _ in range(levels):
        node = graph.node.add(op_type="If", output=["o"])
        graph = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g


def calls(m: onnx.ModelProto, *pairs: tuple[str, str]) -> None:
    for own, other in pairs:
        body = [helper.make_node(other, ["a"], ["b"], domain="loop")]
        m.functions.append(helper.make_function("loop", own, ["a"], ["b"], body, m.opset_import[:1]))


def data(**fields: Any) -> onnx.TensorProto:
    return TensorProto(**{"name": "t", "data_type": F, "dims": [2], "raw_data": bytes(8)} | fields)


@pytest.mark.parametrize(
    "location",
    ["../w.bin", "/etc/passwd", "a/w.bin", "a\\w.bin", "..", ".", "", "C:w.bin", "*/_ORT_MEM_ADDR_/*", "w.bin\0",
     "link.bin", "folder", "nowhere.bin", "pipe.bin", "http://x/w.bin", ".hidden", "m.onnx"],
)  # fmt: skip
def test_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "a").mkdir(parents=True)
    (folder / "folder").mkdir()
    for file in (tmp_path / "w.bin", folder / "w.bin", folder / "a" / "w.bin", folder / ".hidden"):
        file.write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    os.mkfifo(folder / "pipe.bin")
    proto = model()
    proto.graph.initializer.append(outside("w.bin", offset="0", length="16"))
    onnx_check.check(put(folder / "m.onnx", proto))
    proto.graph.initializer[-1].CopyFrom(outside(location, offset="0", length="16"))
    assert "a tensor's data" in refused(put(folder / "m.onnx", proto))


@pytest.mark.parametrize(
    "more",
    [{"offset": "1"}, {"offset": "-1"}, {"offset": "9" * 30}, {"offset": "0x0"}, {"offset": ""}, {"length": "15"},
     {"length": "17"}, {"length": "-16"}, {"length": "\u0661\u0666"}, {"basepath": "/etc"}, {"offset": "9" * 15}],
)  # fmt: skip
def test_data_beyond_its_file_or_of_another_length_is_refused(more: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    proto = model()
    proto.graph.initializer.append(outside("w.bin"))
    onnx_check.check(put(tmp_path / "m.onnx", proto))
    proto.graph.initializer[-1].CopyFrom(outside("w.bin", **more))
    refused(put(tmp_path / "m.onnx", proto))


def test_tensors_may_share_data_beside_the_model_but_not_parts_of_it(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    proto = model()
    for i, offset in enumerate((0, 0, 16)):
        proto.graph.initializer.append(outside("w.bin", offset=str(offset)))
        proto.graph.initializer[-1].name = f"w{i}"
    onnx_check.check(put(tmp_path / "m.onnx", proto))
    proto.graph.initializer[-1].external_data[1].value = "12"
    assert "overlap" in refused(put(tmp_path / "m.onnx", proto))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (add(data(), data()), "stands twice"), (add(data(dims=[3])), "its shape takes 12"),
        (add(data(dims=[2**62])), "absurd"), (add(data(dims=[2**21, 2**21])), "absurd"),
        (add(data(dims=[-2])), "absurd"),
        (add(data(dims=[2**62, 0])), "absurd"), (add(data(dims=[1] * 17)), "more than 16"),
        (add(data(data_type=0)), "unknown type 0"), (add(data(data_type=99)), "unknown type 99"),
        (add(data(data_type=8)), "bytes where"), (add(data(float_data=[1, 2])), "two places"),
        (add(data(raw_data=None)), "0 values"), (add(data(raw_data=None, float_data=[1.0])), "1 values"),
        (add(data(raw_data=None, int32_data=[1, 2])), "2 values"), (add(data(raw_data=bytes(7))), "7 bytes"),
        (add(data(segment=TensorProto.Segment(begin=0, end=1))), "split"),
        (add(data(data_location=1)), "two places"), (add(data(raw_data=None, data_location=1)), "data at ''"),
        (deep, "nested"), (lambda m: calls(m, ("A", "A")), "calls itself"),
        (lambda m: calls(m, ("A", "B"), ("B", "C"), ("C", "A")), "calls itself"),
        (lambda m: calls(m, ("A", "X"), ("A", "X")), "stands twice"),
        (lambda m: m.graph.node.add(op_type="EPContext", domain="com.microsoft"), "compiled code"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse"), (lambda m: m.training_info.add(), "training"),
        (lambda m: m.graph.node[0].attribute.add(name="s").sparse_tensor.dims.append(1), "sparse"),
        (lambda m: m.ClearField("graph"), "no graph"),
        (lambda m: setattr(m.graph.node[0], "op_type", "x" * 70_000), "a text of 70,000"),
    ],
)  # fmt: skip
def test_what_is_absurd_is_refused(change: Change, why: str, tmp_path: Path) -> None:
    proto = model()
    change(proto)
    assert why in refused(put(tmp_path / "m.onnx", proto))


def test_chains_of_functions_pass(tmp_path: Path) -> None:
    proto = model()
    calls(proto, *((f"F{i}", f"F{i + 1}") for i in range(30)))
    onnx_check.check(put(tmp_path / "m.onnx", proto))


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (number(99, 1), "unknown field 99"), (chunk(99, b"x"), "unknown field 99"), (chunk(7, b""), "stands twice"),
        (varint(25 << 3 | 3), "wrong type"), (varint(7 << 3 | 5) + bytes(4), "stands twice"),
        (number(8, 3), "wrong type"),
        (b"\x80" * 10 + b"\1", "a number without an end"), (b"\x80", "truncated"), (chunk(25, b"")[:1], "truncated"),
        (varint(14 << 3 | 2) + varint(2**40), "truncated"), (varint(14 << 3 | 2) + varint(2**64 - 1), "truncated"),
        (varint(2**61 + 1), "unknown field"),
    ],
)  # fmt: skip
def test_what_is_not_its_protobuf_is_refused(extra: bytes, why: str, tmp_path: Path) -> None:
    assert why in refused(put(tmp_path / "m.onnx", model().SerializeToString() + extra))


def test_more_fields_or_nodes_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model()
    nodes = counted(proto)[0]
    path = put(tmp_path / "m.onnx", proto)
    monkeypatch.setattr(onnx_check, "MAX_NODES", nodes)
    onnx_check.check(path)
    monkeypatch.setattr(onnx_check, "MAX_NODES", nodes - 1)
    assert "nodes" in refused(path)
    monkeypatch.setattr(onnx_check, "MAX_FIELDS", 200)
    assert "more than 200 fields" in refused(path)
    monkeypatch.setattr(onnx_check, "MAX_FILE", 100)
    assert "more than protobuf can" in refused(path)
    path.write_bytes(b"")
    assert "cannot be read" in refused(path)
    assert "no such file" in refused(tmp_path / "nowhere.onnx")


# changed files -----------------------------------------------------------------------------------------------------
def same(path: Path) -> None:
    """What passed is read by the ``onnx`` package with the same counts, and every tensor has its values."""
    proto = onnx.load_model_from_string(path.read_bytes())
    found = onnx_check.check(path)
    assert (found.nodes, found.tensors) == counted(proto)
    for tensor in proto.graph.initializer:
        if tensor.data_type not in (TensorProto.STRING, TensorProto.BOOL):
            assert numpy_helper.to_array(tensor).size == np.prod(tensor.dims, dtype=np.int64)


def test_a_changed_file_is_refused_or_the_other_reader_reads_the_same(tmp_path: Path) -> None:
    whole, r, passed = model().SerializeToString(), random.Random(9), 0
    for _ in range(700):
        changed = bytearray(whole)
        for _ in range(r.choice([1, 1, 2])):
            changed[r.randrange(len(changed))] ^= 1 << r.randrange(8)
        try:
            onnx_check.check(put(tmp_path / "m.onnx", bytes(changed)))
        except ModelError as e:
            assert "\n" not in str(e)
            continue
        same(tmp_path / "m.onnx")
        passed += 1
    assert 50 < passed < 600


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.data())
def test_a_truncated_file_is_refused_or_ends_between_two_fields(tmp_path: Path, data: some.DataObject) -> None:
    whole = model().SerializeToString()
    cut = whole[: data.draw(some.integers(0, len(whole) - 1))]
    path = put(tmp_path / "m.onnx", cut)
    try:
        onnx_check.check(path)
    except ModelError:
        return
    same(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=some.binary(min_size=1, max_size=200))
def test_noise_is_refused_or_protobuf(tmp_path: Path, noise: bytes) -> None:
    path = put(tmp_path / "m.onnx", noise)
    try:
        onnx_check.check(path)
    except ModelError as e:
        assert "\n" not in str(e)
        return
    onnx.load_model_from_string(noise)
