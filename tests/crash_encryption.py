"""``kill -9`` while the store is encrypted, decrypted or given a new key: at each line, and inside SQLCipher.

    python -m tests.crash_encryption [--step 1] [--json]

A forked child does the change and kills itself before the n-th line of ``convert`` and ``encryption`` that it reaches
for the first time, for every ``step``-th n until one is not killed. Other children are killed by the parent after a
time, most of them inside the copying. After each kill the store is opened as a person would, and must hold every row
of every table; where it is still, or already, encrypted, nothing planted may be found in its folder. The change must
then work. POSIX alone. A power cut is not shown: what the operating system has in its cache outlives the process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import keyring

from popi_edge import convert, encryption
from popi_edge.database import claim
from popi_edge.egress import EgressLog
from popi_edge.signals import Statement
from popi_edge.store import Store
from tests.keyrings import FileKeyring

SECRET = "zebra-in-pyjamas ünder the bed"
WATCHED = (convert.__file__, encryption.__file__)
WORDS = "an old passphrase"
Dump = dict[str, list[Any]]


def fill(path: Path, rows: int) -> None:
    """Every table has rows, and some that were deleted; what is planted is in each text."""
    signals = [Statement(f"{i} {SECRET} " + "x" * 400, user="ann" if i % 3 else "me") for i in range(rows)]
    with Store.open(path) as store:
        store.add(signals)
        made_from = [signals[0].id]
        store.add_summary(text=SECRET, tokens=3, status="draft", model="m", contract=1, signal_ids=made_from)
        store.approve()
        log = EgressLog(store)
        log.request("g", "https://g.example", {}, SECRET.encode(), user="me", summary_version=1)
        store.delete([signals[-1].id])  # its seq must not be given again
        store.add([Statement(f"last {SECRET}")])


def dump(path: Path, passphrase: str | None = None) -> Dump:
    """Every row of every table, SQLite's own ones and the schema among them."""
    with Store.open(path, passphrase=passphrase) as store:
        names = [n for (n,) in store.conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {n: list(store.conn.execute(f"SELECT rowid, * FROM {n}")) for n in [*names, "sqlite_master"] if
                n != "sqlite_master"} | {"schema": list(store.conn.execute(
                    "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"))}  # fmt: skip


def planted(folder: Path, *, texts: tuple[str, ...] = (SECRET,)) -> list[str]:
    """Files under the folder that hold a planted text, in UTF-8, UTF-16 (both orders) or UTF-32."""
    forms = [t.encode(e) for t in texts for e in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")]
    return [p.name for p in folder.rglob("*") if p.is_file() and any(f in p.read_bytes() for f in forms)]


def change(path: Path, to: str | None) -> None:
    new = {"keyring": encryption.in_keyring, "passphrase": lambda: encryption.from_passphrase("a new one")}
    convert.change(path, new[to]() if to else None, WORDS)


def forked(work: Callable[[], None], after_s: float | None = None) -> bool:
    """Run it in a child, killed after a time if one is given; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the change failed"
    return False


def killed_at(line: int, work: Callable[[], None], point: Path) -> Callable[[], None]:
    """``work``, that ends before the ``line``-th new line of the watched modules; ``point`` says which that was."""
    left, seen = line, set[tuple[str, int]]()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line" and (at := (frame.f_code.co_filename, frame.f_lineno)) not in seen:
            seen.add(at)
            left -= 1
            if left == 0:
                point.write_text(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def run() -> None:
        sys.settrace(trace)
        work()

    return run


@dataclass
class Findings:
    """What a campaign saw. ``wrong`` must be empty."""

    kills: int = 0
    points: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def check(home: Path, before: str, to: str | None, whole: Dump, found: Findings, where: str) -> None:
    """What a kill left in ``home`` must be one whole store, and the change must still be possible."""
    path = home / "popi.db"
    start = claim(path)
    now = encryption.kind_of(start.start) if start.encrypted else "plain"
    found.kills += 1
    found.points[where] += 1
    undone = start.start == claim(home.with_name("origin") / "popi.db").start
    found.after[f"{before} to {to or 'plain'}: {'as before' if undone else 'done'}"] += 1
    if dump(path, WORDS if undone else "a new one") != whole:
        found.wrong.append(f"{where}: rows")
    if now != "plain" and planted(home):
        found.wrong.append(f"{where}: plaintext in {planted(home)}")
    if undone:
        convert.change(path, None if to is None else encryption.in_keyring(), WORDS if before != "plain" else None)
        if dump(path) != whole or sorted(p.name for p in home.iterdir()) != ["popi.db"]:
            found.wrong.append(f"{where}: the change after it")


def lives(folder: Path, before: str, to: str | None, found: Findings, *, rows: int, times: int, step: int = 1) -> None:
    """Every ``step``-th line of one kind of change, then ``times`` kills by the clock."""
    origin, home, point = folder / "origin", folder / "home", folder / "point"
    ring = Path(os.environ["POPI_TEST_KEYRING"])
    ring.unlink(missing_ok=True)
    shutil.rmtree(origin, ignore_errors=True)
    origin.mkdir(mode=0o700)
    fill(origin / "popi.db", rows)
    whole = dump(origin / "popi.db")
    if before != "plain":
        new = encryption.in_keyring() if before == "keyring" else encryption.from_passphrase(WORDS)
        convert.change(origin / "popi.db", new)
    kept = ring.read_text() if ring.exists() else "{}"

    def once(line: int | None, after_s: float | None) -> bool:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(origin, home)
        ring.write_text(kept)
        point.write_text("by the clock")

        def work() -> None:
            change(home / "popi.db", to)

        killed = forked(killed_at(line, work, point) if line else work, after_s)
        if killed:
            check(home, before, to, whole, found, f"{before} to {to or 'plain'}: {point.read_text()}")
        return killed

    line = 1
    while once(line, None):
        line += step
    began = time.monotonic()
    once(None, None)
    took = time.monotonic() - began
    for i in range(times):
        once(None, took * (i + 0.5) / times)


def campaign(folder: Path, *, rows: int = 300, times: int = 10, step: int = 1) -> Findings:
    found = Findings()
    os.environ["POPI_TEST_KEYRING"] = str(folder / "keyring.json")
    keyring.set_keyring(FileKeyring())
    lives(folder, "plain", "keyring", found, rows=rows, times=times, step=step)
    lives(folder, "keyring", None, found, rows=rows, times=times, step=step)
    lives(folder, "keyring", "keyring", found, rows=rows, times=times, step=step)
    lives(folder, "passphrase", "passphrase", found, rows=rows, times=times, step=step * 8)  # each takes its time
    return found


def main() -> None:
    step = int(sys.argv[sys.argv.index("--step") + 1]) if "--step" in sys.argv else 1
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), step=step)
    if "--json" in sys.argv:
        print(json.dumps(vars(found), indent=1))
    else:
        print(f"{found.kills} kills, at {len(found.points)} places; what they left:")
        for what, count in sorted(found.after.items()):
            print(f"  {count:4}  {what}")
        print(f"not whole, or not secret: {len(found.wrong)} {found.wrong[:5] or ''}")
    sys.exit(1 if found.wrong else 0)


if __name__ == "__main__":
    main()
