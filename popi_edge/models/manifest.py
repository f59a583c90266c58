"""A bundle's manifest: its exact bytes read strictly into a checked table, before any file that it lists is opened.

Format 1: adapters on a base that devices know by name and hash. Format 2 (``WHOLE``): whole model files, GGUF and ONNX,
beside them adapters and further files; a base is not looked for. What a file holds is checked elsewhere (``bundle``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popi_edge.config import MOST
from popi_edge.errors import ModelError
from popi_edge.models.bases import BASES
from popi_edge.prompts import CONTRACT

FORMAT, WHOLE = 1, 2
MANIFEST = "manifest.json"
ROLES = ("infer", "generate")
MAX_MANIFEST = 1 << 20
MAX_CANDIDATES = 1_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\.gguf")
"""Names that are one plain file on every system: no separators, no drive, no stream, nothing hidden."""
FILES = {
    "gguf": FILE,
    "onnx": re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\.onnx"),
    "weights": re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\.(data|onnx_data)"),
    "onnx_adapter": re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\.onnx_adapter"),
    "other": re.compile(
        r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\.(md|json|jinja|png|txt)|(LICENSE|NOTICE)(-[A-Za-z0-9-]{1,60})?"
    ),
}
"""Names by what a file is: further files are text and pictures, never what a program could load as code or weights."""
RESERVED = re.compile(r"(manifest\.(json|sig)|(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?)", re.IGNORECASE)
"""The manifest's own names, and those that are devices on Windows."""
MAX_MODELS = 32


@dataclass(frozen=True)
class Entry:
    """A file of the bundle: its name in the folder, exact size (bytes) and SHA-256 (hex)."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Model:
    """A whole model: its file, ``gguf`` or ``onnx``, its quantization's name, how many tensors have which type, and the
    files that hold an ONNX model's weights."""

    entry: Entry
    format: str
    quantization: str
    tensor_types: Mapping[str, int]
    beside: tuple[Entry, ...]


@dataclass(frozen=True)
class Contents:
    """What a manifest lists: per role a GGUF adapter; in a whole-model bundle also models, the one that popi runs
    (``default``, a GGUF's name), adapters for plain ONNX Runtime, and further files."""

    adapters: Mapping[str, Entry]
    models: tuple[Model, ...] = ()
    default: str | None = None
    onnx_adapters: tuple[Entry, ...] = ()
    others: tuple[Entry, ...] = ()
    files: Mapping[str, Entry] = field(default_factory=dict)
    """Every file of the bundle but the manifest and its signature, by name."""


def need(table: Any, key: str, kind: type, where: Path) -> Any:
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
    if need(table, "format", int, where) not in (FORMAT, WHOLE):
        raise ModelError(f"{where}: format {table['format']}; this popi-edge reads format {FORMAT} and format {WHOLE}")
    if need(table, "prompt_contract", int, where) != CONTRACT:
        raise ModelError(f"{where}: prompt contract {table['prompt_contract']}; this popi-edge has {CONTRACT}")
    for key in ("name", "version"):
        if not NAME.fullmatch(need(table, key, str, where)):
            raise ModelError(f"{where}: {key} must be letters, digits and . _ + -, not {table[key]!r:.80}")
    how = table.get("decoding", {})
    opening = how.get("opening", "") if isinstance(how, dict) else None
    if not isinstance(opening, str) or len(opening) > 100 or not opening.isprintable():
        raise ModelError(f"{where}: decoding.opening is not a short text")
    sentences = how.get("sentences")
    if isinstance(sentences, bool) or not isinstance(sentences, (int, type(None))):
        raise ModelError(f"{where}: decoding.sentences is not a whole number")
    drafts = how.get("drafts", 1)
    if isinstance(drafts, bool) or not isinstance(drafts, int) or not 1 <= drafts <= MOST["drafts"]:
        raise ModelError(f"{where}: decoding.drafts is not a whole number from 1 to {MOST['drafts']}")
    candidates(how.get("candidates", []), f"{where}: decoding.candidates")
    if table["format"] == FORMAT:
        _base(table, where)
    elif "base" in table:
        raise ModelError(f"{where}: a bundle of whole models has no base")
    return table


SENTENCE = re.compile(r"\S(?:.{0,297}\S)?[.!?]")
Candidates = tuple[tuple[tuple[str, ...], ...], ...]


