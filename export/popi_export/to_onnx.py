"""GGUF → ``model-KIND.onnx`` with its weights beside it, without torch: every value is carried over, none requantized.

The inputs and outputs are those of optimum's text-generation-with-past export: ``input_ids`` [b, n], ``attention_mask``
[b, past + n] and ``position_ids`` [b, n] (int64), ``past_key_values.I.key|value`` [b, kv_heads, past, head_dim] →
``logits`` [b, n, V], ``present.I.key|value`` (float32). The operators are ONNX Runtime's own (com.microsoft), from 1.23
on. Rows of a batch may be padded on either side, as ``attention_mask`` says (a window counts padding, as it does in
transformers); ONNX Runtime refuses a batch that goes on from a past with more than one new token a row.

Adapters stay apart: their A and B are inputs with defaults of rank 0, and each is written as an ``.onnx_adapter`` for
ONNX Runtime's ``LoraAdapter`` (Python, C, C++, C#; JavaScript has none). Covered: F32, F16, Q8_0, Q4_0, Q4_1, Q6_K.
Not covered: other quantizations, other runtimes than ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from popi_edge.engines.adapter import Adapter, fused, hooks_of, read_adapter
from popi_edge.engines.onnx_blocks import FLOATS, Quantized
from popi_edge.engines.onnx_graph import MASKED, MS, Builder
from popi_edge.engines.onnx_proto import FLOAT, INT32, INT64
from popi_edge.errors import ConfigError, EngineError, ModelError, StoreError
from popi_edge.models import onnx_adapter_check, onnx_check, precheck
from popi_edge.models.gguf import Gguf
from popi_export.onnx_file import GraphFile, written

Kind = Literal["fp32", "int8", "int4"]
KINDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "fp32": (frozenset(FLOATS), frozenset(FLOATS)),
    "int8": (frozenset({"Q8_0"}), frozenset({"Q8_0", *FLOATS})),
    "int4": (frozenset({"Q4_0", "Q4_1"}), frozenset({"Q4_0", "Q4_1", "Q8_0", *FLOATS})),
}
"""By kind: what some of the layers' matrices must be, and what all of them may be."""
BATCH, TOKENS, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


def export(
    gguf: Path,
    out: Path,
    kind: Kind,
    *,
    adapters: Mapping[str, Path] | None = None,
    level: int = 4,
    defaults: bool = True,
) -> list[Path]:
    """Write ``model-KIND.onnx``, ``model-KIND.onnx.data`` and a ``NAME-KIND.onnx_adapter`` for each GGUF adapter into
    the folder ``out``; returns the files. ``level`` is MatMulNBits' accuracy level: 4 rounds activations to int8, 0
    computes in float32 and is many times slower. Without ``defaults`` the adapter's inputs must be fed on every run (of
    rank 0 for none), which is the only way in onnxruntime-node and -web: they take no input that has a default.

    Raises ConfigError (a kind that is none, a file that is there), ModelError (the GGUF, an adapter), StoreError.
    Nothing is left behind where it fails.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r:.40}; choose {', '.join(KINDS)}")
    if level not in (0, 4):
        raise ConfigError(f"the accuracy level is 0 or 4, not {level!r:.40}")
    for name in adapters or {}:
        if not onnx_check.LOCATION.fullmatch(name):
            raise ConfigError(f"an adapter's name must be letters, digits and . _ + -, not {name!r:.80}")
    source = precheck.model(gguf)
    check_types(source, kind)
    loaded = {name: read_adapter(path, source) for name, path in (adapters or {}).items()}
    hooks = {hook for name, adapter in loaded.items() for hook in hooks_of(adapter, (adapters or {})[name])}
    model = out / f"model-{kind}.onnx"
    data = model.with_name(model.name + ".data")
    files = [model, data, *(out / f"{name}-{kind}.onnx_adapter" for name in loaded)]
    with written(out, files):
        with data.open("xb") as file:
            graph = GraphFile(file, data.name)
            builder = ModelBuilder(source, level=level, hooks=hooks, file=graph, defaults=defaults)
            builder.build()
        builder.file.save(model)
        for path, adapter in zip(files[2:], loaded.values(), strict=True):
            write_onnx_adapter(path, adapter, builder)
        onnx_check.check(model)
    return files


def check_types(gguf: Gguf, kind: Kind) -> None:
    """Raises ModelError unless the layers' matrices have the types that a kind is made from."""
    some, every = KINDS[kind]
    matrices = {n: t.type for n, t in gguf.tensors.items() if n.startswith("blk.") and len(t.shape) == 2}
    if kind == "fp32":
        matrices |= {n: t.type for n, t in gguf.tensors.items() if len(t.shape) == 2}
    wrong = next((f"{n} is {t}" for n, t in matrices.items() if t not in every), None)
    if wrong or not some & set(matrices.values()):
        found = wrong or f"its layers are {', '.join(sorted(set(matrices.values()))) or 'none'}"
        raise ModelError(f"{gguf.path}: {kind} is made from {' or '.join(sorted(some))} tensors, and {found}")


