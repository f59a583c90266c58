"""A bundle's manifest: its exact bytes read strictly into a checked table, before any file that it lists is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.errors import ModelError
from popi_edge.models.bases import BASES
from popi_edge.prompts import CONTRACT

FORMAT = 1
MANIFEST = "manifest.json"
ROLES = ("infer", "generate")
MAX_MANIFEST = 1 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\.gguf")
"""Names that are one plain file on every system: no separators, no drive, no stream, nothing hidden."""


@dataclass(frozen=True)
class Entry:
    """A file of the bundle: its name in the folder, exact size (bytes) and SHA-256 (hex)."""

    file: str
    size: int
    sha256: str


def field(table: Any, key: str, kind: type, where: Path) -> Any:
    """A value that must be there and of its type. Raises ModelError."""
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ModelError(f"{where}: {key} is missing or not {kind.__name__}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return table


def _finite(text: str) -> float:
    raise ValueError(f"{text} is no number")


def parse(data: bytes, where: Path) -> dict[str, Any]:
    """The manifest's table, checked but for the files. Raises ModelError naming the field at fault."""
    try:
        text = data.decode("utf-8")
        table = json.loads(text, object_pairs_hook=_once, parse_constant=_finite)
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{where}: not JSON: {str(e)[:80]}") from None
    if not isinstance(table, dict):
        raise ModelError(f"{where}: not an object")
    if field(table, "format", int, where) != FORMAT:
        raise ModelError(f"{where}: format {table['format']}; this popi-edge reads format {FORMAT}")
    if field(table, "prompt_contract", int, where) != CONTRACT:
        raise ModelError(f"{where}: prompt contract {table['prompt_contract']}; this popi-edge has {CONTRACT}")
    for key in ("name", "version"):
        if not NAME.fullmatch(field(table, key, str, where)):
            raise ModelError(f"{where}: {key} must be letters, digits and . _ + -, not {table[key]!r:.80}")
    how = table.get("decoding", {})
    opening = how.get("opening", "") if isinstance(how, dict) else None
    if not isinstance(opening, str) or len(opening) > 100 or not opening.isprintable():
        raise ModelError(f"{where}: decoding.opening is not a short text")
    sentences = how.get("sentences")
    if isinstance(sentences, bool) or not isinstance(sentences, (int, type(None))):
        raise ModelError(f"{where}: decoding.sentences is not a whole number")
    base = field(table, "base", dict, where)
    name = field(base, "name", str, where)
    if name not in BASES or BASES[name].sha256 != field(base, "sha256", str, where):
        raise ModelError(f"{where}: made for another base ({name!r:.40}); known: {', '.join(BASES)}")
    return table


def listed(table: Mapping[str, Any], where: Path) -> dict[str, Entry]:
    """The file of each role that has one. Raises ModelError; a name that is not one plain GGUF file's is refused."""
    found = {}
    for role, entry in field(table, "roles", dict, where).items():
        if role not in ROLES:
            raise ModelError(f"{where}: unknown role {role!r:.40}")
        if entry is None:
            continue
        name, size = field(entry, "file", str, where), field(entry, "size", int, where)
        if not FILE.fullmatch(name):
            raise ModelError(f"{where}: the {role} adapter {name!r:.80} is not a file of this bundle")
        digest = field(entry, "sha256", str, where)
        found[role] = Entry(name, size, digest)
    sizes: dict[str, Entry] = {}
    for one in found.values():
        if sizes.setdefault(one.file.casefold(), one) != one:
            raise ModelError(f"{where}: {one.file} stands twice, with different sizes or hashes")
    return found
