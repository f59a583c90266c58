"""A GGUF whose sizes do not fit its tensors is refused before a library sees it: llama.cpp's own loader is the judge of
what fits, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.export_hostile import Traps
from popi_edge.engines.base import open_engine
from popi_edge.errors import ModelError
from popi_edge.models import fit, precheck
from popi_edge.models.gguf import Gguf
from popi_export import source
from popi_export.to_gguf import write_model
from tests import raw_gguf as raw
from tests import tiny_hf

Parts = tuple[dict[str, tuple[int, Any]], list[tuple[str, tuple[int, ...], int, int]], bytes]
NATIVE = """
import ctypes, sys
import llama_cpp as llama
quiet = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(quiet, ctypes.c_void_p(0))
for name in sys.argv[1:]:
    model = llama.llama_model_load_from_file(name.encode(), llama.llama_model_default_params())
    print("loads" if model else "refuses", flush=True)
    if model:
        llama.llama_model_free(model)
"""


@pytest.fixture(scope="module", params=tiny_hf.ARCHITECTURES)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    words = "gemma" if request.param == "gemma3" else "qwen2"
    tiny_hf.folder(folder / "hf", request.param, vocabulary=words, tied=request.param != "qwen2")
    write_model(folder / "m.gguf", source.read(folder / "hf"), "F32")
    return folder / "m.gguf"


def build(parts: Parts) -> bytes:
    fields, heads, data = parts
    return raw.build(fields, [raw.tensor(*head) for head in heads], data)


def changed(good: Path) -> Iterator[tuple[str, Parts]]:
    """Every size a little and a lot off, every tensor renamed, left out, and turned round, a vocabulary too short."""
    fields, heads, data = raw.parts(good)
    arch = fields["general.architecture"][1]
    for name in precheck.SIZES:
        key = f"{arch}.{name}"
        for delta in (-1, 1, 7, 64):
            if key in fields and fields[key][1] + delta > 0:
                yield f"{name}{delta:+}", (fields | {key: (4, fields[key][1] + delta)}, heads, data)
    for i, (name, shape, kind, at) in enumerate(heads):
        for what, entry in (
            ("renamed", (name.replace("weight", "weighs"), shape, kind, at)), ("away", None),
            ("turned", (name, shape[::-1] if len(set(shape)) > 1 else (shape[0], 1), kind, at)),
        ):  # fmt: skip
            yield f"{name} {what}", (fields, [h for h in [*heads[:i], entry, *heads[i + 1 :]] if h], data)
    tokens = fields["tokenizer.ggml.tokens"][1]
    types = fields["tokenizer.ggml.token_type"][1]
    fewer = {"tokenizer.ggml.tokens": (9, tokens[:-1]), "tokenizer.ggml.token_type": (9, types[:-1])}
    if "tokenizer.ggml.scores" in fields:
        fewer["tokenizer.ggml.scores"] = (9, fields["tokenizer.ggml.scores"][1][:-1])
    yield "a token less", (fields | fewer, heads, data)


def native(files: list[Path]) -> list[str]:
    """What llama.cpp's loader says of each; ``ends`` where it ends the process."""
    out: list[str] = []
    while len(out) < len(files):
        done = subprocess.run(
            [sys.executable, "-c", NATIVE, *map(str, files[len(out) :])], capture_output=True, text=True,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip
        out += done.stdout.split()
        if len(out) < len(files):
            out.append("ends")
    return out


def test_what_does_not_fit_is_what_llama_cpp_refuses(good: Path, tmp_path: Path) -> None:
    files, names = [good], ["as it is"]
    for name, parts in changed(good):
        files.append(tmp_path / f"{len(files)}.gguf")
        names.append(name)
        files[-1].write_bytes(build(parts))
    ours = []
    for path in files:
        try:
            precheck.model(path)
            ours.append("loads")
        except ModelError as e:
            assert str(path) in str(e) and "\n" not in str(e)
            ours.append("refuses")
    theirs = native(files)
    assert theirs[0] == ours[0] == "loads" and theirs.count("refuses") > 20
    missed = [n for n, our, their in zip(names, ours, theirs, strict=True) if our == "loads" != their]
    assert missed == []
    wrongly = [n for n, our, their in zip(names, ours, theirs, strict=True) if our != "loads" == their]
    # sizes of heads that llama.cpp does not compare with the tensors of every architecture
    unlooked = {"rope.dimension_count", "attention.head_count", "attention.key_length"}
    assert {n.rstrip("0123456789").rstrip("+-") for n in wrongly} <= unlooked


@pytest.mark.parametrize("engine", ["onnx", "llama_cpp"])
def test_an_engine_refuses_it_before_its_library_sees_it(engine: str, good: Path, tmp_path: Path) -> None:
    fields, heads, data = raw.parts(good)
    arch = fields["general.architecture"][1]
    path = tmp_path / "x.gguf"
    with Traps() as traps:
        for name in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count"):
            key = f"{arch}.{name}"
            path.write_bytes(build((fields | {key: (4, fields[key][1] + 8)}, heads, data)))
            with pytest.raises(ModelError, match=r"metadata gives|its metadata says|lacks the tensor|make no sense"):
                open_engine(engine, path, threads=1)
        path.write_bytes(build((fields | {"tokenizer.chat_template": (8, "{{ loop( }}")}, heads, data)))
        with pytest.raises(ModelError, match="chat template"):
            open_engine(engine, path, threads=1)
    assert traps.reached == []


def test_popi_itself_says_one_line(good: Path, tmp_path: Path) -> None:
    fields, heads, data = raw.parts(good)
    key = f"{fields['general.architecture'][1]}.feed_forward_length"
    path = tmp_path / "bare.gguf"
    path.write_bytes(build((fields | {key: (4, 64 + 8)}, heads, data)))
    environment = os.environ | {"POPI_ENGINE": "llama_cpp", "POPI_MODEL": str(path), "POPI_HOME": str(tmp_path / "h")}

    def popi(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "popi_edge", *words], env=environment, capture_output=True,
                              text=True)  # fmt: skip

    assert popi("record", "statement", "I like short answers in plain words.").returncode == 0
    done = popi("summary", "refresh")
    assert done.returncode == 1 and done.stderr.strip().endswith("its metadata gives [72, 64]"), done.stderr


