"""One model on one runtime, looked at from outside: the logits of given tokens, and one token after the other.

TorchRunner      a Hugging Face folder, or a GGUF dequantized to float32 (the reference)
LlamaRunner      a GGUF on bare llama.cpp
OnnxRunner       an ONNX graph with optimum's names on bare ONNX Runtime
EngineRunner     a GGUF on one of popi's own engines

Each takes one adapter or none, for as long as it is open. Not covered: batches, sampling, other devices than the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ConfigError, EngineError, ModelError

Logits = NDArray[np.float32]
ENGINES = ("torch", "llama.cpp", "onnxruntime", "popi-onnx", "popi-llama_cpp")
CONTEXT = 2_048


class Runner(Protocol):
    """A model that is open. ``name`` says on what it runs."""

    name: str

    def logits(self, ids: Sequence[int]) -> Logits:
        """Next-token logits [n, V] after each of the n ids of one text; nothing is remembered of earlier calls."""

    def tail(self, ids: Sequence[int], last: int) -> Logits:
        """Next-token logits [last, V] after each of the last ids of a text that has more; what stands before them is
        not read again where the call before had the same. ``forget`` first where ``step`` was called."""

    def step(self, ids: Sequence[int]) -> Logits:
        """Append ids to what ``step`` was given since ``forget``; logits [V] after the last of them. ``forget`` first
        where ``tail`` was called."""

    def forget(self) -> None: ...

    def close(self) -> None: ...


class _Cached(ABC):
    """``tail`` of a runner that keeps what it has read."""

    _prefix: tuple[int, ...] = ()
    """What stands before the last ``tail``; nothing after ``forget``."""

    def tail(self, ids: Sequence[int], last: int) -> Logits:
        prefix = tuple(ids[:-last])
        if not prefix:
            return self.logits(ids)
        if prefix != self._prefix:
            self.forget()
            self._begin(prefix)
            self._prefix = prefix
        return self._behind(len(prefix), ids[-last:])

    @abstractmethod
    def logits(self, ids: Sequence[int]) -> Logits: ...

    @abstractmethod
    def forget(self) -> None: ...

    @abstractmethod
    def _begin(self, prefix: Sequence[int]) -> None:
        """Read what several texts begin with, after ``forget``."""

    @abstractmethod
    def _behind(self, length: int, ids: Sequence[int]) -> Logits:
        """Logits [n, V] after each of n ids behind what ``_begin`` was given, ``length`` ids, and nothing else."""


class TorchRunner(_Cached):
    """A transformers model in float32."""

    name = "torch"

    def __init__(self, model: Any) -> None:
        self._model, self._past = model, None

    @classmethod
    def folder(cls, path: Path, adapter: Path | None = None) -> TorchRunner:
        """A Hugging Face folder, and a PEFT adapter's folder. Raises ModelError; nothing is fetched or executed."""
        from popi_export import torch_model

        return cls(torch_model.from_folder(path, adapter))

    @classmethod
    def gguf(cls, path: Path, adapter: Path | None = None) -> TorchRunner:
        """A GGUF dequantized to float32, with a GGUF adapter merged in. Raises ModelError."""
        from popi_export import torch_model

        return cls(torch_model.from_gguf(path, adapter))

    def logits(self, ids: Sequence[int]) -> Logits:
        import torch

        with torch.inference_mode():
            out: Logits = self._model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()
        return out

    def _begin(self, prefix: Sequence[int]) -> None:
        self.step(prefix)

    def _behind(self, length: int, ids: Sequence[int]) -> Logits:
        import copy

        import torch

        with torch.inference_mode():
            made = self._model(torch.tensor([list(ids)]), past_key_values=copy.deepcopy(self._past), use_cache=True)
        out: Logits = made.logits[0].float().numpy()
        return out

    def step(self, ids: Sequence[int]) -> Logits:
        import torch

        with torch.inference_mode():
            made = self._model(torch.tensor([list(ids)]), past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = made.past_key_values
        out: Logits = made.logits[0, -1].float().numpy()
        return out

    def forget(self) -> None:
        self._past, self._prefix = None, ()

    def close(self) -> None:
        self._model = self._past = None


class LlamaRunner(_Cached):
    """A GGUF on bare llama.cpp; ``exact``: keys and values in float32, no flash attention (for parity). An adapter in
    float16 still costs exactness: llama.cpp rounds the activations that it multiplies by it."""

    name = "llama.cpp"

    def __init__(
        self, path: Path, adapter: Path | None = None, *, threads: int = 1, exact: bool = True, context: int = CONTEXT
    ) -> None:
        from popi_export.native import NativeModel

        self.model = NativeModel(path, adapter=adapter, context=context, threads=threads, exact=exact)
        self._length = 0

    def logits(self, ids: Sequence[int]) -> Logits:
        self.forget()
        out = self.model.feed(ids, 0)
        self.forget()
        return out

    def _begin(self, prefix: Sequence[int]) -> None:
        self.model.feed(prefix, 0, every=False)

    def _behind(self, length: int, ids: Sequence[int]) -> Logits:
        self.model.cut(length)
        return self.model.feed(ids, length)

    def step(self, ids: Sequence[int]) -> Logits:
        out: Logits = self.model.feed(ids, self._length, every=False)[0]
        self._length += len(ids)
        return out

    def forget(self) -> None:
        self.model.forget()
        self._length, self._prefix = 0, ()

    def close(self) -> None:
        self.model.close()


class OnnxRunner(_Cached):
    """An ONNX graph with optimum's names of inputs and outputs; ``adapter`` is an .onnx_adapter file."""

    name = "onnxruntime"

    def __init__(self, path: Path, adapter: Path | None = None, *, threads: int = 1) -> None:
        import onnxruntime as ort

        from popi_edge.models import onnx_check

        onnx_check.check(path)
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        self._run = ort.RunOptions()
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            if adapter is not None:
                self._adapter = ort.LoraAdapter()
                self._adapter.Load(str(adapter))
                self._run.add_active_adapter(self._adapter)
        except Exception as e:  # onnxruntime raises its own, undocumented types
            raise ModelError(f"{path}: ONNX Runtime refused it: {' '.join(str(e).split())[:200]}") from None
        self._past: list[str] = []
        self._shapes: dict[str, tuple[int, int]] = {}
        self._wanted: set[str] = set()
        for x in self._session.get_inputs():
            self._wanted.add(x.name)
            if x.name.startswith("past_key_values."):
                if len(x.shape) != 4 or not all(isinstance(x.shape[i], int) for i in (1, 3)):
                    raise ModelError(f"{path}: {x.name} has the shape {x.shape}, not [batch, heads, past, size]")
                self._shapes[x.name] = (x.shape[1], x.shape[3])
        odd = self._wanted - set(self._shapes) - {"input_ids", "attention_mask", "position_ids"}
        if odd or not self._shapes or "input_ids" not in self._wanted:
            raise ModelError(f"{path}: its inputs are not those of optimum's text generation ({sorted(odd)[:3]})")
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._shapes)]
        self._cache: list[Any] = []
        self._length = 0
        self._read: list[Any] = []

    def _feed(self, ids: Sequence[int]) -> Any:
        """Logits [n, V] as an OrtValue's array; the cache grows."""
        import onnxruntime as ort

        n, past = len(ids), self._length
        if not self._cache:
            self._cache = [ort.OrtValue.ortvalue_from_numpy(np.zeros((1, h, 0, d), np.float32))
                           for h, d in self._shapes.values()]  # fmt: skip
        feeds = {
            "input_ids": np.asarray([ids], np.int64),
            "attention_mask": np.ones((1, past + n), np.int64),
            "position_ids": np.arange(past, past + n, dtype=np.int64)[None],
        }
        values = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in feeds.items() if k in self._wanted}
        values |= dict(zip(self._shapes, self._cache, strict=True))
        try:
            logits, *self._cache = self._session.run_with_ort_values(self._outputs, values, self._run)
        except Exception as e:  # onnxruntime raises its own, undocumented types
            raise EngineError(f"ONNX Runtime failed: {' '.join(str(e).split())[:200]}") from None
        self._length += n
        return logits.numpy()[0]

    def logits(self, ids: Sequence[int]) -> Logits:
        self.forget()
        out: Logits = np.array(self._feed(ids), np.float32)
        self.forget()
        return out

    def _begin(self, prefix: Sequence[int]) -> None:
        self._feed(prefix)
        self._read = self._cache

    def _behind(self, length: int, ids: Sequence[int]) -> Logits:
        self._cache, self._length = self._read, length
        out: Logits = np.array(self._feed(ids), np.float32)
        return out

    def step(self, ids: Sequence[int]) -> Logits:
        out: Logits = np.array(self._feed(ids)[-1], np.float32)
        return out

    def forget(self) -> None:
        self._cache, self._length = [], 0
        self._prefix, self._read = (), []

    def close(self) -> None:
        self.forget()
        self._session = None


