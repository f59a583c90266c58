"""``kill -9`` inside transactions: a child that works on a store and dies at a random point, and what must hold after.

    python -m tests.crash_child --kills 200 [--seed 0] [--json]

A child writes what it is about to do (intents) and what it was told is done (acks), each line fsynced. It counts the
statements that SQLite runs inside transactions and kills itself with SIGKILL at a drawn one, before it is run; at an
operation's end after the COMMIT but before the ack; or, for every fourth child, the parent kills it at a random
moment, wherever it is (also in the middle of the COMMIT's own writes). The last point reached is in a file. One store
is killed 40 times before the next is begun, so that recovery is recovered from. It does not show what a power cut
does: what the operating system has in its cache outlives the process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from popi_edge.config import load
from popi_edge.edge import Popi
from popi_edge.egress import EgressLog
from popi_edge.generators.local import LocalGenerator
from popi_edge.importers import import_file
from popi_edge.signals import Comparison, Statement, to_json
from popi_edge.store import Store

BATCH = 25
LIVES = 40
"""So many kills one store has to survive."""
USERS = ("me", "ann")
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows os.kill with SIGTERM ends a process just as abruptly


# operations -------------------------------------------------------------------------------------------------
# Each takes (store, rng, folder, tell); it calls tell(intent) before it touches the store, and returns the ack.
# An intent names what must be all or nothing: batches of signal ids, a deletion, a summary, an egress record.

Tell = Callable[[dict[str, Any]], None]


ASKED = "What should I do with the old books, and why is that the best thing to do with them? "


def op_record(store: Store, rng: random.Random, folder: Path, tell: Tell) -> dict[str, Any]:
    s = Comparison(ASKED + str(rng.random()), "c" * rng.choice((5, 900, 9000)), "r", user=rng.choice(USERS))
    tell({"batches": [[s.id]]})
    return {"added": store.add([s]).added}


def op_import(store: Store, rng: random.Random, folder: Path, tell: Tell) -> dict[str, Any]:
    count = rng.randrange(2, 3 * BATCH)
    made = [Statement(f"{rng.random()} " + "y" * rng.choice((3, 300, 3000)), source="file") for _ in range(count)]
    file = folder / "import.jsonl"
    file.write_text("".join(json.dumps(to_json(s)) + "\n" for s in made))
    ids = [s.id for s in made]
    tell({"batches": [ids[i : i + BATCH] for i in range(0, count, BATCH)]})
    report = import_file(store, file, batch=BATCH)
    return {"added": ids if report.added == count else []}


def op_delete(store: Store, rng: random.Random, folder: Path, tell: Tell) -> dict[str, Any]:
    pool = [s.signal for s in store.signals(rng.choice(USERS), kinds=["comparison"])]
    chosen = rng.sample(pool, min(len(pool), 3))
    tell({"delete": [s.id for s in chosen], "terms": [s.texts()[0] for s in chosen]})
    store.delete(s.id for s in chosen)
    return {"deleted": [s.id for s in chosen]}


def op_refresh(store: Store, rng: random.Random, folder: Path, tell: Tell) -> dict[str, Any]:
    user, add = rng.choice(USERS), store.add_summary

    def told(**row: Any) -> Any:  # the text is known only once it is inferred
        tell({"summary": row["text"], "user": user})
        return add(**row)

    with patch.object(store, "add_summary", told):
        made = facade(store, folder).summarize(user)
    return {"summary": made.text, "user": user, "version": made.version}


def op_approve(store: Store, rng: random.Random, folder: Path, tell: Tell) -> dict[str, Any]:
    user = rng.choice(USERS)
    drafts = [r for r in store.summaries(user) if r.status == "draft"]
    tell({})
    return {"approved": store.approve(user, drafts[-1].version).id} if drafts else {}


def op_revoke(store: Store, rng: random.Random, folder: Path, tell: Tell) -> dict[str, Any]:
    user = rng.choice(USERS)
    tell({})
    leaving = [r.version for r in store.summaries(user) if r.status in ("approved", "edited")]
    return {"revoked": [r.id for r in store.revoke(user, rng.choice([None, *leaving]))]} if leaving else {}


def op_rollback(store: Store, rng: random.Random, folder: Path, tell: Tell) -> dict[str, Any]:
    user = rng.choice(USERS)
    older = [r for r in store.summaries(user)[:-1] if r.text]
    if not older:
        return {}
    row = rng.choice(older)
    tell({"summary": row.text, "user": user})
    made = facade(store, folder).rollback(row.version, user)
    return {"summary": made.text, "user": user, "version": made.version}


def op_ask(store: Store, rng: random.Random, folder: Path, tell: Tell) -> dict[str, Any]:
    prompt = f"{rng.random()} " + "b" * rng.choice((20, 400))
    me = facade(store, folder)
    tell({"egress": prompt})
    answer = me.ask(prompt)
    body = me.egress.get(answer.egress_id).body
    return {"egress": answer.egress_id, "body": (body or b"").decode(), "prompt": prompt}


def facade(store: Store, folder: Path) -> Popi:
    """The real façade on this store and a tiny model, one a process; replies are kept short."""
    if store not in _facades:
        me = Popi(load(folder, model=str(folder.parent / "tiny.gguf"), threads="1"), store)
        local = LocalGenerator(me.engine, max_tokens=4)
        _facades[store] = me
        me.generator = lambda name: local  # type: ignore[method-assign]
    return _facades[store]


_facades: dict[Store, Popi] = {}
OPS = {
    "record": op_record,
    "import": op_import,
    "delete": op_delete,
    "refresh": op_refresh,
    "approve": op_approve,
    "revoke": op_revoke,
    "rollback": op_rollback,
    "ask": op_ask,
}
"""The table to add operations to."""


# the child --------------------------------------------------------------------------------------------------


class Child:
    """Does operations drawn from ``seed`` until it dies; ``target`` is the statement, in transactions, to die at."""

    def __init__(self, store: Store, folder: Path, seed: int, target: int | None) -> None:
        self.store, self.folder, self.rng = store, folder, random.Random(seed)
        self.left, self.operation, self.inside, self.statements = target, "", False, 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.log = os.open(folder / "log.jsonl", flags, 0o600)
        self.point = os.open(folder / "point", os.O_WRONLY | os.O_CREAT, 0o600)

    def write(self, **line: Any) -> None:
        os.write(self.log, json.dumps(line).encode() + b"\n")
        os.fsync(self.log)

    def reach(self, what: str) -> None:
        """Note the point, so that it outlives the process, and die here if it is the one."""
        state = {"op": self.operation, "at": what, "inside": self.inside, "statement": self.statements}
        os.pwrite(self.point, json.dumps(state).encode().ljust(200), 0)
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                os.fsync(self.point)
                os.kill(os.getpid(), KILL)
                time.sleep(60)

    def trace(self, sql: str) -> None:
        word = sql.split(None, 1)[0].upper() if sql.strip() else ""
        if word == "BEGIN":  # not begun yet
            self.statements = 0
            self.reach(word)
            self.inside = True
        elif word in ("VACUUM", "PRAGMA") and not self.inside:
            self.reach("overwriting")
        elif self.inside:
            self.statements += 1
            self.reach(word)
        if word in ("COMMIT", "ROLLBACK"):
            self.inside = False  # from the next point on: the one at COMMIT, not run yet, is inside

    def run(self) -> None:
        self.store.conn.set_trace_callback(self.trace)
        while True:
            name = self.rng.choice(list(OPS))
            self.operation = name
            done = OPS[name](self.store, self.rng, self.folder, lambda intent: self.write(intent=intent))
            self.reach("after COMMIT, before the ack")
            self.write(ack=done)


# the parent -------------------------------------------------------------------------------------------------


@dataclass
class Findings:
    """What a campaign saw. ``lost`` and ``torn`` must be empty."""

    kills: int = 0
    inside: int = 0
    acked: int = 0
    points: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)


def kill_once(folder: Path, seed: int, by_time: bool) -> dict[str, Any]:
    """One child's life and death; the point that it had reached."""
    rng = random.Random(seed)
    (folder / "point").unlink(missing_ok=True)
    target = 0 if by_time else rng.choice((rng.randint(1, 8), rng.randint(1, 40), rng.randint(1, 150)))
    command = [sys.executable, "-m", "tests.crash_child", "--child", str(folder), "--seed", str(seed)]
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join([str(root), *filter(None, sys.path)])
    child = subprocess.Popen(
        [*command, "--target", str(target)], cwd=root, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    )
    if by_time:
        while child.poll() is None and not (folder / "point").exists():
            time.sleep(0.002)
        time.sleep(rng.random() * 0.25)
        child.kill()
    errors = child.communicate()[1].decode()
    if errors or child.returncode not in (-KILL, KILL, 1):  # Windows gives the number itself, or 1
        raise AssertionError(f"the child of seed {seed} was not killed, it failed: {errors}")
    text = (folder / "point").read_text()
    return dict(json.loads(text)) if text.strip() else {"op": "open", "at": "open", "inside": False}


