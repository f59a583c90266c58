"""A model file of a user's is looked at before a library sees it: GGUF headers."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from popi_edge.errors import ModelError
from popi_edge.models import precheck
from popi_edge.models.gguf import BLOCKS, Gguf
from tests import raw_gguf as raw
from tests import tiny as make

Change = Callable[[dict[str, tuple[int, Any]], list[Any]], Any]
EVIL = [0, 1, 2**31, 2**32 - 1, 2**33, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.fixture(scope="module")
def lora(tiny: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "lora.gguf"
    make.adapter(path, tiny[1].config, seed=3, rank=2)
    return path


@pytest.fixture(scope="module")
def end_of_data(lora: Path) -> int:
    """Where the last tensor ends; what follows is padding."""
    tensors = Gguf(lora).tensors
    return max(at + tensors[name].data.nbytes for name, _, _, at in raw.parts(lora)[1]) + header(lora)


def header(path: Path) -> int:
    """Bytes before the first tensor's data."""
    return path.stat().st_size - len(raw.parts(path)[2])


def refused(path: Path, check: Callable[[Path], object] = precheck.model) -> str:
    with pytest.raises(ModelError) as e:
        check(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)
    return str(e.value)


def test_our_reader_and_the_other_agree(tiny: tuple[Path, Any], lora: Path) -> None:
    for path, check in ((tiny[0], precheck.model), (lora, precheck.adapter)):
        check(path)
        agrees(path)
        assert raw.build(*(lambda f, t, d: (f, [raw.tensor(*x) for x in t], d))(*raw.parts(path))) == path.read_bytes()


def agrees(path: Path) -> None:
    """What our reader reads is what the ``gguf`` package reads: every key, value, tensor, shape, type and byte."""
    ours, theirs = Gguf(path), gguf.GGUFReader(path)
    fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.fields) == list(fields)
    for key, field in fields.items():
        mine = ours.fields[key]
        if field.types[-1] == gguf.GGUFValueType.STRING:
            got = [bytes(field.parts[i]).decode("utf-8", "replace") for i in field.data]
            assert got == (mine if isinstance(mine, list) else [mine]), key
        else:
            theirs_ = np.concatenate([np.asarray(field.parts[i]).reshape(-1) for i in field.data] or [np.zeros(0)])
            assert np.array_equal(np.atleast_1d(mine).astype(theirs_.dtype), theirs_, equal_nan=True), key
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        mine = ours.tensors[t.name]
        assert (mine.type, mine.shape) == (t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)))
        assert np.array_equal(mine.data, np.asarray(t.data).reshape(-1).view(np.uint8))


@pytest.mark.parametrize("which", ["model", "adapter"])
def test_a_changed_header_is_refused_or_reads_as_the_other_reader_reads_it(
    which: str, tiny: tuple[Path, Any], lora: Path, tmp_path: Path
) -> None:
    """Bits, bytes and whole numbers anywhere in the header."""
    source, check = (tiny[0], precheck.model) if which == "model" else (lora, precheck.adapter)
    data, end, r = source.read_bytes(), header(source), random.Random(11)
    kept = 0
    for i in range(400):
        changed = bytearray(data)
        at = r.randrange(end - 8)
        if i % 3:
            changed[at] ^= 1 << r.randrange(8)
        else:
            size = r.choice([1, 4, 8])
            changed[at : at + size] = (r.choice(EVIL) % 256**size).to_bytes(size, "little")
        path = tmp_path / f"{i % 2}.gguf"
        path.unlink(missing_ok=True)
        path.write_bytes(changed)
        try:
            check(path)
        except ModelError as e:
            assert "\n" not in str(e) and len(str(e)) < 400
            continue
        kept += 1
        if kept <= 60:
            agrees(path)
    assert 20 < kept < 380


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.data())
def test_a_truncated_file_is_refused(lora: Path, end_of_data: int, tmp_path: Path, data: some.DataObject) -> None:
    whole, last = lora.read_bytes(), end_of_data
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: data.draw(some.integers(0, last - 1))])
    refused(path, precheck.adapter)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.binary(max_size=400), start=some.sampled_from([b"", b"GGUF", b"GGUF\3\0\0\0", b"GGUF\3\0\0\0\1"]))
def test_noise_is_refused(tmp_path: Path, data: bytes, start: bytes) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(start + data)
    for check in (precheck.model, precheck.adapter):
        refused(path, check)