class EngineRunner:
    """A GGUF on popi's engine ``onnx`` or ``llama_cpp``, as the device runs it (no exact mode)."""

    def __init__(self, engine: str, path: Path, adapter: Path | None = None, *, threads: int = 1) -> None:
        from popi_edge.engines.base import open_engine

        self.name = f"popi-{engine}"
        self._adapter = "adapter" if adapter is not None else None
        found: Mapping[str, Path] = {"adapter": adapter} if adapter is not None else {}
        self.engine: Any = open_engine(engine, path, adapters=found, threads=threads)
        self._ids: list[int] = []

    def logits(self, ids: Sequence[int]) -> Logits:
        out: Logits = np.array(self.engine._feed(self.engine.lane(self._adapter), list(ids), len(ids)), np.float32)
        return out

    def tail(self, ids: Sequence[int], last: int) -> Logits:
        out: Logits = np.array(self.engine._feed(self.engine.lane(self._adapter), list(ids), last), np.float32)
        return out

    def step(self, ids: Sequence[int]) -> Logits:
        self._ids += ids
        out: Logits = np.array(self.engine._feed(self.engine.lane(self._adapter), self._ids, 1)[0], np.float32)
        return out

    def forget(self) -> None:
        self._ids = []

    def close(self) -> None:
        self.engine.close()


def open_runner(
    engine: str, model: Path, adapter: Path | None = None, *, threads: int = 1, exact: bool = False
) -> Runner:
    """A runner by the engine's name; ``exact`` asks for float32 keys and values where it is a choice.

    Raises ConfigError (no such engine), ModelError, EngineError.
    """
    match engine:
        case "torch":
            return TorchRunner.folder(model, adapter) if model.is_dir() else TorchRunner.gguf(model, adapter)
        case "llama.cpp":
            return LlamaRunner(model, adapter, threads=threads, exact=exact)
        case "onnxruntime":
            return OnnxRunner(model, adapter, threads=threads)
        case "popi-onnx" | "popi-llama_cpp":
            return EngineRunner(engine.removeprefix("popi-"), model, adapter, threads=threads)
    raise ConfigError(f"there is no engine {engine!r:.40}; there are {', '.join(ENGINES)}")
