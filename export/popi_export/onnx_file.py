"""An ONNX model on disk, written as it is made: the graph in one file, every weight at once in another beside it.

So a model of any size passes through memory one tensor at a time. Not covered: models whose graph alone, without its
weights, is larger than protobuf's two gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from popi_edge.engines.onnx_proto import Graph, Place
from popi_edge.errors import ConfigError, StoreError
from popi_edge.files import cause

ALIGNMENT = 4_096
"""Bytes: where a large weight begins, so that it can be mapped into memory and not read."""
SMALL = 1_024
"""A weight of fewer bytes is kept in the graph's own file: a runtime folds small constants, and wants to see them."""


@contextmanager
def written(out: Path, files: Sequence[Path]) -> Iterator[None]:
    """The block writes ``files`` into the folder ``out``, which is made; none of them is left where it fails.

    Raises ConfigError where one is there already, StoreError for a full disk and the like.
    """
    if taken := next((f for f in files if f.exists() or f.is_symlink()), None):
        raise ConfigError(f"{taken} is there already")
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as e:
        for path in files:
            path.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise StoreError(f"cannot write {out}: {cause(e)}") from None
        raise


class GraphFile(Graph):
    """A graph whose weights go to ``data``, a file open for writing that will lie beside the model."""

    def __init__(self, data: BinaryIO, location: str) -> None:
        super().__init__()
        self._data, self._location = data, location
        self._places: dict[str, Place] = {}

    def weight(self, name: str, value: NDArray[Any]) -> str:
        if value.nbytes < SMALL:
            return self.constant(name, value)
        start = -(-self._data.tell() // ALIGNMENT) * ALIGNMENT
        self._data.write(bytes(start - self._data.tell()))
        self._data.write(np.ascontiguousarray(value).data.cast("B"))
        self._places[name] = Place(value.dtype, value.shape, self._location, start, value.nbytes)
        return name

    def again(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """The same bytes as another weight's, in another shape: they stand in the file once."""
        if of not in self._places:  # a small one
            raise KeyError(of)
        first = self._places[of]
        self._places[name] = Place(first.dtype, shape, first.location, first.offset, first.length)
        return name

    def places(self) -> dict[str, Place]:
        return self._places

    def save(self, path: Path) -> None:
        """Write the graph itself."""
        path.write_bytes(self.serialize())
