"""``popi record``, ``popi import`` and ``popi signals``, run as a person runs them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from popi_edge.cli import main
from popi_edge.egress import EgressLog
from popi_edge.signals import KINDS, Statement, from_json
from popi_edge.store import Store

POPI = [sys.executable, "-c", "from popi_edge.cli import main; main()"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def popi(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``popi ARGS`` in this process; standard input is empty."""

    def run(*args: str) -> Result:
        monkeypatch.setenv("POPI_HOME", str(home))
        monkeypatch.setattr(sys, "argv", ["popi", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e, open(os.devnull) as empty:  # noqa: PTH123
            monkeypatch.setattr(sys, "stdin", empty)
            main()
        out = capsys.readouterr()
        code = e.value.code
        assert isinstance(code, int)
        return Result(code, out.out, out.err)

    return run


def refused(result: Result, *words: str) -> None:
    assert result.code == 1 and not result.out
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("popi: ") and all(w in last for w in words), result.err
    assert "Traceback" not in result.err


RECORDS = {
    "comparison": ["--prompt", "p", "--chosen", "c", "--rejected", "r"],
    "rating": ["--prompt", "p", "--response", "r", "--score", "0.5"],
    "edit": ["--prompt", "p", "--original", "o", "--edited", "e"],
    "statement": ["I like tea"],
    "post": ["A review", "--prompt", "p"],
    "conversation": ["--message", "user", "hi", "--message", "assistant", "hello"],
    "profile": ["A gardener"],
}


def test_every_kind_can_be_recorded_listed_and_shown(popi: Any) -> None:
    assert set(RECORDS) == set(KINDS)
    for kind, options in RECORDS.items():
        made = popi("record", kind, *options, "--at", "2026-01-02T03:04:05Z", "--source", "test", "--json").json
        assert made["added"] is True and made["signal"]["kind"] == kind
        assert popi("signals", "show", made["signal"]["id"], "--json").json == made["signal"]
    listed = popi("signals", "list", "--json").json
    assert [from_json(s).kind for s in listed] == list(RECORDS)
    assert {(s["at"], s["source"], s["user"]) for s in listed} == {("2026-01-02T03:04:05.000Z", "test", "me")}
    lines = popi("signals", "list").out.splitlines()
    assert len(lines) == 7 and "I like tea" in lines[3] and listed[3]["id"] in lines[3]


def test_a_duplicate_is_said_and_not_added(popi: Any) -> None:
    assert popi("record", "statement", "tea").out.startswith("recorded statement")
    again = popi("record", "statement", "tea")
    assert again.code == 0 and "nothing was added" in again.out
    assert popi("record", "statement", "tea", "--user", "ann", "--json").json["added"] is True
    assert len(popi("signals", "list", "--json").json) == 1


def test_list_picks_by_user_kind_and_the_newest(popi: Any) -> None:
    for i in range(3):
        popi("record", "statement", f"s{i}")
        popi("record", "profile", f"p{i}", "--user", "ann")
    texts = [s["text"] for s in popi("signals", "list", "--limit", "2", "--json").json]
    assert texts == ["s1", "s2"]
    assert popi("signals", "list", "--kind", "profile", "--json").json == []
    assert len(popi("signals", "list", "--kind", "profile", "--user", "ann", "--json").json) == 3
    empty = popi("signals", "list", "--user", "nobody")
    assert (empty.code, empty.out) == (0, "")


def test_a_listed_text_is_one_short_line_that_no_terminal_obeys(popi: Any) -> None:
    popi("record", "statement", "a\x1b[31m\nb\r\u202e " + "long " * 100)
    (line,) = popi("signals", "list").out.splitlines()
    assert line.isprintable() and len(line) < 150 and line.endswith("…")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["record", "statement", " "], ["text is empty"]),
        (["record", "statement", "a", "--at", "today"], ["at"]),
        (["record", "statement", "a", "--user", ""], ["user"]),
        (["record", "rating", "--prompt", "a", "--response", "b", "--score", "2"], ["score"]),
        (["record", "rating", "--prompt", "a", "--response", "b", "--score", "nan"], ["score"]),
        (["record", "conversation", "--message", "robot", "hi"], ["robot"]),
        (["record", "conversation", "--message", "assistant", "hi"], ["user"]),
        (["record", "statement", "a\udcffb"], ["not valid Unicode"]),
        (["signals", "show", "nope"], ["nope"]),
        (["signals", "delete", "nope"], ["nope", "nothing was deleted"]),
        (["signals", "purge"], ["nothing was deleted", "--yes"]),
        (["signals", "export", "/no/such/folder/x"], ["/no/such/folder/x"]),
        (["import", "/no/such/file"], ["/no/such/file", "No such file"]),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_1(popi: Any, args: list[str], words: list[str]) -> None:
    refused(popi(*args), *words)


@pytest.mark.parametrize(
    "args",
    [
        ["record"],
        ["record", "opinion", "x"],
        ["record", "comparison", "--prompt", "a"],
        ["record", "rating", "--prompt", "a", "--response", "b", "--score", "much"],
        ["signals", "list", "--kind", "opinion"],
        ["signals", "list", "--limit", "-1"],
        ["signals", "delete"],
        ["import"],
        ["import", "x", "--format", "csv"],
    ],
)
def test_wrong_usage_is_exit_2(popi: Any, args: list[str]) -> None:
    result = popi(*args)
    assert result.code == 2 and "Traceback" not in result.err


def test_delete_takes_the_signals_and_the_summaries_made_from_them(popi: Any, home: Path) -> None:
    ids = [popi("record", "statement", t, "--json").json["signal"]["id"] for t in ("zebra", "b", "c")]
    with Store.open(home / "popi.db") as store:
        store.add_summary(
            text="Likes okapis.", tokens=3, status="approved", model="m", contract=1, signal_ids=[ids[0], ids[1]]
        )
    done = popi("signals", "delete", ids[0], ids[2], "--json").json
    assert done == {"signals": 2, "summaries": 1, "scrubbed": True, "sent_erased": 0, "sent_kept": 0}
    assert [s["text"] for s in popi("signals", "list", "--json").json] == ["b"]
    on_disk = b"".join(f.read_bytes() for f in home.glob("popi.db*"))
    assert b"zebra" not in on_disk and b"okapis" not in on_disk


def test_purge_asks_and_takes_one_user_only(home: Path, popi: Any) -> None:
    popi("record", "statement", "a")
    popi("record", "statement", "b", "--user", "ann")
    command = [*POPI, "signals", "purge", "--home", str(home)]
    no = subprocess.run(command, input="n\n", capture_output=True, text=True)
    assert no.returncode == 1 and "nothing was deleted" in no.stderr and not no.stdout
    assert len(popi("signals", "list", "--json").json) == 1
    yes = subprocess.run(command, input="y\n", capture_output=True, text=True)
    assert yes.returncode == 0 and "deleted 1 signals" in yes.stdout
    assert popi("signals", "list", "--json").json == []
    assert popi("signals", "purge", "--user", "ann", "--yes", "--json").json["signals"] == 1


SECRET = b"Likes okapis and quiet."


@pytest.fixture
def sent(home: Path, popi: Any) -> tuple[str, str]:
    """A signal, a summary made from it, a request that went out with that (for me), and one for ann; the two ids."""
    signal = popi("record", "statement", "zebra", "--json").json["signal"]["id"]
    popi("record", "statement", "other", "--user", "ann")
    with Store.open(home / "popi.db") as store:
        row = store.add_summary(
            text=SECRET.decode(), tokens=3, status="approved", model="m", contract=1, signal_ids=[signal]
        )
        log = EgressLog(store)
        first = log.request("c", "d", {}, SECRET + b" Hi", user="me", summary_id=row.id, summary_version=1)
        log.outcome(first, status="ok")
        log.request("c", "d", {}, b"what ann asked", user="ann", summary_version=None)
    return signal, first


def on_disk(home: Path) -> bytes:
    return b"".join(f.read_bytes() for f in home.rglob("*") if f.is_file())


def test_purge_erases_what_was_sent_and_the_chain_holds(popi: Any, home: Path, sent: tuple[str, str]) -> None:
    done = popi("signals", "purge", "--yes")
    assert done.out == "deleted 1 signals and 1 summaries of me; erased the bodies of 1 sent requests\n"
    assert not done.err
    assert SECRET not in on_disk(home) and b"what ann asked" in on_disk(home)
    assert popi("egress", "verify", "--json").json["records"] == 4
    shown = popi("egress", "show", sent[1], "--json").json
    assert (shown["body"], shown["body_bytes"], shown["user"]) == (None, len(SECRET) + 3, "me")
    assert popi("signals", "purge", "--yes", "--json").json["sent_erased"] == 0


def test_purge_may_keep_what_was_sent_and_says_so(popi: Any, home: Path, sent: tuple[str, str]) -> None:
    done = popi("signals", "purge", "--yes", "--keep-sent", "--json")
    assert (done.json["sent_kept"], done.json["sent_erased"]) == (1, 0)
    assert done.err == (
        "1 sent requests keep such summaries in the egress log; to erase them: popi egress erase --user me\n"
    )
    assert SECRET in on_disk(home)
    assert popi("egress", "erase", "--user", "me", "--yes").code == 0
    assert SECRET not in on_disk(home)


def test_delete_says_which_requests_keep_a_summary_and_can_erase_them(
    popi: Any, home: Path, sent: tuple[str, str]
) -> None:
    signal, request = sent
    refused(popi("signals", "delete", signal, "nope", "--erase-sent"), "nope")
    assert SECRET in on_disk(home) and popi("signals", "show", signal).code == 0
    done = popi("signals", "delete", signal)
    assert done.code == 0 and f"popi egress erase {request}" in done.err and SECRET in on_disk(home)
    again = popi("record", "statement", "more", "--json").json["signal"]["id"]
    assert popi("signals", "delete", again).err == ""  # that one was in no summary that was sent
    assert popi("egress", "erase", request, "--yes").code == 0
    assert SECRET not in on_disk(home)


def test_delete_with_erase_sent_leaves_nothing(popi: Any, home: Path, sent: tuple[str, str]) -> None:
    done = popi("signals", "delete", sent[0], "--erase-sent", "--json").json
    assert (done["sent_erased"], done["sent_kept"]) == (1, 0)
    assert SECRET not in on_disk(home) and b"what ann asked" in on_disk(home)
    assert popi("egress", "verify").code == 0


def test_a_damaged_record_stops_erasing_and_nothing_is_lost(popi: Any, home: Path, sent: tuple[str, str]) -> None:
    with Store.open(home / "popi.db") as store:
        store.conn.execute("UPDATE egress SET meta = 'x' WHERE seq = 3")
    refused(popi("signals", "purge", "--yes"), "is damaged", "popi egress verify")
    assert popi("signals", "list", "--json").json and SECRET in on_disk(home)
    assert popi("signals", "purge", "--yes", "--keep-sent").code == 0
    assert popi("signals", "list", "--json").json == []


def test_export_and_import_are_inverse_and_export_never_overwrites_unasked(popi: Any, tmp_path: Path) -> None:
    for kind, options in RECORDS.items():
        popi("record", kind, *options)
    before = popi("signals", "list", "--json").json
    file = tmp_path / "mine.jsonl"
    assert popi("signals", "export", str(file), "--json").json == {"file": str(file), "signals": 7}
    whole = file.read_bytes()
    assert popi("signals", "export").out.encode() == whole
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    refused(popi("signals", "export", str(file)), "--force")
    assert file.read_bytes() == whole and [f.name for f in tmp_path.iterdir() if f.is_file()] == ["mine.jsonl"]
    assert popi("signals", "export", str(file), "--force").code == 0
    popi("signals", "purge", "--yes")
    done = popi("import", str(file), "--json").json
    assert done == {
        "format": "jsonl", "read": 7, "added": 7, "duplicates": 0, "skipped": {}, "users": 1, "errors": [],
        "error_count": 0,
    }  # fmt: skip
    assert popi("signals", "list", "--json").json == before
    assert popi("import", str(file), "--json").json["duplicates"] == 7


def test_import_names_bad_lines_on_stderr_and_takes_the_good_ones(popi: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"kind": "statement", "text": "tea"}\n{"kind": "statement", "text": 3}\n' + "oops\n" * 30)
    result = popi("import", str(file), "--json")
    told = json.loads(result.out)
    assert result.code == 1 and "popi: x.jsonl: 31 lines are wrong (left out; everything else is kept)" in result.err
    assert told["added"] == 1 and told["error_count"] == 31 and len(told["errors"]) == 20
    first = told["errors"][0]
    assert (first["line"], first["field"]) == (2, "text")
    assert "x.jsonl, line 2: text must be text" in result.err and "11 more" in result.err
    assert "1 added" in popi("import", str(file), "--user", "ann").out


@pytest.mark.parametrize("data", ["", "oops\n", "[]", "\xff\xfe", '[{"prompt": "p"}]', "{" * 100_000])
def test_a_file_without_one_good_signal_is_exit_1(popi: Any, tmp_path: Path, data: str) -> None:
    file = tmp_path / "x"
    file.write_text(data)
    refused(popi("import", str(file)), "holds no signal")
    refused(popi("import", str(tmp_path)), str(tmp_path))


def test_a_locked_newer_or_damaged_database_is_one_clear_line(popi: Any, home: Path) -> None:
    popi("record", "statement", "a")
    with Store.open(home / "popi.db") as store:
        store.conn.execute("INSERT INTO _migrations VALUES (999, 'later', 'now')")
    refused(popi("signals", "list"), "newer popi-edge")
    (home / "popi.db").write_bytes(b"not a database " * 100)
    refused(popi("signals", "list"), "damaged")
    refused(popi("record", "statement", "b"), "damaged")


def test_a_closed_pipe_ends_export_without_a_traceback(home: Path, popi: Any) -> None:
    popi("record", "statement", "x")
    with Store.open(home / "popi.db") as store:
        store.add(Statement(f"{i} " + "x" * 500) for i in range(2000))
    command = [*POPI, "signals", "export", "--home", str(home)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.read(100)
    child.stdout.close()
    errors = child.stderr.read().decode()
    child.stderr.close()
    child.wait()
    assert "Traceback" not in errors
