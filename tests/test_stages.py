"""A stage is there whole or not at all: a killed run goes on with what agrees, and makes the rest anew."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from popi_edge.errors import ConfigError, ModelError, StoreError
from popi_export import stages

CHILD = """
import os, sys, time
from pathlib import Path
from popi_export import stages
out, die = Path(sys.argv[1]), sys.argv[2]

def make(name):
    def inner(folder):
        (folder / "a").write_bytes(name.encode() * 1000)
        if name == die:
            print("now", flush=True)
            time.sleep(60)
        (folder / "b").write_bytes(b"b")
        return {"name": name}
    return inner

with stages.work(out, lambda line: print(line, flush=True)) as w:
    for name in ("one", "two", "three"):
        w.stage(name, {"x": 1}, make(name))
    w.drop()
print("end", flush=True)
"""


class Maker:
    """Counts how often it is asked."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files, self.calls = files, 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        assert list(folder.iterdir()) == []
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return {"n": self.calls}


def start(out: Path, die: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(out), die], stdout=subprocess.PIPE, text=True,
                            env=environment)  # fmt: skip


def test_a_killed_run_goes_on_with_what_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = ("one", "two", "three")
    for i, die in enumerate(names):
        child = start(out, die)
        assert child.stdout is not None
        said = []
        while (line := child.stdout.readline()) not in ("now\n", ""):
            said.append(line.strip())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert said == [f"{name}: done before" for name in names[: max(0, i - 1)]]
        here = {p.name for p in stages.place_of(out).iterdir() if not p.name.startswith(".")}
        assert here - {stages.MARK, stages.LOCK} == set(names[:i])
    child = start(out, "-")
    assert child.communicate()[0].splitlines() == ["one: done before", "two: done before", "end"]
    assert list(tmp_path.iterdir()) == []


def test_another_export_to_the_same_place_waits_for_none(tmp_path: Path) -> None:
    child = start(tmp_path / "out", "two")
    assert child.stdout is not None
    while child.stdout.readline() != "now\n":
        pass
    try:
        with pytest.raises(ConfigError, match="is at work"), stages.work(tmp_path / "out", print):
            pass
        with stages.work(tmp_path / "other", print):
            pass
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    deadline = time.monotonic() + 10
    with stages.work(tmp_path / "out", print):  # the lock went with the process
        assert time.monotonic() < deadline


def test_a_stage_is_made_once_and_anew_where_anything_differs(tmp_path: Path) -> None:
    made = Maker({"a": b"abc", "b": b""})
    with stages.work(tmp_path / "out", lambda _: None) as w:
        first = w.stage("s", {"x": 1}, made)
        assert (first.facts, first.found, made.calls) == ({"n": 1}, False, 1) and first["a"].read_bytes() == b"abc"
        again = w.stage("s", {"x": 1}, made)
        assert (again.facts, again.found, again.files, made.calls) == ({"n": 1}, True, first.files, 1)
        for damage in (
            lambda: first["a"].write_bytes(b"abd"), lambda: first["b"].unlink(), lambda: first["c"].write_bytes(b""),
            lambda: first[stages.ABOUT].write_text("{"), lambda: first[stages.ABOUT].write_text("[]"),
            lambda: first[stages.ABOUT].unlink(),
        ):  # fmt: skip
            damage()
            calls = made.calls
            assert not w.stage("s", {"x": 1}, made).found and made.calls == calls + 1
            assert {p.name for p in first.folder.iterdir()} == {"a", "b", stages.ABOUT}
        assert not w.stage("s", {"x": 2}, made).found


def test_the_program_is_part_of_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stages.digest({"x": 1})
    assert before == stages.digest({"x": 1}) != stages.digest({"x": 2})
    monkeypatch.setattr(stages, "program", lambda: "another")
    assert stages.digest({"x": 1}) != before


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "a").write_bytes(b"x")
        raise ModelError("no")

    with stages.work(tmp_path / "out", lambda _: None) as w:
        with pytest.raises(ModelError, match="no"):
            w.stage("s", {}, fails)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
        try:
            with pytest.raises(StoreError, match="cannot write"):
                w.stage("s", {}, Maker({"a": bytes(5_000)}))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert {p.name for p in w.folder.iterdir()} == {stages.MARK, stages.LOCK}


def test_a_folder_of_somebody_else_s_is_not_worked_in(tmp_path: Path) -> None:
    place = stages.place_of(tmp_path / "out")
    place.mkdir()
    (place / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="no export's work folder"), stages.work(tmp_path / "out", print):
        pass
    place = stages.place_of(tmp_path / "file")
    place.write_text("mine")
    with pytest.raises(ConfigError, match="no export's work folder"), stages.work(tmp_path / "file", print):
        pass
    assert place.read_text() == "mine"
