"""Writing a file whole or not at all; reading a small plain one."""

from __future__ import annotations

import errno
import glob
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A draft beside ``path`` (mode 0600) that takes its place when the block ends well: synced, then renamed.

    When the block raises, ``path`` is as it was and the draft is gone. Raises OSError.
    """
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
    draft = Path(name)
    try:
        with os.fdopen(fd, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def forget_drafts(path: Path) -> None:
    """Remove the drafts of a ``whole_file`` of ``path`` that was killed; nobody may be writing one. Raises OSError."""
    for draft in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        draft.unlink()


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}-"


def cause(error: OSError) -> str:
    """Why writing failed, in the system's words; numpy says only how much was not written."""
    return error.strerror or "not all of it could be written (is the disk full?)"


def read_regular(path: Path, limit: int) -> tuple[bytes, int]:
    """The bytes and mode of a plain file of at most ``limit`` bytes, never of a link, a pipe or a device (which could
    block). Raises OSError, which says so."""
    plain = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link")
    with os.fdopen(os.open(path, plain), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        if about.st_size > limit:
            raise OSError(errno.EFBIG, f"more than {limit:,} bytes")
        data = file.read(about.st_size + 1)  # it takes as much memory as it is told to read
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"more than {limit:,} bytes")
    if len(data) != about.st_size:
        raise OSError(errno.EBUSY, "it changed while it was read")
    return data, about.st_mode
