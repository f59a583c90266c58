"""People with canaries, in a network namespace with one generator on loopback: does a canary leave, or lie about?

    python -m bench.privacy --section network [--users 200] [--work FOLDER]

Each person's commands run in a process of their own (``privacy_child``): record, import, refresh, approve, ask with and
without the summary, a generator that is not there, an import with a torn line. Then everything that left by any
interface, the generator's bodies, stdout, stderr, the environment, and every file outside the database are searched.
With ``--work`` finished people are kept, and a run goes on where it stopped.

It does NOT see a file that was made and gone again within one person's commands, nor what a terminal keeps.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import link_base, program_digest
from bench.privacy_canaries import Person, canary, person
from bench.privacy_capture import Capture, Stream, loopback_up, requests, streams
from bench.privacy_generator import Generator
from bench.privacy_search import Needles
from popi_edge.doctor.watch import tools
from popi_edge.egress import EgressLog
from popi_edge.errors import ConfigError
from popi_edge.store import Store
from popi_training.evaluate.journal import Journal

PORT, NOBODY = 8080, 8081
LIMIT_S = 600
PROMPT = "How often do I water the basil?"
DATABASE = ("popi.db", "popi.db-wal", "popi.db-shm")
KEPT = ("PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
CONTROL = -1
"""The number of the person whose canaries are let out on purpose."""


@dataclass(frozen=True)
class Place:
    """Where a run lives: ``home`` is the program's data folder, ``around`` all that it could write to besides."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def around(self) -> Path:
        return self.folder / "around"

    def make(self) -> None:
        """The folders, with the base model linked in."""
        for path in (self.home, self.around / "tmp", self.around / "cwd", self.folder / "input"):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.chmod(0o700)
        link_base(self.home / "models")

    def environment(self) -> dict[str, str]:
        """What the commands are given, and nothing of the caller's but where Python is."""
        kept = {k: v for k, v in os.environ.items() if k in KEPT}
        code = [str(Path(__file__).parent.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return kept | {
            "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in code),
            "POPI_HOME": str(self.home), "HOME": str(self.around), "TMPDIR": str(self.around / "tmp"),
            "LANG": "C.UTF-8", "XDG_CACHE_HOME": str(self.around / "cache"),
            "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONFAULTHANDLER": "1",
        }  # fmt: skip

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Everything written, but the database, the models, and what the bench itself wrote."""
        for top in (self.home, self.around):
            for path in sorted(top.rglob("*")):
                if path.is_file() and path.name not in DATABASE and self.home / "models" not in path.parents:
                    yield str(path.relative_to(self.folder)), path.name.encode() + b"\n" + path.read_bytes()


def commands(who: Person, number: int, folder: Path) -> tuple[list[list[str]], dict[str, str]]:
    """(commands, the places whose canaries they carry). Half of the kinds are recorded, the others imported."""
    user, made, rows, carried = ["--user", who.user], [], [], dict(who.canaries)
    for k, s in enumerate(who.signals):
        if (k + number) % 2:
            rows.append(json.dumps(s))
            continue
        del carried[f"{s['kind']}.id"]  # popi record gives an id of its own
        fields = {n: v for n, v in s.items() if n not in ("kind", "id", "user")}
        text = [fields.pop("text")] if "text" in fields else []
        turns = [w for m in fields.pop("messages", ()) for w in ("--message", m["role"], m["content"])]
        options = [w for n, v in fields.items() for w in (f"--{n}", str(v))]
        made.append(["record", s["kind"], *options, *turns, *user, "--", *text])
    torn = canary(_drawn(who), 3)
    carried["torn line"] = torn
    file = folder / f"{number}.jsonl"
    file.write_text("\n".join([*rows, '{"kind": "statement", "text": "' + torn]) + "\n", "utf-8")
    ask = ["ask", PROMPT, *user, "--generator"]
    made += [
        ["import", str(file)], ["summary", "refresh", *user], ["summary", "approve", *user],
        [*ask, "bench", "--preview"], [*ask, "bench"], [*ask, "bench", "--plain"],
        [*ask, "nobody", "--plain"], [*ask, "unknown"],
    ]  # fmt: skip
    return made, carried


def _drawn(who: Person) -> Any:
    import random

    return random.Random(f"torn:{who.user}")


class Run:
    """The commands of one person after the other, and what was seen of them. Lives inside the namespace."""

    def __init__(self, place: Place, seed: int, users: int, capture: Capture, generator: Generator) -> None:
        self.place, self.seed, self.capture, self.generator = place, seed, capture, generator
        self.needles: dict[str, str] = {}
        for number in range(CONTROL, users):
            who = person(seed, number)
            _, carried = commands(who, number, place.folder / "input")
            for needle, where in (who.needles() | {carried["torn line"]: "torn line"}).items():
                self.needles[needle] = f"{number}:{where}"
        self.search = Needles(self.needles)

    def popi(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """A command in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "popi_edge", *words], capture_output=True, timeout=LIMIT_S,
            env=self.place.environment(), cwd=self.place.around / "cwd",
        )  # fmt: skip

    def child(self, plan: dict[str, Any]) -> tuple[dict[str, Any], bytes, bytes, dict[str, str]]:
        """(what the child noted, stdout, stderr, the environment read from outside) of one plan."""
        place = self.place
        file, note = place.folder / "input" / "plan.json", place.folder / "input" / "note.json"
        file.write_text(json.dumps(plan | {"note": str(note)}), "utf-8")
        note.unlink(missing_ok=True)
        extra = {"POPI_PLANTED": plan["plants"]["environ"]} if plan.get("plants") else {}
        with (place.folder / "out").open("w+b") as out, (place.folder / "err").open("w+b") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.privacy_child", str(file)], stdout=out, stderr=err,
                env=place.environment() | extra, cwd=place.around / "cwd",
            )  # fmt: skip
            time.sleep(0.2)
            outside = Path(f"/proc/{process.pid}/environ").read_text("utf-8", "replace")
            try:
                process.wait(LIMIT_S)
            finally:
                process.kill()
            for f in (out, err):
                f.seek(0)
            seen = [f.read() for f in (out, err)]
        told = json.loads(note.read_text("utf-8")) if note.exists() else {"codes": [], "status": "crashed"}
        return told, seen[0], seen[1], {"proc": outside, "own": json.dumps(told)}

    def sent(self) -> int:
        """How many requests the log holds."""
        return len(self.logged(0))

    def logged(self, since: int) -> list[tuple[str, bytes]]:
        """(generator, body) of every request in the egress log from the so-many-th on."""
        store = Store.open(self.place.home / "popi.db")
        try:
            found = EgressLog(store).records(kind="request")[since:]
        finally:
            store.close()
        return [(str(r.meta["generator"]), r.body or b"") for r in found]

    def person(self, number: int, plants: dict[str, Any] | None = None) -> dict[str, Any]:
        """One person's row: what was searched, what was found, and whether the bodies agree."""
        who = person(self.seed, number)
        made, carried = commands(who, number, self.place.folder / "input")
        if plants:
            made = [["ask", f"{PROMPT} {p}", "--plain", "--generator", "bench"] for p in plants["prompts"]]
        before, had = self.sent(), len(self.generator.bodies)
        self.capture.take()
        told, out, err, environ = self.child({"commands": made, "user": who.user, "plants": plants})
        around = {f"environ: {k}": v.encode() for k, v in environ.items()}
        row = self.judged(before, had, {"stdout": out, "stderr": err, **around})
        row |= {"canaries": len(carried), "stored": self.stored(carried)}
        torn = [words[0] == "import" for words in made]  # whose last line is wrong, which must be exit code 1
        codes = [int(c != 1) if must and c is not None else c for c, must in zip(told["codes"], torn, strict=False)]
        return row | {"status": told["status"], "codes": codes}

    def stored(self, carried: dict[str, str]) -> int:
        """How many of a person's canaries stand in the database: what could have left."""
        paths = [self.place.home / name for name in DATABASE]
        raw = b"".join(p.read_bytes() for p in paths if p.is_file())
        return sum(c.encode() in raw for c in carried.values())

    def judged(self, before: int, had: int, printed: dict[str, bytes]) -> dict[str, Any]:
        """Search everything since ``before`` requests in the log and ``had`` bodies at the generator."""
        frames = self.capture.take()
        carried, other = streams(frames)
        bodies, left = _bodies(carried)
        logged = [b for name, b in self.logged(before) if name == "bench"]
        got = self.generator.bodies[had:]
        blobs = [("capture", s.data) for s in carried] + [("capture", f) for f in other]
        blobs += [("generator", b) for b in got] + list(printed.items())
        blobs += [(f"file {name}", b) for name, b in self.place.files()]
        found = sorted({
            (where.split(":")[0], self.needles[needle], how)
            for where, blob in blobs for needle, how in self.search.search(blob).items()
        })  # fmt: skip
        return {
            "frames": len(frames), "not_tcp": len(other), "bytes": sum(len(s.data) for s in carried),
            "streams": len(carried), "whole": all(s.whole for s in carried if s.data) and not left,
            "requests": len(bodies), "logged": len(logged), "equal": bodies == logged == got,
            "dropped": self.capture.dropped, "searched": sum(len(b) for _, b in blobs), "found": found,
        }  # fmt: skip

    def control(self) -> dict[str, Any]:
        """Let eight canaries out on purpose: the search must find each, and the bodies must disagree."""
        import base64

        c = person(self.seed, CONTROL).canaries
        names = ["statement.text", "profile.text", "post.text", "rating.prompt", "edit.prompt", "user", "post.source",
                 "profile.source"]  # fmt: skip
        plain, coded, hexed, escaped, gzipped, out, err, file = (c[n] for n in names)
        plants = {
            "prompts": [plain, base64.b64encode(b"x" + coded.encode()).decode(), hexed.encode().hex(),
                        "".join(f"\\u{ord(ch):04x}" for ch in escaped)],
            "gzip": gzipped, "stdout": out, "stderr": err, "environ": c["edit.source"], "port": self.generator.port,
            "file": [str(self.place.around / "tmp" / "planted"), file],
        }  # fmt: skip
        row = self.person(CONTROL, plants)
        (self.place.around / "tmp" / "planted").unlink(missing_ok=True)
        expected = {("capture", n) for n in names[:5]} | {("generator", n) for n in names[:5]}
        expected |= {("stdout", names[5]), ("stderr", names[6]), ("environ", "edit.source")}
        expected |= {("file around/tmp/planted", names[7])}
        got = {(where, name.split(":", 1)[1]) for where, name, _ in row["found"]}
        missed = sorted(expected - got)
        return {"planted": len(expected), "missed": missed, "extra_body_seen": not row["equal"], "row": row}

    def crash(self) -> dict[str, Any]:
        """A refresh that is aborted (SIGABRT, with Python's dump of every thread): what it printed and left."""
        who = person(self.seed, 0)
        before, had = self.sent(), len(self.generator.bodies)
        process = subprocess.Popen(
            [sys.executable, "-m", "popi_edge", "summary", "refresh", "--user", who.user], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=self.place.environment(), cwd=self.place.around / "cwd",
        )  # fmt: skip
        maps, end = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
        while "onnxruntime" not in maps.read_text() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1.5)  # into loading the model, or decoding, with every signal read
        process.send_signal(signal.SIGABRT)
        out, err = process.communicate(timeout=60)
        dumped = b"Fatal Python error" in err and b"popi_edge/" in err
        return self.judged(before, had, {"stdout": out, "stderr": err}) | {"dumped": dumped}

    def doctor(self, *options: str) -> dict[str, Any]:
        before, had = self.sent(), len(self.generator.bodies)
        done = self.popi("doctor", *options)
        return self.judged(before, had, {"stdout": done.stdout, "stderr": done.stderr}) | {"code": done.returncode}