class ModelBuilder(Builder):
    """The graph with token ids, a mask and positions going in, and logits of every position coming out."""

    def __init__(self, gguf: Gguf, *, level: int, hooks: set[str], file: GraphFile, defaults: bool = True) -> None:
        super().__init__(gguf, level=level, hooks=hooks, graph=file)
        self.file, self.defaults = file, defaults
        self.tied = "output.weight" not in gguf.tensors

    def front(self) -> str:
        g = self.graph
        g.input("input_ids", INT64, [BATCH, TOKENS])
        g.input("attention_mask", INT64, [BATCH, TOTAL])
        g.input("position_ids", INT64, [BATCH, TOKENS])
        self._mask()
        for local in (False, True) if any(self.shape.local) else (False,):
            self._angles(local)
        return self._embedded()

    def _mask(self) -> None:
        """``seqlens_k`` and ``total`` say how long keys are, the same for every row; ``bias`` is what keeps padding
        out, [b, 1, n, past + n]."""
        g = self.graph
        for name, value in (("zero", 0), ("one", 1)):
            g.constant(name, np.array(value, np.int64))
        g.node("Shape", ["attention_mask"], "mask.shape")
        g.node("Gather", ["mask.shape", "one"], "mask.length")
        g.node("Cast", ["mask.length"], "total", attributes={"to": INT32})
        g.node("Shape", ["input_ids"], "ids.shape")
        g.node("Shape", ["input_ids"], "ids.batch", attributes={"start": 0, "end": 1})
        g.node("Sub", ["total", g.constant("one_int32", np.array(1, np.int32))], "total.last")
        g.node("Expand", ["total.last", "ids.batch"], "seqlens_k")
        g.node("Cast", ["attention_mask"], "mask.float", attributes={"to": FLOAT})
        g.node("Sub", [g.constant("one_float", np.array(1, np.float32)), "mask.float"], "mask.padding")
        g.node("Mul", ["mask.padding", g.constant("masked", np.array(MASKED, np.float32))], "mask.bias")
        g.node("Unsqueeze", ["mask.bias", g.constant("middle", np.array([1, 2], np.int64))], "mask.bias4")
        g.node("Gather", ["ids.shape", "one"], "ids.length")
        g.node("Unsqueeze", ["ids.length", g.constant("front", np.array([0], np.int64))], "ids.length1")
        ones = [g.constant("ones", np.array([1, 1], np.int64)), g.constant("one_more", np.array([1], np.int64))]
        g.node("Concat", [ones[0], "ids.length1", ones[1]], "bias.shape", attributes={"axis": 0})
        g.node("Expand", ["mask.bias4", "bias.shape"], "bias")
        if any(self.shape.local):
            g.node("Add", ["bias", self.window("input_ids")], "bias.local")

    def _angles(self, local: bool) -> None:
        """cos and sin of the new positions only, [b · n, head_dim / 2]: a table of a whole context can be larger than
        the model. ``rope.rows`` [b, n] numbers them."""
        g, name = self.graph, "rope.local" if local else "rope"
        frequencies = g.constant(name + ".frequencies", self.frequencies(local).astype(np.float32)[None])
        if not local:
            g.node("Cast", ["position_ids"], "rope.positions", attributes={"to": FLOAT})
            self.reshape("rope.positions", [-1, 1], "rope.column")
            g.node("Size", ["input_ids"], "ids.size")
            g.node("Range", ["zero", "ids.size", "one"], "rope.range")
            g.node("Reshape", ["rope.range", "ids.shape"], "rope.rows")
        g.node("Mul", ["rope.column", frequencies], name + ".angles")
        g.node("Cos", [name + ".angles"], name + ".cos")
        g.node("Sin", [name + ".angles"], name + ".sin")

    def _embedded(self) -> str:
        """Rows of the embedding; a quantized one is looked up block by block."""
        g, part = self.file, self.rows("token_embd.weight")
        if not isinstance(part, Quantized):
            return g.node("Gather", [g.weight("embedding", part), "input_ids"], "embedded")
        scale = g.weight("embedding.d", part.scale[..., None])
        attributes = {"bits": part.bits, "block_size": part.block, "gather_axis": 0, "quantize_axis": 2}
        inputs = [g.weight("embedding.q", part.q), "input_ids", scale]
        x = g.node("GatherBlockQuantized", inputs, "embedded.blocks", domain=MS, attributes=attributes)
        if part.offset is not None:
            g.node("Gather", [g.weight("embedding.m", part.offset[..., None]), "input_ids"], "embedded.m")
            x = g.node("Add", [x, "embedded.m"], "embedded.sum")
        return self.reshape(x, [0, 0, self.shape.hidden], "embedded")

    def attention(self, i: int, qkv: str, past: list[str], outs: list[str]) -> str:
        g, s = self.graph, self.shape
        q, k, v = self.heads(i, qkv)
        name = "rope.local" if s.is_local(i) else "rope"
        bias = "bias.local" if s.is_local(i) else "bias"
        rotated = []
        for part, heads in ((q, s.heads), (k, s.kv_heads)):
            inputs = [part, "rope.rows", name + ".cos", name + ".sin"]
            attributes = {"num_heads": heads, "rotary_embedding_dim": 0, "interleaved": 0}
            rotated.append(g.node("RotaryEmbedding", inputs, part + ".turned", domain=MS, attributes=attributes))
        return self.gqa(i, [*rotated, v, *past, "seqlens_k", "total", "", "", "", bias], outs, rotary=0)

    def cache(self, i: int) -> tuple[list[str], list[str]]:
        s = self.shape
        past = [f"past_key_values.{i}.{p}" for p in ("key", "value")]
        present = [f"present.{i}.{p}" for p in ("key", "value")]
        for name in past:
            self.graph.input(name, FLOAT, [BATCH, s.kv_heads, PAST, s.head_dim])
        for name in present:
            self.graph.output(name, FLOAT, [BATCH, s.kv_heads, TOTAL, s.head_dim])
        return past, present

    def wanted(self, h: str) -> str:
        return h

    def head(self, x: str) -> None:
        """A tied head reads the embedding's own bytes."""
        g, s = self.file, self.shape
        if not self.tied:
            self.product(x, [self.rows("output.weight")], "logits")
        else:
            part = self.rows("token_embd.weight")
            if isinstance(part, Quantized):
                self._tied_blocks(x, part)
            else:
                g.node("FusedMatMul", [x, "embedding"], "logits", domain=MS, attributes={"transB": 1})
        g.output("logits", FLOAT, [BATCH, TOKENS, s.vocabulary])

    def _tied_blocks(self, x: str, part: Quantized) -> None:
        g, needs = self.file, part.offset is not None
        d = g.again("embedding.d.flat", "embedding.d", (part.scale.size,))
        sums = self.sums(x, [part], "logits")
        y = self.nbits(x, "embedding.q", d, part, part.scale.shape, "logits.y" if needs else "logits")
        if sums is not None and part.offset is not None:
            m = g.again("embedding.m.rows", "embedding.m", part.offset.shape)
            g.node("FusedMatMul", [sums, m], "logits.fix", domain=MS, attributes={"transB": 1})
            g.node("Add", [y, "logits.fix"], "logits")

    def hook_inputs(self, hook: str, k: int, n: int) -> tuple[str, str]:
        """Inputs that need not be fed: their defaults have rank 0."""
        a, b = super().hook_inputs(hook, k, n)
        if self.defaults:
            self.graph.constant(a, np.zeros((k, 0), np.float32))
            self.graph.constant(b, np.zeros((0, n), np.float32))
        return a, b


def write_onnx_adapter(path: Path, adapter: Adapter, builder: Builder) -> None:
    """An adapter as ONNX Runtime's AdapterFormat, alpha / r multiplied into B; a hook it does not use is left out.

    Raises StoreError for a full disk, EngineError.
    """
    import onnxruntime as ort

    parameters = {}
    for hook, (k, n) in builder.hook_shapes.items():
        a, b = fused(adapter, builder.shape, hook, k, n)
        if a.size:
            parameters[f"lora.{hook}.a"] = ort.OrtValue.ortvalue_from_numpy(a)
            parameters[f"lora.{hook}.b"] = ort.OrtValue.ortvalue_from_numpy(b)
    form = ort.AdapterFormat()
    form.set_adapter_version(1)
    form.set_model_version(1)
    form.set_parameters(parameters)
    try:
        form.export_adapter(str(path))
        onnx_adapter_check.check(path)
    except Exception as e:  # onnxruntime raises its own, undocumented types
        why = " ".join(str(e).split())
        if not isinstance(e, ModelError) and "write" not in why.lower():
            raise EngineError(f"ONNX Runtime could not make {path.name}: {why[:200]}") from None
        raise StoreError(f"cannot write {path}: ONNX Runtime could not write all of it (is the disk full?)") from None
