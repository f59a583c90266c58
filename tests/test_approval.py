"""What the person decides: approval and taking it back, older versions, overruling, and what a preview shows."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import popi_edge as popi
from popi_edge.cli import main
from popi_edge.diff import changes, marked
from popi_edge.errors import ConfigError, GuardBlocked, NotApproved, PopiError, StoreError
from popi_edge.generators import registry
from popi_edge.guard import check, verdict
from popi_edge.guard.overrule import Overruled, overrule, standing
from popi_edge.store import Store
from popi_edge.vocabulary import Lexicon
from tests import hostile_server as hostile
from tests.hostile_server import HostileServer

LEXICON = Lexicon.load()
SECRET = "garden window bottle engine guitar kitchen travel onion"
"""Ordinary words that are nobody's taste in replies: a verbatim run of them is an overlap."""


@pytest.fixture
def me(tiny: tuple[Path, Any], tmp_path: Path) -> Iterator[popi.Popi]:
    with popi.Popi.open(home=tmp_path / "home", model=str(tiny[0]), threads="1") as me:
        registry.add(me.settings.home, registry.Entry(name="cloud", url="http://127.0.0.1:9/v1", model="m"))
        yield me


def draft(me: popi.Popi, text: str, *signals: popi.Statement) -> int:
    """A draft of these signals, as a model would have written it."""
    me.store.add(signals)
    row = me.store.add_summary(
        text=text, tokens=5, status="draft", model="m", contract=1, signal_ids=[s.id for s in signals]
    )
    return row.version


def leaving(me: popi.Popi) -> str | None:
    """The summary that a remote generator would get."""
    try:
        shown = me.preview("Hi", generator="cloud")
    except (NotApproved, GuardBlocked):
        return None
    assert shown.summary is not None and shown.summary.text in shown.request.body.decode()
    return shown.summary.text


def local(me: popi.Popi) -> str | None:
    shown = me.preview("Hi")
    return shown.summary.text if shown.summary else None


# revoking ---------------------------------------------------------------------------------------------------
def test_what_was_revoked_no_longer_leaves_and_neither_does_an_older_one(me: popi.Popi) -> None:
    draft(me, "Likes short answers.", popi.Statement("a"))
    me.approve()
    me.edit("Likes long answers.")
    assert leaving(me) == "Likes long answers."
    assert [s.version for s in me.revoke()] == [1, 2]
    assert leaving(me) is None and local(me) is None
    assert [(s.status, s.text) for s in me.history()] == [
        ("revoked", "Likes short answers."), ("revoked", "Likes long answers."),
    ]  # fmt: skip
    with pytest.raises(NotApproved, match="nothing to revoke"):
        me.revoke()
    assert me.approve(version=1).status == "approved" and leaving(me) == "Likes short answers."


def test_one_version_can_be_revoked_and_the_one_before_it_leaves_again(me: popi.Popi) -> None:
    draft(me, "Likes short answers.", popi.Statement("a"))
    me.approve()
    me.edit("Likes long answers.")
    me.revoke(version=2)
    assert leaving(me) == "Likes short answers."
    with pytest.raises(NotApproved, match="version 2 is revoked"):
        me.revoke(version=2)
    with pytest.raises(StoreError, match="no summary version 9"):
        me.revoke(version=9)
    with pytest.raises(StoreError, match="no summary yet"):
        me.revoke("ann", version=1)


def test_a_draft_from_before_what_was_revoked_is_hidden_and_a_later_one_is_not(me: popi.Popi) -> None:
    draft(me, "Likes short answers.", popi.Statement("a"))
    assert local(me) == "Likes short answers."
    me.edit("Likes long answers.")
    me.revoke()
    assert local(me) is None
    draft(me, "Likes plain words.", popi.Statement("b"))
    assert local(me) == "Likes plain words." and leaving(me) is None


