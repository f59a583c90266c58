"""Saved prefixes: a header that names what they belong to, the tokens, and the engine's own bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from popi_edge.errors import ModelError
from popi_edge.files import whole_file

MAGIC = b"POPIPFX1"
MAX_HEADER = 1 << 20


def write_prefix(path: Path, key: str, tokens: Sequence[int], data: bytes) -> None:
    """Write atomically, readable by the owner alone: a prefix is made of raw signals. Raises ModelError."""
    digest = hashlib.sha256(data).hexdigest()
    header = json.dumps({"key": key, "tokens": list(tokens), "size": len(data), "sha256": digest}).encode()
    try:
        with whole_file(path) as file:
            file.write(MAGIC + len(header).to_bytes(8, "little") + header)
            file.write(data)
    except OSError as e:
        raise ModelError(f"{path}: the prefix could not be saved: {e.strerror}") from None


def read_prefix(path: Path, key: str) -> tuple[list[int], bytes]:
    """Tokens and bytes of a saved prefix. Raises ModelError when damaged or of another model or adapter."""
    try:
        with path.open("rb") as file:
            if file.read(8) != MAGIC:
                raise ModelError(f"{path}: not a saved prefix")
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER:
                raise ModelError(f"{path}: a damaged prefix")
            header = json.loads(file.read(size))
            if header["key"] != key:
                raise ModelError(f"{path}: a prefix of another model or adapter")
            data = file.read(header["size"] + 1)
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{path}: a damaged prefix") from None
    if len(data) != header["size"] or hashlib.sha256(data).hexdigest() != header["sha256"]:
        raise ModelError(f"{path}: a damaged prefix")
    return list(header["tokens"]), data
