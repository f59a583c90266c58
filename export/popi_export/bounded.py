"""JSON files of other people's, read within bounds: size, values, nesting, no name twice, no NaN, one line when
refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from popi_edge.errors import ModelError
from popi_edge.files import read_regular

PIECE = 1 << 20
MANY = 1 << 16
"""Values in a file of which nothing else says how many there can be."""


def parse_json(data: bytes, what: str, *, most: int = MANY) -> dict[str, Any]:
    """The object in ``data``. Raises ModelError, which begins with ``what``, unless it is one strict JSON object of no
    more than about ``most`` values: what is made of them can take thirty times the memory of the text."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            raise ValueError(f"the name {twice!r:.60} stands twice")
        return out

    def constant(text: str) -> float:
        raise ValueError(f"{text} is no number")

    if not _few(data, most):
        raise ModelError(f"{what}: more than {most:,} values")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise ModelError(f"{what}: nested too deeply") from None
    except ValueError as e:
        raise ModelError(f"{what}: not JSON: {' '.join(str(e).split())[:100]}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{what}: an object is needed, not {type(value).__name__}")
    return value


def _few(data: bytes, most: int) -> bool:
    """Whether there are no more than ``most`` of the signs that stand before every value but the first."""
    for start in range(0, len(data), PIECE):
        piece = data[start : start + PIECE]
        most -= len(piece) - len(piece.translate(None, b",[{"))
        if most < 0:
            return False
    return True


def read_json(path: Path, limit: int, *, most: int = MANY) -> dict[str, Any]:
    """The object in a file of at most ``limit`` bytes and ``most`` values; a link is followed to a plain file. Raises
    ModelError."""
    return parse_json(read_bytes(path, limit), str(path), most=most)


def read_bytes(path: Path, limit: int) -> bytes:
    """A small plain file, links followed. Raises ModelError."""
    try:
        return read_regular(path.resolve(strict=True), limit)[0]
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file") from None
    except (OSError, RuntimeError) as e:
        raise ModelError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
