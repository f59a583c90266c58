"""What the store promises: nothing half-written, nothing lost, nothing left of what was deleted."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popi_edge.database import explain
from popi_edge.errors import NotApproved, SignalError, StoreError
from popi_edge.migrations import LATEST, MIGRATIONS
from popi_edge.signals import Comparison, Profile, Rating, Statement
from popi_edge.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "popi.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def add_summary(store: Store, ids: list[str], **changes: Any) -> Any:
    fields = {"text": "Likes short replies.", "tokens": 4, "status": "draft", "model": "m", "contract": 1}
    return store.add_summary(signal_ids=ids, **(fields | changes))


def bytes_on_disk(path: Path) -> bytes:
    files = (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-journal"))
    return b"".join(f.read_bytes() for f in files if f.exists())


# signals ----------------------------------------------------------------------------------------------------


def test_signals_come_back_as_they_went_in_and_in_the_order_of_insertion(store: Store) -> None:
    late = Statement("tea", at="2031-01-01T00:00:00Z")
    early = Comparison("a", "b", "c", at="2001-01-01T00:00:00+02:00", source="x")
    assert store.add([late, early]).added == (late.id, early.id)
    assert [s.signal for s in store.signals()] == [late, early]
    assert store.get(early.id).signal == early
    assert store.get(early.id).seq > store.get(late.id).seq


def test_a_duplicate_is_the_same_user_kind_and_content_whatever_its_id_and_time(store: Store) -> None:
    store.add([Statement("tea")])
    again = store.add([Statement("tea", source="other"), Statement("tea", user="ann"), Profile("tea")])
    assert (len(again.added), again.duplicates) == (2, 1)
    assert store.add([Rating("p", "r", 1), Rating("p", "r", 1.0)]).duplicates == 1
    assert store.count() == 3 and store.count("ann") == 1 and store.users() == ["ann", "me"]


def test_an_id_that_belongs_to_another_signal_is_refused_and_its_whole_batch_with_it(store: Store) -> None:
    first = Statement("tea")
    store.add([first])
    with pytest.raises(SignalError, match=first.id) as e:
        store.add([Statement("coffee"), Statement("milk", id=first.id)])
    assert e.value.field == "id"
    assert [s.signal for s in store.signals()] == [first]
    lenient = store.add([Statement("coffee"), Statement("milk", id=first.id)], strict=False)
    assert lenient.conflicts == (1,) and len(lenient.added) == 1


def test_a_batch_whose_iterator_fails_leaves_nothing(store: Store) -> None:
    def broken() -> Iterator[Statement]:
        yield Statement("one")
        yield Statement(" ")

    with pytest.raises(SignalError):
        store.add(broken())
    assert store.count() == 0
    assert len(store.add([Statement("one")]).added) == 1


def test_limit_newest_kinds_and_pages_keep_the_order(store: Store) -> None:
    store.add([Statement(f"s{i}") if i % 2 else Profile(f"p{i}") for i in range(450)])
    texts = [s.signal.texts()[0] for s in store.signals()]
    assert texts == [s.signal.texts()[0] for s in store.each()] and len(texts) == 450
    assert [s.signal.texts()[0] for s in store.signals(limit=2)] == ["p0", "s1"]
    assert [s.signal.texts()[0] for s in store.signals(limit=2, newest=True)] == ["p448", "s449"]
    assert [s.signal.kind for s in store.signals(kinds=["profile"], limit=2)] == ["profile", "profile"]
    assert store.signals(kinds=[]) == [] == store.signals(limit=0)
    with pytest.raises(SignalError, match="opinion"):
        store.signals(kinds=["opinion"])
    with pytest.raises(StoreError, match="negative"):
        store.signals(limit=-1)


def test_a_place_in_the_order_is_never_given_twice(store: Store) -> None:
    last = Statement("b")
    store.add([Statement("a"), last])
    seq = store.get(last.id).seq
    store.delete([last.id])
    new = Statement("c")
    store.add([new])
    assert store.get(new.id).seq > seq


def test_a_text_of_a_megabyte_and_any_unicode_survive(store: Store) -> None:
    signal = Comparison("p" * 1_000_000, "🦜\u202e\x1b[31m\u2028", "é\n\r\t\"'; DROP TABLE signals; --")
    store.add([signal])
    assert store.get(signal.id).signal == signal


# deleting ---------------------------------------------------------------------------------------------------


def test_deleting_a_signal_erases_every_summary_made_from_it_and_no_other(store: Store) -> None:
    a, b = Statement("a"), Statement("b")
    store.add([a, b])
    for status in ("draft", "approved", "edited"):
        add_summary(store, [a.id, b.id], status=status)
    kept = add_summary(store, [b.id], status="approved", text="Likes b.")
    done = store.delete([a.id])
    assert (done.signals, done.summaries, done.scrubbed) == (1, 3, True)
    for row in store.summaries()[:3]:
        assert (row.text, row.tokens, row.status) == ("", 0, "stale")
    assert store.approved_summary() == kept
    store.delete([b.id])
    assert store.approved_summary() is None
    with pytest.raises(NotApproved, match="stale"):
        store.approve()


def test_deleting_an_unknown_id_names_it_and_deletes_nothing(store: Store) -> None:
    a = Statement("a")
    store.add([a])
    with pytest.raises(StoreError, match="nope"):
        store.delete([a.id, "nope"])
    assert store.count() == 1
    assert store.delete([]).signals == 0
    assert store.delete([a.id, a.id]).signals == 1


def test_purge_removes_one_user_and_leaves_the_others(store: Store) -> None:
    a, b = Statement("a"), Statement("b", user="ann")
    store.add([a, b])
    add_summary(store, [a.id])
    kept = add_summary(store, [b.id], user="ann")
    done = store.purge("me")
    assert (done.signals, done.summaries) == (1, 1)
    assert store.users() == ["ann"] and store.summaries("ann") == [kept]
    assert store.purge("nobody").signals == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_byte_of_a_deleted_text_is_left_in_the_database_or_its_log(path: Path, seed: int) -> None:
    """With these sizes and seeds SQLite's ``secure_delete`` alone leaves a copy behind, in a merged page."""
    rng = random.Random(seed)
    with Store.open(path) as store:
        signals = [Statement(f"term{i:03d}q" + "y" * rng.choice((0, 50, 300, 900))) for i in range(300)]
        store.add(signals)
        for i in range(0, 300, 20):
            add_summary(store, [signals[i].id], text=f"secret{i:03d}q")
        order = rng.sample(range(300), 250)
        for done in range(25, 251, 25):
            assert store.delete(signals[i].id for i in order[done - 25 : done]).scrubbed
            on_disk = bytes_on_disk(path)
            gone = order[:done]
            assert not [i for i in gone if f"term{i:03d}q".encode() in on_disk]
            assert not [i for i in gone if f"secret{i:03d}q".encode() in on_disk]
    on_disk = bytes_on_disk(path)
    kept = set(range(300)) - set(order)
    assert all(f"term{i:03d}q".encode() in on_disk for i in kept)
    assert all(f"secret{i:03d}q".encode() in on_disk for i in kept if i % 20 == 0)


