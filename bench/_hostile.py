"""Hostile files for ``bench.export_hostile``: each way makes an absurd file from a good one, by a seeded choice.

A way is ``f(random, material, folder)`` and returns what to open; its name begins with what that is (``gguf_``,
``lora_``, ``onnx_``, ``graph_`` adapters of ONNX Runtime, ``hf_`` folders, ``peft_`` adapters, ``run_`` checkpoints).
Ways that change bytes at random change only what cannot be right afterwards.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Random = random.Random
HUGE = (2**63, 2**64 - 1, 2**48, 2**33)


@dataclass(frozen=True)
class Files:
    """Good files: a GGUF model, the same in Q8_0, a GGUF adapter for it, an ONNX model with its weights, an ONNX
    Runtime adapter, a model's folder, a PEFT adapter's, and a run's (recipe and checkpoint)."""

    gguf: Path
    quantized: Path
    lora: Path
    onnx: Path
    graph: Path
    hf: Path
    peft: Path
    run: Path

    @classmethod
    def of(cls, folder: Path) -> Files:
        """As ``make`` has written them."""
        from bench._tamper_whole import ADAPTER, GRAPH

        whole = folder / "whole"
        return cls(whole / "model-F32.gguf", folder / "model-Q8_0.gguf", whole / "infer.gguf", whole / GRAPH,
                   whole / ADAPTER, folder / "model", folder / "peft", folder / "run")  # fmt: skip


Way = Callable[[Random, Files, Path], Path]


class Evil:
    """Unpickling it would leave a file behind."""

    def __reduce__(self) -> Any:
        return os.system, ("touch popi-was-here",)


def pickled(r: Random) -> bytes:
    return pickle.dumps(r.choice([Evil(), {"state": Evil()}, [Evil()] * 3]), r.randrange(6))


def put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


# GGUF --------------------------------------------------------------------------------------------------------------
def _place(data: bytes, key: bytes) -> int:
    """Where a metadata value's type stands, after its key."""
    return data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)


def _tensor(data: bytes, name: bytes) -> int:
    """Where a tensor's rank stands: then two sizes (u64), the type (u32), the offset (u64)."""
    return data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def gguf_cut(r: Random, m: Files, at: Path) -> Path:
    data = m.gguf.read_bytes()
    return put(at, "x.gguf", data[: r.choice([r.randrange(len(data) - 64), r.randrange(4_000)])])


def gguf_counts(r: Random, m: Files, at: Path) -> Path:
    """Absurd numbers of tensors and keys, lengths of texts and lists, another version."""
    data, huge = m.gguf.read_bytes(), struct.pack("<Q", r.choice(HUGE))
    key = _place(data, b"tokenizer.ggml.tokens")
    places = [(8, huge), (16, huge), (24, huge), (key + 8, huge), (key + 16, huge)]
    places.append((4, struct.pack("<I", r.choice([0, 1, 9]))))
    return put(at, "x.gguf", patched(data, *r.choice(places)))


def gguf_types(r: Random, m: Files, at: Path) -> Path:
    """A metadata value of an unknown type, a list in a list, a type that the key cannot have."""
    data = m.gguf.read_bytes()
    key = r.choice([b"llama.block_count", b"llama.embedding_length", b"tokenizer.ggml.tokens", b"general.architecture"])
    wrong = [13, 99, 2**31, 8 if key.endswith(b"tokens") else 9]
    return put(at, "x.gguf", patched(data, _place(data, key), struct.pack("<I", r.choice(wrong))))


def gguf_sizes(r: Random, m: Files, at: Path) -> Path:
    """Sizes of the model that are absurd."""
    data = m.gguf.read_bytes()
    name = r.choice([b"block_count", b"embedding_length", b"attention.head_count", b"attention.head_count_kv",
                     b"feed_forward_length", b"context_length"])  # fmt: skip
    value = r.choice([2**32 - 1, 2**31, 2**27 + r.randrange(99)])
    return put(at, "x.gguf", patched(data, _place(data, b"llama." + name) + 4, struct.pack("<I", value)))


