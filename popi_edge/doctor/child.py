"""The main path in a process of its own, under an audit hook that writes down sockets, processes and files.

    python -m popi_edge.doctor.child FOLDER

FOLDER is a data folder made for this alone, with the models in it. Commands run as the program runs them: record,
import, refresh, ask with and without the summary, the egress log, purge. Prints one JSON object.

It does NOT see what native code does by itself; see ``watch``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SOCKETS = {
    "socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr", "socket.getnameinfo",
}  # fmt: skip
PROCESSES = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"}
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.truncate", "os.link", "os.symlink"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """What an audit hook saw (PEP 578), while it is ``on``; a hook cannot be taken out again."""

    def __init__(self) -> None:
        self.on = True
        self.sockets: list[str] = []
        self.processes: list[str] = []
        self.files: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Write an event down; must not raise, since that would stop what is being watched."""
        if not self.on:
            return
        if event in SOCKETS:
            self.sockets.append(f"{event} {_address(args)}")
        elif event in PROCESSES:
            self.processes.append(f"{event} {str(args[0])[:200]}")
        elif event in CHANGES:
            self.files += map(_path, args[:2])
        elif event == "sqlite3.connect" or (event == "open" and _writes(args)):
            self.files.append(_path(args[0]))


def _address(args: tuple[Any, ...]) -> str:
    return " ".join(str(a) for a in args if isinstance(a, (str, bytes, int, tuple)))[:200]


def _path(value: Any) -> str:
    return os.path.abspath(os.fsdecode(value)) if isinstance(value, (str, bytes, os.PathLike)) else ""  # noqa: PTH100


def _writes(args: tuple[Any, ...]) -> bool:
    _, mode, flags = (*args, None, None)[:3]
    if isinstance(mode, str):
        return any(c in mode for c in "wax+")
    return isinstance(flags, int) and bool(flags & WRITES)


def commands(folder: Path) -> Iterator[list[str]]:
    """The program's commands, one after the other; the sample people's signals are what is recorded."""
    from popi_edge.cli.demo import people

    signals = people()["ada"]["signals"]
    file = folder / "signals.jsonl"
    file.write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in signals), "utf-8")
    yield ["record", "statement", "I like short answers."]
    yield ["import", str(file)]
    yield ["signals", "list"]
    yield ["summary", "refresh"]
    yield ["summary", "approve"]
    yield ["ask", "How do I keep bread fresh?", "--preview"]
    yield ["ask", "How do I keep bread fresh?"]
    yield ["ask", "How do I keep bread fresh?", "--plain"]
    yield ["egress", "verify"]
    yield ["signals", "purge", "--yes"]


def watched(steps: Callable[[], None]) -> dict[str, Any]:
    """Run ``steps`` under the hook; what was seen, in order, each thing once, and the ``error`` that ended it ("")."""
    watch, error = Watch(), ""
    try:
        steps()
    except Exception as e:  # what was tried until then is what is asked for
        error = f"{type(e).__name__}: {' '.join(str(e).split())}"
    finally:
        watch.on = False
    seen = {"sockets": watch.sockets, "processes": watch.processes, "files": watch.files}
    return {name: list(dict.fromkeys(filter(None, found))) for name, found in seen.items()} | {"error": error}


def main() -> None:
    folder, done = Path(sys.argv[1]), list[str]()

    def steps() -> None:
        from popi_edge.cli import program

        for words in commands(folder):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                program([*words, "--home", str(folder)], standalone_mode=False)
            done.append(" ".join(words[:2]))

    seen = watched(steps)
    print(json.dumps({"steps": done, **seen}))


if __name__ == "__main__":
    main()
