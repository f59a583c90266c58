"""Just enough of ONNX's protobuf format to write one graph: the ``onnx`` package is not needed on a device.

Field numbers are those of ``onnx.proto`` (ONNX 1.17, IR version 10).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT, UINT8, INT32, INT64 = 1, 2, 6, 7
TYPES = {np.dtype("float32"): FLOAT, np.dtype("uint8"): UINT8, np.dtype("int32"): INT32, np.dtype("int64"): INT64}
Attribute = int | float | str | Sequence[int]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(tag: int, value: int) -> bytes:
    return varint(tag << 3) + varint(value)


def chunk(tag: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(tag << 3 | 2) + varint(len(data)) + data


def _attribute(name: str, value: Attribute) -> bytes:
    head = chunk(1, name)
    if isinstance(value, int):
        return head + number(3, value) + number(20, 2)
    if isinstance(value, float):
        return head + varint(2 << 3 | 5) + struct.pack("<f", value) + number(20, 1)
    if isinstance(value, str):
        return head + chunk(4, value) + number(20, 3)
    return head + b"".join(number(8, v) for v in value) + number(20, 7)


def _value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(chunk(1, number(1, d) if isinstance(d, int) else chunk(2, d)) for d in shape)
    return chunk(1, name) + chunk(2, chunk(1, number(1, kind) + chunk(2, dims)))


@dataclass(frozen=True)
class Place:
    """A weight's type and shape, and where its bytes are: ``length`` of them from ``offset`` in a file beside."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int


def outside(name: str, place: Place) -> bytes:
    """A TensorProto whose data is elsewhere."""
    dims = b"".join(number(1, d) for d in place.shape)
    entries = {"location": place.location, "offset": str(place.offset), "length": str(place.length)}
    where = b"".join(chunk(13, chunk(1, k) + chunk(2, v)) for k, v in entries.items())
    return dims + number(2, TYPES[place.dtype]) + chunk(8, name) + where + number(14, 1)


@dataclass
class Graph:
    """A graph being written. ``external`` holds the weights, which ONNX Runtime is handed in memory."""

    nodes: list[bytes] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    inline: list[bytes] = field(default_factory=list)
    external: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    _constants: set[str] = field(default_factory=set)

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str] | str,
        *,
        domain: str = "",
        attributes: Mapping[str, Attribute] | None = None,
    ) -> str:
        """Add a node; returns its first output's name."""
        outs = [outputs] if isinstance(outputs, str) else list(outputs)
        body = b"".join(chunk(1, i) for i in inputs) + b"".join(chunk(2, o) for o in outs)
        body += chunk(3, outs[0] + "/" + op) + chunk(4, op)
        body += b"".join(chunk(5, _attribute(k, v)) for k, v in (attributes or {}).items())
        self.nodes.append(body + (chunk(7, domain) if domain else b""))
        return outs[0]

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(_value(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        self.outputs.append(_value(name, kind, shape))

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """A small initializer kept inside the model; one name stands for one value, however often it is asked for."""
        if name in self._constants:
            return name
        self._constants.add(name)
        dims = b"".join(number(1, d) for d in value.shape)
        raw = np.ascontiguousarray(value).tobytes()
        self.inline.append(dims + number(2, TYPES[value.dtype]) + chunk(8, name) + chunk(9, raw))
        return name

    def weight(self, name: str, value: NDArray[np.generic]) -> str:
        """An initializer whose data stays outside the model (``SessionOptions.add_external_initializers``)."""
        self.external[name] = np.ascontiguousarray(value)
        return name

    def places(self) -> dict[str, Place]:
        """Where the data of each weight is said to be: nowhere, for it is handed over in memory."""
        return {n: Place(v.dtype, v.shape, "popi-weights", 0, v.nbytes) for n, v in self.external.items()}

    def serialize(self, opset: int = 21) -> bytes:
        """The whole ModelProto."""
        body = b"".join(chunk(1, n) for n in self.nodes) + chunk(2, "popi")
        body += b"".join(chunk(5, t) for t in self.inline)
        body += b"".join(chunk(5, outside(name, place)) for name, place in self.places().items())
        body += b"".join(chunk(11, i) for i in self.inputs) + b"".join(chunk(12, o) for o in self.outputs)
        opsets = chunk(8, chunk(1, "") + number(2, opset)) + chunk(8, chunk(1, "com.microsoft") + number(2, 1))
        return number(1, 10) + opsets + chunk(2, "popi-edge") + chunk(7, body)