def test_approving_approves_what_was_read_not_what_came_meanwhile(me: popi.Popi, monkeypatch: Any) -> None:
    draft(me, "Likes short answers.", popi.Statement("a"))
    read = me.check

    def slow(*args: Any, **options: Any) -> Any:
        draft(me, "Likes long answers.", popi.Statement("b"))  # another program's refresh
        return read(*args, **options)

    monkeypatch.setattr(me, "check", slow)
    assert me.approve().version == 1
    assert [s.status for s in me.history()] == ["approved", "draft"]


# rolling back -----------------------------------------------------------------------------------------------
def test_an_older_version_comes_back_as_a_new_one_with_its_approval_or_without(me: popi.Popi) -> None:
    signal = popi.Statement("a")
    draft(me, "Likes short answers.", signal)
    me.approve()
    draft(me, "Likes plain words.", popi.Statement("b"))
    me.edit("Likes long answers.")
    back = me.rollback(1)
    assert (back.version, back.text, back.status) == (4, "Likes short answers.", "approved")
    assert back.signal_ids == (signal.id,) and "version 1" in back.reason
    assert leaving(me) == "Likes short answers."
    assert me.rollback(2).status == "draft" and leaving(me) == "Likes short answers."
    assert me.rollback(3).status == "edited" and leaving(me) == "Likes long answers."
    me.revoke()
    assert me.rollback(1).status == "draft" and leaving(me) is None
    assert [s.version for s in me.history()] == list(range(1, 8))


def test_what_comes_back_is_guarded_anew(me: popi.Popi) -> None:
    me.add_words("Rust")
    draft(me, "Likes Rust.", popi.Statement("a"))
    draft(me, f"Likes {SECRET}.", popi.Statement("b"))
    me.approve(version=1)
    me.approve(version=2)
    draft(me, "Likes short answers.", popi.Statement("c"))
    me.remove_words("Rust")
    me.record(popi.Statement(f"My words are {SECRET}, keep them."))
    for version, why in ((1, "Rust"), (2, "in a row")):
        with pytest.raises(GuardBlocked, match=why):
            me.rollback(version)
    assert len(me.history()) == 3 and leaving(me) is None  # approved, but what may not leave does not


def test_there_is_no_way_back_to_what_is_not_there(me: popi.Popi) -> None:
    gone = popi.Statement("a")
    draft(me, "Likes short answers.", gone)
    me.store.add_summary(text="", tokens=0, status="insufficient", model="m", contract=1, signal_ids=[])
    me.store.delete([gone.id])
    for version, why in ((1, "stale"), (2, "insufficient"), (3, "no summary version 3"), (-1, "no summary version")):
        with pytest.raises(StoreError, match=why):
            me.rollback(version)
    draft(me, "Likes plain words.", popi.Statement("b"))
    with pytest.raises(StoreError, match="newest already"):
        me.rollback(3)
    with pytest.raises(StoreError, match="version 1 is erased"):
        me.diff(1, 3)
    assert me.diff(2, 3).old.status == "insufficient"