def _bodies(carried: list[Stream]) -> tuple[list[bytes], bytes]:
    """(bodies of all requests to the generator, bytes of those streams that are no whole request)."""
    bodies, left = [], b""
    for s in carried:
        if s.target[1] == PORT:
            some, rest = requests(s.data)
            bodies += [body for _, body in some]
            left += rest
    return bodies, left


def inside(folder: Path, users: int, seed: int) -> dict[str, Any]:
    """The whole section, within a namespace of its own."""
    loopback_up()
    place = Place(folder)
    place.make()
    settings = {"seed": seed, "program": program_digest()}
    with Capture() as capture, Generator(PORT) as generator, Journal(folder / "journal", settings) as journal:
        run = Run(place, seed, users, capture, generator)
        for name, port in (("bench", PORT), ("nobody", NOBODY)):
            run.popi("generator", "add", name, "--url", f"http://127.0.0.1:{port}/v1", "--model", "m")
        steps: list[tuple[str, Any]] = [("control", run.control)]
        steps += [(f"person {n}", lambda n=n: run.person(n)) for n in range(users)]
        if users:
            after = f"after {users} people"  # a run that goes on to more people does these again
            steps += [(f"crash {after}", run.crash), (f"doctor {after}", run.doctor)]
            steps += [(f"doctor --offline {after}", lambda: run.doctor("--offline"))]
        for key, step in steps:
            if key not in journal:
                start = time.perf_counter()
                journal.add(key, step() | {"seconds": round(time.perf_counter() - start, 1)})
                print(key, file=sys.stderr, flush=True)
        return summed({key: journal[key] for key, _ in steps}, users, len(run.needles))


