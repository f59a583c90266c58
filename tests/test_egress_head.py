"""The egress log's head: what it shows, what it costs, and what a crash or a lost keyring does to it."""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keyring.backends.fail import Keyring as NoKeyring

from popi_edge.egress import EgressLog
from popi_edge.egress_chain import VerifyResult
from popi_edge.egress_head import KEYRING, SLOT, START, Head, HeadKeeper, Point
from popi_edge.errors import StoreError
from popi_edge.generators import deliver
from popi_edge.generators.openai import OpenAIGenerator
from popi_edge.guard import verdict
from popi_edge.prompts import generate_system
from popi_edge.seal import seal
from popi_edge.store import Store
from popi_edge.vocabulary import Lexicon
from tests import hostile_server as hostile
from tests.crash_egress import FUSE, Crash, Wired, WiredKeyring, crash_campaign, database, fused, rows
from tests.hostile_server import HostileServer
from tests.keyrings import FileKeyring, LockedKeyring, MemoryKeyring, in_use
from tests.tamper_egress import KINDS, campaign


@pytest.fixture
def ring() -> Iterator[MemoryKeyring]:
    with in_use(MemoryKeyring()) as found:
        yield found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "popi.db"


def send(log: EgressLog) -> str:
    return log.request("cloud", "https://api.example.org/v1", {}, b"{}", user="me", summary_version=1)


def verified(path: Path) -> VerifyResult:
    with Store.open(path) as store:
        return EgressLog(store).verify()


def three(path: Path) -> list[str]:
    with Store.open(path) as store:
        return [send(EgressLog(store)) for _ in range(3)]


def change(path: Path, sql: str, *values: Any) -> None:
    """What somebody does who has the database and not popi."""
    conn = sqlite3.connect(path)
    conn.execute(sql, values)
    conn.commit()
    conn.close()


# tampering and crashes --------------------------------------------------------------------------------------
def test_every_kind_of_tampering_is_found_and_located(tmp_path: Path) -> None:
    found = campaign(tmp_path, 6 * len(KINDS), seed=1)  # the thousand: python -m tests.tamper_egress
    assert (found.missed, found.misplaced, found.alarms) == ([], [], [])
    assert found.logs == found.located == 96 and len(found.kinds) == 16


def test_crashes_are_not_taken_for_tampering_and_lose_nothing(tmp_path: Path) -> None:
    found = crash_campaign(tmp_path, 60, seed=1)
    assert (found.lost, found.torn, found.alarms, found.unseen) == ([], [], [], [])
    assert len(found.points) > 8 and found.acknowledged > 20 and found.interrupted > 3


@pytest.mark.parametrize("what", ["request", "outcome", "erase"])
def test_a_crash_at_each_single_step_of_each_operation(tmp_path: Path, what: str) -> None:
    points = []
    for step in itertools.count(1):
        path = tmp_path / f"{step}.db"
        with in_use(WiredKeyring()) as ring:
            conn = database(str(path), Wired)
            log = EgressLog(conn, keeper=HeadKeeper(path))
            first = send(log)
            act: dict[str, Callable[[], Any]] = {
                "request": lambda log=log: send(log),
                "outcome": lambda log=log, first=first: log.outcome(first, status="ok"),
                "erase": lambda log=log, first=first: log.erase(first),
            }
            with fused(step):
                try:
                    act[what]()
                except Crash:
                    points.append(FUSE.blown)
                else:
                    break  # one step more than there are
            conn.close()
            conn = database(str(path), Wired)
            log = EgressLog(conn, keeper=HeadKeeper(path))
            written = len(rows(conn)) == 2
            assert written == ("after COMMIT" in points), points
            assert (log.get(first).body is None) == (written and what == "erase")
            (text,) = ring.kept.values()
            result = log.verify()
            assert result.ok and result.interrupted == (json.loads(text)["pending"] is not None), points
            assert not log.verify().interrupted
            conn.close()
    assert {"before COMMIT", "after COMMIT", "before the head (last)", "after the head (pending)"} <= set(points)