SMALL = {  # of an architecture whose tensors nobody knows here
    "general.architecture": (8, "falcon"),
    "falcon.block_count": (4, 1),
    "falcon.embedding_length": (4, 32),
}
TENSORS = [("a", (2, 32), 0, 0), ("b", (32,), 1, 256)]


def small(change: Change | None = None, **options: Any) -> bytes:
    fields, tensors = dict(SMALL), list(TENSORS)
    if change:
        change(fields, tensors)
    return raw.build(fields, [raw.tensor(*t) for t in tensors], bytes(256 + 64), **options)


def put(key: str, kind: int, value: Any) -> Change:
    return lambda fields, tensors: fields.__setitem__(key, (kind, value))


def swap(index: int, entry: Any) -> Change:
    return lambda fields, tensors: tensors.__setitem__(index, entry)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put("general.alignment", 4, 3), "alignment"), (put("general.alignment", 4, 0), "alignment"),
        (put("general.alignment", 8, "32"), "alignment"), (put("general.alignment", 10, 32), "alignment"),
        (put("split.count", 2, 3), "split model"), (put("falcon.block_count", 4, 0), "absurd"),
        (put("falcon.block_count", 4, 513), "absurd"), (put("falcon.block_count", 8, "4"), "no whole number"),
        (put("falcon.block_count", 6, 4.0), "no whole number"), (put("falcon.block_count", 5, -1), "absurd"),
        (put("falcon.block_count", 9, np.ones(2, np.uint32)), "no whole number"),
        (put("falcon.attention.head_count", 9, np.full(600, 4, np.int32)), "absurd"),
        (put("falcon.expert_count", 4, 2**31), "absurd"), (put("falcon.context_length", 10, 2**60), "absurd"),
        (put("falcon.attention.layer_norm_rms_epsilon", 6, -1e-5), "absurd"),
        (put("falcon.attention.layer_norm_rms_epsilon", 6, float("nan")), "absurd"),
        (put("falcon.rope.freq_base", 6, 0.0), "absurd"), (put("falcon.rope.freq_base", 8, "x"), "absurd"),
        (put("tokenizer.chat_template", 4, 1), "no text"), (put("tokenizer.ggml.eos_token_id", 4, 7), "no token"),
        (put("tokenizer.ggml.eos_token_id", 8, "7"), "no token"), (put("tokenizer.ggml.token_type", 4, 7), "numbers"),
        (put("general.architecture", 8, "a\nb"), "no name"), (put("general.architecture", 4, 1), "lacks"),
        (put("a\nb", 4, 1), "a name"), (put("", 4, 1), "a name"), (put("k" * 257, 4, 1), "a name of 257"),
        (swap(1, ("a", (32,), 1, 256)), "stands twice"), (swap(1, ("b", (32,), 1, 224)), "overlaps"),
        (swap(1, ("b", (32,), 1, 0)), "overlaps"), (swap(1, ("b", (32,), 1, 288)), "beyond its end"),
        (swap(1, ("b", (32,), 1, 257)), "offset"), (swap(1, ("b", (32,), 1, 2**64 - 32)), "beyond its end"),
        (swap(1, ("b", (33,), 1, 256)), "beyond its end"), (swap(1, ("b", (0,), 1, 256)), "shape"),
        (swap(1, ("b", (2**63, 2), 1, 256)), "beyond its end"), (swap(1, ("b", (2**32, 2**32), 3, 256)), "beyond"),
        (swap(1, ("b", (33,), 8, 256)), "shape"), (swap(1, ("b", (32,), 4, 256)), "unknown type 4"),
        (swap(1, ("b", (), 1, 256)), "0 dimensions"), (swap(1, ("b", (1,) * 5, 1, 256)), "5 dimensions"),
        (swap(1, ("n" * 64, (32,), 1, 256)), "a name of 64"), (swap(1, (b"\xff", (32,), 1, 256)), "a name"),
    ],
)  # fmt: skip
def test_what_is_absurd_is_refused(change: Change, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(small())
    precheck.model(path)
    path.write_bytes(small(change))
    assert why in refused(path)


@pytest.mark.parametrize("size", EVIL[2:])
def test_counts_and_lengths_beyond_the_file_cost_neither_time_nor_memory(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    key = raw.text("k")
    heads = [
        struct.pack("<IQQ", 3, size, 0), struct.pack("<IQQ", 3, 0, size), struct.pack("<IQQQ", 3, 0, 1, size),
        *(struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, inner, size) for inner in range(14)),
        struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IQ", 8, size),
        struct.pack("<IQQ", 3, 1, 0) + raw.text("t") + struct.pack("<I", size % 2**32),
    ]  # fmt: skip
    tracemalloc.start()
    for head in heads:
        path.write_bytes(b"GGUF" + head + bytes(64))
        refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_long_header_is_refused_however_large_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(small(put("x", 9, ["a"] * 3_000)))
    precheck.model(path)
    monkeypatch.setattr("popi_edge.models.gguf.MAX_HEADER", 20_000)
    assert "longer than 20,000 bytes" in refused(path)
    monkeypatch.setattr("popi_edge.models.gguf.MAX_TEXTS", 2_999)
    assert "more than 2,999 strings" in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        put("general.type", 8, "model"), put("adapter.type", 8, "ia3"), put("adapter.lora.alpha", 4, 8),
        put("adapter.lora.alpha", 6, float("inf")), swap(0, ("a", (2, 32), 0, 0)), swap(0, ("a.lora_a", (64,), 0, 0)),
        put("general.architecture", 4, 0),
    ],
)  # fmt: skip
def test_what_is_no_adapter_is_refused(change: Change, tmp_path: Path) -> None:
    fields = SMALL | {"general.type": (8, "adapter"), "adapter.type": (8, "lora"), "adapter.lora.alpha": (6, 8.0)}
    tensors: list[Any] = [("a.lora_a", (2, 32), 0, 0), ("a.lora_b", (32, 1), 1, 256)]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw.build(fields, [raw.tensor(*t) for t in tensors], bytes(320)))
    precheck.adapter(path)
    change(fields, tensors)
    path.write_bytes(raw.build(fields, [raw.tensor(*t) for t in tensors], bytes(320)))
    refused(path, precheck.adapter)


