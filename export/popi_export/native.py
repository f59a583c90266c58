"""A GGUF model on bare llama.cpp, for parity and calibration: no engine of ours, no sampling, one sequence.

Not covered: devices other than the CPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import EngineError, ModelError
from popi_edge.models import precheck

BATCH = 512
F32 = 0
F16 = 1


def library() -> Any:
    """llama-cpp-python's low-level module, silent. Raises EngineError where it is not installed."""
    import llama_cpp as llama

    from popi_edge.engines.llama_cpp import _quiet  # raises EngineError where there is no llama_cpp

    llama.llama_log_set(_quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    return llama


class NativeModel:
    """A loaded model with one context. ``exact``: keys and values in float32 and no flash attention. ``callback``:
    llama.cpp's evaluation callback. Raises ModelError (a file that is none, or refused), EngineError."""

    def __init__(
        self, gguf: Path, *, adapter: Path | None = None, context: int = BATCH, threads: int = 1, exact: bool = True,
        callback: Any = None,
    ) -> None:  # fmt: skip
        self._model: Any = None
        self._context: Any = None
        self.llama = llama = library()
        self.header = precheck.model(gguf)
        if adapter is not None:
            precheck.adapter(adapter)
        how = llama.llama_model_default_params()
        how.n_gpu_layers = 0
        self._model = llama.llama_model_load_from_file(os.fsencode(gguf), how)
        if not self._model:
            raise ModelError(f"{gguf}: llama.cpp refused it")
        try:
            self._open(context, threads, exact, callback)
            self._vocabulary = llama.llama_model_get_vocab(self._model)
            self.size = int(llama.llama_vocab_n_tokens(self._vocabulary))
            if adapter is not None:
                self._adapt(adapter)
        except BaseException:
            self.close()
            raise

    def _open(self, context: int, threads: int, exact: bool, callback: Any) -> None:
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, BATCH, BATCH
        params.n_threads = params.n_threads_batch = threads
        params.swa_full = True
        if exact:
            params.type_k = params.type_v = F32
            params.flash_attn_type = 0
        if callback is not None:
            self._callback = params.cb_eval = callback
        self._context = self.llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise EngineError("llama.cpp could not make a context (not enough memory?)")

    def _adapt(self, path: Path) -> None:
        llama = self.llama
        handle = llama.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not handle:
            raise ModelError(f"{path}: llama.cpp refused the adapter")
        handles = (llama.llama_adapter_lora_p_ctypes * 1)(handle)
        if llama.llama_set_adapters_lora(self._context, handles, 1, (ctypes.c_float * 1)(1.0)):
            raise ModelError(f"{path}: llama.cpp could not switch to the adapter")

    def forget(self) -> None:
        """Drop the cached keys and values."""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self._context), True)

    def cut(self, length: int) -> None:
        """Keep the keys and values of the first ``length`` tokens alone."""
        self.llama.llama_memory_seq_rm(self.llama.llama_get_memory(self._context), 0, length, -1)

    def feed(self, ids: Sequence[int], past: int, *, every: bool = True) -> NDArray[np.float32]:
        """Append ids after ``past`` cached tokens; logits [n, V] of ``every`` one of them, else [1, V] of the last."""
        llama, n = self.llama, len(ids)
        if not ids or min(ids) < 0 or max(ids) >= self.size:
            raise EngineError("no tokens, or one outside the vocabulary")
        out = np.empty((n if every else 1, self.size), np.float32)
        batch = llama.llama_batch_init(min(n, BATCH), 0, 1)
        try:
            for start in range(0, n, BATCH):
                piece = ids[start : start + BATCH]
                batch.n_tokens = len(piece)
                for i, token in enumerate(piece):
                    batch.token[i], batch.pos[i] = token, past + start + i
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                    batch.logits[i] = every or start + i == n - 1
                if code := llama.llama_decode(self._context, batch):
                    raise EngineError(f"llama.cpp failed to decode (code {code}; is the context too short?)")
                for i in range(len(piece)):
                    if every or start + i == n - 1:
                        row = llama.llama_get_logits_ith(self._context, i)
                        out[start + i if every else 0] = np.ctypeslib.as_array(row, shape=(self.size,))
        finally:
            llama.llama_batch_free(batch)
        return out

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """llama.cpp's own ids of a text, nothing added; names of control tokens in it stay text unless ``special``."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        ids = (self.llama.llama_token * room)()
        n = self.llama.llama_tokenize(self._vocabulary, data, len(data), ids, room, False, special)
        if n < 0:
            raise EngineError("llama.cpp could not tokenize a text")
        return list(ids[:n])

    def close(self) -> None:
        if self._context:
            self.llama.llama_free(self._context)
            self._context = None
        if self._model:
            self.llama.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> NativeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