def test_what_was_purged_is_not_on_the_disk_either(path: Path) -> None:
    with Store.open(path) as store:
        store.add([Statement(f"zebra{i} " + "x" * 500) for i in range(300)])
        store.add([Statement("giraffe", user="ann")])
        store.purge("me")
        assert b"zebra" not in bytes_on_disk(path) and b"giraffe" in bytes_on_disk(path)


def test_a_reader_in_the_way_puts_the_overwriting_off_until_the_next_open(path: Path) -> None:
    a = Statement("zebra " + "x" * 5000)
    with Store.open(path, timeout=0.05) as store:
        store.add([a, Statement("b")])
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM signals").fetchone()
        done = store.delete([a.id])
        assert (done.signals, done.scrubbed) == (1, False)
        with Store.open(path, timeout=0.05) as other:  # opening neither waits nor fails
            assert other.count() == 1
        reader.close()
        with Store.open(path):
            assert b"zebra" not in bytes_on_disk(path)


# summaries --------------------------------------------------------------------------------------------------


def test_summary_versions_count_up_for_each_user_and_approval_picks_the_newest(store: Store) -> None:
    a, b = Statement("a"), Statement("b", user="ann")
    store.add([a, b])
    one, two = add_summary(store, [a.id]), add_summary(store, [a.id])
    other = add_summary(store, [b.id], user="ann")
    assert (one.version, two.version, other.version) == (1, 2, 1)
    assert store.approved_summary() is None and store.latest_summary() == two
    assert store.approve(version=1).approved_at is not None
    approved = store.approved_summary()
    assert approved is not None and (approved.version, approved.status) == (1, "approved")
    assert store.approve().version == 2
    edited = add_summary(store, [a.id], status="edited")
    add_summary(store, [a.id])  # a later draft does not take the approval away
    assert store.approved_summary() == edited
    assert [r.version for r in store.summaries()] == [1, 2, 3, 4]


