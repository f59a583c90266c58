"""The inputs of every matrix while a GGUF model runs on llama.cpp: what an importance matrix is made of. No torch.

llama.cpp calls back before and after each operation; for a matrix product the callback reads the second operand. What
is read is the head of its ``struct ggml_tensor``, whose layout is checked against llama.cpp's own functions first.

Not covered: mixtures of experts, and devices other than the CPU (the model is kept there).
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ConfigError, EngineError, ModelError
from popi_edge.models import precheck
from popi_export.imatrix import ImportanceMatrix
from popi_export.native import BATCH, F32, NativeModel, library

TOKENS = 8_192
"""Calibration tokens where nobody says."""

class _Tensor(ctypes.Structure):
    """The head of llama.cpp's ``struct ggml_tensor`` (ggml.h), as far as its name."""


_Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
]  # fmt: skip


class Collector:
    """``sums`` of squares [K] of the inputs of every matrix in ``sizes`` (name → K), over ``counts`` tokens each."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        from llama_cpp import _ggml

        self.sizes = sizes
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self.failure = ""
        self._known = False
        try:
            names = "ggml_get_name", "ggml_get_data", "ggml_nbytes", "ggml_op_name"
            self._name, self._data, self._bytes, self._op = (getattr(_ggml.libggml, n) for n in names)
        except AttributeError:
            raise EngineError("this build of llama.cpp does not show what it computes") from None
        for function, result in ((self._name, ctypes.c_void_p), (self._data, ctypes.c_void_p),
                                 (self._bytes, ctypes.c_size_t), (self._op, ctypes.c_char_p)):  # fmt: skip
            function.argtypes = [ctypes.c_int] if function is self._op else [ctypes.c_void_p]
            function.restype = result

    def __call__(self, address: int, ask: bool, _: Any) -> bool:
        """llama.cpp's callback: with ``ask`` whether to be called after the operation too, else whether to go on."""
        try:
            return self._asked(address) if ask else self._done(address)
        except Exception as e:  # an exception cannot cross llama.cpp
            self.failure = self.failure or f"{type(e).__name__}: {e}"
            return False

    def _matrix(self, address: int) -> tuple[Any, str] | None:
        tensor = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        if not self._known:
            self._check(address, tensor)
        if self._op(tensor.op) != b"MUL_MAT" or not tensor.src[0] or not tensor.src[1]:
            return None
        name = tensor.src[0].contents.name.decode("utf-8", "replace")
        return (tensor.src[1].contents, name) if name in self.sizes else None

    def _check(self, address: int, tensor: Any) -> None:
        """Raises EngineError unless the structure is laid out as ``_Tensor`` says."""
        alike = self._name(address) == address + _Tensor.name.offset and self._data(address) == tensor.data
        if not alike or self._bytes(address) != tensor.nb[3] * tensor.ne[3]:
            raise EngineError("this version of llama.cpp lays out its tensors in another way")
        self._known = True

    def _asked(self, address: int) -> bool:
        return self._matrix(address) is not None

    def _done(self, address: int) -> bool:
        found = self._matrix(address)
        if found is None:
            return True
        x, name = found
        k, rows = int(x.ne[0]), int(x.ne[1] * x.ne[2] * x.ne[3])
        strides = [4, 4 * k, 4 * k * x.ne[1], 4 * k * x.ne[1] * x.ne[2]]
        if x.type != F32 or k != self.sizes[name] or list(x.nb) != strides:
            raise EngineError(f"llama.cpp holds the inputs of {name} in a form that is not known")
        values = np.ctypeslib.as_array(ctypes.cast(x.data, ctypes.POINTER(ctypes.c_float)), (rows, k))
        square = np.einsum("nk,nk->k", values, values, dtype=np.float64)
        self.sums[name] = self.sums[name] + square if name in self.sums else square
        self.counts[name] = self.counts.get(name, 0) + rows
        return True


def collect(
    gguf: Path, text: str, *, tokens: int = TOKENS, threads: int = 1, advance: Callable[[int, int], Any] | None = None
) -> ImportanceMatrix:
    """The importance matrix of a GGUF model over at most ``tokens`` tokens of ``text``, in chunks that do not see each
    other; best of an F32 or F16 file. ``advance`` is told of tokens done and wanted.

    Raises ModelError, EngineError, ConfigError (too little text: fewer than two tokens).
    """
    llama, header = library(), precheck.model(gguf)
    sizes = {n: t.shape[1] for n, t in header.tensors.items() if n.startswith("blk.") and len(t.shape) == 2}
    collector = Collector(sizes)
    callback = llama.llama_cpp.ggml_backend_sched_eval_callback(collector)
    with NativeModel(gguf, context=BATCH, threads=threads, callback=callback) as model:
        ids = model.tokenize(text)[:tokens]
        if len(ids) < 2:
            raise ConfigError("the calibration text is too short: fewer than two tokens")
        for start in range(0, len(ids), BATCH):
            piece = ids[start : start + BATCH]
            model.forget()
            try:
                model.feed(piece, 0)  # every token's logits: llama.cpp leaves the last layer out where none is wanted
            except EngineError as e:
                raise EngineError(f"{e} {collector.failure}".strip()) from None
            if collector.failure:
                raise EngineError(collector.failure)
            if advance is not None:
                advance(start + len(piece), len(ids))
    short = sorted(n for n in sizes if collector.counts.get(n) != len(ids))
    if short:
        raise ModelError(f"{gguf}: llama.cpp did not multiply every token by {short[0]}: no importance matrix of it")
    values = {n: (s / len(ids)).astype(np.float32) for n, s in collector.sums.items()}
    matrix = ImportanceMatrix(values, len(ids), hashlib.sha256(text.encode("utf-8", "replace")).hexdigest())
    matrix.check(header)
    return matrix