@pytest.mark.parametrize("seed", range(6))
def test_no_sequence_of_decisions_brings_a_deleted_signals_text_back(me: popi.Popi, seed: int) -> None:
    """Drafts, edits, approvals, revocations, rollbacks, diffs and deletions in any order; what the rules say, a plain
    list of (text, signals) keeps count of."""
    rng = random.Random(seed)
    words = sorted(w for w in LEXICON.inside if w.isascii() and w.islower() and 6 < len(w) < 12)
    alive: dict[str, popi.Statement] = {}
    made: list[tuple[str, tuple[str, ...]]] = []
    dead: set[str] = set()
    for step in range(60):
        deed = rng.choice(["draft", "draft", "edit", "approve", "revoke", "rollback", "rollback", "diff", "delete"])
        last = made[-1] if made else None
        try:
            if deed == "draft":
                signal = popi.Statement(f"said {step}")
                text = " ".join(rng.sample(words, 4)).capitalize() + "."
                more = [*rng.sample(sorted(alive), min(len(alive), 1))]
                me.store.add([signal])
                ids = (*more, signal.id)
                me.store.add_summary(text=text, tokens=1, status="draft", model="m", contract=1, signal_ids=ids)
                alive[signal.id] = signal
                made.append((text, ids))
            elif deed == "edit":
                text = " ".join(rng.sample(words, 4)).capitalize() + "."
                me.edit(text)
                made.append((text, last[1] if last and last[0] not in dead else ()))
            elif deed == "delete" and alive:
                id = rng.choice(sorted(alive))
                me.store.delete([id])
                del alive[id]
                dead |= {text for text, ids in made if id in ids}
            elif deed == "rollback" and made:
                version = rng.randint(1, len(made))
                me.rollback(version)
                made.append(made[version - 1])
            elif deed == "diff" and made:
                shown = me.diff(rng.randint(1, len(made)), rng.randint(1, len(made)))
                assert not any(c.old in dead or c.new in dead for c in shown.changes if c.op == "equal")
            elif deed == "approve":
                me.approve()
            elif deed == "revoke":
                me.revoke(version=rng.choice([None, rng.randint(1, len(made) or 1)]))
        except (StoreError, NotApproved) as e:
            assert deed != "draft", e
        history = me.history()
        assert [s.text for s in history] == ["" if text in dead else text for text, _ in made]
        assert all((s.status == "stale") == (text in dead) for s, (text, _) in zip(history, made, strict=True))
        approved = [s for s in history if s.status in ("approved", "edited")]
        assert leaving(me) == (approved[-1].text if approved else None)
    assert dead or seed
    disk = b"".join(f.read_bytes() for f in me.settings.home.glob("popi.db*"))
    assert not [text for text in dead if text.encode() in disk]


# the difference ---------------------------------------------------------------------------------------------
@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_a_difference_holds_both_texts_whole(old: str, new: str) -> None:
    found = changes(old, new)
    assert "".join(c.old for c in found) == old and "".join(c.new for c in found) == new
    for c in found:
        kinds = {"equal": c.old == c.new, "insert": not c.old, "delete": not c.new, "replace": bool(c.old and c.new)}
        assert kinds[c.op] and (c.old or c.new)


def test_a_difference_reads_word_by_word(me: popi.Popi) -> None:
    found = changes("Likes short answers, and jokes.", "Likes long, plain answers.")
    assert marked(found) == "Likes [-short-]{+long, plain+} answers[-, and jokes-]."
    together = changes("Likes plain words, short.", "Likes long dry answers, short.")
    assert marked(together) == "Likes [-plain words-]{+long dry answers+}, short."
    draft(me, "Likes short answers.", popi.Statement("a"))
    with pytest.raises(StoreError, match="none before it"):
        me.diff()
    draft(me, "Likes long answers.", popi.Statement("b"))
    draft(me, "Likes plain words.", popi.Statement("c"))
    assert (me.diff().old.version, me.diff().new.version) == (2, 3)
    assert marked(me.diff(1, 2).changes) == "Likes [-short-]{+long+} answers."
    assert marked(me.diff(2, 1).changes) == "Likes [-long-]{+short+} answers."
    with pytest.raises(StoreError, match="no summary version 9"):
        me.diff(1, 9)


# overruling -------------------------------------------------------------------------------------------------
def test_without_overruling_it_blocks_and_with_it_the_version_says_so(me: popi.Popi) -> None:
    text = "Likes Rust since 1980."
    with pytest.raises(GuardBlocked, match="Rust"):
        me.edit(text)
    with pytest.raises(GuardBlocked, match="1980"):
        me.edit(text, overrule=("Rust",))
    assert me.history() == []
    made = me.edit(text, overrule=("Rust", "1980"))
    assert {(o.rule, o.text) for o in made.overruled} == {("lexicon", "Rust"), ("lexicon", "1980"), ("number", "1980")}
    assert all(text[o.start : o.end] == o.text for o in made.overruled)
    assert me.summary() == me.history()[0] == made
    assert leaving(me) == text and me.own_words() == ()
    me.revoke()
    assert me.approve().overruled == made.overruled and leaving(me) == text
    with pytest.raises(GuardBlocked, match="Rust"):
        me.edit("Likes Rust.")  # another text, another decision
    me.edit("Likes short answers.")
    assert me.rollback(1).overruled == made.overruled and leaving(me) == text


