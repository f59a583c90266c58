"""Egress logs that were tampered with: each must be found, and the first bad record named.

    python -m tests.tamper_egress --logs 1000 --crashes 1000 [--seed 0] [--json]

Each log is written by ``EgressLog`` itself (requests, outcomes, erased bodies), its head kept in a keyring (in the file
for every 20th). Then one change is made to the database, as somebody would who can write to it and knows how the chain
is made: by hand, or with every hash from there on computed anew, MACs kept, removed or made with another key. Where the
log first differs from what was written is found by comparing all columns before and after; ``verify`` must name that
very place. Two kinds need a word. An older copy holds bodies that were erased since: they were written there, so bodies
are not compared. A body that was taken away with a forged record of its erasing: ``verify`` names the forged record.

The crashes of ``--crashes`` are those of ``tests.crash_egress``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rfc8785

from popi_edge.egress import EgressLog
from popi_edge.egress_chain import chain_hash
from popi_edge.egress_head import HeadKeeper
from popi_edge.signals import new_id
from tests.crash_egress import COLUMNS, Row, crash_campaign, database, put, rows, write_one
from tests.keyrings import MemoryKeyring, in_use


def raw(conn: sqlite3.Connection, *, bodies: bool) -> list[tuple[Any, ...]]:
    """Every row with all of its bytes and types, in order; without ``bodies`` all but these and their salts."""
    columns = [c for c in COLUMNS if bodies or c not in ("salt", "body")]
    what = ", ".join(f"CAST({c} AS BLOB), typeof({c})" for c in columns)
    return conn.execute(f"SELECT {what} FROM egress ORDER BY seq").fetchall()


# tampering --------------------------------------------------------------------------------------------------
def renumbered(new: list[Row]) -> list[Row]:
    """The same records with places 1, 2, … and nothing else changed."""
    return [{**r, "seq": n} for n, r in enumerate(new, 1)]


def rechained(new: list[Row], rng: random.Random) -> list[Row]:
    """The records as one chain that holds: places, prev, digests and hashes made anew where they have to be."""
    macs = rng.choice(("kept", "removed", "other key"))
    stranger = rng.randbytes(32)
    prev, out = bytes(32), []
    for n, r in enumerate(new, 1):
        meta = rfc8785.dumps({**json.loads(r["meta"]), "seq": n, "id": r["id"], "at": r["at"]})
        if r["body"] is None:
            digest = bytes.fromhex(r["body_digest"])
        else:
            digest = hashlib.sha256(r["salt"] + r["body"]).digest()
        found = chain_hash(prev, meta, digest)
        same = found.hex() == r["hash"]
        mac = r["mac"]
        if not same and macs != "kept":
            mac = None if macs == "removed" else hashlib.sha256(stranger + found).hexdigest()
        out.append({**r, "seq": n, "meta": meta.decode(), "prev": prev.hex(), "hash": found.hex(),
                    "body_digest": digest.hex(), "mac": mac})  # fmt: skip
        prev = found
    return out


@dataclass
class Case:
    """One log before tampering: its rows, an older copy of them, another log of the same shape."""

    conn: sqlite3.Connection
    rng: random.Random
    now: list[Row]
    older: list[Row]
    other: list[Row]

    def any(self, first: int = 0, last: int | None = None) -> int:
        return self.rng.randrange(first, len(self.now) if last is None else last)


def flipped(value: Any, rng: random.Random) -> Any:
    """The value with one byte changed, of the same type."""
    if value is None:
        return "0" * 64
    if isinstance(value, int):
        return value + rng.choice((-1, 1)) * rng.randrange(1000, 9000)
    data = bytearray(value if isinstance(value, bytes) else value.encode())
    if not data:
        data = bytearray(b"x")
    else:
        i = rng.randrange(len(data))
        data[i] = rng.choice([b for b in range(33, 127) if b != data[i]])
    return bytes(data) if isinstance(value, bytes) else data.decode("latin-1")


def edit(case: Case) -> None:
    """One column of one record."""
    column, k = case.rng.choice(COLUMNS), case.any()
    seq = case.now[k]["seq"]
    value = flipped(case.now[k][column], case.rng)
    case.conn.execute(f"UPDATE egress SET {column} = ? WHERE seq = ?", (value, seq))


def edit_rechained(case: Case) -> None:
    """What a record says, or its body, with the whole chain after it made to fit."""
    new, k = [dict(r) for r in case.now], case.any()
    meta = json.loads(new[k]["meta"])
    if new[k]["body"] and case.rng.random() < 0.5:
        new[k]["body"] = flipped(new[k]["body"], case.rng)
    else:
        name = case.rng.choice([n for n in meta if n not in ("seq", "id", "at", "type", "request")] or ["user"])
        new[k]["meta"] = json.dumps({**meta, name: f"not {meta.get(name)}"})
    put(case.conn, rechained(new, case.rng))


def erased_without_a_record(case: Case) -> None:
    k = case.rng.choice([i for i, r in enumerate(case.now) if r["body"]])
    case.conn.execute("UPDATE egress SET body = NULL, salt = x'' WHERE seq = ?", (k + 1,))


def erased_by_a_forged_record(case: Case) -> None:
    new = [dict(r) for r in case.now]
    k = case.rng.choice([i for i, r in enumerate(new) if r["body"]])
    new[k] |= {"body": None, "salt": b""}
    put(case.conn, rechained([*new, forged(case, {"type": "erase", "request": new[k]["id"]})], case.rng))


def drop(case: Case) -> None:
    case.conn.execute("DELETE FROM egress WHERE seq = ?", (case.any(0, len(case.now) - 1) + 1,))


def drop_rechained(case: Case) -> None:
    k = case.any(0, len(case.now) - 1)
    put(case.conn, rechained(case.now[:k] + case.now[k + 1 :], case.rng))


def swapped(case: Case) -> list[Row]:
    new = list(case.now)
    i, j = case.rng.sample(range(len(new)), 2)
    new[i], new[j] = new[j], new[i]
    return new


def swap(case: Case) -> None:
    put(case.conn, renumbered(swapped(case)))


def swap_rechained(case: Case) -> None:
    put(case.conn, rechained(swapped(case), case.rng))


def cut(case: Case) -> None:
    case.conn.execute("DELETE FROM egress WHERE seq > ?", (case.any(),))


def cut_and_filled_up(case: Case) -> None:
    """The tail cut, and as many records that were never written in its place."""
    k = case.any()
    more = [forged(case) for _ in case.now[k:]]
    put(case.conn, rechained(case.now[:k] + more, case.rng))


def forged(case: Case, meta: Row | None = None) -> Row:
    """A record that looks like popi's."""
    like = case.rng.choice(case.now)
    request = {"type": "request", "user": "me", "destination": "https://a.example.org/v1", "body_bytes": 2}
    body = b"" if meta else b"{}"
    return {**like, "id": new_id(), "meta": json.dumps(meta or request), "salt": bytes(16), "body": body}