def test_the_phases_of_two_programs_in_any_order_leave_a_head_that_fits(path: Path, ring: MemoryKeyring) -> None:
    for order in itertools.permutations(["A1", "A2", "B1", "B2"]):
        if order.index("A1") > order.index("A2") or order.index("B1") > order.index("B2"):
            continue
        for gone in ((), ("A2",), ("B2",), ("A2", "B2")):  # these never come: the program ended
            path.unlink(missing_ok=True)
            ring.kept.clear()
            begun: dict[str, tuple[Head, Point]] = {}
            logs = {name: EgressLog(database(str(path)), keeper=HeadKeeper(path)) for name in "AB"}
            settle = {name: log._settle for name, log in logs.items()}
            for name, log in logs.items():
                log._settle = lambda *args, at=begun, name=name: at.update({name: args})  # type: ignore[method-assign]
            for step in order:
                if step in gone:
                    continue
                if step[1] == "1":
                    send(logs[step[0]])
                else:
                    settle[step[0]](*begun[step[0]])
            log = EgressLog(database(str(path)), keeper=HeadKeeper(path))
            result = log.verify()
            assert (result.ok, result.records) == (True, 2), (order, gone, result)
            log._conn.execute("DELETE FROM egress WHERE seq = 2")
            assert log.verify().number == 2, (order, gone)
            for each in (*logs.values(), log):
                each._conn.close()


@pytest.mark.parametrize("place", ["keyring", "file"])
def test_programs_that_write_at_once_leave_a_whole_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    Store.open(path).close()
    code = (
        "import sys\nfrom pathlib import Path\nfrom popi_edge.store import Store\n"
        "from popi_edge.egress import EgressLog\n"
        "with Store.open(Path(sys.argv[1]), timeout=60) as store:\n"
        "    log = EgressLog(store)\n"
        "    for n in range(8):\n"
        "        i = log.request('g', 'd', {}, str(n).encode(), user=sys.argv[2], summary_version=None)\n"
        "        log.outcome(i, status='ok')\n"
    )
    root = Path(__file__).resolve().parent.parent
    monkeypatch.setenv("POPI_TEST_KEYRING", str(path.with_name("keyring.json")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), *filter(None, sys.path)]))
    if place == "keyring":
        monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "tests.keyrings.FileKeyring")
    programs = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abc"]
    assert [p.wait() for p in programs] == [0, 0, 0]
    assert HeadKeeper(path).file.exists() == (place == "file")
    with in_use(FileKeyring()):
        result = verified(path)
        assert (result.ok, result.records, result.interrupted) == (True, 48, False)
        assert ("FileKeyring" in result.where) == (place == "keyring")
        change(path, "DELETE FROM egress WHERE seq = 48")
        assert verified(path).number == 48


# what it costs ----------------------------------------------------------------------------------------------
def test_the_keyring_is_asked_three_times_for_a_record_and_however_many_are_erased(
    path: Path, ring: MemoryKeyring
) -> None:
    with Store.open(path) as store:
        log = EgressLog(store)
        ids = [send(log)]
        assert ring.calls == ["get", "set", "get", "set"]  # the first time it is seen whether it keeps it
        for act, calls in (
            (lambda: ids.append(send(log)), ["get", "set", "set"]),
            (lambda: log.outcome(ids[0], status="ok"), ["get", "set", "set"]),
            (lambda: log.erase(*ids), ["get", "set", "set"]),
            (log.verify, ["get"]),
            (log.records, []),
            (lambda: log.get(ids[0]), []),
        ):
            ring.calls.clear()
            act()
            assert ring.calls == calls
    assert not HeadKeeper(path).file.exists()


# what is kept -----------------------------------------------------------------------------------------------
POINTS = st.builds(Point, st.integers(0, 2**62), st.binary(min_size=32, max_size=32).map(bytes.hex))


@settings(deadline=None)
@given(st.builds(Head, st.binary(min_size=32, max_size=32), st.integers(0, 2**62), POINTS, POINTS | st.none()))
def test_a_head_comes_back_as_it_was_and_fits_where_the_smallest_keyring_is(head: Head) -> None:
    text = head.to_text()
    assert Head.from_text(text) == head
    assert len(text) <= min(1280, SLOT - 30)
    assert "key" not in repr(head)


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
)


@settings(deadline=None)
@given(st.text() | st.binary().map(lambda b: b.decode("latin-1")) | JSON.map(json.dumps))
def test_anything_else_is_no_head(text: str) -> None:
    with pytest.raises(ValueError):
        Head.from_text(text)


def test_every_changed_character_of_a_head_is_seen() -> None:
    text = Head.new(Point(3, "ab" * 32)).to_text()
    for i, c in enumerate(text):
        with pytest.raises(ValueError):
            Head.from_text(text[:i] + ("1" if c != "1" else "2") + text[i + 1 :])
    for wrong in ("[" * 900, text * 2, text[:-1], "null", '{"key": 1}'):
        with pytest.raises(ValueError):
            Head.from_text(wrong)