CHILD = """
import sys
from popi_edge.engines.base import open_engine
from popi_edge.errors import PopiError
from pathlib import Path
for name in sys.argv[2:]:
    try:
        engine = open_engine(sys.argv[1], Path(name), threads=1)
        engine.score([3, 4, 5], [[6, 7]])
        engine.close()
        print("ran")
    except PopiError as e:
        print("refused")
"""


@pytest.mark.parametrize("engine", ["onnx", "llama_cpp"])
def test_what_passes_crashes_no_engine(engine: str, tiny: tuple[Path, Any], tmp_path: Path) -> None:
    """Largest and smallest sizes that pass, and changed headers: an engine runs them or refuses them by an error of
    ours. (llama.cpp ends the process at an absurd layer count or a negative epsilon.)"""
    fields, tensors, data = raw.parts(tiny[0])
    entries = [raw.tensor(*t) for t in tensors]
    files = []

    def keep(content: bytes) -> None:
        path = tmp_path / f"{len(files)}.gguf"
        path.write_bytes(content)
        try:
            precheck.model(path)
        except ModelError:
            path.unlink()
        else:
            files.append(str(path))

    for name, limits in {**precheck.SIZES, **precheck.FACTORS}.items():
        for limit in limits:
            kind = 4 if isinstance(limit, int) else 6
            keep(raw.build(fields | {f"llama.{name}": (kind, limit)}, entries, data))
    whole, r, end = tiny[0].read_bytes(), random.Random(3), header(tiny[0])
    names = [name for name in precheck.SIZES if name.startswith("expert_")]
    for _ in range(300):
        keep(raw.build(fields | {f"llama.{n}": (4, r.choice([0, 1, 2, 4, 256])) for n in names}, entries, data))
    keys = whole.index(b"tokenizer.ggml.tokens")
    for _ in range(150):
        changed = bytearray(whole)
        changed[r.choice([r.randrange(keys), r.randrange(end - 5_000, end)])] ^= 1 << r.randrange(8)
        keep(bytes(changed))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, engine, *files], capture_output=True, text=True,
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
    )  # fmt: skip
    said = done.stdout.split()
    assert done.returncode == 0 and len(said) == len(files), (files[len(said)], done.stderr[-2_000:])
    assert set(said) == {"ran", "refused"}


def test_every_block_type_has_the_size_that_the_gguf_package_knows() -> None:
    for code, (name, values, size) in BLOCKS.items():
        kind = gguf.GGMLQuantizationType(code)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (values, size))
