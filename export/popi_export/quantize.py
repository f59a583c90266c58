"""GGUF → GGUF in another quantization, by llama.cpp's own quantizer, and what was really written.

The quantizer runs in a process of its own (``quantize_child``), since llama.cpp ends the whole process where it does
not expect something. A source that is quantized already is dequantized to float32 by it first (a tensor that has the
wanted type already is copied bit for bit). Not covered: what a quantization costs in quality (``verify`` measures it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError, EngineError, ModelError, StoreError
from popi_edge.models import precheck
from popi_edge.models.finite import NotFinite
from popi_edge.models.gguf import BLOCKS, Gguf
from popi_export.imatrix import ImportanceMatrix

KINDS = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_NL")
INTENDED: Mapping[str, frozenset[str]] = {
    "F32": frozenset({"F32"}),
    "F16": frozenset({"F16"}),
    "Q8_0": frozenset({"Q8_0"}),
    "Q6_K": frozenset({"Q6_K"}),
    "Q5_K_M": frozenset({"Q5_K", "Q6_K"}),
    "Q4_K_M": frozenset({"Q4_K", "Q5_K", "Q6_K"}),
    "Q4_1": frozenset({"Q4_1", "Q6_K"}),
    "Q4_0": frozenset({"Q4_0", "Q4_1", "Q6_K"}),
    "IQ4_NL": frozenset({"IQ4_NL", "Q5_K", "Q6_K"}),
}
"""The types that llama.cpp means a kind's matrices to have where sizes allow it: the larger ones are for the head and
the layers that suffer most."""
ALIGNMENT = 32
"""Bytes: llama.cpp's quantizer copies another number into the file and then pads by this one all the same."""
FELL_FROM = {"Q5_0": "Q4_K", "Q5_1": "Q5_K", "Q8_0": "Q6_K"}
"""What a type stands in for where a row is no multiple of 256."""


def quantize(source_gguf: Path, out: Path, kind: str, *, imatrix: ImportanceMatrix | None = None) -> Mapping[str, int]:
    """Write ``out`` from a GGUF model and return the tensor types really written, counted, the most frequent first.

    ``out`` appears whole (synced, read back) or not at all. Raises ConfigError (no such kind, ``out`` is taken),
    ModelError (the source is none, or llama.cpp refused it), StoreError (a full disk), EngineError (not installed).
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no quantization {kind!r:.40}; there are {', '.join(KINDS)}")
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} is there already; it is not replaced")
    source = precheck.model(source_gguf)
    if (aligned := source.fields.get("general.alignment", ALIGNMENT)) != ALIGNMENT:
        why = f"llama.cpp's quantizer says wrongly where they are, unless it is {ALIGNMENT}"
        raise ModelError(f"{source_gguf}: its tensors are aligned to {aligned} bytes; {why}")
    if imatrix is not None:
        imatrix.check(source)
    if not out.parent.is_dir():
        raise StoreError(f"cannot write {out}: there is no such folder")
    draft = out.with_name(f".{out.name[:40]}-{uuid.uuid4().hex[:12]}")
    try:
        _run(source_gguf, draft, out, kind, imatrix)
        written = _read_back(source, draft, out)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(out)
    except OSError as e:
        raise StoreError(f"cannot write {out}: {e.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
    return written


def _run(source: Path, draft: Path, out: Path, kind: str, imatrix: ImportanceMatrix | None) -> None:
    with tempfile.TemporaryDirectory(prefix="popi-quantize-") as folder:
        job: dict[str, Any] = {"source": str(source.resolve()), "out": str(draft.resolve()), "kind": kind}
        if imatrix is not None:
            imatrix.save(Path(folder) / "imatrix.npz")
            job["imatrix"] = str(Path(folder) / "imatrix.npz")
        done = subprocess.run(
            [sys.executable, "-m", "popi_export.quantize_child", json.dumps(job)],
            capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = {"ok": False, "why": _last_line(done.stderr)}
    if done.returncode == 0 and said.get("ok"):
        return
    why = " ".join(str(said.get("why") or "").split())[:200]
    if said.get("missing"):
        raise EngineError("llama-cpp-python not installed; run: pip install 'popi-edge[llama]'")
    if "iostream error" in why or "ios_base::" in why:
        raise StoreError(f"cannot write {out}: llama.cpp could not write all of it (is the disk full?)")
    end = f"ended with {done.returncode}" if done.returncode >= 0 else f"was ended by signal {-done.returncode}"
    raise ModelError(f"{source}: llama.cpp did not make {kind} of it: {why or f'its quantizer {end}'}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _read_back(source: Gguf, draft: Path, out: Path) -> Mapping[str, int]:
    """The written tensor types; every tensor of the source must be there in its shape, within the file."""
    try:
        found = precheck.model(draft)
    except NotFinite:
        raise ModelError(f"{source.path}: a weight of it is too large for this quantization: {out} was not written"
                         ) from None  # fmt: skip
    except ModelError as e:
        why = str(e).replace(str(draft), str(out))
        raise StoreError(f"{out} was not written, as it did not read back (is the disk full?): {why}") from None
    shapes = {name: t.shape for name, t in source.tensors.items()}
    if {name: t.shape for name, t in found.tensors.items()} != shapes:
        raise ModelError(f"{out} was not written: llama.cpp left out or reshaped tensors of {source.path}")
    return types(found)


def types(gguf: Gguf) -> Mapping[str, int]:
    """Tensors of each type in a GGUF, the most frequent first."""
    return dict(Counter(t.type for t in gguf.tensors.values()).most_common())


def fallbacks(gguf: Gguf, kind: str) -> list[tuple[str, str, str, int]]:
    """(tensor, the type it would have had, the type it has, values in its rows) of every matrix that a kind's type does
    not fit: llama.cpp takes another one and says so only in its log."""
    out = []
    for name, t in gguf.tensors.items():
        if len(t.shape) < 2 or t.type in INTENDED[kind] or not name.endswith(".weight") or "_norm." in name:
            continue
        wanted = FELL_FROM.get(t.type, kind.removesuffix("_M"))
        out.append((name, wanted, t.type, t.shape[-1]))
    return out


def explain(gguf: Gguf, kind: str) -> str:
    """One line: what fell back and why, or an empty text where every matrix has a type that the kind means."""
    groups = Counter((wanted, got, row) for _, wanted, got, row in fallbacks(gguf, kind))
    if not groups:
        return ""
    blocks = {name: per for name, per, _ in BLOCKS.values()}
    parts = [
        f"{n} {'tensor' if n == 1 else 'tensors'} {got} instead of {wanted} "
        f"(rows of {row}, no multiple of {blocks[wanted]})"
        for (wanted, got, row), n in groups.most_common()
    ]
    return f"{kind} fell back: " + "; ".join(parts)
