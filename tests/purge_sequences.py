"""Random lives of a home, with ``kill -9`` in between; after every deletion nothing of what was deleted is on the disk.

    python -m tests.purge_sequences [--sequences 1000] [--seed 0] [--without secure_delete] [--without scrub] [--json]

Each sequence has its own home. Every step is a ``popi`` command in a forked child: record, import, refresh, approve,
edit, ask (a server on loopback that answers, or fails and repeats in its error what it was sent), delete, purge. Two
children of five kill themselves at a drawn moment: before an SQL statement, within one (SQLite's progress handler), or
at a time. Every text carries a marker of its own, often enough that any piece of it holds one; a summary is its own.

After every delete, every purge, and every reopening of the store after a kill, all files under the home and under the
temporary folder are read raw and searched for what is gone, in UTF-8, UTF-16-LE and UTF-16-BE. Gone is: a signal that
was deleted; the summaries made from it (but for bodies of the egress log that a deletion without --erase-sent leaves,
as it says); and after a purge all that was ever written for that user: signals, summaries, prompts. The summaries of
what is gone must be stale, empty and not among those that a generator gets. --without switches a measure off. With both
off there are finds, which is the positive control; either alone leaves nothing in these sequences.

Not covered: the words of a summary come from a stand-in for the model, which takes seconds to load (no engine writes a
prefix to the disk unless asked to, and no command asks); what a power cut or the file system itself leaves; replies.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sqlite3
import string
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from popi_edge import store as stores
from popi_edge import summarize
from popi_edge.cli import main as popi
from popi_edge.edge import Popi
from popi_edge.egress import EgressLog
from popi_edge.generators.registry import Entry, add
from popi_edge.store import Store
from popi_edge.vocabulary import ordinary_words
from tests.hostile_server import HostileServer, Peer, completion

USERS = ("me", "ann")
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
MEASURES = ("secure_delete", "scrub")
ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")
EVERY = 60
"""A marker stands at least once in so many characters of a text."""


# what is written --------------------------------------------------------------------------------------------
@dataclass
class Home:
    """One home and all that was ever meant for it. ``markers``: marker → user; ``seen``: those once in the store."""

    path: Path
    rng: random.Random
    markers: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def text(self, user: str, marker: str = "") -> str:
        """A text of 40 to 70,000 characters; its marker, a word of 16 letters, stands in every 60 of them."""
        marker = marker or "".join(self.rng.choices(string.ascii_lowercase, k=16))
        self.markers[marker] = user
        piece = self.rng.choice(("said {} twice, ", "wrote {} at 5 é 日本 — ", '{}\n"quoted" \\ ')).format(marker)
        assert len(piece) <= EVERY
        return (piece * (self.rng.choice((40, 900, 9_000, 70_000)) // len(piece) + 1)).strip()

    def sentence(self, user: str) -> str:
        """What a summary may say, as the stand-in for the model writes it: eight words, a marker as a whole."""
        words = "Prefers " + " ".join(self.rng.choices(WORDS, k=7)) + "."
        self.markers[words] = user
        return words


WORDS = sorted(w for w in ordinary_words() if w.isalpha() and w.isascii() and 3 < len(w) < 9)


# the steps: each gives the words of a ``popi`` command, and what the model would say ---------------------------
Step = tuple[list[str], str]


def op_record(home: Home, ids: list[str], user: str) -> Step:
    one, two, three = (home.text(user) for _ in range(3))
    kinds = {
        "statement": [one], "post": [one, "--prompt", two], "profile": [one],
        "comparison": ["--prompt", one, "--chosen", two, "--rejected", three],
        "edit": ["--prompt", one, "--original", two, "--edited", three],
        "rating": ["--prompt", one, "--response", two, "--score", "0.5"],
    }  # fmt: skip
    kind = home.rng.choice(list(kinds))
    return ["record", kind, "--user", user, *kinds[kind]], ""


def op_import(home: Home, ids: list[str], user: str) -> Step:
    file = home.path.parent / "import.jsonl"
    rows: list[dict[str, Any]] = []
    for _ in range(home.rng.randint(1, 30)):
        turns = [{"role": "user", "content": home.text(user)}, {"role": "assistant", "content": home.text(user)}]
        rows.append(home.rng.choice(({"kind": "conversation", "messages": turns},
                                     {"kind": "statement", "text": home.text(user)})))  # fmt: skip
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return ["import", str(file), "--user", user], ""


def op_refresh(home: Home, ids: list[str], user: str) -> Step:
    return ["summary", "refresh", "--user", user], home.sentence(user)


def op_approve(home: Home, ids: list[str], user: str) -> Step:
    return ["summary", "approve", "--user", user], ""


def op_edit(home: Home, ids: list[str], user: str) -> Step:
    """In the person's words, now and then with a signal's rare word, which the guard is overruled on."""
    said, more = home.sentence(user), []
    words = [m for m in home.seen if home.markers[m] == user and " " not in m]
    if words and home.rng.random() < 0.5:
        word = home.rng.choice(sorted(words))
        said, more = f"{said} Likes {word} too.", ["--overrule", word]
    return ["summary", "edit", said, "--user", user, *more], ""


def op_ask(home: Home, ids: list[str], user: str) -> Step:
    return ["ask", home.text(user), "--user", user, "--generator", home.rng.choice(("good", "bad"))], ""


def op_delete(home: Home, ids: list[str], user: str) -> Step:
    chosen = home.rng.sample(ids, min(len(ids), home.rng.randint(1, 4))) or ["none"]
    return ["signals", "delete", *chosen, *home.rng.choice(([], ["--erase-sent"]))], ""


def op_purge(home: Home, ids: list[str], user: str) -> Step:
    return ["signals", "purge", "--user", user, "--yes"], ""


Op = Callable[[Home, list[str], str], Step]
OPS: dict[Op, int] = {
    op_record: 6, op_import: 2, op_refresh: 4, op_approve: 3, op_edit: 2, op_ask: 4, op_delete: 5, op_purge: 1
}  # fmt: skip
"""Each step and how often it is drawn."""


# the child --------------------------------------------------------------------------------------------------
def stand_ins(said: str) -> None:
    """In place of the model: a sentence that was drawn, made from all signals."""

    def infer(engine: Any, signals: Any, **_: Any) -> summarize.Inferred:
        ids = tuple(s.id for s in signals)
        if not ids:
            return summarize.Inferred("", 0, "insufficient", "no signals", (), 0)
        return summarize.Inferred(said, 8, "draft", "", ids, 100)

    bundle = SimpleNamespace(adapter=lambda role: None, decoded=lambda settings: None, identity="stand-in")
    engine = SimpleNamespace(count=lambda text: len(text.split()), close=lambda: None)
    for name, value in (("bundle", bundle), ("engine", engine)):
        patch.object(Popi, name, property(lambda self, v=value: v)).start()
    patch.object(Popi, "_constraint", lambda self: None).start()
    patch.object(summarize, "infer", infer).start()


def without(measures: list[str]) -> None:
    """Switch a measure off, for the positive control."""
    prepare = stores.prepare

    def prepared(conn: sqlite3.Connection, *rest: Any) -> None:
        prepare(conn, *rest)
        conn.execute("PRAGMA secure_delete = OFF").fetchone()

    if "secure_delete" in measures:
        patch.object(stores, "prepare", prepared).start()
    if "scrub" in measures:
        patch.object(Store, "_scrub", lambda self: True).start()


def armed(rng: random.Random) -> None:
    """Die at a drawn statement, within a drawn one, or at a drawn time."""
    left = rng.choice((rng.randint(1, 10), rng.randint(8, 20), rng.randint(8, 50)))

    def tick(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), KILL)

    connect, how = sqlite3.connect, rng.randrange(3)

    def connected(*args: Any, **options: Any) -> sqlite3.Connection:
        conn: sqlite3.Connection = connect(*args, **options)
        if how != 1:
            conn.set_trace_callback(tick)
        if how != 0:
            conn.set_progress_handler(tick, 40)
        return conn

    if how < 2 or rng.random() < 0.3:
        patch.object(sqlite3, "connect", connected).start()
    else:
        timer = threading.Timer(rng.random() * 0.05, os.kill, (os.getpid(), KILL))
        timer.daemon = True
        timer.start()


def run(home: Home, step: Step, kill: bool, measures: list[str]) -> int | None:
    """A ``popi`` command in a child of its own; its exit code, or None where it was killed."""
    words, said = step
    seed = home.rng.random()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    code = 70
    try:
        spare = home.path.parent / "tmp"
        os.environ |= {"POPI_HOME": str(home.path), "TMPDIR": str(spare), "SQLITE_TMPDIR": str(spare)}
        tempfile.tempdir = str(spare)
        with (home.path.parent / "output").open("w") as out, Path(os.devnull).open() as nothing:
            sys.argv, sys.stdin, sys.stdout, sys.stderr = ["popi", *words], nothing, out, out
            stand_ins(said)
            without(measures)
            if kill:
                armed(random.Random(seed))
            popi()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0
    finally:
        os._exit(code)


# the parent -------------------------------------------------------------------------------------------------
@dataclass
class Findings:
    """What a campaign saw. ``left`` (bytes of what is gone) and ``wrong`` must be empty."""

    sequences: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    scans: int = 0
    scanned_bytes: int = 0
    texts_gone: int = 0
    sent: int = 0
    sent_and_erased: int = 0
    left: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def live(store: Store, home: Home) -> set[str]:
    """The markers of what is kept: in signals, in summaries, in bodies of the egress log."""
    kept = [row[0] for row in store.conn.execute("SELECT body FROM signals UNION ALL SELECT text FROM summaries")]
    kept += [(r.body or b"").decode() for r in EgressLog(store).records()]
    whole = "\n".join(kept)
    return {m for m in home.markers if m in whole}


def on_disk(home: Home) -> dict[str, bytes]:
    """Every file under the home and the temporary folder, raw."""
    folders = (home.path, home.path.parent / "tmp")
    return {f.name: f.read_bytes() for d in folders for f in sorted(d.rglob("*")) if f.is_file()}


def scan(files: dict[str, bytes], gone: set[str], found: Findings, when: str) -> None:
    """Search files for the markers of what is gone."""
    found.scans += 1
    for name, data in files.items():
        found.scanned_bytes += len(data)
        for code in ENCODINGS:
            hits = sorted(m for m in gone if m.encode(code) in data)
            if hits:
                found.left.append(f"{when}: {name}: {len(hits)} texts in {code}, the first {hits[0]!r:.40}")


def hidden(store: Store, here: set[str], found: Findings, when: str) -> None:
    """Every summary made from a signal that is gone is stale, empty, and not what a generator gets."""
    for user in USERS:
        for row in store.summaries(user):
            if not here.issuperset(row.signal_ids) and (row.status, row.text, row.overruled) != ("stale", "", ()):
                found.wrong.append(f"{when}: summary {row.version} of {user} is {row.status}")
        given = [store.approved_summary(user), store.draft_summary(user)]
        if any(r is not None and (r.status == "stale" or not here.issuperset(r.signal_ids)) for r in given):
            found.wrong.append(f"{when}: a stale summary of {user} would be sent")


def step(
    home: Home, number: int, found: Findings, measures: list[str], fixed: tuple[Op, str] | None = None
) -> None:
    """One command, killed or not (``fixed``: this one, not killed), and what must hold after it."""
    op, user = fixed or (home.rng.choices(list(OPS), list(OPS.values()))[0], home.rng.choice((*USERS, USERS[0])))
    with Store.open(home.path / "popi.db") as store:
        ids = [s.signal.id for u in USERS for s in store.each(u)]
    words, said = op(home, ids, user)
    code = run(home, (words, said), fixed is None and home.rng.random() < 0.4, measures)
    name = op.__name__.removeprefix("op_")
    when = f"sequence {number}, {name}" + (", killed" if code is None else "")
    (found.kills if code is None else found.refused if code else found.steps)[name] += 1
    if code not in (None, 0, 1):
        found.wrong.append(f"{when}: exit {code}: {(home.path.parent / 'output').read_text()[-300:]}")
    done = name in ("delete", "purge") and code == 0
    looked = {"": on_disk(home)} if done else {}  # before anything opens the store again
    with Store.open(home.path / "popi.db") as store:  # after a kill: recovered, and overwriting made up for
        kept = live(store, home)
        here = {s.signal.id for u in USERS for s in store.each(u)}
        hidden(store, here, found, when)
        if code is None:
            looked[", open again"] = on_disk(home)
    if code is None:
        looked[", closed again"] = on_disk(home)
    home.seen |= kept
    gone = home.seen - kept
    if done and name == "purge":  # also what a killed command had begun to write
        gone = {m for m, whose in home.markers.items() if whose == user or m in home.seen} - kept
        if any(home.markers[m] == user for m in kept):
            found.wrong.append(f"{when}: something of {user} is kept")
    if done and not here.isdisjoint(words):
        found.wrong.append(f"{when}: a signal is kept")
    for where, files in looked.items():
        scan(files, gone, found, when + where)


def sequence(number: int, seed: int, port: int, found: Findings, measures: list[str]) -> None:
    """One home from its first command to a purge of everybody."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home", random.Random(seed * 1_000_003 + number))
        home.path.mkdir(mode=0o700)
        (home.path.parent / "tmp").mkdir()
        for name in ("good", "bad"):
            add(home.path, Entry(name=name, url=f"http://127.0.0.1:{port}/{name}", model="m"))
        for first in (op_record, op_refresh, op_approve):  # so that much can be sent
            for user in USERS[: home.rng.randint(1, 2)]:
                step(home, number, found, measures, (first, user))
        for _ in range(home.rng.randint(6, 16)):
            step(home, number, found, measures)
        for user in USERS:
            step(home, number, found, measures, (op_purge, user))
        found.texts_gone += len(home.seen)
        with Store.open(home.path / "popi.db") as store:
            requests = EgressLog(store).records(kind="request")
            if not EgressLog(store).verify().ok:
                found.wrong.append(f"sequence {number}: the egress chain does not hold")
        found.sent += len(requests)
        found.sent_and_erased += sum(r.body is None for r in requests)
    found.sequences += 1