def summed(rows: dict[str, dict[str, Any]], users: int, needles: int) -> dict[str, Any]:
    """The section's figures."""
    control = rows["control"]
    all_rows = [control["row"], *(r for k, r in rows.items() if k != "control")]
    real = {k: r for k, r in rows.items() if k != "control"}
    people = [r for k, r in real.items() if k.startswith("person")]
    codes = [[c for c in r["codes"] if c is not None] for r in people]
    return {
        "users": users,
        "canaries": sum(r["canaries"] for r in people),
        "stored": sum(r["stored"] for r in people),
        "searched_for": needles,
        "found": [{"where": w, "canary": c, "how": h, "during": k} for k, r in real.items() for w, c, h in r["found"]],
        "searched_mb": round(sum(r["searched"] for r in real.values()) / 1e6, 2),
        "frames": sum(r["frames"] for r in real.values()),
        "not_tcp": sum(r["not_tcp"] for r in real.values()),
        "dropped": max(r["dropped"] for r in all_rows),
        "requests_captured": sum(r["requests"] for r in real.values()),
        "requests_logged": sum(r["logged"] for r in real.values()),
        "bodies_equal": bool(people) and all(r["equal"] and r["whole"] for r in real.values()),
        "summaries": {s: sum(r["status"] == s for r in people) for s in sorted({r["status"] for r in people})},
        "commands": sum(map(len, codes)),
        "failed_as_meant": sum(c[-2:] == [1, 1] for c in codes),
        "failed_otherwise": sum(sum(map(bool, c[:-2])) for c in codes),
        "crash_dumped": next((r["dumped"] for k, r in real.items() if k.startswith("crash")), None),
        "doctor": {k: r["code"] for k, r in real.items() if k.startswith("doctor")},
        "control": {k: control[k] for k in ("planted", "missed", "extra_body_seen")},
        "seconds": round(sum(r["seconds"] for r in rows.values())),
    }


def measure(users: int, seed: int = 0, work: Path | None = None) -> dict[str, Any]:
    """Run the section; ``not_run`` says why where this system has no namespaces. Raises ConfigError where it fails."""
    apart = tools()[0]
    if not apart:
        return {"not_run": "this system has no network namespaces that a user may make (unshare --user --net)"}
    with tempfile.TemporaryDirectory(prefix="popi-privacy-") as passing:
        folder = (work or Path(passing)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        words = [*apart, sys.executable, "-m", "bench.privacy_network", str(folder), str(users), str(seed)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise ConfigError(f"the network section ended with exit code {done.returncode}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


if __name__ == "__main__":
    try:
        print(json.dumps(inside(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
    except KeyboardInterrupt:  # whoever started this says so
        sys.exit(130)
