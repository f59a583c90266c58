"""A bounded look at a checkpoint before torch reads it: a zip of plain parts, and a pickle that only describes tensors.

Nothing is unpickled. Refused: any name, function or class in the pickle but those that tensors and dictionaries are
made of; members that are packed, absurd in number or size, stand twice or are no part of a checkpoint; bytes that were
changed. Not covered: what the numbers are.
"""

from __future__ import annotations

import os
import pickletools
import re
import struct
import zipfile
from pathlib import Path

from popi_edge.errors import ModelError

MEMBER = re.compile(
    r"[A-Za-z0-9_.-]{1,64}/(data\.pkl|byteorder|version|\.[a-z_]{1,32}|\.data/[a-z_]{1,32}|data/[0-9]{1,6})"
)
MAX_MEMBERS, MAX_DIRECTORY, MAX_PICKLE = 65_000, 1 << 23, 1 << 24
END = struct.Struct("<4s4H2LH")
GLOBALS = frozenset({
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch FloatStorage", "torch HalfStorage", "torch BFloat16Storage", "torch DoubleStorage", "torch LongStorage",
    "torch IntStorage", "torch BoolStorage", "torch ByteStorage",
})  # fmt: skip
OPCODES = frozenset({
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
})  # fmt: skip


def check(path: Path) -> None:
    """Raises ModelError saying what is wrong with the file, OSError where it cannot be read."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END.size))
        tail = file.read()
    if len(tail) < END.size or tail[:4] != b"PK\x05\x06":
        raise ModelError(f"{path}: not a checkpoint, or damaged: no whole zip")
    _, _, _, _, count, length, offset, _ = END.unpack(tail)
    if not 1 <= count <= MAX_MEMBERS or length > MAX_DIRECTORY or offset + length > size:
        raise ModelError(f"{path}: not a checkpoint: it claims {count:,} parts in a directory of {length:,} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            data = _pickle(archive, path)
            if bad := archive.testzip():  # torch itself does not check the sums of what it reads
                raise ModelError(f"{path}: damaged: {bad}")
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in OPCODES or (opcode.name == "GLOBAL" and argument not in GLOBALS):
                what = f"{opcode.name} {argument!r:.60}"
                raise ModelError(f"{path}: not a checkpoint: its pickle has {what}, which no tensor needs")
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, IndexError, struct.error) as e:
        raise ModelError(f"{path}: not a checkpoint, or damaged: {' '.join(str(e).split())[:100]}") from None


def _pickle(archive: zipfile.ZipFile, path: Path) -> bytes:
    """The pickle's bytes, once every member is known to be one of a checkpoint's."""
    names: set[str] = set()
    found = None
    for info in archive.infolist():
        if not MEMBER.fullmatch(info.filename) or info.filename in names:
            raise ModelError(f"{path}: not a checkpoint: the part {info.filename!r:.80}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 0x41:
            raise ModelError(f"{path}: not a checkpoint: the part {info.filename!r:.80} is packed")
        names.add(info.filename)
        found = info if info.filename.endswith("/data.pkl") else found
    if len({name.split("/")[0] for name in names}) != 1 or found is None or found.file_size > MAX_PICKLE:
        raise ModelError(f"{path}: not a checkpoint: it has no pickle, or an absurd one")
    if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
        raise ModelError(f"{path}: not a checkpoint: its parts overlap")
    return archive.read(found)