def test_a_run_of_a_signals_words_is_overruled_word_by_word_and_goes_with_the_signal(me: popi.Popi) -> None:
    signal = popi.Statement(f"My words are {SECRET}, keep them.")
    me.record(signal, popi.Statement("I like short answers."))
    text = f"Likes {SECRET}."
    with pytest.raises(GuardBlocked, match=signal.id):
        me.edit(text, overrule=(SECRET.rsplit(" ", 1)[0],))  # one word short
    made = me.edit(text, overrule=tuple(SECRET.split()))
    assert [(o.rule, o.text, o.signal_id) for o in made.overruled] == [("overlap", SECRET, signal.id)]
    assert leaving(me) == text
    me.rollback(me.edit("Likes plain words.").version - 1)
    me.store.delete([signal.id])
    assert [(s.status, s.text, s.overruled) for s in me.history()] == [("stale", "", ())] * 3
    assert leaving(me) is None and local(me) is None
    disk = b"".join(f.read_bytes() for f in me.settings.home.glob("popi.db*"))
    assert SECRET.encode() not in disk


def test_what_comes_up_later_is_not_overruled(me: popi.Popi) -> None:
    words = SECRET.split()
    me.record(popi.Statement("Say " + " ".join(words[:6])))
    me.edit(f"Likes {SECRET}.", overrule=tuple(words[:6]))
    assert leaving(me)
    me.record(popi.Statement("And " + " ".join(words[1:7])))  # a run that goes further than the one overruled
    assert leaving(me) is None
    with pytest.raises(GuardBlocked):
        me.preview("Hi", generator="cloud")


def test_a_word_that_nothing_was_found_in_cannot_be_overruled(me: popi.Popi) -> None:
    with pytest.raises(ConfigError, match="Rsut"):
        me.edit("Likes Rust.", overrule=("Rsut",))
    with pytest.raises(ConfigError, match="short"):
        me.edit("Likes short answers.", overrule=("short",))
    assert me.history() == []


def test_a_rule_that_failed_cannot_be_overruled() -> None:
    def broken() -> Iterator[tuple[str, str]]:
        yield "a", "fine"
        raise OSError("gone")

    text = "Likes short answers."
    found = check(text, broken(), LEXICON)
    assert [f.failed for f in found] == [True]
    with pytest.raises(ConfigError, match="nothing to overrule"):
        overrule(text, found, text.split())
    everything = Overruled("overlap", 0, len(text), text)
    assert standing(text, found, [everything]) == found
    assert not verdict(text, broken(), LEXICON, overruled=[everything]).ok
    assert not verdict(None, [], LEXICON, overruled=[everything]).ok  # type: ignore[arg-type]


def test_an_overruling_holds_for_its_rule_its_place_and_its_text() -> None:
    text = "Likes Rust and Ruby."
    found = check(text, [], LEXICON)
    assert [f.excerpt for f in found] == ["Rust", "Ruby"]
    [rust] = overrule(text, found, ["Rust"])
    assert [f.excerpt for f in standing(text, found, [rust])] == ["Ruby"]
    moved = text.replace("Likes ", "Really likes ")
    assert len(standing(moved, check(moved, [], LEXICON), [rust])) == 2
    assert len(standing(text, found, [Overruled("number", rust.start, rust.end, rust.text)])) == 2
    assert len(standing(text, found, [Overruled("lexicon", 0, 0, "")])) == 2


