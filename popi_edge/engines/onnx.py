"""The default engine: a GGUF on ONNX Runtime, without torch or the ``onnx`` package, nothing requantized."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from popi_edge.engines.adapter import fused, hooks_of, read_adapter
from popi_edge.engines.base import BaseEngine, Floats, Lane, check_template
from popi_edge.engines.onnx_blocks import Quantized, repack, values
from popi_edge.engines.onnx_graph import Builder
from popi_edge.engines.onnx_shape import Shape
from popi_edge.engines.prefix import read_prefix, write_prefix
from popi_edge.engines.threads import default_threads
from popi_edge.errors import EngineError, ModelError
from popi_edge.models import precheck
from popi_edge.models.tokenizer import Tokenizer

CHUNK = 256
"""Most tokens in one run: it bounds the memory of activations; a chunked prefill is bit-equal."""
MAX_CONTEXT = 4_096


@dataclass
class Buffers:
    """A lane's keys and values, [layers][2] arrays of shape [1, kv_heads, capacity, head_dim], and its binding."""

    values: list[Any]
    capacity: int
    weights: dict[str, Any]
    binding: Any = None


class OnnxEngine(BaseEngine):
    """``level`` 4 rounds activations to int8 (fast, the default); 0 computes in float32 (slow, exact: for tests)."""

    name = "onnx"

    def __init__(
        self, model: Path, *, adapters: Mapping[str, Path], threads: int | None = None, level: int = 4
    ) -> None:
        super().__init__(adapters)
        ort.disable_telemetry_events()
        gguf = precheck.model(model)
        self._gguf = gguf
        self.tokenizer = Tokenizer(gguf)
        check_template(self.tokenizer, model)
        self.shape = Shape.of(gguf)
        self.context_length = min(self.shape.context, MAX_CONTEXT)
        self._loaded = {name: read_adapter(path, gguf) for name, path in self._adapters.items()}
        hooks = {hook for name, path in self._adapters.items() for hook in hooks_of(self._loaded[name], path)}
        builder = Builder(gguf, level=level, hooks=hooks, positions=self.context_length)
        graph = builder.build()
        gguf.drop_pages()  # the blocks have been repacked: a quarter of the peak
        self.identity = f"onnx-f32:{model.stat().st_size}:{self.shape}"
        self._hooks = builder.hook_shapes
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.log_severity_level = 4  # its messages would bypass ours
        names = list(graph.external)
        values = [ort.OrtValue.ortvalue_from_numpy(graph.external[n]) for n in names]
        options.add_external_initializers(names, values)
        skeleton = graph.serialize()
        try:
            self._session = ort.InferenceSession(skeleton, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime raises its own, undocumented types
            raise ModelError(f"{model}: ONNX Runtime refused it: {str(e)[:200]}") from None
        graph.external.clear()
        del values, options, graph, builder
        trim_memory()
        embedding = gguf.tensors["token_embd.weight"]
        self._embedding = embedding
        self._options = ort.RunOptions()

    def _embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        t = self._embedding
        index = np.asarray(ids, np.int64)
        if index.min() < 0 or index.max() >= t.shape[0]:
            raise EngineError("a token id outside the vocabulary")
        rows = t.data.reshape(t.shape[0], -1)[index]
        part = type(t)(t.name, t.type, (len(index), t.shape[1]), rows.reshape(-1))
        if part.type != "Q6_K":
            return np.ascontiguousarray(part.dequantize())[None]
        packed = repack(part)
        assert isinstance(packed, Quantized)
        return values(packed)[None]

    def _open_lane(self, lane: Lane) -> None:
        adapter = self._loaded[lane.adapter] if lane.adapter else None
        weights = {}
        for hook, (k, n) in self._hooks.items():
            a, b = fused(adapter, self.shape, hook, k, n)
            weights[f"lora.{hook}.a"] = ort.OrtValue.ortvalue_from_numpy(a)
            weights[f"lora.{hook}.b"] = ort.OrtValue.ortvalue_from_numpy(b)
        lane.state = Buffers([], 0, weights)
        self._grow(lane, 512)

    def _grow(self, lane: Lane, needed: int) -> None:
        buffers: Buffers = lane.state
        capacity = max(buffers.capacity, 512)
        while capacity < needed:
            capacity *= 2
        if capacity == buffers.capacity:
            return
        s = self.shape
        fresh = []
        for i in range(2 * s.layers):
            block = np.zeros((1, s.kv_heads, capacity, s.head_dim), np.float32)
            if lane.tokens:
                n = len(lane.tokens)
                block[:, :, :n] = buffers.values[i].numpy()[:, :, :n]
            fresh.append(ort.OrtValue.ortvalue_from_numpy(block))
        buffers.values, buffers.capacity, buffers.binding = fresh, capacity, self._bind(fresh, buffers.weights)

    def _bind(self, values: list[Any], weights: Mapping[str, Any]) -> Any:
        """Past and present share one buffer: bound once, it saves a copy and a fifth of the time a token."""
        binding = self._session.io_binding()
        for name, value in weights.items():
            binding.bind_ortvalue_input(name, value)
        for i in range(self.shape.layers):
            for j, part in enumerate("kv"):
                binding.bind_ortvalue_input(f"past.{i}.{part}", values[2 * i + j])
                binding.bind_ortvalue_output(f"present.{i}.{part}", values[2 * i + j])
        return binding

    def _truncate(self, lane: Lane, length: int) -> None:
        """Nothing to do: what lies beyond the token count is never read, and is overwritten."""

    def _eval(self, lane: Lane, ids: Sequence[int], last: int) -> Floats:
        done, out = len(lane.tokens), []
        self._grow(lane, done + len(ids))
        for start in range(0, len(ids), CHUNK):
            piece = ids[start : start + CHUNK]
            wanted = min(len(piece), max(0, last - (len(ids) - start - len(piece))))
            logits = self._run(lane, piece, done + start, max(wanted, 1))
            if wanted:
                out.append(logits[-wanted:])
        return np.concatenate(out) if len(out) > 1 else out[0]

    def _run(self, lane: Lane, ids: Sequence[int], past: int, wanted: int) -> Floats:
        buffers: Buffers = lane.state
        binding = buffers.binding
        total = past + len(ids)
        feeds = {
            "x": self._embed(ids),
            "seqlens_k": np.array([total - 1], np.int32),
            "total": np.array(total, np.int32),
            "first": np.array([len(ids) - wanted], np.int64),
        }
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("logits", "cpu")
        try:
            self._session.run_with_iobinding(binding, self._options)
        except Exception as e:  # onnxruntime raises its own, undocumented types
            raise EngineError(f"ONNX Runtime failed: {str(e)[:200]}") from None
        logits: Floats = binding.get_outputs()[-1].numpy()[0]
        return logits

    # prefixes -----------------------------------------------------------------------------------------------
    def _key(self, adapter: str | None) -> str:
        return f"{self.identity}:{self._gguf.sha256}:{self._loaded[adapter].sha256 if adapter else '-'}"

    def save_prefix(self, path: Path, *, adapter: str | None = None) -> None:
        lane = self.lane(adapter)
        n = len(lane.tokens)
        blocks = [v.numpy()[:, :, :n] for v in lane.state.values]
        write_prefix(path, self._key(adapter), lane.tokens, np.stack(blocks).tobytes())

    def load_prefix(self, path: Path, *, adapter: str | None = None) -> int:
        lane, s = self.lane(adapter), self.shape
        tokens, data = read_prefix(path, self._key(adapter))
        shape = (2 * s.layers, 1, s.kv_heads, len(tokens), s.head_dim)
        if len(data) != 4 * int(np.prod(shape)) or len(tokens) > self.context_length:
            raise ModelError(f"{path}: the saved prefix does not fit this model")
        lane.tokens.clear()
        self._grow(lane, len(tokens))
        for value, block in zip(lane.state.values, np.frombuffer(data, np.float32).reshape(shape), strict=True):
            value.numpy()[:, :, : len(tokens)] = block
        lane.tokens.extend(tokens)
        return len(tokens)

    def close(self) -> None:
        self._lanes.clear()
        self._session = None


def trim_memory() -> None:
    """Give freed memory back to the system (glibc keeps it otherwise: 160 MB after loading the base)."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            pass