def test_what_may_be_there_may_be_there(good: Path, tmp_path: Path) -> None:
    """A head of its own, biases, factors of rope; sizes of each layer; not a tensor that is none."""
    fields, heads, _ = raw.parts(good)
    arch = fields["general.architecture"][1]
    names = {h[0] for h in heads}
    shape = next(h[1] for h in heads if h[0] == "blk.0.attn_q.weight")
    layers = fields[f"{arch}.block_count"][1]
    each = {f"{arch}.{n}": (9, np.full(layers, fields[f"{arch}.{n}"][1], np.int32))
            for n in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")}  # fmt: skip
    embedding = next(h[1] for h in heads if h[0] == "token_embd.weight")
    head = fields[f"{arch}.attention.key_length"][1]
    more = [("output.weight", embedding), ("blk.0.attn_q.bias", shape[:1]), ("rope_freqs.weight", (head // 2,))]
    added = [(n, s) for n, s in more if n not in names]

    def check(extra: list[tuple[str, tuple[int, ...]]], changed: dict[str, tuple[int, Any]]) -> None:
        entries, at = [], 0
        for name, size, *_ in [*heads, *((n, s, 0, 0) for n, s in extra)]:
            entries.append(raw.tensor(name, size, 0, at))
            at += -(-4 * int(np.prod(size)) // 32) * 32
        path = tmp_path / "x.gguf"
        path.unlink(missing_ok=True)
        path.write_bytes(raw.build(fields | changed, entries, bytes(at)))
        fit.check(Gguf(path))

    check(added, each)
    check([], {})
    for wrong in ("output.weighs", "blk.0.attn_q", "blk.0.nothing.weight", "token_embd.bias", "v.blk.0.attn_q.weight"):
        with pytest.raises(ModelError, match="is not one of a"):
            check([(wrong, (32,))], {})
    with pytest.raises(ModelError, match="not one number for each"):
        check([], {k: (9, v[1][:-1]) for k, v in each.items()})


def test_another_architecture_is_looked_at_as_far_as_all_are_alike(tmp_path: Path) -> None:
    fields = {"general.architecture": (8, "falcon"), "falcon.block_count": (4, 2), "falcon.embedding_length": (4, 32)}
    path = tmp_path / "x.gguf"

    def check(*tensors: tuple[str, tuple[int, ...]], **more: tuple[int, Any]) -> None:
        entries = [raw.tensor(n, s, 0, 4096 * i) for i, (n, s) in enumerate(tensors)]
        path.unlink(missing_ok=True)
        path.write_bytes(raw.build(fields | more, entries, bytes(4096 * len(tensors))))
        precheck.model(path)

    words = {"tokenizer.ggml.tokens": (9, ["a", "b", "c"])}
    check(("token_embd.weight", (3, 32)), ("blk.1.anything.weight", (7,)), **words)
    for wrong in (("token_embd.weight", (3, 33)), ("token_embd.weight", (4, 32)), ("blk.2.anything.weight", (7,))):
        with pytest.raises(ModelError, match=r"has the shape|it has a layer 2"):
            check(wrong, **words)