def test_without_a_keyring_the_head_is_in_a_file_of_its_owner(path: Path) -> None:
    for number, none in enumerate((keyring.get_keyring(), NoKeyring(), LockedKeyring())):
        place = path.with_name(f"{number}.db")
        with in_use(none):
            three(place)
            file = HeadKeeper(place).file
            if os.name == "posix":
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                file.chmod(0o644)
            three(place)
            assert os.name != "posix" or stat.S_IMODE(file.stat().st_mode) == 0o600
            result = verified(place)
            assert (result.ok, result.head) == (True, "kept")
            assert str(file) in result.where and "mode 0600), not in a keyring" in result.where
            change(place, "DELETE FROM egress WHERE seq = 6")
            assert verified(place).number == 6
            with Store.open(place) as store, pytest.raises(StoreError, match="record 6 as the last, but it ends with"):
                send(EgressLog(store))


def test_a_head_in_the_file_stays_there_when_a_keyring_comes_and_one_in_the_keyring_wins(path: Path) -> None:
    three(path)
    with in_use(MemoryKeyring()) as ring:
        three(path)
        assert ring.kept == {} and verified(path).ok
    other = path.with_name("other.db")
    with in_use(MemoryKeyring()):
        three(other)
        HeadKeeper(other).file.write_bytes(HeadKeeper(path).file.read_bytes())
        assert verified(other).ok and "MemoryKeyring" in verified(other).where


@pytest.mark.parametrize("damage", ["", "x", "cut", "other slot", "both"])
def test_a_head_file_whose_writing_was_cut_off_is_the_head_before_it(path: Path, damage: str) -> None:
    three(path)
    file = HeadKeeper(path).file
    whole = file.read_bytes()
    assert len(whole) == 2 * SLOT
    last = max(range(2), key=lambda i: int(whole[i * SLOT : (i + 1) * SLOT].split()[0]))
    if damage in ("x", "both"):
        whole = whole[: last * SLOT + 90] + b"x" * 40 + whole[last * SLOT + 130 :]
    if damage in ("other slot", "both"):
        whole = whole[: (1 - last) * SLOT] + b"\0" * SLOT + whole[(2 - last) * SLOT :]
    if damage == "cut":
        whole = whole[:SLOT]
    file.write_bytes(whole)
    result = verified(path)
    if damage == "both":
        assert (result.ok, result.head, result.chain_holds) == (False, "damaged", True)
        return
    assert result.ok, result
    assert three(path) and verified(path).records == 6


def test_a_log_that_is_older_than_heads_gets_one_and_is_covered_from_there(path: Path, ring: MemoryKeyring) -> None:
    with Store.open(path) as store:
        for _ in range(3):
            send(EgressLog(store.conn))  # as it was: no head, no MACs
    result = verified(path)
    assert (result.ok, result.head) == (True, "new")
    three(path)
    assert (verified(path).ok, verified(path).head) == (True, "kept")
    change(path, "UPDATE egress SET mac = NULL")
    assert verified(path).number == 4
    change(path, "DELETE FROM egress")
    assert verified(path).number == 1


# when it is lost --------------------------------------------------------------------------------------------
def lose(ring: MemoryKeyring) -> None:
    ring.kept.clear()


def lock(ring: MemoryKeyring) -> None:
    keyring.set_keyring(LockedKeyring())


def damage(ring: MemoryKeyring) -> None:
    for name in ring.kept:
        ring.kept[name] = ring.kept[name][:-9] + "00000000}"


LOST = {"missing": lose, "unreachable": lock, "damaged": damage}


@pytest.mark.parametrize("state", LOST)
def test_a_lost_head_stops_sending_and_leaves_the_chain_to_verify(path: Path, ring: MemoryKeyring, state: str) -> None:
    ids = three(path)
    LOST[state](ring)
    result = verified(path)
    assert (result.ok, result.head, result.chain_holds, result.records) == (False, state, True, 3)
    with Store.open(path) as store, pytest.raises(StoreError, match=r"head .*nothing is written or sent"):
        send(EgressLog(store))
    assert not HeadKeeper(path).file.exists() and verified(path).records == 3
    change(path, "UPDATE egress SET body = x'00' WHERE seq = 2")
    result = verified(path)
    assert (result.first_bad, result.head) == (ids[1], state)


@pytest.mark.parametrize("state", LOST)
def test_a_person_can_begin_a_new_head_and_the_log_says_so(path: Path, ring: MemoryKeyring, state: str) -> None:
    three(path)
    LOST[state](ring)
    with Store.open(path) as store:
        log = EgressLog(store)
        why = log.unfit()
        anchor = log.get(log.anchor())
        assert (anchor.type, anchor.meta["why"], anchor.meta["expected"]) == ("anchor", why, None)
        assert why and log.unfit() == ""
        with pytest.raises(StoreError, match="nothing to begin anew"):
            log.anchor()
        send(log)
        result = log.verify()
        assert (result.ok, result.head, result.records, result.anchors) == (True, "kept", 5, (anchor.id,))
        log._conn.execute("DELETE FROM egress WHERE seq = 5")
        assert log.verify().number == 5