# the generator ----------------------------------------------------------------------------------------------
def answer(peer: Peer) -> None:
    """Answers; under /bad it fails, and its error says again all that it was sent."""
    if peer.request.line.split()[1].startswith("/bad"):
        said = " ".join(m["content"] for m in json.loads(peer.request.body)["messages"])
        peer.answer(json.dumps({"error": {"message": said}}).encode(), status="400 Bad Request")
    else:
        peer.answer(completion("Use RAID 1."))


@contextmanager
def generator() -> Iterator[int]:
    """A server in a process of its own (threads and forks do not go together); its port."""
    ports, ends = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(ends[1])
        with HostileServer(answer) as server:
            os.write(ports[1], str(server.port).encode())
            os.read(ends[0], 1)  # until the parent ends
        os._exit(0)
    os.close(ends[0])
    try:
        yield int(os.read(ports[0], 9))
    finally:
        os.close(ends[1])
        os.waitpid(child, 0)


def campaign(sequences: int, seed: int = 0, measures: Sequence[str] = ()) -> Findings:
    """So many sequences, without ``measures``."""
    os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.null.Keyring"  # never the user's
    for name in ("cli.record", "cli.signals", "cli.summary", "cli.ask", "guard", "guard.index", "generators.openai"):
        importlib.import_module(f"popi_edge.{name}")  # once here, not in every child
    found = Findings()
    with generator() as port:
        for number in range(sequences):
            sequence(number, seed, port, found, list(measures))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", action="append", choices=MEASURES, default=[], help="Switch a measure off.")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    start = time.monotonic()
    found = campaign(args.sequences, args.seed, args.without)
    seconds = round(time.monotonic() - start, 1)
    counts = {"finds": len(found.left), "wrongs": len(found.wrong)}
    shown = {**vars(found), "left": found.left[:20], "wrong": found.wrong[:20], **counts}
    if args.json:
        print(json.dumps({"seed": args.seed, "without": args.without, **shown, "seconds": seconds}, indent=1))
    else:
        kills = sum(found.kills.values())
        print(f"{found.sequences} sequences: {sum(found.steps.values())} commands done, {kills} killed; "
              f"{found.scans} scans of {found.scanned_bytes:,} bytes for what is gone, in all {found.texts_gone:,} "
              f"texts: {len(found.left)} finds, {len(found.wrong)} wrong; {seconds} s")  # fmt: skip
        for line in [*found.left[:20], *found.wrong[:20]]:
            print(line)
    sys.exit(1 if found.left or found.wrong else 0)


if __name__ == "__main__":
    main()
