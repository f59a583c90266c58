"""Stages of an export in a work folder beside what they make: each one's output is there whole or not at all.

A stage is a folder of files and ``stage.json``, which says from what it was made (a hash of its inputs and of this
program) and what it holds (sizes, SHA-256). A run that was killed goes on with what is there and still agrees; what was
made from anything else is made anew. Not covered: somebody else who writes into the work folder meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError, StoreError
from popi_edge.files import cause, whole_file
from popi_edge.models.bases import file_sha256

MARK = "popi-export.json"
ABOUT = "stage.json"
LOCK = "lock"
PACKAGES = ("popi-edge", "numpy", "gguf", "llama-cpp-python", "onnx", "onnxruntime", "tokenizers", "safetensors",
            "torch", "transformers", "peft", "optimum-onnx")  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A stage that is done: its folder, what its maker said, its files' hashes, whether it was there before."""

    folder: Path
    facts: Mapping[str, Any]
    files: Mapping[str, str]
    found: bool

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of those that are installed; by default of what an export's bytes may depend on."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def program() -> str:
    """SHA-256 (hex) over the code that exports, and the packages' versions."""
    import popi_edge

    whole = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for top in (Path(popi_edge.__file__).parent, Path(__file__).parent):
        for path in sorted(top.rglob("*.py")):
            whole.update(str(path.relative_to(top)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def digest(inputs: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a stage's inputs (JSON values) and of the program."""
    text = json.dumps({"program": program(), "inputs": inputs}, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sync(path: Path) -> None:
    """Have a file's or (where the system can) a folder's contents on the disk. Raises OSError."""
    if path.is_dir():
        if os.name != "posix":
            return
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


class Work:
    """A work folder that this process alone uses."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder, self.tell = folder, tell

    def stage(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any] | None]) -> Stage:
        """The stage of that name: as it is there where it was made from these inputs and is undamaged, else made now.

        ``make`` writes plain files into an empty folder and returns facts (JSON values) about them; what it raises
        leaves nothing behind. Raises StoreError when the disk is full.
        """
        key, place = digest(inputs), self.folder / name
        if (done := self._done(place, key)) is not None:
            self.tell(f"{name}: done before")
            return done
        draft = self.folder / f".{name}-{uuid.uuid4().hex[:12]}"
        try:
            shutil.rmtree(place, ignore_errors=True)
            draft.mkdir()
            facts = dict(make(draft) or {})
            hashes = {p.name: file_sha256(p) for p in sorted(draft.iterdir())}
            files = {name: {"size": (draft / name).stat().st_size, "sha256": h} for name, h in hashes.items()}
            about = {"key": key, "files": files, "facts": facts}
            (draft / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1, allow_nan=False), "utf-8")
            for path in (*draft.iterdir(), draft):
                sync(path)
            draft.rename(place)
            sync(self.folder)
        except OSError as e:
            raise StoreError(f"cannot write {place}: {cause(e)}") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return Stage(place, facts, hashes, False)

    def _done(self, place: Path, key: str) -> Stage | None:
        try:
            about = json.loads((place / ABOUT).read_text("utf-8"))
            files: dict[str, dict[str, Any]] = about["files"]
            facts = about["facts"]
            there = {p.name for p in place.iterdir()}
            if about["key"] != key or there != {*files, ABOUT}:
                return None
            for name, entry in files.items():
                path = place / name
                if path.stat().st_size != entry["size"] or file_sha256(path) != entry["sha256"]:
                    return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Stage(place, facts, {name: entry["sha256"] for name, entry in files.items()}, True)

    def drop(self) -> None:
        """Remove the folder: what was made stands elsewhere now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def place_of(out: Path) -> Path:
    """The work folder of an export to ``out``."""
    return out.parent / f".{out.name}.work"


@contextmanager
def work(out: Path, tell: Callable[[str], None]) -> Iterator[Work]:
    """The work folder for ``out``, begun or gone on with. Raises ConfigError where something else is there or another
    export is at work in it, StoreError where it cannot be made."""
    from filelock import FileLock, Timeout

    folder = place_of(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MARK).is_file():
            if any(folder.iterdir()):
                raise ConfigError(f"{folder} is there and is no export's work folder; move it away")
            with whole_file(folder / MARK) as file:
                file.write(json.dumps({"out": out.name}).encode())
    except FileExistsError:
        raise ConfigError(f"{folder} is there and is no export's work folder; move it away") from None
    except OSError as e:
        raise StoreError(f"cannot make {folder}: {cause(e)}") from None
    try:
        with FileLock(folder / LOCK, timeout=0):
            for left in folder.glob(".*-*"):  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            yield Work(folder, tell)
    except Timeout:
        raise ConfigError(f"another export to {out} is at work in {folder}") from None
