"""Ways to tamper with a bundle, for ``bench.bundles``: each changes a fresh copy of a signed one, by a seeded choice.

A way is ``f(random, material, folder)``; it returns the path to open where that is not the folder. Ways named ``own_*``
sign anew by the trusted key (a careless signer), ``bare_*`` take the signature away and require none; ``_tamper_zip``
has those of zips. Whatever they do, the bundle differs from the one that was signed.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.models.bases import file_sha256
from popi_edge.models.signing import SIGNATURE, sign

MANIFEST = "manifest.json"
ADAPTERS = ("infer.gguf", "generate.gguf")
Random = random.Random
Way = Callable[[Random, "Material", Path], Path | None]


@dataclass(frozen=True)
class Material:
    """A signed bundle, another one signed by the same key, that private key, and one that nobody trusts."""

    folder: Path
    other: Path
    private: Any
    foreign: Any


def write(path: Path, data: bytes) -> None:
    """Replace a file; the copy's files are hard links to the material's."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def copy(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        os.link(path, target / path.name)


def flip(r: Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    write(path, bytes(data))


def cut(r: Random, path: Path) -> None:
    """Two bytes at least: the last one of a text is its newline."""
    write(path, path.read_bytes()[: r.randrange(path.stat().st_size - 1)])


def resign(m: Material, at: Path, data: bytes | None = None) -> None:
    """Sign the copy's manifest by the trusted key, after it was replaced by ``data``."""
    if data is not None:
        write(at / MANIFEST, data)
    write(at / SIGNATURE, sign((at / MANIFEST).read_bytes(), m.private))


def manifest(at: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((at / MANIFEST).read_bytes())
    return found


def dump(table: object) -> bytes:
    return json.dumps(table).encode()


def replaced(m: Material, at: Path, name: str, data: bytes) -> None:
    """Another file in an adapter's place, with its size and hash in a manifest that is signed anew."""
    write(at / name, data)
    table = manifest(at)
    for entry in table["roles"].values():
        if entry and entry["file"] == name:
            entry |= {"size": len(data), "sha256": file_sha256(at / name)}
    resign(m, at, dump(table))


# in place, under the old signature ---------------------------------------------------------------------------------
def flip_adapter(r: Random, m: Material, at: Path) -> None:
    flip(r, at / r.choice(ADAPTERS))


def flip_manifest(r: Random, m: Material, at: Path) -> None:
    flip(r, at / MANIFEST)


def flip_signature(r: Random, m: Material, at: Path) -> None:
    flip(r, at / SIGNATURE)


def cut_adapter(r: Random, m: Material, at: Path) -> None:
    cut(r, at / r.choice(ADAPTERS))


def cut_manifest(r: Random, m: Material, at: Path) -> None:
    cut(r, at / MANIFEST)


def cut_signature(r: Random, m: Material, at: Path) -> None:
    cut(r, at / SIGNATURE)


def longer_adapter(r: Random, m: Material, at: Path) -> None:
    path = at / r.choice(ADAPTERS)
    write(path, path.read_bytes() + r.randbytes(r.randint(1, 64)))


def swapped_adapters(r: Random, m: Material, at: Path) -> None:
    a, b = (at / name for name in ADAPTERS)
    first, second = a.read_bytes(), b.read_bytes()
    write(a, second)
    write(b, first)


def swapped_roles(r: Random, m: Material, at: Path) -> None:
    table = manifest(at)
    roles = table["roles"]
    roles["infer"], roles["generate"] = roles["generate"], roles["infer"]
    write(at / MANIFEST, dump(table))


def other_adapter(r: Random, m: Material, at: Path) -> None:
    name = r.choice(ADAPTERS)
    write(at / name, (m.other / name).read_bytes())


def other_manifest(r: Random, m: Material, at: Path) -> None:
    for name in (MANIFEST, SIGNATURE):
        write(at / name, (m.other / name).read_bytes())


def edited_manifest(r: Random, m: Material, at: Path) -> None:
    table = manifest(at)
    how = r.randrange(4)
    if how == 0:
        table["version"] = "9.9.9"
    elif how == 1:
        table["decoding"] = {"opening": "I am", "sentences": 9}
    elif how == 2:
        table["roles"]["generate"] = None
    else:
        table["roles"]["infer"]["sha256"] = r.randbytes(32).hex()
    write(at / MANIFEST, dump(table))


def reformatted_manifest(r: Random, m: Material, at: Path) -> None:
    write(at / MANIFEST, (at / MANIFEST).read_bytes() + b" " * r.randint(1, 9))


def other_adapter_and_manifest(r: Random, m: Material, at: Path) -> None:
    name = r.choice(ADAPTERS)
    replaced(m, at, name, (m.other / name).read_bytes() + b"\0")
    write(at / SIGNATURE, (m.folder / SIGNATURE).read_bytes())


def stripped_signature(r: Random, m: Material, at: Path) -> None:
    (at / SIGNATURE).unlink()


def foreign_signature(r: Random, m: Material, at: Path) -> None:
    write(at / SIGNATURE, sign((at / MANIFEST).read_bytes(), m.foreign))


def borrowed_key(r: Random, m: Material, at: Path) -> None:
    """The trusted key's name before another key's signature."""
    words = sign((at / MANIFEST).read_bytes(), m.foreign).split()
    write(at / SIGNATURE, b" ".join([words[0], (at / SIGNATURE).read_bytes().split()[1], words[2]]) + b"\n")


def replayed_signature(r: Random, m: Material, at: Path) -> None:
    write(at / SIGNATURE, (m.other / SIGNATURE).read_bytes())


def signature_of_another_kind(r: Random, m: Material, at: Path) -> None:
    """By the trusted key, over the manifest alone: as some other program may have made it sign."""
    words = (at / SIGNATURE).read_bytes().split()
    words[2] = base64.b64encode(m.private.sign((at / MANIFEST).read_bytes()))
    write(at / SIGNATURE, b" ".join(words) + b"\n")


def linked_file(r: Random, m: Material, at: Path) -> None:
    name = r.choice([*ADAPTERS, MANIFEST, SIGNATURE])
    (at / name).unlink()
    (at / name).symlink_to(m.folder / name)


def extra_link(r: Random, m: Material, at: Path) -> None:
    (at / "more.gguf").symlink_to(r.choice([m.folder, Path("/etc/passwd"), Path("nowhere")]))


def extra_file(r: Random, m: Material, at: Path) -> None:
    name = r.choice(["more.gguf", ".hidden", "model.onnx", "generate.gguf.bak", "setup.py", "infer.GGUF"])
    (at / name).write_bytes(r.randbytes(r.randrange(100)))


def sub_folder(r: Random, m: Material, at: Path) -> None:
    folder = at / r.choice(["more", "__pycache__", ".git", "x.gguf"])
    folder.mkdir()
    (folder / "x.gguf").write_bytes(b"GGUF")


def pipe_for_a_file(r: Random, m: Material, at: Path) -> None:
    name = r.choice([*ADAPTERS, MANIFEST, SIGNATURE])
    (at / name).unlink()
    if sys.platform == "win32":
        raise OSError("Windows has no pipe that is a file")
    os.mkfifo(at / name)


def folder_for_a_file(r: Random, m: Material, at: Path) -> None:
    name = r.choice([*ADAPTERS, MANIFEST, SIGNATURE])
    (at / name).unlink()
    (at / name).mkdir()


def missing_file(r: Random, m: Material, at: Path) -> None:
    (at / r.choice([*ADAPTERS, MANIFEST])).unlink()


def huge_text(r: Random, m: Material, at: Path) -> None:
    path = at / r.choice([MANIFEST, SIGNATURE])
    write(path, path.read_bytes())
    os.truncate(path, r.choice([1 << 21, 1 << 30, 1 << 40]))


def a_thousand_files(r: Random, m: Material, at: Path) -> None:
    for i in range(1_000):
        (at / f"{i}.gguf").touch()


# signed anew by the trusted key ------------------------------------------------------------------------------------
def own_name_that_leaves(r: Random, m: Material, at: Path) -> None:
    table = manifest(at)
    names = ["../infer.gguf", "/etc/passwd", "a/b.gguf", "..\\infer.gguf", "C:infer.gguf", "infer.gguf\0", "..", "",
             ".infer.gguf", "infer.gguf ", "manifest.json", "infer.gguf:x", "-o.gguf", "inf\u0435r.gguf"]  # fmt: skip
    table["roles"][r.choice(["infer", "generate"])]["file"] = r.choice(names)
    resign(m, at, dump(table))


def own_wrong_size_or_hash(r: Random, m: Material, at: Path) -> None:
    table = manifest(at)
    entry = table["roles"][r.choice(["infer", "generate"])]
    wrong = {"size": [0, -1, entry["size"] + 1, 2**70, True, "1"], "sha256": ["", "0" * 64, entry["sha256"].upper()]}
    key = r.choice(list(wrong))
    entry[key] = r.choice(wrong[key])
    resign(m, at, dump(table))


def own_other_fields(r: Random, m: Material, at: Path) -> None:
    table = manifest(at)
    change: dict[str, Any] = r.choice([
        {"format": 2}, {"format": True}, {"prompt_contract": 99}, {"base": {"name": "x", "sha256": "0"}},
        {"base": table["base"] | {"sha256": "0" * 64}}, {"roles": {"judge": None}}, {"roles": []}, {"name": "../x"},
        {"name": "\x1b[2J"}, {"version": ""}, {"decoding": {"opening": "x" * 101}}, {"decoding": {"sentences": True}},
        {"decoding": {"candidates": [[["Likes jokes.", 7]]]}},
        {"decoding": {"candidates": [[[f"Likes {i}." for i in range(1001)]]]}},
        {"roles": table["roles"] | {"generate": {"file": "infer.gguf", "size": 1, "sha256": "0"}}},
    ])  # fmt: skip
    resign(m, at, dump(table | change))


def own_not_a_table(r: Random, m: Material, at: Path) -> None:
    good = (at / MANIFEST).read_bytes()
    form = f'"format": {manifest(at)["format"]}'.encode()
    bad = [b"", b"[]", b"null", b"\xff\xfe" + good, b"{" * 100_000, b"[" * 100_000, good.replace(form, b""),
           good.rstrip().removesuffix(b"}") + b", " + form + b"}", good.replace(form, b'"format": NaN'), good + good,
           good.replace(form, b'"format": ' + b"1" * 5_000)]  # fmt: skip
    resign(m, at, r.choice(bad))


def own_broken_header(r: Random, m: Material, at: Path) -> None:
    """A GGUF whose counts, lengths, types or offsets are absurd, rightly hashed and signed."""
    name = r.choice(ADAPTERS)
    data = bytearray((at / name).read_bytes())
    first = data.index(b".lora_a") + len(b".lora_a")  # the first tensor: rank u32, two sizes u64, type u32, offset u64
    second = data.index(b".lora_b") + len(b".lora_b")
    huge = r.choice([2**63, 2**64 - 1, 2**48, 2**33])
    changes = [
        (0, b"GGML"), (4, struct.pack("<I", r.choice([0, 1, 4, 2**31]))), (8, struct.pack("<Q", huge)),
        (16, struct.pack("<Q", huge)), (24, struct.pack("<Q", huge)), (first, struct.pack("<I", r.choice([0, 5, 99]))),
        (first + 4, struct.pack("<Q", huge)), (first + 4, bytes(8)), (first + 20, struct.pack("<I", 4_000)),
        (first + 24, struct.pack("<Q", huge & ~31)), (first + 24, struct.pack("<Q", 7)),
        (second + 24, bytes(data[first + 24 : first + 32])),
        (second - 1, b"a"),
    ]  # fmt: skip
    where, new = r.choice(changes)
    data[where : where + len(new)] = new
    replaced(m, at, name, bytes(data))


def own_cut_adapter(r: Random, m: Material, at: Path) -> None:
    name = r.choice(ADAPTERS)
    data = (at / name).read_bytes()
    replaced(m, at, name, data[: r.randrange(len(data) - 32)])


def own_no_adapter(r: Random, m: Material, at: Path) -> None:
    what = [b"\x80\x04\x95\x0a", b"\x7fELF\2\1\1", b"PK\x03\x04", b"", b"\0", b"#!/bin/sh\n", b"\x08\x0a\x12\x04popi"]
    replaced(m, at, r.choice(ADAPTERS), r.choice(what) + r.randbytes(r.randrange(1, 200)))


# without a signature, where none is required -----------------------------------------------------------------------
def _bare(way: Callable[[Random, Material, Path], Path | None]) -> Way:
    def bare(r: Random, m: Material, at: Path) -> Path | None:
        (at / SIGNATURE).unlink()
        return way(r, m, at)

    return bare


IN_PLACE: tuple[Way, ...] = (
    flip_adapter, flip_manifest, flip_signature, cut_adapter, cut_manifest, cut_signature, longer_adapter,
    swapped_adapters, swapped_roles, other_adapter, other_manifest, edited_manifest, reformatted_manifest,
    other_adapter_and_manifest, stripped_signature, foreign_signature, borrowed_key, replayed_signature,
    signature_of_another_kind, linked_file, extra_link, extra_file, sub_folder, pipe_for_a_file, folder_for_a_file,
    missing_file, huge_text, a_thousand_files,
)  # fmt: skip
OWN: tuple[Way, ...] = (
    own_name_that_leaves, own_wrong_size_or_hash, own_other_fields, own_not_a_table, own_broken_header,
    own_cut_adapter, own_no_adapter,
)  # fmt: skip
BARE = (
    flip_adapter, cut_adapter, cut_manifest, longer_adapter, swapped_adapters, other_adapter, extra_link, extra_file,
    sub_folder, a_thousand_files,
)  # fmt: skip
FOLDERS: dict[str, Way] = {
    **{way.__name__: way for way in (*IN_PLACE, *OWN)},
    **{f"bare_{way.__name__}": _bare(way) for way in BARE},
}
"""Every way by its name."""
UNREAD = frozenset({
    "flip_signature", "cut_signature", "stripped_signature", "foreign_signature", "borrowed_key", "replayed_signature",
    "signature_of_another_kind", "flip_manifest", "edited_manifest", "reformatted_manifest", "swapped_roles",
    "edited_models",
})  # fmt: skip
"""Ways after which no file but the manifest and its signature may even be opened."""


def clear(at: Path) -> None:
    """Remove a copy and its zip."""
    shutil.rmtree(at, ignore_errors=True)
    at.with_suffix(".zip").unlink(missing_ok=True)
