"""A bundle as one zip file: looked at before it is unpacked, unpacked only as far as a verified manifest says.

Refused: links, names that leave the folder, sub-folders, names that stand twice, bombs, encryption, zip64, comments,
bytes before or between; a central directory or a count that is absurd. Not covered: a zip changed while it is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from popi_edge.errors import ModelError
from popi_edge.models.bases import CHUNK
from popi_edge.models.manifest import MANIFEST, MAX_MANIFEST, contents, parse
from popi_edge.models.signing import MAX_SIGNATURE, SIGNATURE, insist

END = struct.Struct("<4s4H2LH")
MAX_ENTRIES = 64
MAX_DIRECTORY = 1 << 16
MAX_RATIO = 20
"""Weights hardly shrink; a bomb grows a thousandfold."""
SLACK = 1 << 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, ValueError)
"""What ``zipfile`` raises for archives that are damaged, encrypted or packed in ways that it does not know."""
Members = dict[str, zipfile.ZipInfo]


def is_zip(path: Path) -> bool:
    """Whether a file starts like a zip."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror}") from None


def _end(path: Path) -> None:
    """The last record, before ``zipfile`` reads as much as it says. Raises ModelError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END.size - 20))
        tail = file.read(END.size + 20)
    if len(tail) < END.size or tail[-END.size :][:4] != b"PK\x05\x06":
        raise ModelError(f"{path}: not a whole zip, or one with a comment; not used")
    _, disk, first, here, count, length, offset, comment = END.unpack(tail[-END.size :])
    if tail[:4] == b"PK\x06\x07" or disk or first or comment or here != count or 0xFFFF in (here, count):
        raise ModelError(f"{path}: a zip of many parts, or zip64; not used")
    if not 1 <= count <= MAX_ENTRIES or length > MAX_DIRECTORY:
        raise ModelError(f"{path}: it claims {count:,} files in a directory of {length:,} bytes; not a bundle")
    if offset + length + END.size != size:
        raise ModelError(f"{path}: its directory is not where it says; damaged")


def _member(info: zipfile.ZipInfo, path: Path) -> str:
    """A member's name without the one folder that may be around it. Raises ModelError."""
    name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
    parts = name.removesuffix("/").split("/")
    folder = name.endswith("/")
    if name != info.filename or len(parts) > 2 - folder or not all(NAME.fullmatch(p) for p in parts):
        raise ModelError(f"{path}: {name!r:.80} is not a file of a bundle; not used")
    if kind not in (0, stat.S_IFDIR if folder else stat.S_IFREG):
        raise ModelError(f"{path}: {name!r:.80} is a link or a device; not used")
    if info.flag_bits & 0x2041 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelError(f"{path}: {name!r:.80} is encrypted, or packed in an unusual way; not used")
    if info.file_size > MAX_RATIO * info.compress_size + SLACK:
        raise ModelError(f"{path}: {name!r:.80} would grow to {info.file_size:,} bytes; not used")
    return name


def _members(archive: zipfile.ZipFile, path: Path) -> Members:
    """The files by their names in the bundle. Raises ModelError."""
    found: Members = {}
    folders = set()
    for info in archive.infolist():
        name = _member(info, path)
        folder, _, file = name.rpartition("/") if not name.endswith("/") else (name[:-1], "", "")
        folders.add(folder)
        if file and found.setdefault(file, info) is not info:
            raise ModelError(f"{path}: {name!r:.80} stands twice; not used")
    if len(folders) > 1 or len({name.casefold() for name in found}) != len(found):
        raise ModelError(f"{path}: its files are not those of one folder; not used")
    if sum(info.compress_size for info in found.values()) > path.stat().st_size:
        raise ModelError(f"{path}: its files overlap; not used")
    return found


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int, path: Path) -> bytes:
    if info.file_size > limit:
        raise ModelError(f"{path}: {info.filename!r:.80}: more than {limit:,} bytes")
    with archive.open(info) as file:
        return file.read(limit + 1)


def _pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def member_sha256(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """SHA-256 (hex) of a member, without writing it anywhere."""
    digest = hashlib.sha256()
    for piece in _pieces(archive, info):
        digest.update(piece)
    return digest.hexdigest()


def unpack(path: Path, into: Path, trusted: Sequence[str] = ()) -> None:
    """Unpack a zip into an empty folder: signature, manifest and every file's hash are checked before the first byte is
    written. Raises ModelError naming file and fault; where the disk is full the folder may be left with some files."""
    try:
        _end(path)
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            if MANIFEST not in members:
                raise ModelError(f"{path}: it holds no {MANIFEST}; not a bundle")
            data = _read(archive, members[MANIFEST], MAX_MANIFEST, path)
            line = _read(archive, members[SIGNATURE], MAX_SIGNATURE, path) if SIGNATURE in members else None
            insist(data, line, trusted, path / SIGNATURE)
            entries = contents(parse(data, path / MANIFEST), path / MANIFEST).files
            for name in sorted(members.keys() - {MANIFEST, SIGNATURE}):
                if name not in entries:
                    raise ModelError(f"{path}: {name!r:.80} is not in the manifest; not used")
            for name, entry in entries.items():
                if name not in members or members[name].file_size != entry.size:
                    raise ModelError(f"{path}: {name} is not there with the manifest's size; damaged")
            for name, entry in entries.items():
                if member_sha256(archive, members[name]) != entry.sha256:
                    raise ModelError(f"{path}: the SHA-256 of {name} is not the manifest's; damaged")
            for name in entries:
                with (into / name).open("xb") as out:
                    out.writelines(_pieces(archive, members[name]))
            (into / MANIFEST).write_bytes(data)
            if line is not None:
                (into / SIGNATURE).write_bytes(line)
    except BROKEN as e:
        raise ModelError(f"{path}: a damaged zip: {str(e)[:120]}") from None
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror or e}; nothing was kept") from None


@contextmanager
def unpacked(path: Path, trusted: Sequence[str] = (), *, beside: Path | None = None) -> Iterator[Path]:
    """A folder with the zip's bundle that is gone afterwards (in ``beside``, else among the system's temporary files).

    Raises ModelError.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".unpack-", dir=beside))
    except OSError as e:
        raise ModelError(f"{beside or 'the temporary folder'}: cannot write there: {e.strerror}") from None
    try:
        unpack(path, folder, trusted)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