def check(folder: Path, found: Findings) -> int:
    """Reopen a store after a kill and compare it with all that was intended and acknowledged; how many acks."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    with Store.open(folder / "popi.db") as store:
        if store.conn.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            found.torn.append("integrity_check")
        digests = dict(store.conn.execute("SELECT id, hash FROM signals").fetchall())
        signals = [s.signal for user in store.users() for s in store.each(user)]  # each one parses
        here = {s.id for s in signals}
        if {s.id: s.content_hash() for s in signals} != digests:
            found.torn.append("a signal that is not what its hash says")
        _check_signals(lines, here, found)
        _check_summaries(store, lines, here, found)
        bodies = {r.id: r.body for r in EgressLog(store).records()}
        for line in lines:
            ack = line.get("ack", {})
            if "egress" in ack and bodies.get(ack["egress"]) != ack["body"].encode():
                found.lost.append(f"egress {ack['egress']}")
        if not EgressLog(store).verify().ok:
            found.torn.append("egress chain")
        on_disk = b"".join(f.read_bytes() for f in folder.glob("popi.db*"))
        kept = {row.text for user in USERS for row in store.summaries(user)}
    for line in lines:
        intent, ack = line.get("intent", {}), line.get("ack", {})
        sent = any(ack.get("summary", "") in (b or b"").decode() for b in bodies.values())  # the egress log keeps it
        if "summary" in ack and not sent and ack["summary"] not in kept and ack["summary"].encode() in on_disk:
            found.torn.append(f"bytes of the erased summary {ack['user']} {ack['version']}")
        for id, term in zip(intent.get("delete", []), intent.get("terms", []), strict=True):
            if id not in here and term.encode() in on_disk:
                found.torn.append(f"bytes of the deleted {id}")
    return sum("ack" in line for line in lines)


def _check_signals(lines: list[dict[str, Any]], here: set[str], found: Findings) -> None:
    intents = [line["intent"] for line in lines if "intent" in line]
    acks = [line["ack"] for line in lines if "ack" in line]
    may_be_gone = {id for intent in intents for id in intent.get("delete", [])}
    for ack in acks:
        found.lost += [f"signal {id}" for id in ack.get("added", []) if id not in here | may_be_gone]
        found.lost += [f"deletion of {id}" for id in ack.get("deleted", []) if id in here]
    for intent in intents:
        for batch in [*intent.get("batches", []), intent.get("delete", [])]:
            rest = set(batch) - may_be_gone if batch is not intent.get("delete") else set(batch)
            if rest and len(rest & here) not in (0, len(rest)) and not _deleted_again(batch, intents):
                found.torn.append(f"batch of {batch[0]}")


def _deleted_again(batch: list[str], intents: list[dict[str, Any]]) -> bool:
    """Whether several deletions (an unfinished one, then a later one) named ids of this batch."""
    return sum(bool(set(batch) & set(intent.get("delete", []))) for intent in intents) > 1


def _check_summaries(store: Store, lines: list[dict[str, Any]], here: set[str], found: Findings) -> None:
    intents = [line["intent"] for line in lines if "summary" in line.get("intent", {})]
    intended = {(intent["user"], intent["summary"]) for intent in intents}
    by_id = {}
    for user in USERS:
        rows = store.summaries(user)
        if [r.version for r in rows] != list(range(1, len(rows) + 1)):
            found.torn.append(f"versions of {user}")
        for row in rows:
            by_id[row.id] = row
            stale = not here.issuperset(row.signal_ids)
            whole = row.text == "" if stale else (user, row.text) in intended
            if (row.status == "stale") != stale or not whole:
                found.torn.append(f"summary {row.id}")
        for line in lines:
            ack = line.get("ack", {})
            if ack.get("user") == user and "version" in ack:
                kept = rows[ack["version"] - 1] if len(rows) >= ack["version"] else None
                if kept is None or kept.text not in ("", ack["summary"]):
                    found.lost.append(f"summary {user} {ack['version']}")
    for line in lines:
        id = line.get("ack", {}).get("approved")
        if id is not None and (id not in by_id or by_id[id].status not in ("approved", "revoked", "stale")):
            found.lost.append(f"approval of {id}")
    for id in (id for line in lines for id in line.get("ack", {}).get("revoked", [])):  # none is approved again
        if id not in by_id or by_id[id].status not in ("revoked", "stale"):
            found.lost.append(f"revocation of {id}")


def campaign(folder: Path, kills: int, seed: int = 0) -> Findings:
    """Kill ``kills`` children *inside* a transaction (those that die elsewhere come on top); check after each."""
    from tests.tiny import llama

    found, before = Findings(), 0
    if not (folder / "tiny.gguf").exists():
        llama(folder / "tiny.gguf")
    while found.inside < kills:
        number = found.kills
        home = folder / str(number // LIVES)
        if not home.exists():
            home.mkdir()
            before = found.acked
        by_time = number % 4 == 3
        point = kill_once(home, seed * 1_000_003 + number, by_time)
        found.kills += 1
        inside = point["inside"] and not (by_time and point["at"] == "COMMIT")  # that one may have ended already
        found.inside += inside
        where = "inside" if inside else "outside"
        after = " or after it" if by_time else ""  # somewhere between this point and the next
        found.points[f"{point['op']}: {where}, {point['at']}{after}"] += 1
        found.acked = before + check(home, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")  # never the user's
    if args.child:
        with Store.open(args.child / "popi.db") as store:
            Child(store, args.child, args.seed, args.target or None).run()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), args.kills, args.seed)
    if args.json:
        print(json.dumps({**vars(found), "points": dict(found.points.most_common())}, indent=1))
    else:
        print(f"{found.kills} kills, {found.inside} inside a transaction; {found.acked} operations acknowledged")
        for point, count in sorted(found.points.items()):
            print(f"  {count:4}  {point}")
        for name, what in (("acknowledged and lost", found.lost), ("half-written", found.torn)):
            print(f"{name}: {len(what)} {what[:5] or ''}")
    sys.exit(1 if found.lost or found.torn else 0)


if __name__ == "__main__":
    main()