def appended(case: Case) -> None:
    put(case.conn, rechained([*case.now, forged(case)], case.rng))


def replayed(case: Case) -> list[Row]:
    """A true record a second time, at a later place (the database wants another id)."""
    i = case.any()
    at = case.rng.randrange(i + 1, len(case.now) + 1)
    return [*case.now[:at], {**case.now[i], "id": new_id()}, *case.now[at:]]


def replay(case: Case) -> None:
    put(case.conn, renumbered(replayed(case)))


def replay_rechained(case: Case) -> None:
    put(case.conn, rechained(replayed(case), case.rng))


def replay_older_copy(case: Case) -> None:
    """The whole database as it was once."""
    put(case.conn, case.older)


def replay_other_log(case: Case) -> None:
    """The whole database of another home."""
    put(case.conn, case.other)


def replay_from_other_log(case: Case) -> None:
    """A true record of another home, with its MAC, in place of one of this."""
    k = case.any()
    put(case.conn, rechained([*case.now[:k], case.other[k], *case.now[k + 1 :]], case.rng))


KINDS: dict[str, Callable[[Case], None]] = {
    f.__name__: f
    for f in (
        edit, edit_rechained, erased_without_a_record, erased_by_a_forged_record, drop, drop_rechained, swap,
        swap_rechained, cut, cut_and_filled_up, appended, replay, replay_rechained, replay_older_copy,
        replay_other_log, replay_from_other_log,
    )
}  # fmt: skip