def test_only_a_draft_that_exists_can_be_approved(store: Store) -> None:
    a = Statement("a")
    store.add([a])
    with pytest.raises(StoreError, match="no summary yet"):
        store.approve()
    add_summary(store, [a.id], text="", tokens=0, status="insufficient")
    with pytest.raises(NotApproved, match="insufficient"):
        store.approve()
    with pytest.raises(StoreError, match="version 7"):
        store.approve(version=7)
    add_summary(store, [a.id])
    store.approve()
    with pytest.raises(NotApproved, match="approved"):
        store.approve()


def test_a_summary_of_a_signal_that_was_deleted_meanwhile_is_not_kept(store: Store) -> None:
    a, b = Statement("a"), Statement("b")
    store.add([a, b])
    store.delete([a.id])
    with pytest.raises(StoreError, match=a.id):
        add_summary(store, [b.id, a.id])
    with pytest.raises(StoreError, match=b.id):
        add_summary(store, [b.id], user="ann")
    assert store.summaries() == [] == store.summaries("ann")


@pytest.mark.parametrize("changes", [{"status": "stale"}, {"status": "nice"}, {"text": " "}])
def test_a_summary_that_makes_no_sense_is_refused(store: Store, changes: dict[str, Any]) -> None:
    with pytest.raises(StoreError):
        add_summary(store, [], **changes)
    assert store.latest_summary() is None


# the file ---------------------------------------------------------------------------------------------------


def test_the_modes_that_durability_and_deletion_rest_on(store: Store, path: Path) -> None:
    modes = {m: store.conn.execute(f"PRAGMA {m}").fetchone()[0] for m in
             ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "temp_store")}  # fmt: skip
    assert modes == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1, "temp_store": 2,
    }  # fmt: skip
    assert store.conn.isolation_level is None
    if os.name == "posix":
        store.add([Statement("a")])
        for name in ("popi.db", "popi.db-wal", "popi.db-shm"):
            assert path.with_name(name).stat().st_mode & 0o777 == 0o600


def test_a_database_that_others_could_read_is_closed_to_them(path: Path) -> None:
    Store.open(path).close()
    path.chmod(0o644)
    Store.open(path).close()
    assert os.name != "posix" or path.stat().st_mode & 0o777 == 0o600


def test_migrations_are_numbered_run_once_and_are_recorded(path: Path) -> None:
    Store.open(path).close()
    with Store.open(path) as store:
        rows = store.conn.execute("SELECT number, name FROM _migrations ORDER BY number").fetchall()
    assert rows == [(number, name) for number, name, _ in MIGRATIONS]
    assert [n for n, _, _ in MIGRATIONS] == list(range(1, LATEST + 1))


