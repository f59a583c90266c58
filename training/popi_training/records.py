"""The rows of a table, one after another, each with the place where it stands: of a file, a folder, or a hub's dataset.

``.jsonl``             one JSON object a line
``.json``              one list of JSON objects
``.csv``               a header and rows; every value is text
``.parquet, .arrow``   through pyarrow, where that is installed (``.arrow``: what ``datasets.save_to_disk`` writes)
a folder               all such files in it, by name; where names tell splits (train-00000-of-00003.parquet,
                       train/0000.parquet), those of one split
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import itertools
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError, SignalError
from popi_training.evaluate.data import _read

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files beside the rows that say something about them."""
SPLIT = re.compile(r"(?<![a-z])(train|validation|test)(?![a-z])")
LICENCE = re.compile(r"^licen[sc]e:[ \t]*['\"]?([^\s'\"].*?)['\"]?[ \t]*$", re.MULTILINE)
UNKNOWN = "not known"


@dataclass(frozen=True)
class Source:
    """Where rows come from: the SHA-256 of what was read, the licence that a card beside it states, and the rows.

    ``rows`` gives (place, value) once; a value is what the file says there, not yet known to be an object.
    """

    name: str
    sha256: str
    licence: str
    rows: Iterator[tuple[str, Any]]


def read(path: Path, split: str = "train") -> Source:
    """The rows of a file, or of one split of a folder. The file is read twice: hashed, then row after row.

    Raises ConfigError (not there, no such file in the folder, of another kind, not readable) and, while rows are
    read, SignalError for one that is no JSON or has more cells than there are columns.
    """
    files = _files(path, split) if path.is_dir() else [path]
    digests = []
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{file}: must end in one of {', '.join(SUFFIXES)}")
        try:
            with file.open("rb") as blob:
                digests.append(hashlib.file_digest(blob, "sha256").hexdigest())
        except OSError as e:
            raise ConfigError(f"cannot read {file}: {e.strerror}") from None
    digest = digests[0]
    if path.is_dir():
        parts = [f"{file.relative_to(path).as_posix()} {d}\n" for file, d in zip(files, digests, strict=True)]
        digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    rows = itertools.chain.from_iterable(map(_rows, files))
    return Source(str(path), digest, _licence(path if path.is_dir() else path.parent), rows)


def fetch(name: str, split: str = "train") -> Source:
    """One split of a dataset on a hub, through ``datasets``, which downloads what it has not kept.

    Raises ConfigError where the library is not installed, or it cannot load the dataset (no hub in reach, say).
    """
    try:
        hub: Any = importlib.import_module("datasets")
    except ImportError:
        raise ConfigError(f"{name}: install `datasets` (pip install datasets), or give a local file") from None
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # a hub out of reach is tried six times, with a paragraph of warning each
    try:
        table = hub.load_dataset(name, split=split)
    except Exception as e:  # the library's own, the network's, the file system's: whatever it was, it is one line here
        reason = next(iter(str(e).splitlines()), type(e).__name__)
        raise ConfigError(f"cannot load {name} ({split}): {reason}; give a local file instead") from None
    finally:
        log.setLevel(level)
    digest = hashlib.sha256()
    for row in table:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    rows = ((f"{name} ({split}): row {i}", row) for i, row in enumerate(table, 1))
    return Source(name, digest.hexdigest(), getattr(table.info, "license", "") or UNKNOWN, rows)


def _files(folder: Path, split: str) -> list[Path]:
    """The files of a split; of a folder that tells no splits apart, all of them."""
    parts: dict[str | None, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        where = file.relative_to(folder)
        hidden = any(p.startswith(".") for p in where.parts)
        if file.is_file() and file.suffix.lower() in SUFFIXES and file.name not in ABOUT and not hidden:
            told = SPLIT.findall(where.as_posix().lower())
            parts.setdefault(told[-1] if told else None, []).append(file)
    if not parts:
        raise ConfigError(f"{folder}: no file in it ends in one of {', '.join(SUFFIXES)}")
    if set(parts) == {None}:
        return parts[None]
    if split not in parts:
        raise ConfigError(f"{folder}: has no split {split!r}, but {', '.join(sorted(filter(None, parts)))}")
    return parts[split]


def _licence(folder: Path) -> str:
    """The licence in the head of a README.md, as dataset cards state it."""
    try:
        _, head, _ = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    except (OSError, ValueError):  # no card, no text, or no head in it
        return UNKNOWN
    found = LICENCE.search(head)
    return found[1] if found else UNKNOWN


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    match path.suffix.lower():
        case ".jsonl":
            return _lines(path)
        case ".json":
            return _list(path)
        case ".csv":
            return _cells(path)
    return _columns(path)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    i = 0
    try:
        with path.open(encoding="utf-8") as lines:  # unlike str.splitlines, not cut at the U+2028 within a text
            for i, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}: line {i}", _json(line, f"{path}: line {i}")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text after line {i}") from None


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as e:  # ValueError: also numbers too long to read
        raise SignalError(f"{where}: not JSON: {e}") from None


def _list(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        items = json.loads(_read(path)[0])
    except (ValueError, RecursionError) as e:  # ValueError: also numbers too long to read
        raise ConfigError(f"{path}: not JSON: {e}") from None
    if not isinstance(items, list):
        raise ConfigError(f"{path}: must be a JSON list of rows")
    for i, item in enumerate(items, 1):
        yield f"{path}: row {i}", item


def _cells(path: Path) -> Iterator[tuple[str, Any]]:
    i = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for i, item in enumerate(csv.DictReader(lines, strict=True), 1):
                if None in item:
                    raise SignalError(f"{path}: row {i}: more cells than the header has columns")
                yield f"{path}: row {i}", item
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text after row {i}") from None
    except csv.Error as e:
        raise ConfigError(f"{path}: row {i + 1}: not CSV: {e}") from None


def _columns(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        pa: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(f"{path}: install pyarrow (pip install pyarrow), or give the rows as JSON lines") from None
    i = 0
    try:
        with path.open("rb") as blob:
            stream = path.suffix.lower() == ".arrow"
            for batch in pa.ipc.open_stream(blob) if stream else parquet.ParquetFile(blob).iter_batches(1000):
                batch.validate(full=True)  # what is damaged in it would end the process where it is read
                for item in batch.to_pylist():
                    i += 1
                    yield f"{path}: row {i}", item
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as e:
        reason = next(iter(str(e).splitlines()), type(e).__name__)
        raise ConfigError(f"{path}: not readable as {path.suffix[1:].lower()}: {reason}") from None
