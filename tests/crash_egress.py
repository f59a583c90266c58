"""Crashes at every step of writing an egress log and its head: none is taken for tampering, and no record is lost.

A crash is an exception that nobody catches, before or after any statement of SQLite and any call of the keyring;
after it the connection does nothing more. Then the log must verify, hold all that was acknowledged and nothing by
halves, and still show a cut tail. ``tests.crash_child`` does the same with ``kill -9``, without the keyring.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popi_edge.egress import EgressLog
from popi_edge.egress_head import HeadKeeper
from popi_edge.migrations import migrate
from tests.keyrings import MemoryKeyring, in_use

COLUMNS = ("seq", "id", "at", "meta", "salt", "body", "body_digest", "prev", "hash", "mac")
Row = dict[str, Any]


# writing logs -----------------------------------------------------------------------------------------------
def database(path: str = ":memory:", kind: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    conn = sqlite3.connect(path, isolation_level=None, factory=kind)
    conn.execute("PRAGMA synchronous = OFF")  # a crash of the process loses nothing by it
    migrate(conn, "a test")
    return conn


def write_one(log: EgressLog, rng: random.Random, open_: list[str], whole: list[str]) -> None:
    """One request, outcome or erased body. ``open_``: requests without an outcome; ``whole``: with their body."""
    choice = rng.random()
    if choice < 0.4 and open_:
        status = rng.choice(("ok", "failed"))
        log.outcome(open_.pop(rng.randrange(len(open_))), status=status, error=None, reply="r" * rng.randrange(9))
    elif choice < 0.5 and whole:
        log.erase(whole.pop(rng.randrange(len(whole))))
    else:
        body = json.dumps({"messages": [{"role": "user", "content": str(rng.random())}]}).encode()
        url = f"https://{rng.choice('abc')}.example.org/v1"
        made = log.request("cloud", url, {"Host": "x"}, body, user=rng.choice(("me", "ann")), summary_version=1)
        open_.append(made)
        whole.append(made)


def rows(conn: sqlite3.Connection) -> list[Row]:
    return [dict(zip(COLUMNS, r, strict=True)) for r in conn.execute(f"SELECT {', '.join(COLUMNS)} FROM egress "
                                                                     "ORDER BY seq")]  # fmt: skip


def put(conn: sqlite3.Connection, new: list[Row]) -> None:
    conn.execute("BEGIN")
    conn.execute("DELETE FROM egress")
    places = ", ".join("?" * len(COLUMNS))
    conn.executemany(f"INSERT INTO egress ({', '.join(COLUMNS)}) VALUES ({places})",
                     [tuple(r[c] for c in COLUMNS) for r in new])  # fmt: skip
    conn.execute("COMMIT")


# crashes ----------------------------------------------------------------------------------------------------
class Crash(BaseException):
    """The process is gone."""


class Fuse:
    """Blows at the ``left``-th point that is reached; from then on every point does."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.blown = ""

    def reach(self, point: str) -> None:
        if self.blown:
            raise Crash(self.blown)
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.blown = point
                raise Crash(point)


FUSE = Fuse()
"""The one that is in force."""


class Wired(sqlite3.Connection):
    """A connection that may be the last thing a process does, before or after each statement of a change."""

    def execute(self, sql: str, *args: Any) -> Any:
        word = sql.split(None, 1)[0]
        if word == "SELECT":
            return super().execute(sql, *args)
        FUSE.reach(f"before {word}")
        done = super().execute(sql, *args)
        FUSE.reach(f"after {word}")
        return done


class WiredKeyring(MemoryKeyring):
    def get_password(self, service: str, username: str) -> str | None:
        FUSE.reach("before the keyring is read")
        return super().get_password(service, username)

    def set_password(self, service: str, username: str, password: str) -> None:
        what = "pending" if json.loads(password)["pending"] else "last"
        FUSE.reach(f"before the head ({what})")
        super().set_password(service, username, password)
        FUSE.reach(f"after the head ({what})")


