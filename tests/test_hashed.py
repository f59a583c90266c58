"""A large file is hashed once, and again as soon as anything about it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from popi_edge.errors import ModelError
from popi_edge.models import hashed
from popi_edge.models.bases import file_sha256


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Path], Callable[[], str]]:
    """A file, the list of the times that it was hashed, and what is asked for its hash."""
    monkeypatch.setattr(hashed, "LARGE", 1_000)
    monkeypatch.setattr(hashed, "SETTLED", -1.0)
    home, path, times = tmp_path / "home", tmp_path / "m.gguf", list[Path]()
    home.mkdir(mode=0o700)
    path.write_bytes(bytes(5_000))

    def digest(file: Path) -> str:
        times.append(file)
        return file_sha256(file)

    return path, times, lambda: hashed.Hashed(home, digest).sha256(path)


def test_once(made: tuple[Path, list[Path], Callable[[], str]]) -> None:
    path, times, ask = made
    assert ask() == ask() == ask() == file_sha256(path) and times == [path]
    path.rename(path.with_name("other.gguf")).rename(path)  # a new time of change: hashed again, and then no more
    assert ask() == ask() == file_sha256(path) and len(times) == 2


def test_whatever_is_written_is_seen_though_times_and_size_are_put_back(
    made: tuple[Path, list[Path], Callable[[], str]],
) -> None:
    path, times, ask = made
    first, about = ask(), path.stat()
    with path.open("r+b") as file:
        file.seek(700)
        file.write(b"\1")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_mtime_ns == about.st_mtime_ns and path.stat().st_ino == about.st_ino
    second = ask()
    assert second == file_sha256(path) != first and len(times) == 2
    other = path.with_name("other")
    other.write_bytes(bytes(5_000))
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(path)
    assert ask() == first and len(times) == 3


def test_a_file_that_was_just_written_is_not_remembered(
    made: tuple[Path, list[Path], Callable[[], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of its times may not have ticked since: it could still change unseen."""
    monkeypatch.setattr(hashed, "SETTLED", 60.0)
    _, times, ask = made
    ask(), ask()
    assert len(times) == 2


def test_where_the_system_does_not_tell_of_changes_every_file_is_hashed_every_time(
    made: tuple[Path, list[Path], Callable[[], str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, times, ask = made
    ask()
    monkeypatch.setattr(hashed, "TELLS", False)
    assert (tmp_path / "home" / hashed.FILE).exists()  # a note, which is not believed
    assert ask() == ask() == file_sha256(path) and len(times) == 3


def test_a_small_one_and_one_without_a_private_folder_are_hashed_every_time(
    made: tuple[Path, list[Path], Callable[[], str]], tmp_path: Path
) -> None:
    path, times, ask = made
    ask(), ask()
    (tmp_path / "home").chmod(0o755)
    ask(), ask()
    assert len(times) == 3
    (tmp_path / "home").chmod(0o700)
    path.write_bytes(bytes(999))
    ask(), ask()
    assert len(times) == 5


@pytest.mark.parametrize("note", [b"", b"[1]", b"{", b'{"1:2": 3}', b"[" * 100_000, b"\xff", b"x" * 200_000])
def test_a_damaged_note_is_none(note: bytes, made: tuple[Path, list[Path], Callable[[], str]], tmp_path: Path) -> None:
    path, times, ask = made
    ask()
    (tmp_path / "home" / hashed.FILE).write_bytes(note)
    assert ask() == ask() == file_sha256(path) and len(times) == 2


def test_the_notes_do_not_grow_without_end(
    made: tuple[Path, list[Path], Callable[[], str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hashed, "MAX_NOTES", 3)
    path, times, _ = made
    files = [path.with_name(f"{i}.gguf") for i in range(5)]
    for file in files:
        file.write_bytes(bytes(2_000))
    keeper = hashed.Hashed(tmp_path / "home", lambda file: times.append(file) or file_sha256(file))  # type: ignore[func-returns-value]
    for file in (*files, files[4], files[2], files[0]):
        keeper.sha256(file)
    assert times == [*files, files[0]]


def test_a_file_that_changes_meanwhile_is_refused(
    made: tuple[Path, list[Path], Callable[[], str]], tmp_path: Path
) -> None:
    path, _, _ = made

    def digest(file: Path) -> str:
        found = file_sha256(file)
        file.write_bytes(bytes(6_000))
        return found

    with pytest.raises(ModelError, match="it changed while it was read"):
        hashed.Hashed(tmp_path / "home", digest).sha256(path)
    with pytest.raises(ModelError, match="No such file"):
        hashed.Hashed(tmp_path / "home", digest).sha256(tmp_path / "none")
