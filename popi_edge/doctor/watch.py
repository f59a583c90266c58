"""The main path, watched: in Python by an audit hook, below it by strace, in a network namespace that leads nowhere.

Each of the three is used where the system has it; ``not_covered`` says what nobody looked at.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from popi_edge.config import Settings
from popi_edge.errors import ConfigError

TIMEOUT_S = 300
NETWORK = re.compile(r"\b(connect|sendto|sendmsg|bind)\(\d+.*?sa_family=(AF_\w+)(.*)")
WROTE = re.compile(r"\b(?:openat?2?|creat)\((?:[^,\"]+, )?\"((?:[^\"\\]|\\.)*)\", [^)]*O_(?:WRONLY|RDWR|CREAT)")
CHANGED = re.compile(r"\b(?:rename(?:at2?)?|mkdir(?:at)?|unlink(?:at)?|link|symlink)\([^\"]*\"((?:[^\"\\]|\\.)*)\"")
FAILED = re.compile(r"= -1 E(?!INPROGRESS|NETUNREACH|CONNREFUSED|ACCES|PERM|AGAIN|HOSTUNREACH|TIMEDOUT)\w+")
LOCAL = ("AF_UNIX", "AF_NETLINK")


@dataclass(frozen=True)
class Seen:
    """``connections``: every attempt to reach another machine, or this one by its network; ``local``: sockets of this
    device alone; ``processes`` that were started; ``files`` written, made, renamed or removed; ``covered`` by what;
    ``not_covered``: what nobody looked at; ``steps`` that ran, and the ``error`` that ended them ("")."""

    connections: list[str]
    local: list[str]
    processes: list[str]
    files: list[str]
    covered: list[str]
    not_covered: list[str]
    steps: list[str]
    error: str = ""

    @property
    def ok(self) -> bool:
        """All steps ran, and nothing tried to leave."""
        return not self.connections and not self.error

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def tools() -> tuple[list[str], list[str]]:
    """(words before a command that put it into an empty network namespace, words that trace its system calls), each
    empty where this system has no such thing or does not allow it."""
    apart = ["unshare", "--user", "--map-root-user", "--net"]
    trace = ["strace", "-f", "-qq", "-e", "trace=network,open,openat,openat2,creat,rename,renameat,renameat2,mkdir,"
             "mkdirat,unlink,unlinkat,link,symlink", "-s", "256"]  # fmt: skip
    apart = apart if _works(apart) else []
    return apart, (trace if _works([*apart, *trace, "-o", os.devnull]) else [])  # together, as they are used


def _works(words: Sequence[str]) -> bool:
    if shutil.which(words[0]) is None:
        return False
    try:
        return subprocess.run([*words, "true"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def run(settings: Settings) -> Seen:
    """Walk the main path with these settings' engine, bundle and models. Raises ConfigError where it cannot begin."""
    with tempfile.TemporaryDirectory(prefix="popi-doctor-") as place:
        home = Path(place) / "home"
        home.mkdir(mode=0o700)
        if settings.models.is_dir():
            (home / "models").symlink_to(settings.models.resolve())
        environment = os.environ | {
            "PYTHONDONTWRITEBYTECODE": "1",  # compiled modules beside their sources are not the main path's
            "POPI_HOME": str(home), "POPI_ENGINE": settings.engine, "POPI_MODEL": _bundle(settings.model),
            **({"POPI_THREADS": str(settings.threads)} if settings.threads else {}),
        }  # fmt: skip
        return watch([sys.executable, "-m", "popi_edge.doctor.child", str(home)], environment, Path(place))


def _bundle(model: str) -> str:
    return str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model


def watch(command: Sequence[str], environment: dict[str, str], place: Path) -> Seen:
    """Run a command that prints what ``child`` prints, and add what native code and its processes did; ``place``: a
    folder for the trace. Raises ConfigError where it fails or takes longer than five minutes."""
    apart, trace = tools()
    log = place / "trace"
    words = [*apart, *([*trace, "-o", str(log)] if trace else []), *command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"the main path did not end within {TIMEOUT_S} seconds") from None
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ConfigError(f"the main path did not run to its end: {why[0][:300]}") from None
    traced = read_trace(log.read_text("utf-8", "replace")) if trace else ([], [], [])
    connections = [s for s in told["sockets"] if not _is_local(s)] + traced[0]
    covered = ["Python: audit hook"]
    covered += ["native code and child processes: strace"] if trace else []
    covered += ["everything: a network namespace with no way out"] if apart else []
    missed = [] if trace else ["files written by native code and by child processes (no strace here)"]
    if not trace:
        missed += ["connections by native code and child processes were not listed"
                   + ("; they led nowhere" if apart else ", and could have gone out")]  # fmt: skip
    return Seen(
        _once(connections), _once([s for s in told["sockets"] if _is_local(s)] + traced[1]), told["processes"],
        _once([*told["files"], *traced[2]]), covered, missed, told["steps"], told["error"],
    )  # fmt: skip


def _is_local(event: str) -> bool:
    """A socket file of this device, by its path; names that are looked up are not."""
    return event.split(" ", 1)[0] in ("socket.connect", "socket.bind") and event.split(" ", 1)[-1].startswith("/")


def _once(found: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(found))


def read_trace(text: str) -> tuple[list[str], list[str], list[str]]:
    """(connections, local sockets, files changed) of strace's lines, without files that could not be opened."""
    out, local, files = list[str](), list[str](), list[str]()
    for line in text.splitlines():
        if (hit := NETWORK.search(line)) is not None:
            (local if hit[2] in LOCAL else out).append(f"native {hit[1]} {hit[2]}{hit[3][:160]}")
        elif FAILED.search(line) is None and (hit := WROTE.search(line) or CHANGED.search(line)) is not None:
            files.append(hit[1])
    return out, local, files
