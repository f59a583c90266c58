"""Ways to tamper with a bundle's zip, for ``bench.bundles``: changed inside the archive, or around it."""

from __future__ import annotations

import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from bench._tamper import (
    ADAPTERS,
    FOLDERS,
    MANIFEST,
    Material,
    Way,
    cut,
    edited_manifest,
    extra_file,
    flip_signature,
    foreign_signature,
    other_adapter,
    stripped_signature,
    write,
)
from popi_edge.models.signing import SIGNATURE

Random = random.Random


def zipped(at: Path, *, deflated: bool = False) -> Path:
    """The copy as a zip beside it, with its folder."""
    path = at.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED, compresslevel=1) as out:
        for file in sorted(at.iterdir()):
            out.write(file, f"{at.name}/{file.name}")
    return path


def outside(way: Callable[[Random, Material, Path], Path | None]) -> Way:
    def packed(r: Random, m: Material, at: Path) -> Path:
        way(r, m, at)
        return zipped(at)

    return packed


def zip_flip(r: Random, m: Material, at: Path) -> Path:
    """A bit of what is in the files, not of the dates and such around them."""
    path = zipped(at)
    with zipfile.ZipFile(path) as archive:
        info = r.choice(archive.infolist())
        start = info.header_offset + 30 + len(info.filename.encode())
    data = bytearray(path.read_bytes())
    data[start + r.randrange(info.file_size)] ^= 1 << r.randrange(8)
    write(path, bytes(data))
    return path


def zip_cut(r: Random, m: Material, at: Path) -> Path:
    path = zipped(at)
    cut(r, path)
    return path


def zip_more(r: Random, m: Material, at: Path) -> Path:
    """One member more: outside, beside, twice, or a folder."""
    path = zipped(at)
    inner = ["../../evil.gguf", "more.gguf", "deep/infer.gguf", "", "INFER.gguf", "infer.gguf\0", "./infer.gguf"]
    names = ["../evil.gguf", "/tmp/evil.gguf", "..\\evil.gguf", "infer.gguf", "__MACOSX/x", "C:/evil.gguf",
             *(f"{at.name}/{name}" for name in inner)]  # fmt: skip
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name := r.choice(names), b"GGUF")
        if name.endswith("/"):
            archive.writestr("another/", b"")
    return path


def zip_link(r: Random, m: Material, at: Path) -> Path:
    name = r.choice([*ADAPTERS, MANIFEST, SIGNATURE])
    (at / name).unlink()
    path = zipped(at)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(f"{at.name}/{name}")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, str(m.folder / name))
    return path


def zip_bomb(r: Random, m: Material, at: Path) -> Path:
    name = r.choice([*ADAPTERS, MANIFEST, SIGNATURE])
    write(at / name, bytes(1 << 24))
    return zipped(at, deflated=True)


def zip_twice(r: Random, m: Material, at: Path) -> Path:
    path, name = zipped(at), r.choice([*ADAPTERS, MANIFEST, SIGNATURE])
    data = bytearray(path.read_bytes())
    entry = data.rindex(f"{at.name}/{name}".encode()) - 46
    length = 46 + len(f"{at.name}/{name}")
    end = len(data) - 22
    data[end:end] = data[entry : entry + length]
    _recount(data, 1, length)
    write(path, bytes(data))
    return path


def _recount(data: bytearray, more: int, length: int) -> None:
    at = len(data) - 22
    count, size = struct.unpack_from("<H", data, at + 10)[0], struct.unpack_from("<I", data, at + 12)[0]
    struct.pack_into("<HHI", data, at + 8, count + more, count + more, size + length)


def zip_wrong_end(r: Random, m: Material, at: Path) -> Path:
    """The last record's counts, lengths and places, and bytes before or after the archive."""
    path = zipped(at)
    data = bytearray(path.read_bytes())
    end, how = len(data) - 22, r.randrange(8)
    fields: dict[int, tuple[str, int]] = {
        0: ("<H", 10), 1: ("<I", 12), 2: ("<I", 16), 3: ("<H", 20), 4: ("<H", 4), 5: ("<H", 8),
    }  # fmt: skip
    if how in fields:
        code, place = fields[how]
        old = struct.unpack_from(code, data, end + place)[0]
        new = r.choice([v for v in (0xFFFF, 60_000, 65, 1, 0) if v != old])
        struct.pack_into(code, data, end + place, new)
    elif how == 6:
        data[0:0] = b"PK\x03\x04" + r.randbytes(40)
    else:
        data += r.randbytes(r.randint(1, 40))
    write(path, bytes(data))
    return path


def zip_flags(r: Random, m: Material, at: Path) -> Path:
    """A member that says it is encrypted, packed otherwise, larger or elsewhere."""
    path, name = zipped(at), r.choice([*ADAPTERS, MANIFEST, SIGNATURE])
    data = bytearray(path.read_bytes())
    entry = data.rindex(f"{at.name}/{name}".encode()) - 46
    how = r.randrange(4)
    if how == 0:
        data[entry + 8] |= 1
    elif how == 1:
        struct.pack_into("<H", data, entry + 10, r.choice([8, 9, 12, 14, 99]))
    elif how == 2:
        struct.pack_into("<I", data, entry + 24, r.choice([1, 2**31, 2**32 - 1]))
    else:
        struct.pack_into("<I", data, entry + 42, r.choice([1, 2**31, 2**32 - 1]))
    write(path, bytes(data))
    return path


ZIPS: tuple[Way, ...] = (zip_flip, zip_cut, zip_more, zip_link, zip_bomb, zip_twice, zip_wrong_end, zip_flags)
IN_FOLDER = (flip_signature, edited_manifest, stripped_signature, foreign_signature, other_adapter, extra_file)
WAYS: dict[str, Way] = {
    **FOLDERS,
    **{way.__name__: way for way in ZIPS},
    **{f"zip_{way.__name__}": outside(way) for way in IN_FOLDER},
}
"""Every way there is, by its name."""