@dataclass
class Findings:
    """What a campaign saw. ``missed``, ``misplaced``, ``alarms`` (a log that was not tampered with) must be empty."""

    logs: int = 0
    found: int = 0
    located: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)


def tamper(number: int, seed: int, folder: Path, found: Findings) -> None:
    """Write log ``number``, see that it verifies, change it, and see what ``verify`` says."""
    rng = random.Random(seed * 1_000_003 + number)
    name = list(KINDS)[number % len(KINDS)]
    with in_use(MemoryKeyring()):
        conn, other = database(), database()
        log = EgressLog(conn, keeper=HeadKeeper(folder / f"{number}.db", use_keyring=number % 20 != 0))
        there = EgressLog(other, keeper=HeadKeeper(folder / f"{number}-other.db"))
        size = rng.randint(4, 24)
        once = rng.randrange(1, size)
        older: list[Row] = []
        state: tuple[list[str], list[str]] = [], []
        elsewhere: tuple[list[str], list[str]] = [], []
        for n in range(size):
            if n == once:
                older = rows(conn)
            write_one(log, rng, *state)
            write_one(there, rng, *elsewhere)
        while not state[1]:
            write_one(log, rng, *state)
        if not log.verify().ok:
            found.alarms.append(f"{number} ({name})")
        bodies = name != "replay_older_copy"
        before = raw(conn, bodies=bodies)
        KINDS[name](Case(conn, rng, rows(conn), older, rows(other)))
        after = raw(conn, bodies=bodies)
        result = log.verify()
        conn.close()
        other.close()
    place = next((i for i, (a, b) in enumerate(zip(before, after, strict=False), 1) if a != b), 0)
    place = place or min(len(before), len(after)) + 1
    if name == "erased_by_a_forged_record":
        place = len(after)
    assert before != after, f"log {number} ({name}) was not changed"
    found.logs += 1
    found.kinds[name] += 1
    found.found += not result.ok
    found.located += result.number == place
    if result.ok:
        found.missed.append(f"{number} ({name})")
    elif result.number != place:
        found.misplaced.append(f"{number} ({name}): {result.number} instead of {place}, {result.why}")


def campaign(folder: Path, logs: int, seed: int = 0) -> Findings:
    found = Findings()
    for number in range(logs):
        tamper(number, seed, folder, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--logs", type=int, default=1000)
    parser.add_argument("--crashes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), args.logs, args.seed)
        crashed = crash_campaign(Path(folder), args.crashes, args.seed)
    seconds = round(time.monotonic() - start, 1)
    bad = [*found.missed, *found.misplaced, *found.alarms]
    bad += [*crashed.lost, *crashed.torn, *crashed.alarms, *crashed.unseen]
    if args.json:
        result = {"seed": args.seed, "tampered": vars(found), "crashes": vars(crashed), "seconds": seconds}
        print(json.dumps(result, indent=1))
    else:
        print(f"{found.logs} tampered logs: {found.found} found, {found.located} located")
        print(f"{crashed.crashes} crashes at {len(crashed.points)} points, {crashed.acknowledged} records sure: "
              f"{len(crashed.lost)} lost, {len(crashed.torn)} by halves, {len(crashed.alarms)} taken for tampering, "
              f"{len(crashed.unseen)} cuts unseen; {seconds} s")  # fmt: skip
        for line in bad[:20]:
            print(line)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