def test_a_database_from_a_newer_version_is_left_exactly_as_it_is(path: Path) -> None:
    with Store.open(path) as store:
        store.conn.execute("INSERT INTO _migrations VALUES (?, 'later', 'now')", (LATEST + 1,))
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer popi-edge"):
        Store.open(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_left_exactly_as_it_is(path: Path) -> None:
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE signals (mine TEXT)")
    conn.commit()
    conn.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_or_was_cut_or_overwritten_is_one_clear_error(path: Path) -> None:
    path.write_text("my shopping list, which is longer than the hundred bytes of a header: " + "milk, " * 40)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a popi database"):
        Store.open(path)
    assert path.read_bytes() == before
    path.unlink()
    with Store.open(path) as store:
        store.add([Statement(f"{i} " + "x" * 3000) for i in range(100)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"), Store.open(path) as store:
        store.signals()


def test_a_row_that_was_tampered_with_is_named_not_used(store: Store) -> None:
    a = Statement("a")
    store.add([a])
    for body in ("{", "[1]", '{"text": 3}', '{"text": "a", "more": 1}'):
        store.conn.execute("UPDATE signals SET body = ?", (body,))
        with pytest.raises(StoreError, match=a.id):
            store.signals()


def test_a_missing_folder_a_folder_and_a_closed_store_are_one_clear_error(tmp_path: Path, path: Path) -> None:
    for bad, words in ((tmp_path / "no" / "popi.db", "does not exist"), (tmp_path, "folder")):
        with pytest.raises(StoreError, match=words):
            Store.open(bad)
    with pytest.raises(StoreError):
        Store.open(Path("a\0b"))
    store = Store.open(path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.add([Statement("a")])


def test_a_locked_database_is_one_clear_error_and_works_again_afterwards(path: Path) -> None:
    with Store.open(path, timeout=0.05) as store, Store.open(path) as other:
        with other.transaction(), pytest.raises(StoreError, match="locked by another program"):
            store.add([Statement("a")])
        assert len(store.add([Statement("a")]).added) == 1
    exclusive = sqlite3.connect(path, isolation_level=None)
    exclusive.execute("PRAGMA locking_mode = EXCLUSIVE")
    exclusive.execute("BEGIN EXCLUSIVE")
    exclusive.execute("DELETE FROM egress")
    with pytest.raises(StoreError, match="locked by another program"):
        Store.open(path, timeout=0.05)
    exclusive.close()
    with Store.open(path) as store:
        assert store.count() == 1


def test_a_full_disk_half_way_leaves_all_of_before_and_nothing_of_after(store: Store) -> None:
    store.add([Statement("before")])
    pages = store.conn.execute("PRAGMA page_count").fetchone()[0]
    store.conn.execute(f"PRAGMA max_page_count = {pages + 20}").fetchone()  # SQLite's own disk-full error
    with pytest.raises(StoreError, match="disk is full"):
        store.add([Statement(f"{i} " + "x" * 3000) for i in range(100)])
    assert not store.conn.in_transaction
    assert [s.signal.texts() for s in store.signals()] == [["before"]]
    store.conn.execute("PRAGMA max_page_count = 1000000").fetchone()
    assert len(store.add([Statement("after")]).added) == 1


def test_an_io_error_where_the_disk_is_full_says_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says no more than I/O error where it cannot make the index of its log. The room on the disk is made up: a
    test cannot fill one."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_SHMSIZE"
    assert str(explain(error, tmp_path / "popi.db")).startswith("the disk failed (disk I/O error)")
    room = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    said = str(explain(error, tmp_path / "popi.db"))
    assert said.startswith("the disk is full") and said.endswith("nothing was changed") and "\n" not in said


def test_a_transaction_inside_another_joins_it_and_an_error_undoes_all(store: Store) -> None:
    class Stop(Exception):
        pass

    with pytest.raises(Stop), store.transaction():
        store.add([Statement("a")])
        with store.transaction():
            store.add([Statement("b")])
        raise Stop
    assert store.count() == 0


OPENER = """
import sys
from popi_edge.signals import Statement
from popi_edge.store import Store
for i in range(15):
    with Store.open(sys.argv[1]) as store:
        store.add([Statement(f"{sys.argv[2]} {i}"), Statement(f"shared {i}")])
"""


def test_processes_that_open_and_write_one_new_database_at_once_lose_nothing(path: Path) -> None:
    code = [sys.executable, "-c", OPENER, str(path)]
    children = [subprocess.Popen([*code, str(n)], stderr=subprocess.PIPE) for n in range(3)]
    errors = [child.communicate()[1].decode() for child in children]
    assert errors == ["", "", ""]
    with Store.open(path) as store:
        texts = sorted(s.signal.texts()[0] for s in store.signals())
    assert texts == sorted([f"{n} {i}" for n in range(3) for i in range(15)] + [f"shared {i}" for i in range(15)])


def test_threads_may_share_one_store(store: Store) -> None:
    def work(n: int) -> None:
        for i in range(20):
            store.add([Statement(f"{n} {i} a"), Statement(f"{n} {i} b")])
            store.signals(limit=3)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 160


TEXT = st.text(min_size=1, max_size=12).filter(lambda t: t.strip() and "\0" not in t)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["me", "ann"]), TEXT), max_size=12))
def test_any_texts_are_kept_once_each_and_exactly(store: Store, pairs: list[tuple[str, str]]) -> None:
    for user in ("me", "ann"):
        store.purge(user)
    done = store.add(Statement(text, user=user) for user, text in pairs)
    kept = [(s.signal.user, s.signal.texts()[0]) for user in ("me", "ann") for s in store.signals(user)]
    assert sorted(kept) == sorted(set(pairs))
    assert len(done.added) + done.duplicates == len(pairs)
    bodies = store.conn.execute("SELECT body FROM signals").fetchall()
    assert all(json.loads(body) for (body,) in bodies)