# through the command line -----------------------------------------------------------------------------------
class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(me: popi.Popi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``popi ARGS`` in this process, on the same folder and tiny model as ``me``."""
    monkeypatch.setenv("POPI_HOME", str(me.settings.home))
    monkeypatch.setenv("POPI_MODEL", me.settings.model)
    monkeypatch.setenv("POPI_THREADS", "1")

    def call(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["popi", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return Result(int(e.value.code or 0), out.out, out.err)

    return call


def test_the_commands_say_what_was_done(me: popi.Popi, run: Run) -> None:
    draft(me, "Likes short answers.", popi.Statement("a"))
    me.approve()
    blocked = run("summary", "edit", "Likes Rust and Go 2.")
    assert blocked.code == 1 and "'Rust'" in blocked.err and "--overrule" in blocked.err
    made = run("summary", "edit", "Likes Rust.", "--overrule", "Rust", "--json").json
    assert made["overruled"] == [{"rule": "lexicon", "start": 6, "end": 10, "text": "Rust", "signal_id": None}]
    for command in ("show", "history"):
        assert "overruled: 'Rust' (lexicon)" in run("summary", command).out
    diff = run("summary", "diff")
    assert diff.out.splitlines()[0].startswith("version 1 (approved) → 2 (edited)")
    assert diff.out.splitlines()[1] == "Likes [-short answers-]{+Rust+}."
    told = run("summary", "diff", "1", "2", "--json").json
    assert "".join(c["new"] for c in told["changes"]) == "Likes Rust." and told["signals_added"] == []
    one = run("summary", "revoke", "--version", "2")
    assert one.out.splitlines() == [
        "revoked version 2", "version 1 is still approved, and is what would be sent: Likes short answers.",
    ]  # fmt: skip
    assert run("summary", "rollback", "1", "--json").json["status"] == "approved"
    rest = run("summary", "revoke", "--json").json
    assert [s["version"] for s in rest["revoked"]] == [1, 3] and rest["leaving"] is None
    run("summary", "approve")
    assert run("summary", "revoke").out.splitlines() == [
        "revoked version 3", "nothing is approved: no summary leaves until you approve one",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["summary", "revoke"], "nothing to revoke"),
        (["summary", "rollback", "1"], "no summary yet"),
        (["summary", "diff"], "no summary yet"),
        (["summary", "explain"], "no summary yet"),
        (["summary", "edit", "Likes tea.", "--overrule", "tea"], "nothing to overrule"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, args: list[str], said: str) -> None:
    done = run(*args)
    assert done.code == 1 and not done.out and said in done.err.splitlines()[-1]


@pytest.mark.parametrize("args", [["rollback", "x"], ["diff", "1", "2", "3"], ["explain", "--calls", "3"]])
def test_wrong_usage_is_2(run: Run, args: list[str]) -> None:
    assert run("summary", *args).code == 2


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_preview_shows_the_bytes_that_go_out_and_sends_and_records_nothing(
    me: popi.Popi, run: Run, how: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_KEY", "sk-proj-0123456789")
    draft(me, "Likes short answers.", popi.Statement("a"))
    me.approve()
    with HostileServer(hostile.ok_stream("Fine.") if not how else hostile.ok("Fine.")) as server:
        entry = registry.Entry(name="mine", url=server.url, model="m", key_env="CLOUD_KEY")
        registry.add(me.settings.home, entry)
        ask = ["ask", 'Über "RAID" 1\n & more', "--generator", "mine"]
        before = (me.settings.home / "popi.db").read_bytes()
        shown = run(*ask, "--preview", *how)
        assert shown.code == 0 and server.received == [] and me.egress.records() == []
        assert (me.settings.home / "popi.db").read_bytes() == before
        assert "sk-proj" not in shown.out + shown.err
        assert run(*ask, *how).code == 0
        [sent] = server.received
    if how:
        assert shown.json["body"].encode() == sent.body
        assert shown.json["headers"] == sent.headers | {"Authorization": "***"}
    else:
        assert shown.out.encode().endswith(b"\n\n" + sent.body + b"\n")
        assert f"{len(sent.body)} bytes" in shown.out.splitlines()[0]
    assert me.egress.records(kind="request")[0].body == sent.body


def test_a_preview_that_may_not_be_sent_is_refused_like_the_request(me: popi.Popi, run: Run) -> None:
    draft(me, "Likes short answers.", popi.Statement("a"))
    for more in ([], ["--preview"]):
        done = run("ask", "Hi", "--generator", "cloud", *more)
        assert done.code == 1 and "popi summary approve" in done.err
    assert me.egress.records() == []


def test_history_says_where_each_version_was_sent_and_that_several_tell_more(me: popi.Popi, run: Run) -> None:
    """The model in this process is no such place; a request that failed may have arrived, so it counts."""
    draft(me, "Likes short answers.", popi.Statement("a"))
    me.ask("Hi")
    me.approve()
    with HostileServer(hostile.ok("Fine.")) as server:
        registry.add(me.settings.home, registry.Entry(name="mine", url=server.url, model="m"))
        me.ask("Hi", generator="mine")
        me.ask("Hi", generator="mine", personal=False)
        me.ask("Hi again", generator="mine")
        [place] = {r.meta["destination"] for r in me.egress.records(kind="request")} - {"in-process"}
        assert me.departures() == {1: {place: 2}} and me.departures("nobody") == {}
        assert run("summary", "history").out.splitlines()[2:] == [f"sent 2 times to {place}"]
        me.edit("Likes warm answers.")
        assert [r["sent"] for r in run("summary", "history", "--json").json] == [{place: 2}, {}]
        me.ask("Hi", generator="mine")
    with pytest.raises(PopiError):
        me.ask("Hi", generator="cloud")  # nobody answers there
    assert {k: sorted(v.values()) for k, v in me.departures().items()} == {1: [2], 2: [1, 1]}
    assert run("summary", "history").out.splitlines()[-1].startswith("2 versions were sent; together they tell more")
    me.store.conn.execute("UPDATE egress SET meta = 'broken' WHERE seq = 2")
    me.store.conn.commit()
    damaged = run("summary", "history")
    assert damaged.code == 0 and damaged.out.splitlines()[0] == "Likes short answers."
    assert damaged.out.splitlines()[-1].startswith("where they were sent cannot be told: egress record")
    assert [r["sent"] for r in run("summary", "history", "--json").json] == [None, None]


def test_a_popi_error_is_all_that_comes_out(me: popi.Popi) -> None:
    for call in (lambda: me.rollback(10**30), lambda: me.revoke(version=10**30), lambda: me.diff(10**30)):
        draft(me, "Likes short answers.", popi.Statement(str(random.random())))
        with pytest.raises(PopiError):
            call()


# the table --------------------------------------------------------------------------------------------------
def test_a_store_from_before_keeps_every_version(tmp_path: Path) -> None:
    import sqlite3

    from popi_edge.migrations import MIGRATIONS

    path = tmp_path / "popi.db"
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("CREATE TABLE _migrations (number INTEGER PRIMARY KEY, name TEXT, at TEXT)")
    for number, name, sql in MIGRATIONS[:3]:
        conn.executescript(sql)
        conn.execute("INSERT INTO _migrations VALUES (?, ?, 'then')", (number, name))
    conn.execute("INSERT INTO signals VALUES (1, 'a', 'me', 'statement', '2026-01-01T00:00:00.000Z', '', 'h', '{}')")
    states = ("draft", "approved", "edited", "insufficient", "stale")
    rows = [
        (f"id{i}", "me", i, f"zebra {s}", i, s, "why", "m", 1, '["a"]', "then", "later" if s == "approved" else None)
        for i, s in enumerate(states, 1)
    ]
    conn.executemany("INSERT INTO summaries VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", rows)
    conn.close()
    with Store.open(path) as store:
        found = [list(vars(r).values()) for r in store.summaries()]
        kept = [(*r[:9], json.dumps(r[9]), *r[10:12]) for r in found]
        assert kept == rows and all(r.overruled == () and r.revoked_at is None for r in store.summaries())
        assert [r.version for r in store.revoke()] == [2, 3]
        names = {n for (n,) in store.conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert "summaries_before" not in names
        assert store.delete(["a"]).summaries == 4
    assert b"zebra draft" not in b"".join(f.read_bytes() for f in tmp_path.glob("popi.db*"))
