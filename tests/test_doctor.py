"""Nothing calls home, and what would call is seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from popi_edge.config import load
from popi_edge.doctor import watch
from popi_edge.doctor.checks import checks

ROOT = Path(__file__).parent.parent


ENGINE = """
import pathlib, sys
from popi_edge.engines import open_engine
engine = open_engine("onnx", pathlib.Path(sys.argv[1]))
engine.generate([7, 80], max_tokens=3)
engine.close()
"""


def popi(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"POPI_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "popi_edge", *words], env=environment, capture_output=True, text=True)


def test_onnx_runtime_keeps_no_telemetry(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    """Its 1.29 and later keep a database of events under the home folder of whoever runs it, unless told not to; they
    keep still in CI by themselves, so its variable is taken away."""
    gone = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    kept = {k: v for k, v in os.environ.items() if k not in gone}
    done = subprocess.run([sys.executable, "-c", ENGINE, str(tiny[0])], capture_output=True, text=True, cwd=ROOT,
                          env=kept | {"HOME": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*"))


def test_the_main_path_tries_no_connection(base: Path, tmp_path: Path) -> None:
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True, mode=0o700)
    (models / base.name).symlink_to(base)
    done = popi("doctor", "--offline", "--json", home=models.parent)
    assert done.returncode == 0, done.stderr + done.stdout
    seen = json.loads(done.stdout)
    assert seen["ok"] and not seen["connections"] and not seen["processes"] and len(seen["steps"]) == 10
    assert any(f.endswith("popi.db") for f in seen["files"])
    assert all("/popi-doctor-" in f for f in seen["files"]), seen["files"]
    assert not list(models.parent.glob("popi.db*"))  # the person's own store is not touched


CHILD = """
import ctypes, json, socket, sys
from popi_edge.doctor.child import watched

def steps():
    {steps}

print(json.dumps({{"steps": ["it"], **watched(steps)}}))
"""
PYTHON = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('203.0.113.9', 4711))"
NATIVE = (
    "libc = ctypes.CDLL(None); s = libc.socket(2, 2, 0); "
    "there = (4711).to_bytes(2, 'big') + bytes([203, 0, 113, 9]) + bytes(8); "
    "libc.connect(s, (2).to_bytes(2, sys.byteorder) + there, 16)"
)


@pytest.mark.parametrize("steps", [PYTHON, NATIVE], ids=["python", "native"])
def test_what_connects_is_seen(steps: str, tmp_path: Path) -> None:
    apart, trace = watch.tools()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    seen = watch.watch([sys.executable, "-c", CHILD.format(steps=steps)], environment, tmp_path)
    if steps == NATIVE and not trace:  # where there is no strace, nobody can see it: then the report must say so
        assert not seen.connections and any("connections by native code" in m for m in seen.not_covered)
        return
    assert not seen.ok and ("unreachable" in seen.error) == (steps == PYTHON and bool(apart))
    assert any("4711" in c and "203.0.113.9" in c for c in seen.connections)
    assert all(c.startswith("native") for c in seen.connections) == (steps == NATIVE)
    assert bool(trace) != any("connections by native code" in m for m in seen.not_covered)


def test_without_tools_the_report_says_what_nobody_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "tools", lambda: ([], []))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = f"open({str(tmp_path / 'x')!r}, 'w').close(); open({str(tmp_path / 'x')!r}).close()"
    seen = watch.watch([sys.executable, "-c", CHILD.format(steps=words)], environment, tmp_path)
    assert seen.ok and seen.files == [str(tmp_path / "x")]
    assert len(seen.not_covered) == 2 and "could have gone out" in seen.not_covered[1]


def test_a_trace_is_read() -> None:
    lines = """
12 openat(AT_FDCWD, "/a/read", O_RDONLY|O_CLOEXEC) = 3
12 openat(AT_FDCWD, "/a/made", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 4
12 openat(AT_FDCWD, "/a/not", O_RDWR|O_CREAT, 0666) = -1 ENOENT (No such file or directory)
12 rename("/a/made", "/a/kept") = 0
12 connect(5, {sa_family=AF_UNIX, sun_path="/run/bus"}, 110) = 0
12 connect(6, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.1")}, 16 <unfinished ...>
13 connect(7, {sa_family=AF_INET6, sin6_port=htons(443), inet_pton(AF_INET6, "::1", &sin6_addr)}, 28) = -1 EINPROGRESS
13 sendto(8, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("10.0.0.2")}, 16) = 1
"""
    out, local, files = watch.read_trace(lines)
    assert files == ["/a/made", "/a/made"] and len(local) == 1 and "/run/bus" in local[0]
    assert [("htons(53)" in c, "htons(443)" in c, "10.0.0.2" in c) for c in out] == [
        (True, False, False), (False, True, False), (False, False, True)
    ]  # fmt: skip


def test_a_home_that_others_can_read_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    found = {c.name: c for c in checks(load(home))}
    assert found["home"].ok and found["store"].ok and not found["bundle"].ok  # no base was pulled
    assert "popi model pull" in found["bundle"].found
    home.chmod(0o755)
    done = popi("doctor", home=home)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    if os.name == "posix":
        assert f"chmod go-rwx {home}" in done.stdout
    else:  # a mode says nothing there, so nothing is claimed of it
        assert "not looked at on this system" in done.stdout


def test_words_of_ones_own_are_counted_before_there_is_a_store(tmp_path: Path) -> None:
    (tmp_path / "lexicon.txt").write_text("Rust\nThai\n")
    found = {c.name: c for c in checks(load(tmp_path))}
    assert found["lexicon"].found == "2 words of your own" and not (tmp_path / "popi.db").exists()
