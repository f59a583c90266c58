"""Every finished unit of an evaluation on disk, so that a killed run goes on where it stopped.

A folder holds ``units.jsonl``: a first line with the run's settings, then one line a unit,
``{"k": key, "v": value}``, flushed when it is finished. Keys are hashes of what a value depends
on beside the settings.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from popi_edge.errors import ConfigError, StoreError
from popi_edge.files import whole_file
from popi_training.runfolder import is_number

UNITS = "units.jsonl"


def fits(key: str, value: Any) -> bool:
    """Whether a value is such as an evaluation keeps under a key of its kind. Raises KeyError, TypeError or ValueError
    for some that are not."""
    match key.partition(":")[0]:
        case "summary" | "untrained":
            value["text"].encode()  # what is no Unicode cannot be tokenized
            return isinstance(value["status"], str) and type(value["tokens"]) is int
        case "score":
            return len(value) == 2 and all(map(is_number, value))
        case "choice":
            logp = [0, 0] if value["logp"] is None else value["logp"]
            return value["letter"] in ("A", "B", None) and len(logp) == 2 and all(map(is_number, logp))
        case "logprobs":
            return type(value) is int
    return True


class Journal:
    """Finished units by key; with a folder they outlive the process. ``new`` counts this run's own.

    Raises ConfigError for a folder whose run had other settings, or whose file is damaged; StoreError when it
    cannot be written. Does not protect against two runs that write into one folder at once.
    """

    def __init__(self, folder: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self._values: dict[str, Any] = {}
        self._file = None
        self.new = 0
        if folder is None:
            return
        path = folder / UNITS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            whole = self._restore(path, settings or {}) if path.exists() else 0
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(whole)
            self._file.seek(whole)
            if not whole:
                self._write({"settings": settings})
        except OSError as e:
            raise StoreError(f"cannot use {path}: {e.strerror}") from None

    def _restore(self, path: Path, settings: Mapping[str, Any]) -> int:
        """Read what is whole; its length in bytes. What follows the last line end is torn, and dropped."""
        blob = path.read_bytes()
        whole = blob.rfind(b"\n") + 1
        for number, line in enumerate(blob[:whole].splitlines(), 1):
            try:
                item = json.loads(line)
                if number == 1:
                    self._compare(path, item["settings"], json.loads(json.dumps(settings)))
                elif not fits(item["k"], item["v"]):
                    raise ValueError
                else:
                    self._values[item["k"]] = item["v"]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise ConfigError(f"{path}: line {number} is damaged; start anew in another folder") from None
        return whole

    @staticmethod
    def _compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                was, now = str(old.get(name))[:60], str(new.get(name))[:60]
                raise ConfigError(f"{path.parent} holds a run with another {name}: {was} there, {now} now")

    def _write(self, item: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(item, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            self._file.flush()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, key: str, value: Any) -> None:
        """A finished unit, on its way to the disk before this returns. Raises StoreError."""
        try:
            self._write({"k": key, "v": value})
        except OSError as e:
            raise StoreError(f"cannot write the evaluation's progress: {e.strerror}") from None
        self._values[key] = value
        self.new += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refuse_unwritable(*folders: Path) -> None:
    """Raises StoreError for a folder in which no file can be written, before what shall stand there is computed."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as e:
            raise StoreError(f"cannot write to {folder}: {e.strerror}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all. Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a result so that it is there whole or not at all. Raises StoreError."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