def candidates(given: Any, where: str) -> Candidates:
    """Sentences that a summary may be made of: for each dimension its poles, for each of those what may be said. Raises
    ModelError."""
    lists, texts = [given], list[Any]()
    for depth in range(3):
        if not all(isinstance(some, list) and (some or not depth) for some in lists):
            texts.append(None)
            break
        lists = [one for some in lists for one in some]
    texts += lists
    for text in texts:
        if not isinstance(text, str) or not text.isprintable() or not SENTENCE.fullmatch(text):
            raise ModelError(f"{where} is not a list of dimensions, each of poles, each of sentences (300 characters)")
    if len(texts) > MAX_CANDIDATES or len(set(texts)) < len(texts):
        raise ModelError(f"{where}: {len(texts)} sentences, {len(texts) - len(set(texts))} of them twice; the limit is "
                         f"{MAX_CANDIDATES}, each once")  # fmt: skip
    return tuple(tuple(map(tuple, poles)) for poles in given)


def _base(table: Mapping[str, Any], where: Path) -> None:
    base = need(table, "base", dict, where)
    name = need(base, "name", str, where)
    if name not in BASES or BASES[name].sha256 != need(base, "sha256", str, where):
        raise ModelError(f"{where}: made for another base ({name!r:.40}); known: {', '.join(BASES)}")


def _entry(table: Any, kind: str, what: str, where: Path) -> Entry:
    """A file's name, size and hash. Raises ModelError; a name that is not one plain file's of its kind is refused."""
    name, size = need(table, "file", str, where), need(table, "size", int, where)
    if not FILES[kind].fullmatch(name) or RESERVED.fullmatch(name):
        raise ModelError(f"{where}: the {what} {name!r:.80} is not a file of this bundle")
    return Entry(name, size, need(table, "sha256", str, where))


def _models(table: Mapping[str, Any], where: Path) -> Iterator[Model]:
    given = need(table, "models", list, where)
    if not 1 <= len(given) <= MAX_MODELS:
        raise ModelError(f"{where}: it lists {len(given):,} models")
    for one in given:
        form, quantization = need(one, "format", str, where), need(one, "quantization", str, where)
        if form not in ("gguf", "onnx") or not NAME.fullmatch(quantization):
            raise ModelError(f"{where}: a model of the format {form!r:.40}, {quantization!r:.40}")
        types = need(one, "tensor_types", dict, where)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in types.values()):
            raise ModelError(f"{where}: tensor_types holds what is no count")
        beside = one.get("beside", [])
        if not isinstance(beside, list) or (beside and form == "gguf"):
            raise ModelError(f"{where}: beside is not a list of an ONNX model's weights")
        entry = _entry(one, form, "model", where)
        yield Model(entry, form, quantization, types, tuple(_entry(b, "weights", "weights", where) for b in beside))


def contents(table: Mapping[str, Any], where: Path) -> Contents:
    """Every file that a parsed manifest lists. Raises ModelError: a name that leaves the folder, is of the wrong kind
    or stands twice (roles may share one adapter), a default that is no GGUF model of the bundle."""
    adapters: dict[str, Entry] = {}
    onnx_adapters: list[Entry] = []
    for role, entry in need(table, "roles", dict, where).items():
        if role not in ROLES:
            raise ModelError(f"{where}: unknown role {role!r:.40}")
        if entry is None:
            continue
        adapters[role] = _entry(entry, "gguf", f"{role} adapter", where)
        if table["format"] == WHOLE:
            for one in need({"onnx": [], **entry}, "onnx", list, where):
                onnx_adapters.append(_entry(one, "onnx_adapter", f"{role} adapter", where))
    files: dict[str, Entry] = {}
    for shared in adapters.values():
        if files.setdefault(shared.file.casefold(), shared) != shared:
            raise ModelError(f"{where}: {shared.file} stands twice, with different sizes or hashes")
    if table["format"] == FORMAT:
        return Contents(adapters, files={e.file: e for e in files.values()})
    models = tuple(_models(table, where))
    others = [_entry(one, "other", "file", where) for one in need(table, "files", list, where)]
    for once in (*(e for m in models for e in (m.entry, *m.beside)), *onnx_adapters, *others):
        if files.setdefault(once.file.casefold(), once) is not once:
            raise ModelError(f"{where}: {once.file} stands twice")
    default, ggufs = table.get("default"), [m.entry.file for m in models if m.format == "gguf"]
    if (default not in ggufs) if ggufs else default is not None:
        raise ModelError(f"{where}: the default model {default!r:.80} is none of its GGUF models")
    by_name = {e.file: e for e in files.values()}
    return Contents(adapters, models, default, tuple(onnx_adapters), tuple(others), by_name)