def test_after_a_known_cut_the_log_goes_on_and_remembers(path: Path, ring: MemoryKeyring) -> None:
    three(path)
    change(path, "DELETE FROM egress WHERE seq = 3")
    with Store.open(path) as store:
        log = EgressLog(store)
        assert log.get(log.anchor()).meta["expected"] == 3
        assert log.verify().ok and log.verify().records == 3
        log._conn.execute("UPDATE egress SET mac = ? WHERE seq = 1", ("0" * 64,))
        assert log.verify().number == 1  # the older records are still under the same key


def test_a_head_that_was_put_back_is_seen(path: Path, ring: MemoryKeyring) -> None:
    three(path)
    kept = dict(ring.kept)
    ids = three(path)
    ring.kept.update(kept)
    result = verified(path)
    assert (result.ok, result.first_bad, result.number) == (False, ids[0], 4)
    assert "older head" in result.why


def test_not_seen_where_there_is_no_keyring_a_whole_folder_that_was_put_back(path: Path) -> None:
    """Documented: the file is no protection from who can write to the folder."""
    three(path)
    head = HeadKeeper(path).file.read_bytes()
    three(path)
    change(path, "DELETE FROM egress WHERE seq > 3")
    assert not verified(path).ok
    HeadKeeper(path).file.write_bytes(head)
    assert verified(path).ok


def test_another_home_has_another_head(tmp_path: Path, ring: MemoryKeyring) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        three(tmp_path / name / "popi.db")
    assert len(ring.kept) == 2
    (tmp_path / "b").rename(tmp_path / "c")
    result = verified(tmp_path / "c" / "popi.db")
    assert (result.ok, result.head) == (False, "missing")


def test_an_emptied_or_deleted_database_is_seen(path: Path, ring: MemoryKeyring) -> None:
    three(path)
    path.unlink()
    result = verified(path)
    assert (result.ok, result.records, result.number, result.first_bad) == (False, 0, 1, None)
    assert "records 1 to 3 are missing" in result.why


# before the bytes -------------------------------------------------------------------------------------------
class FailingKeyring(MemoryKeyring):
    """Fails at the ``left``-th call."""

    left = 0

    def _call(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("with the head itself in the message")

    def get_password(self, service: str, username: str) -> str | None:
        self._call()
        return super().get_password(service, username)

    def set_password(self, service: str, username: str, password: str) -> None:
        self._call()
        super().set_password(service, username, password)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_nothing_goes_out_when_the_head_cannot_be_kept(path: Path, call: int) -> None:
    made = seal(None, [("user", "hi")], system=generate_system(None), verdict=verdict("", [], Lexicon.load()))
    with in_use(FailingKeyring()) as ring, Store.open(path) as store:
        log = EgressLog(store)
        send(log)
        with HostileServer(hostile.ok("yes")) as server:
            cloud = OpenAIGenerator(name="cloud", url=server.url, model="m")
            ring.left = call
            with pytest.raises(StoreError, match="head") as error:
                list(deliver(cloud, cloud.prepare(made), log, user="me"))
            assert "message" not in str(error.value) and server.received == []
            assert log.verify().ok
            list(deliver(cloud, cloud.prepare(made), log, user="me"))
            assert len(server.received) == 1
        result = log.verify()
        assert (result.ok, result.records) == (True, 3 + (call == 3))  # the third: written, and not sent


def test_a_record_that_vanishes_while_it_is_written_stops_the_request(path: Path, ring: MemoryKeyring) -> None:
    with Store.open(path) as store:
        log = EgressLog(store)
        send(log)
        settle = log._settle

        def cut_first(head: Head, end: Point) -> None:
            change(path, "DELETE FROM egress WHERE seq = 2")
            settle(head, end)

        log._settle = cut_first  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="changed while it was written"):
            send(log)


def test_a_random_log_in_the_keyring_and_one_in_the_file_are_told_apart_by_place_alone(path: Path) -> None:
    rng = random.Random(5)
    with in_use(MemoryKeyring()), Store.open(path) as store:
        keepers = [HeadKeeper(path), HeadKeeper(path, use_keyring=False)]
        for keeper in keepers:
            head = Head.new(START)
            assert keeper.read() is None
            keeper.write(head)
            for _ in range(20):
                head = head.at(Point(rng.randrange(99), rng.randbytes(32).hex()))
                keeper.write(head)
                assert keeper.read() == head
        assert store.path == path and [k.place for k in keepers] == [KEYRING, "file"]
