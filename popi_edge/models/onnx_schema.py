"""ONNX's messages as data: field number → kind, for the bounded walk in ``onnx_check``.

A kind is a message's name, or ``int`` (varint), ``float``, ``double``, ``text`` or ``bytes``; a ``*`` before it says
that the field may stand more than once. Numbers are those of ``onnx.proto`` (ONNX 1.23); a test compares them with the
``onnx`` package's own.
"""

from __future__ import annotations

SCHEMA: dict[str, dict[int, str]] = {
    "ModelProto": {
        1: "int", 2: "text", 3: "text", 4: "text", 5: "int", 6: "text", 7: "GraphProto", 8: "*OperatorSetIdProto",
        14: "*StringStringEntryProto", 20: "*TrainingInfoProto", 25: "*FunctionProto",
        26: "*DeviceConfigurationProto",
    },
    "OperatorSetIdProto": {1: "text", 2: "int"},
    "GraphProto": {
        1: "*NodeProto", 2: "text", 5: "*TensorProto", 10: "text", 11: "*ValueInfoProto", 12: "*ValueInfoProto",
        13: "*ValueInfoProto", 14: "*TensorAnnotation", 15: "*SparseTensorProto", 16: "*StringStringEntryProto",
    },
    "NodeProto": {
        1: "*text", 2: "*text", 3: "text", 4: "text", 5: "*AttributeProto", 6: "text", 7: "text", 8: "text",
        9: "*StringStringEntryProto", 10: "*NodeDeviceConfigurationProto",
    },
    "AttributeProto": {
        1: "text", 2: "float", 3: "int", 4: "bytes", 5: "TensorProto", 6: "GraphProto", 7: "*float", 8: "*int",
        9: "*bytes", 10: "*TensorProto", 11: "*GraphProto", 13: "text", 14: "TypeProto", 15: "*TypeProto", 20: "int",
        21: "text", 22: "SparseTensorProto", 23: "*SparseTensorProto",
    },
    "TensorProto": {
        1: "*int", 2: "int", 3: "Segment", 4: "*float", 5: "*int", 6: "*bytes", 7: "*int", 8: "text", 9: "bytes",
        10: "*double", 11: "*int", 12: "text", 13: "*StringStringEntryProto", 14: "int", 16: "*StringStringEntryProto",
    },
    "Segment": {1: "int", 2: "int"},
    "StringStringEntryProto": {1: "text", 2: "text"},
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto", 3: "*int"},
    "TypeProto": {1: "Tensor", 4: "Sequence", 5: "Map", 6: "text", 7: "Opaque", 8: "SparseTensor", 9: "Optional"},
    "Tensor": {1: "int", 2: "TensorShapeProto"},
    "SparseTensor": {1: "int", 2: "TensorShapeProto"},
    "Sequence": {1: "TypeProto"},
    "Optional": {1: "TypeProto"},
    "Map": {1: "int", 2: "TypeProto"},
    "Opaque": {1: "text", 2: "text"},
    "TensorShapeProto": {1: "*Dimension"},
    "Dimension": {1: "int", 2: "text", 3: "text"},
    "ValueInfoProto": {1: "text", 2: "TypeProto", 3: "text", 4: "*StringStringEntryProto"},
    "TensorAnnotation": {1: "text", 2: "*StringStringEntryProto"},
    "TrainingInfoProto": {
        1: "GraphProto", 2: "GraphProto", 3: "*StringStringEntryProto", 4: "*StringStringEntryProto",
    },
    "FunctionProto": {
        1: "text", 4: "*text", 5: "*text", 6: "*text", 7: "*NodeProto", 8: "text", 9: "*OperatorSetIdProto",
        10: "text", 11: "*AttributeProto", 12: "*ValueInfoProto", 13: "text", 14: "*StringStringEntryProto",
    },
    "DeviceConfigurationProto": {1: "text", 2: "int", 3: "*text"},
    "NodeDeviceConfigurationProto": {1: "text", 2: "*ShardingSpecProto", 3: "int"},
    "ShardingSpecProto": {1: "text", 2: "*int", 3: "*IntIntListEntryProto", 4: "*ShardedDimProto"},
    "IntIntListEntryProto": {1: "int", 2: "*int"},
    "ShardedDimProto": {1: "int", 2: "*SimpleShardedDimProto"},
    "SimpleShardedDimProto": {1: "int", 2: "text", 3: "int"},
}  # fmt: skip
REFUSED = {"TrainingInfoProto": "training parts", "SparseTensorProto": "sparse tensors", "Segment": "split tensors"}
"""Messages that no inference model needs, and that would double what has to be checked."""

BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""Bits of one value by a tensor's data type; strings (8) have none."""
STRING = 8
NAMES = {
    1: "FLOAT", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "STRING", 9: "BOOL",
    10: "FLOAT16", 11: "DOUBLE", 12: "UINT32", 13: "UINT64", 14: "COMPLEX64", 15: "COMPLEX128", 16: "BFLOAT16",
    17: "FLOAT8E4M3FN", 18: "FLOAT8E4M3FNUZ", 19: "FLOAT8E5M2", 20: "FLOAT8E5M2FNUZ", 21: "UINT4", 22: "INT4",
    23: "FLOAT4E2M1", 24: "FLOAT8E8M0", 25: "UINT2", 26: "INT2",
}  # fmt: skip
"""The name of each data type."""
