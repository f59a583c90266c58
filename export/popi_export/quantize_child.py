"""llama.cpp's quantizer in a process of its own: ``python -m popi_export.quantize_child JOB``.

JOB is JSON: ``source``, ``out`` and ``kind``, optionally ``imatrix`` (as ``ImportanceMatrix.save`` wrote it). Prints
one JSON object, ``ok`` and ``why``. The source must have passed ``popi_edge.models.precheck`` before.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from popi_export.imatrix import ImportanceMatrix

BUFFER = 256 << 20
"""Most bytes of rows in memory at once, where this llama.cpp can be told."""
ERROR = 4
"""llama.cpp's log level of errors."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Quantize; returns what is printed."""
    try:
        import llama_cpp as llama
    except ImportError:
        return {"ok": False, "missing": True, "why": "llama-cpp-python is not installed"}
    errors: list[str] = []

    @llama.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
    def listen(level: int, text: bytes, data: Any) -> None:
        if level == ERROR:
            errors.append(text.decode("utf-8", "replace").strip())

    llama.llama_log_set(listen, ctypes.c_void_p(0))
    llama.llama_backend_init()
    params = llama.llama_model_quantize_default_params()
    kind = job["kind"]
    params.ftype = getattr(llama, "LLAMA_FTYPE_ALL_F32" if kind == "F32" else f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    params.allow_requantize = True
    if hasattr(params, "max_buf_size"):
        params.max_buf_size = BUFFER
    kept: list[Any] = []
    if job.get("imatrix"):
        params.imatrix = _native(llama, ImportanceMatrix.load(Path(job["imatrix"])), kept)
    code = llama.llama_model_quantize(os.fsencode(job["source"]), os.fsencode(job["out"]), params)
    return {"ok": code == 0, "why": next((e for e in reversed(errors) if e), "")}


def _native(llama: Any, matrix: ImportanceMatrix, kept: list[Any]) -> Any:
    """The array of (name, values, size) that llama.cpp reads up to an empty name; ``kept`` keeps what it points to."""
    rows = (llama.llama_model_imatrix_data * (len(matrix.values) + 1))()
    for row, (name, values) in zip(rows, matrix.values.items(), strict=False):
        row.name, row.size = name.encode(), values.size
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    kept += [rows, matrix]
    return ctypes.cast(rows, ctypes.POINTER(llama.llama_model_imatrix_data))


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
