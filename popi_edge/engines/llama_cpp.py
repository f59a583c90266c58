"""The same GGUF and the same adapters on llama.cpp (extra ``llama``), two roles on one loaded base."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge.engines.adapter import read_adapter
from popi_edge.engines.base import BaseEngine, Floats, Lane, check_template
from popi_edge.engines.prefix import read_prefix, write_prefix
from popi_edge.engines.threads import default_threads
from popi_edge.errors import EngineError, ModelError
from popi_edge.models import precheck
from popi_edge.models.tokenizer import Tokenizer

try:
    import llama_cpp as llama
except ImportError as e:
    raise EngineError("the engine llama_cpp is not installed: pip install 'popi-edge[llama]'") from e

MAX_CONTEXT = 4_096
BATCH = 512


@llama.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _quiet(level: int, text: bytes, data: Any) -> None:
    """llama.cpp writes to stderr otherwise."""


class LlamaCppEngine(BaseEngine):
    """``exact`` keeps keys and values in float32 without flash attention: for parity tests."""

    name = "llama_cpp"

    def __init__(
        self, model: Path, *, adapters: Mapping[str, Path], threads: int | None = None, exact: bool = False
    ) -> None:
        super().__init__(adapters)
        self._model: Any = None
        gguf = precheck.model(model)  # our bounded reader sees the file before a native parser does
        self._gguf = gguf
        self.tokenizer = Tokenizer(gguf)
        check_template(self.tokenizer, model)
        self._hashes = {name: read_adapter(path, gguf).sha256 for name, path in self._adapters.items()}
        self._threads, self._exact = threads or default_threads(), exact
        llama.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(str(model).encode(), llama.llama_model_default_params())
        if not self._model:
            raise ModelError(f"{model}: llama.cpp refused it")
        self.context_length = min(int(llama.llama_model_n_ctx_train(self._model)), MAX_CONTEXT)
        self._width = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model)))
        arch = gguf.fields.get("general.architecture")
        self.identity = f"llama.cpp-{'f32' if exact else 'f16'}:{model.stat().st_size}:{arch}"
        self._native: dict[str, Any] = {}
        for name, path in self._adapters.items():
            handle = llama.llama_adapter_lora_init(self._model, str(path).encode())
            if not handle:
                raise ModelError(f"{path}: llama.cpp refused the adapter")
            self._native[name] = handle

    def _open_lane(self, lane: Lane) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self.context_length, BATCH, BATCH
        params.n_threads = params.n_threads_batch = self._threads
        if self._exact:
            params.type_k = params.type_v = 0
            params.flash_attn_type = 0
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            raise EngineError("llama.cpp could not make a context (not enough memory?)")
        if lane.adapter is not None:
            handles = (llama.llama_adapter_lora_p_ctypes * 1)(self._native[lane.adapter])
            if llama.llama_set_adapters_lora(context, handles, 1, (ctypes.c_float * 1)(1.0)):
                raise EngineError(f"llama.cpp could not switch to the adapter {lane.adapter}")
        lane.state = context

    def _truncate(self, lane: Lane, length: int) -> None:
        llama.llama_memory_seq_rm(llama.llama_get_memory(lane.state), 0, length, -1)

    def _eval(self, lane: Lane, ids: Sequence[int], last: int) -> Floats:
        if min(ids) < 0 or max(ids) >= self._width:
            raise EngineError("a token id outside the vocabulary")
        past, out = len(lane.tokens), np.empty((last, self._width), np.float32)
        batch = llama.llama_batch_init(min(len(ids), BATCH), 0, 1)
        try:
            for start in range(0, len(ids), BATCH):
                piece = ids[start : start + BATCH]
                batch.n_tokens = len(piece)
                for i, token in enumerate(piece):
                    batch.token[i], batch.pos[i] = token, past + start + i
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                    batch.logits[i] = start + i >= len(ids) - last
                if code := llama.llama_decode(lane.state, batch):
                    raise EngineError(f"llama.cpp failed to decode (code {code})")
                for i in range(len(piece)):
                    row = start + i - (len(ids) - last)
                    if row >= 0:
                        pointer = llama.llama_get_logits_ith(lane.state, i)
                        out[row] = np.ctypeslib.as_array(pointer, shape=(self._width,))
        finally:
            llama.llama_batch_free(batch)
        return out

    # prefixes -----------------------------------------------------------------------------------------------
    def _key(self, adapter: str | None) -> str:
        return f"{self.identity}:{self._gguf.sha256}:{self._hashes[adapter] if adapter else '-'}"

    def save_prefix(self, path: Path, *, adapter: str | None = None) -> None:
        lane = self.lane(adapter)
        size = llama.llama_state_seq_get_size(lane.state, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = llama.llama_state_seq_get_data(lane.state, buffer, size, 0)
        write_prefix(path, self._key(adapter), lane.tokens, bytes(memoryview(buffer)[:written]))

    def load_prefix(self, path: Path, *, adapter: str | None = None) -> int:
        lane = self.lane(adapter)
        tokens, data = read_prefix(path, self._key(adapter))
        self._truncate(lane, 0)
        lane.tokens.clear()
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        if not llama.llama_state_seq_set_data(lane.state, buffer, len(data), 0):
            raise ModelError(f"{path}: llama.cpp could not restore the prefix")
        lane.tokens.extend(tokens)
        return len(tokens)

    def close(self) -> None:
        for lane in self._lanes.values():
            llama.llama_free(lane.state)
        self._lanes.clear()
        if self._model:
            llama.llama_model_free(self._model)
            self._model = None