@dataclass
class Crashes:
    """What crashes left. ``lost``, ``torn``, ``alarms`` (taken for tampering) and ``unseen`` (cuts) must be empty."""

    crashes: int = 0
    acknowledged: int = 0
    points: Counter[str] = field(default_factory=Counter)
    interrupted: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


@contextmanager
def fused(after: int | None) -> Iterator[None]:
    FUSE.left, FUSE.blown = after, ""
    try:
        yield
    finally:
        FUSE.left, FUSE.blown = None, ""


def life(folder: Path, number: int, seed: int, crashes: int, found: Crashes) -> None:
    """One log that lives through ``crashes`` crashes: after each it is checked, or just written on, as drawn."""
    rng = random.Random(seed * 1_000_003 + number)
    path = folder / f"life-{number}.db"
    open_: list[str] = []
    whole: list[str] = []
    with in_use(WiredKeyring()):
        for _ in range(crashes):
            conn = database(str(path), Wired)
            log = EgressLog(conn, keeper=HeadKeeper(path))
            sure = {r["id"] for r in rows(conn)}
            with fused(rng.randint(1, 50)):
                try:
                    while True:
                        before = {r["id"] for r in rows(conn)}
                        open_ = [i for i in open_ if i in before]  # as far as it was written before the last crash
                        whole = [i for i in whole if i in before]
                        count = len(before)
                        write_one(log, rng, open_, whole)
                        sure |= {r["id"] for r in rows(conn)}
                        found.acknowledged += 1
                except Crash as crash:
                    found.points[str(crash)] += 1
            conn.close()
            found.crashes += 1
            check(path, number, sure, count, rng, found)
            _forget_what_was_begun(path, open_, whole)


def _forget_what_was_begun(path: Path, open_: list[str], whole: list[str]) -> None:
    """Outcomes and erasings of which the crash took the answer are in the log or not: go by the log."""
    conn = database(str(path))
    metas = [json.loads(r["meta"]) for r in rows(conn)]
    answered = {m["request"] for m in metas if m["type"] == "outcome"}
    requests = [m["id"] for m in metas if m["type"] == "request"]
    bodies = {r["id"] for r in rows(conn) if r["body"]}
    open_[:] = [i for i in requests if i not in answered]
    whole[:] = [i for i in requests if i in bodies]
    conn.close()


def check(path: Path, number: int, sure: set[str], count: int, rng: random.Random, found: Crashes) -> None:
    """What a new process finds: everything that was sure, at most one record more, and no alarm."""
    conn = database(str(path), Wired)
    log = EgressLog(conn, keeper=HeadKeeper(path))
    here = {r["id"] for r in rows(conn)}
    if not sure <= here:
        found.lost.append(f"life {number}: {sorted(sure - here)}")
    if len(here) not in (count, count + 1):
        found.torn.append(f"life {number}: {count} records, then {len(here)}")
    if rng.random() < 0.5:  # written on without looking
        log.request("cloud", "https://a.example.org/v1", {}, b"{}", user="me", summary_version=1)
    result = log.verify()
    found.interrupted += result.interrupted
    if not result.ok:
        found.alarms.append(f"life {number}: {result.why}")
    last = rows(conn)
    if last:  # no amnesty: a tail that is cut now shows, and put back it is as before
        conn.execute("DELETE FROM egress WHERE seq = ?", (len(last),))
        result = log.verify()
        if result.ok or result.number != len(last):
            found.unseen.append(f"life {number}: {result}")
        put(conn, last)
        if not log.verify().ok:
            found.alarms.append(f"life {number}: after the tail was put back")
    conn.close()


def crash_campaign(folder: Path, crashes: int, seed: int = 0, *, lives: int = 20) -> Crashes:
    """``crashes`` in all, ``lives`` of them to a log."""
    found, number = Crashes(), 0
    while found.crashes < crashes:
        life(folder, number, seed, min(lives, crashes - found.crashes), found)
        number += 1
    return found
