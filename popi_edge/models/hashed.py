"""Large files that were hashed before and have not changed since: a model of gigabytes is not hashed at every start.

A file's hash is remembered in the data folder, which is its owner's alone, under device and inode, and holds while
size, time of change and time of writing are the same. POSIX only: a time of change (``ctime``) cannot be set back, as a
time of writing can, so that whoever writes to the file makes it be hashed again. Not covered: damage on the disk that
no write made, a clock that was set back, and whoever may write to the data folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from popi_edge.config import make_home
from popi_edge.errors import ConfigError, ModelError
from popi_edge.files import read_regular
from popi_edge.models.bases import write_atomic

FILE = "hashed.json"
TELLS = os.name == "posix"
"""Whether this system says when a file was last changed in a way that nobody can set back."""
LARGE = 1 << 24
"""Bytes: what is smaller is hashed every time."""
SETTLED = 2.0
"""Seconds that a file must have been left alone: the clock of a file's times may tick as seldom as this."""
MAX_NOTES, MAX_BYTES = 256, 1 << 17


class Hashed:
    """The hashes that a data folder remembers; ``digest`` makes them anew (path → SHA-256, hex)."""

    def __init__(self, home: Path, digest: Callable[[Path], str]) -> None:
        self.home, self.digest = home, digest

    def sha256(self, path: Path) -> str:
        """A plain file's SHA-256 (hex). Raises ModelError where it cannot be read or changes meanwhile."""
        try:
            about = _about(path)
            if about is None or about["size"] < LARGE or not self._private():
                return self.digest(path)
            key = f"{about['device']}:{about['inode']}"
            notes = self._notes()
            note = notes.pop(key, None)
            if isinstance(note, dict) and note == about | {"sha256": note.get("sha256")}:
                return str(note["sha256"])
            found = self.digest(path)
            if _about(path) != about:
                raise ModelError(f"{path}: it changed while it was read")
        except OSError as e:
            raise ModelError(f"{path}: {e.strerror}") from None
        if max(about["ctime_ns"], about["mtime_ns"]) / 1e9 < time.time() - SETTLED:
            kept = dict(list(notes.items())[-MAX_NOTES + 1 :]) | {key: about | {"sha256": found}}
            write_atomic(self.home / FILE, json.dumps(kept).encode())
        return found

    def _private(self) -> bool:
        """Whether the data folder is there and its owner's alone."""
        try:
            return self.home.is_dir() and bool(make_home(self.home))
        except ConfigError:
            return False

    def _notes(self) -> dict[str, Any]:
        """What was written before; nothing where that is none of ours."""
        try:
            notes = json.loads(read_regular(self.home / FILE, MAX_BYTES)[0])
        except (OSError, ValueError, RecursionError):
            return {}
        return notes if isinstance(notes, dict) else {}


def _about(path: Path) -> dict[str, int] | None:
    """What changes when a file does; None where the system does not say it. Raises OSError."""
    if not TELLS:
        return None
    s = path.stat(follow_symlinks=False)
    return {"device": s.st_dev, "inode": s.st_ino, "size": s.st_size, "mtime_ns": s.st_mtime_ns,
            "ctime_ns": s.st_ctime_ns}  # fmt: skip
