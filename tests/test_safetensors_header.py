"""Our look at a safetensors file agrees with the safetensors library on good files, and refuses bad ones unread."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from popi_edge.errors import ModelError
from popi_export import hf, safetensors_header

NAMES = st.text(st.characters(categories=["L", "N"], include_characters="._-"), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(1, 5), max_size=4)
KINDS = st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_])


def write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, end: int, shape: Any = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.tuples(SHAPES, KINDS), min_size=1, max_size=6), st.integers(0, 1 << 30))
def test_a_file_of_the_library_reads_as_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, Any], seed: int
) -> None:
    path = tmp_path_factory.mktemp("st") / "m.safetensors"
    rng = np.random.default_rng(seed)
    arrays = {name: rng.integers(0, 2, shape).astype(kind) for name, (shape, kind) in wanted.items()}
    save_file(arrays, path, metadata={"format": "np"})
    header = safetensors_header.read(path)
    assert header.metadata == {"format": "np"} and set(header.tensors) == set(arrays)
    data = path.read_bytes()
    for name, found in header.tensors.items():
        assert found.shape == arrays[name].shape
        assert data[found.start : found.end] == arrays[name].tobytes()


def test_bfloat16_float16_and_float32_are_read_exactly(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    bits = torch.arange(0, 1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = {"b": bits, "h": bits.view(torch.float16), "f": torch.randn(3, 5)}
    values = {k: v[torch.isfinite(v)] if k != "f" else v for k, v in values.items()}
    save_torch(values, str(tmp_path / "model.safetensors"))
    weights = hf.Weights(tmp_path)
    for name, value in values.items():
        got = weights.load(name)
        assert got.dtype == np.float32 and np.array_equal(got, value.float().numpy())


GOOD = {"a": entry(0, 8), "b": entry(8, 24, [2, 2])}
BAD: list[tuple[str, Any, bytes, dict[str, Any], str]] = [
    ("empty", b"", b"", {}, "a header of 0 bytes"),
    ("a length beyond the file", GOOD, bytes(24), {"length": 1 << 20}, "a header of 1,048,576 bytes"),
    ("an absurd length", GOOD, bytes(24), {"length": (1 << 64) - 1}, "a header of 18,446,744,073,709,551,615 bytes"),
    ("no object", [1, 2], b"", {}, "an object is needed, not list"),
    ("no JSON", b"{]", b"", {}, "not JSON"),
    ("no UTF-8", b'{"\xff": 1}', b"", {}, "not JSON"),
    ("recursion", b'{"a":' + b"[" * 200_000, b"", {}, "nested too deeply"),
    ("no tensors", {"__metadata__": {"a": "b"}}, b"", {}, "it holds no tensors"),
    ("5,000 tensors", {f"t{i}": entry(4 * i, 4 * i + 4) for i in range(5_000)}, bytes(20_000), {},
     "more than 4,096 tensors"),
    ("metadata of numbers", {"__metadata__": {"a": 1}, **GOOD}, bytes(24), {}, "not an object of texts"),
    ("a name twice", b'{"a": 1, "a": 2}', b"", {}, "the name 'a' stands twice"),
    ("an unknown type", {"a": entry(0, 8, [2], "F4")}, bytes(8), {}, "the unknown type 'F4'"),
    ("a type that is none", {"a": entry(0, 8, [2]) | {"dtype": []}}, bytes(8), {}, "the unknown type"),
    ("more keys", {"a": entry(0, 8) | {"x": 1}}, bytes(8), {}, "is not described by"),
    ("fewer keys", {"a": {"dtype": "F32"}}, bytes(8), {}, "is not described by"),
    ("no entry", {"a": 3}, bytes(8), {}, "is not described by"),
    ("a shape of text", {"a": entry(0, 8, ["2"])}, bytes(8), {}, "a shape or offsets that are none"),
    ("a negative shape", {"a": entry(0, 8, [-2])}, bytes(8), {}, "a shape or offsets that are none"),
    ("a shape of truth", {"a": entry(0, 4, [True])}, bytes(4), {}, "a shape or offsets that are none"),
    ("a float shape", {"a": entry(0, 8, [2.0])}, bytes(8), {}, "a shape or offsets that are none"),
    ("huge numbers", {"a": entry(0, 8, [10**4000])}, bytes(8), {}, "a shape or offsets that are none"),
    ("numbers that overflow", {"a": entry(0, 8, [1 << 47] * 8)}, bytes(8), {}, "its shape and type need"),
    ("nine dimensions", {"a": entry(0, 4, [1] * 9)}, bytes(4), {}, "a shape or offsets that are none"),
    ("an empty shape", {"a": entry(0, 0, [0])}, b"", {}, "its shape and type need 0"),
    ("a shape too large", {"a": entry(0, 8, [3])}, bytes(8), {}, "has 8 bytes, but its shape and type need 12"),
    ("three offsets", {"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}}, bytes(8), {}, "offsets that are none"),
    ("offsets turned round", {"a": entry(0, 8, [2]) | {"data_offsets": [8, 0]}}, bytes(8), {}, "has -8 bytes"),
    ("overlapping", {"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), {}, "'b' overlaps another"),
    ("the same place", {"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), {}, "'b' overlaps another"),
    ("a gap", {"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), {}, "'b' leaves a gap before it"),
    ("a gap first", {"a": entry(4, 8)}, bytes(8), {}, "'a' leaves a gap before it"),
    ("truncated", GOOD, bytes(23), {}, "truncated"),
    ("more bytes", GOOD, bytes(25), {}, "bytes that belong to no tensor"),
    ("a name of nothing", {"": entry(0, 8)}, bytes(8), {}, "a name that is none"),
    ("a name with an escape", {"\x1b[2J": entry(0, 8)}, bytes(8), {}, "a name that is none"),
    ("a name without end", {"a" * 300: entry(0, 8)}, bytes(8), {}, "a name that is none"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "data", "options", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_headers(header: Any, data: bytes, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", header, data, **options)
    with pytest.raises(ModelError, match=words) as refused:
        safetensors_header.read(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_what_is_no_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(b"1234567")
    for name, words in (("gone", "no such file"), ("pipe", "not a plain file"), (".", "directory|plain"),
                        ("short", "it has 7 bytes")):  # fmt: skip
        with pytest.raises(ModelError, match=words):
            safetensors_header.read(tmp_path / name)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_change_to_a_file_passes_that_the_library_refuses(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed, cut off or put in: ours raises ModelError or the library reads it too; nothing else is raised."""
    path = tmp_path_factory.mktemp("st") / "m.safetensors"
    good = json.dumps(GOOD).encode()
    whole = bytearray(struct.pack("<Q", len(good)) + good + bytes(24))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert", "digit"])):
            case "change":
                whole[at] = data.draw(st.integers(0, 255))
            case "cut":
                del whole[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                whole[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "digit":
                spots = [i for i, b in enumerate(whole) if 48 <= b < 58]
                if spots:
                    whole[data.draw(st.sampled_from(spots))] = data.draw(st.integers(48, 57))
        if not whole:
            return
    path.write_bytes(whole)
    try:
        safetensors_header.read(path)
    except ModelError:
        return
    try:
        with safe_open(path, "np") as file:
            file.keys()
    except SafetensorError as e:
        pytest.fail(f"the library refuses what we accept: {e}")


GARBAGE = [b"[" * (1 << 19), b'{"' + b"a" * (1 << 18), b'{"a":' * 4_000, b'{"a":[' + b"1," * 250_000,
           b"{" + b",".join(b'"%d":{}' % i for i in range(90_000)) + b"}"]  # fmt: skip


@pytest.mark.parametrize("header", GARBAGE)
def test_garbage_costs_little_memory(header: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", header)
    tracemalloc.start()
    with pytest.raises(ModelError):
        safetensors_header.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