def gguf_misfit(r: Random, m: Files, at: Path) -> Path:
    """Sizes that are possible, but not those of its tensors; tensors of other names."""
    data = m.gguf.read_bytes()
    name = r.choice([b"block_count", b"embedding_length", b"attention.head_count", b"feed_forward_length"])
    value = r.choice([1, 5, 7, 33, 64, 200])
    if r.random() < 0.3:  # a tensor by another name, of the same length: one is missing, one unknown
        old, new = r.choice([(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight"), (b"output_norm", b"output_mron"),
                             (b"blk.2.", b"blk.9."), (b"blk.0.attn_q.weight", b"blk.0.attn_q.weighs")])  # fmt: skip
        return put(at, "x.gguf", data.replace(old, new))
    return put(at, "x.gguf", patched(data, _place(data, b"llama." + name) + 4, struct.pack("<I", value)))


def gguf_tensors(r: Random, m: Files, at: Path) -> Path:
    """A tensor's rank, sizes, type and offset: absurd, beyond the end, crooked, over another tensor."""
    data, first = m.gguf.read_bytes(), b"blk.0.attn_q.weight"
    at_, other = _tensor(data, first), _tensor(data, b"blk.1.ffn_up.weight")
    huge = r.choice(HUGE)
    changes = [
        (at_, struct.pack("<I", r.choice([0, 5, 99]))), (at_ + 4, struct.pack("<Q", huge)), (at_ + 4, bytes(8)),
        (at_ + 12, struct.pack("<Q", huge)), (at_ + 20, struct.pack("<I", r.choice([4, 5, 99, 4_000]))),
        (at_ + 24, struct.pack("<Q", huge & ~31)), (at_ + 24, struct.pack("<Q", 7)),
        (at_ + 24, data[other + 24 : other + 32]),
    ]  # fmt: skip
    return put(at, "x.gguf", patched(data, *r.choice(changes)))


def gguf_twice(r: Random, m: Files, at: Path) -> Path:
    """A tensor or a key that stands twice, under a name of the same length."""
    data = m.gguf.read_bytes()
    if r.random() < 0.5:
        a, b = r.sample([b"blk.0.attn_q.weight", b"blk.1.attn_q.weight", b"blk.2.attn_q.weight"], 2)
        return put(at, "x.gguf", patched(data, _tensor(data, a) - len(a), b))
    a, b = b"tokenizer.ggml.merges", b"tokenizer.ggml.tokens"
    return put(at, "x.gguf", patched(data, _place(data, a) - len(a), b))


def gguf_not_finite(r: Random, m: Files, at: Path) -> Path:
    """A weight that is no number, or a whole block of them: its scale is none."""
    from popi_edge.models.gguf import Gguf

    whole = r.choice([m.gguf, m.quantized])
    data, tensor = whole.read_bytes(), r.choice(list(Gguf(whole).tensors.values()))
    step, code = (4, "<f") if tensor.type == "F32" else (34, "<e")
    where = data.index(tensor.data.tobytes()) + step * r.randrange(tensor.data.nbytes // step)
    return put(at, "x.gguf", patched(data, where, struct.pack(code, r.choice([float("nan"), float("inf")]))))


def gguf_another(r: Random, m: Files, at: Path) -> Path:
    """Something else by a GGUF's name."""
    what = [pickled(r), b"PK\x03\x04" + r.randbytes(60), b"\x7fELF" + r.randbytes(60), b"", b"GGUF",
            b"GGML" + r.randbytes(99), m.onnx.read_bytes(), m.lora.read_bytes(), b"{" * 10_000]  # fmt: skip
    return put(at, "x.gguf", r.choice(what))


def gguf_template(r: Random, m: Files, at: Path) -> Path:
    """A chat template that does not end, grows without end, or reaches for what it must not have."""
    from tests import raw_gguf

    fields, heads, data = raw_gguf.parts(m.gguf)
    fields["tokenizer.chat_template"] = (8, template(r))
    return put(at, "x.gguf", raw_gguf.build(fields, [raw_gguf.tensor(*h) for h in heads], data))


def template(r: Random) -> str:
    n = r.randrange(3_000, 4_000)
    double = r.choice(["x ~ x", "x + x", "x | replace('a', 'aa')"])
    return r.choice([
        f"{{% for a in range({n}) %}}{{% for b in range({n}) %}}{{% for c in range({n}) %}}{{% endfor %}}{{% endfor %}}"
        "{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ " + "(" * n + "1" + ")" * n + " }}", "{% if 1 %}" * 900 + "{% endif %}" * 900,
        f"{{{{ 'a' * {10**9 + n} }}}}", f"{{{{ 'a'.center({10**9 + n}) }}}}", f"{{{{ '{{:{10**9 + n}}}'.format(1) }}}}",
        "{% set x = 'aaaaaaaa' %}" + f"{{% set x = {double} %}}" * 60 + "{{ x }}",
        "{% set x = ['a'] %}" + "{% set x = [x, x] %}" * 60 + "{{ x == [x] }}{{ x }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% include '/etc/passwd' %}", "x" * 40_000, "{% for",
    ])  # fmt: skip


# GGUF adapters -----------------------------------------------------------------------------------------------------
def lora_cut(r: Random, m: Files, at: Path) -> Path:
    data = m.lora.read_bytes()
    return put(at, "x.gguf", data[: r.randrange(len(data) - 64)])


def lora_tensors(r: Random, m: Files, at: Path) -> Path:
    data = m.lora.read_bytes()
    a, b = (_tensor(data, b"blk.0.attn_q.weight.lora_" + end) for end in (b"a", b"b"))
    changes = [
        (a, struct.pack("<I", r.choice([0, 1, 3, 9]))), (a + 4, struct.pack("<Q", r.choice([*HUGE, 0, 3]))),
        (b + 4, struct.pack("<Q", r.choice([*HUGE, 0, 3]))), (b + 24, data[a + 24 : a + 32]), (a - 1, b"c"),
        (a + 20, struct.pack("<I", 77)),
    ]  # fmt: skip
    return put(at, "x.gguf", patched(data, *r.choice(changes)))


def lora_not_finite(r: Random, m: Files, at: Path) -> Path:
    from popi_edge.models.gguf import Gguf

    data = m.lora.read_bytes()
    tensor = r.choice(list(Gguf(m.lora).tensors.values()))
    width, code = (4, "<f") if tensor.type == "F32" else (2, "<e")
    where = data.index(tensor.data.tobytes()) + width * r.randrange(tensor.data.nbytes // width)
    return put(at, "x.gguf", patched(data, where, struct.pack(code, float("nan"))))


def lora_alpha(r: Random, m: Files, at: Path) -> Path:
    data = m.lora.read_bytes()
    key = _place(data, b"adapter.lora.alpha")
    return put(at, "x.gguf", patched(data, key + r.choice([0, 4]), struct.pack("<f", float("nan"))))


# ONNX --------------------------------------------------------------------------------------------------------------
def _onnx(m: Files, at: Path, data: bytes) -> Path:
    shutil.copy(m.onnx.with_name(m.onnx.name + ".data"), at)
    return put(at, "x.onnx", data)


def onnx_cut(r: Random, m: Files, at: Path) -> Path:
    data = m.onnx.read_bytes()
    return _onnx(m, at, data[: r.randrange(1, len(data) - 16)])


def onnx_external(r: Random, m: Files, at: Path) -> Path:
    """Weights at another place: outside, absolute, in memory, beyond the end, behind a link, not there."""
    data, name = m.onnx.read_bytes(), (m.onnx.name + ".data").encode()
    size = len(name)
    names = [b"/etc/passwd", b"../secret.bin", b"*/_ORT_MEM_ADDR_/*", b"C:\\x", b"nowhere"]
    names = [n.ljust(size, b"x")[:size] for n in names]
    names += [b"." * size, bytes(size)]
    path = _onnx(m, at, data.replace(name, r.choice(names)) if r.random() < 0.7 else data)
    if path.read_bytes() == data:
        beside = at / (m.onnx.name + ".data")
        if r.random() < 0.5:
            os.truncate(beside, r.randrange(beside.stat().st_size))
        else:
            beside.unlink()
            beside.symlink_to(m.onnx)
    return path


def _field(tag: int, data: bytes) -> bytes:
    from popi_edge.engines.onnx_proto import chunk

    return chunk(tag, data)


def onnx_nested(r: Random, m: Files, at: Path) -> Path:
    """Graphs in graphs in graphs, functions that call themselves, nodes that load code, unknown and doubled fields."""
    deep = b""
    for _ in range(r.randrange(40, 400)):
        deep = _field(1, _field(5, _field(6, deep)))
    call = _field(1, b"f") + _field(10, b"d") + _field(7, _field(4, b"f") + _field(7, b"d"))
    context = _field(7, _field(1, _field(4, b"EPContext")))
    extra = r.choice([_field(7, deep), _field(25, call), context, _field(60, b"x"), _field(20, b""), b"\xff" * 12])
    return _onnx(m, at, b"\x08\x0a" + (extra if r.random() < 0.7 else m.onnx.read_bytes() + extra))


def onnx_shapes(r: Random, m: Files, at: Path) -> Path:
    """An initializer whose shape is absurd, whose data is shorter than it, or that stands twice."""
    from popi_edge.engines.onnx_proto import chunk, number

    dims = r.choice([[2**40, 2**40], [2**62], [3], [-1 & 2**64 - 1], [1] * 20, [2**20, 2**20]])
    tensor = b"".join(number(1, d) for d in dims) + number(2, r.choice([1, 99, 8])) + chunk(8, "w") + chunk(9, bytes(4))
    twice = number(1, 1) + number(2, 2) + chunk(8, "w") + chunk(9, bytes(1))
    graph = chunk(5, twice) * 2 if r.random() < 0.2 else chunk(5, tensor)
    return _onnx(m, at, number(1, 10) + chunk(7, graph))


def onnx_not_a_number(r: Random, m: Files, at: Path) -> Path:
    """A weight beside the model that is NaN."""
    path = _onnx(m, at, m.onnx.read_bytes())
    beside = at / (m.onnx.name + ".data")
    data = beside.read_bytes()
    beside.write_bytes(patched(data, 4 * r.randrange(len(data) // 4), struct.pack("<f", float("nan"))))
    return path


def onnx_another(r: Random, m: Files, at: Path) -> Path:
    what = [pickled(r), b"PK\x03\x04" + r.randbytes(60), b"", r.randbytes(200), b"{}", b"\x80\x04\x95"]
    return _onnx(m, at, r.choice(what))


def graph_changed(r: Random, m: Files, at: Path) -> Path:
    """An ONNX Runtime adapter: cut, or its offsets and counts absurd."""
    data = m.graph.read_bytes()
    if r.random() < 0.3:
        return put(at, "x.onnx_adapter", data[: r.randrange(8, len(data) - 1)])
    root = struct.unpack_from("<I", data)[0]
    places = [0, root, root - struct.unpack_from("<i", data, root)[0]]
    new = struct.pack("<I", r.choice([0x7FFFFFFF, 0xFFFFFFF1]))
    return put(at, "x.onnx_adapter", patched(data, r.choice(places), new))


def graph_not_a_number(r: Random, m: Files, at: Path) -> Path:
    """An ONNX Runtime adapter that holds NaN."""
    data = m.graph.read_bytes()
    value = struct.pack("<f", 3.0)  # all of the good one's
    places = [i for i in range(0, len(data) - 3, 4) if data[i : i + 4] == value]
    return put(at, "x.onnx_adapter", patched(data, r.choice(places), struct.pack("<f", float("nan"))))


FILES: tuple[Way, ...] = (
    gguf_cut, gguf_counts, gguf_types, gguf_sizes, gguf_misfit, gguf_tensors, gguf_twice, gguf_not_finite,
    gguf_another, gguf_template, lora_cut, lora_tensors, lora_not_finite, lora_alpha, onnx_cut, onnx_external,
    onnx_nested, onnx_shapes, onnx_not_a_number, onnx_another, graph_changed, graph_not_a_number,
)  # fmt: skip

def make(folder: Path) -> Files:
    """Write the good files; needs torch, transformers, peft, onnx and gguf."""
    from bench._tamper_whole import MODEL, bundle
    from popi_export.quantize import quantize
    from tests import tiny_hf

    quantize(bundle(folder / "whole", 3) / MODEL, folder / "model-Q8_0.gguf", "Q8_0")
    hf = tiny_hf.folder(folder / "model", "llama")
    tiny_hf.peft_adapter(folder / "peft", hf)
    (folder / "run").mkdir()
    import torch

    torch.save({"step": 1}, folder / "run" / "checkpoint.pt")
    recipes = Path(__file__).parent.parent / "training" / "recipes"
    shutil.copy(recipes / "warm-start.toml", folder / "run" / "recipe.toml")
    return Files.of(folder)


if __name__ == "__main__":
    import sys

    make(Path(sys.argv[1]))
