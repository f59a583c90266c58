"""The egress log: exact bytes, masked secrets, and a chain in which every change is named."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi_edge.egress import MASK, EgressLog, mask_headers
from popi_edge.errors import StoreError
from popi_edge.migrations import migrate
from popi_edge.store import Store

COLUMNS = ("id", "at", "meta", "salt", "body", "body_digest", "prev", "hash")
BODY = b'{"messages":[{"role":"system","content":"I like short answers."}]}'


def database() -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    migrate(conn, "memory")
    return conn


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    found = database()
    yield found
    found.close()


def send(log: EgressLog, body: bytes = BODY, **headers: str) -> str:
    return log.request("cloud", "https://api.example.org/v1", headers, body, user="me", summary_version=3)


def filled(conn: sqlite3.Connection) -> list[str]:
    """Two requests with their outcomes, one of them erased: five records. Returns all ids in their order."""
    log = EgressLog(conn)
    first = send(log)
    log.outcome(first, status="ok", http_status=200, reply="RAID is …")
    second = send(log, b"other bytes")
    log.outcome(second, status="failed", error="connection refused")
    log.erase(first)
    return [r.id for r in log.records()]


def rows(conn: sqlite3.Connection) -> list[tuple[object, ...]]:
    return conn.execute("SELECT * FROM egress ORDER BY seq").fetchall()


# what is kept -----------------------------------------------------------------------------------------------
@given(st.binary(max_size=3000))
def test_the_exact_bytes_come_back(body: bytes) -> None:
    conn = database()
    log = EgressLog(conn)
    record = log.get(send(log, body))
    assert record.body == body
    assert record.meta["body_bytes"] == len(body)
    assert log.verify().ok
    conn.close()


def test_a_request_says_who_sent_what_where(conn: sqlite3.Connection) -> None:
    log = EgressLog(conn)
    i = log.request(
        "cloud",
        "https://api.example.org/v1/chat/completions",
        {"Host": "api.example.org"},
        BODY,
        user="ann",
        summary_version=3,
        summary_id="s-1",
    )
    meta = log.get(i).meta
    assert (meta["type"], meta["generator"], meta["user"]) == ("request", "cloud", "ann")
    assert (meta["summary_id"], meta["summary_version"], meta["method"]) == ("s-1", 3, "POST")
    assert meta["destination"] == "https://api.example.org/v1/chat/completions"
    assert meta["headers"] == {"Host": "api.example.org"}
    assert log.get(i).at == meta["at"]


def test_the_hash_is_the_documented_one(conn: sqlite3.Connection) -> None:
    filled(conn)
    prev = bytes(32)
    for _seq, _id, _at, meta, salt, body, digest, kept_prev, kept_hash, _mac in rows(conn):
        if body is not None:
            assert hashlib.sha256(salt + body).hexdigest() == digest
        assert kept_prev == prev.hex()
        prev = hashlib.sha256(prev + meta.encode() + bytes.fromhex(digest)).digest()
        assert kept_hash == prev.hex()
        canonical = json.dumps(json.loads(meta), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert meta == canonical


def test_secrets_in_headers_are_masked_before_they_are_stored(tmp_path: Path) -> None:
    secret = "sk-THE-SECRET-0123456789"
    path = tmp_path / "popi.db"
    with Store.open(path) as store:
        headers = {
            "Authorization": f"Bearer {secret}",
            "x-api-key": secret,
            "Cookie": secret,
            "X-Auth-Token": secret,
            "Proxy-Authorization": secret,
            "Accept": "text/plain",
        }
        kept = EgressLog(store).get(send(EgressLog(store), **headers)).meta["headers"]
        assert kept == {**dict.fromkeys(headers, MASK), "Accept": "text/plain"}
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes()


def test_masking_leaves_harmless_headers() -> None:
    headers = {
        "Host": "a",
        "Content-Type": "b",
        "Content-Length": "3",
        "User-Agent": "c",
        "Accept-Encoding": "d",
    }
    assert mask_headers(headers) == headers


def test_the_text_of_a_reply_is_not_stored(tmp_path: Path) -> None:
    with Store.open(tmp_path / "popi.db") as store:
        log = EgressLog(store)
        i = send(log)
        log.outcome(i, status="ok", http_status=200, reply="a very particular reply", elapsed_ms=12)
        outcome = log.outcome_of(i)
    assert outcome is not None
    assert outcome.meta["reply_sha256"] == hashlib.sha256(b"a very particular reply").hexdigest()
    assert outcome.meta["request"] == i
    for file in tmp_path.iterdir():
        assert b"very particular" not in file.read_bytes()


def test_a_request_is_committed_before_it_is_answered(tmp_path: Path) -> None:
    with Store.open(tmp_path / "popi.db") as store, Store.open(tmp_path / "popi.db") as other:
        i = send(EgressLog(store))
        assert EgressLog(other).get(i).body == BODY
        assert EgressLog(other).outcome_of(i) is None


def test_nothing_is_recorded_inside_an_open_transaction(tmp_path: Path) -> None:
    with Store.open(tmp_path / "popi.db") as store:
        with store.transaction(), pytest.raises(StoreError, match="another transaction is open"):
            send(EgressLog(store, wait_s=0.01))
        assert EgressLog(store).records() == []


def test_several_programs_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "popi.db"
    Store.open(path).close()

    def write(body: bytes) -> list[str]:
        with Store.open(path) as store:
            return [send(EgressLog(store), body) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        ids = [i for found in pool.map(write, [b"a", b"b", b"c", b"d"]) for i in found]
    with Store.open(path) as store:
        result = EgressLog(store).verify()
        assert (result.ok, result.records) == (True, 80)
        assert {r.id for r in EgressLog(store).records()} == set(ids)


def test_several_threads_write_through_one_store(tmp_path: Path) -> None:
    with Store.open(tmp_path / "popi.db") as store:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: send(EgressLog(store), bytes([n])), range(40)))
        assert EgressLog(store).verify().records == 40
        assert EgressLog(store).verify().ok


# what is refused --------------------------------------------------------------------------------------------
def test_an_outcome_needs_its_request_and_there_is_one(conn: sqlite3.Connection) -> None:
    log = EgressLog(conn)
    with pytest.raises(StoreError, match="no egress request 'nobody'"):
        log.outcome("nobody", status="ok")
    i = send(log)
    o = log.outcome(i, status="ok")
    with pytest.raises(StoreError, match="already has an outcome"):
        log.outcome(i, status="failed")
    with pytest.raises(StoreError, match="no egress request"):
        log.outcome(o, status="ok")
    assert len(log.records()) == 2


def test_a_user_that_is_not_unicode_is_one_line_and_nothing_is_written(conn: sqlite3.Connection) -> None:
    log = EgressLog(conn)
    with pytest.raises(StoreError, match="cannot be written"):
        log.request("g", "d", {}, b"", user="\ud800", summary_version=None)
    assert log.records() == []
    assert not conn.in_transaction


def test_a_locked_database_is_one_line(tmp_path: Path) -> None:
    with Store.open(tmp_path / "popi.db") as store, Store.open(tmp_path / "popi.db", timeout=0.05) as other:
        with store.transaction(), pytest.raises(StoreError, match="locked"):
            send(EgressLog(other))
        assert EgressLog(other).verify().ok


def test_a_record_is_found_by_the_start_of_its_id(conn: sqlite3.Connection) -> None:
    log = EgressLog(conn)
    ids = [send(log) for _ in range(3)]
    assert log.get(ids[1][:-2] + ids[1][-2:]).id == ids[1]
    with pytest.raises(StoreError, match="several"):
        log.get(ids[0][:2])
    for wrong in ("", "%", "zzz"):
        with pytest.raises(StoreError, match="no egress record"):
            log.get(wrong)


def test_the_last_records_in_their_order(conn: sqlite3.Connection) -> None:
    log = EgressLog(conn)
    ids = [send(log) for _ in range(5)]
    assert [r.id for r in log.records(2)] == ids[3:]
    assert [r.id for r in log.records()] == ids
    assert ids == sorted(ids)


# the chain --------------------------------------------------------------------------------------------------
def test_an_untouched_log_verifies(conn: sqlite3.Connection) -> None:
    assert EgressLog(conn).verify().ok
    ids = filled(conn)
    result = EgressLog(conn).verify()
    assert (result.ok, result.records, result.first_bad) == (True, len(ids), None)


@pytest.mark.parametrize("column", COLUMNS)
def test_any_flipped_bit_is_named(conn: sqlite3.Connection, column: str) -> None:
    filled(conn)
    cast = "CAST(? AS BLOB)" if column in ("salt", "body") else "CAST(? AS TEXT)"
    for seq in range(1, 6):
        select = f"SELECT CAST({column} AS BLOB) FROM egress WHERE seq = ?"
        original = conn.execute(select, (seq,)).fetchone()[0]
        for i in range(len(original or b"")):
            damaged = bytearray(original)
            damaged[i] ^= 1 << (i % 8)
            conn.execute(f"UPDATE egress SET {column} = {cast} WHERE seq = ?", (bytes(damaged), seq))
            result = EgressLog(conn).verify()
            name = conn.execute("SELECT CAST(id AS BLOB) FROM egress WHERE seq = ?", (seq,)).fetchone()[0]
            assert not result.ok, (seq, i)
            assert result.first_bad == name.decode("utf-8", "replace"), (seq, i, result)
            assert result.why
            conn.execute(f"UPDATE egress SET {column} = {cast} WHERE seq = ?", (original, seq))
    assert EgressLog(conn).verify().ok


def test_a_changed_place_is_named(conn: sqlite3.Connection) -> None:
    filled(conn)
    for seq in range(1, 6):
        for bit in (3, 10, 40):
            conn.execute("UPDATE egress SET seq = ? WHERE seq = ?", (seq ^ (1 << bit), seq))
            assert not EgressLog(conn).verify().ok, (seq, bit)
            conn.execute("UPDATE egress SET seq = ? WHERE seq = ?", (seq, seq ^ (1 << bit)))
    assert EgressLog(conn).verify().ok


@pytest.mark.parametrize("seq", [1, 2, 3, 4])
def test_a_removed_record_is_named_by_the_one_after_it(conn: sqlite3.Connection, seq: int) -> None:
    ids = filled(conn)
    conn.execute("DELETE FROM egress WHERE seq = ?", (seq,))
    result = EgressLog(conn).verify()
    assert (result.ok, result.first_bad) == (False, ids[seq])
    assert "removed, inserted or moved" in result.why


def test_exchanged_records_are_named(conn: sqlite3.Connection) -> None:
    ids = filled(conn)
    for a, b in ((2, -1), (3, 2), (-1, 3)):
        conn.execute("UPDATE egress SET seq = ? WHERE seq = ?", (b, a))
    assert EgressLog(conn).verify().first_bad == ids[2]


def test_an_inserted_record_is_named(conn: sqlite3.Connection) -> None:
    filled(conn)
    conn.execute("UPDATE egress SET seq = seq + 10 WHERE seq > 2")
    conn.execute(
        "INSERT INTO egress SELECT 3, 'forged', at, meta, salt, body, body_digest, prev, hash, mac "
        "FROM egress WHERE seq = 2"
    )
    assert EgressLog(conn).verify().first_bad == "forged"


def test_a_log_without_a_head_does_not_show_a_cut_tail(conn: sqlite3.Connection) -> None:
    filled(conn)
    conn.execute("DELETE FROM egress WHERE seq = 5")
    conn.execute("DELETE FROM egress WHERE seq = 4")
    result = EgressLog(conn).verify()
    assert not result.ok and "no record says that it was erased" in result.why  # the erased body gives it away
    conn.execute("DELETE FROM egress WHERE seq >= 1")
    assert EgressLog(conn).verify().ok


def test_a_column_of_another_type_is_named(conn: sqlite3.Connection) -> None:
    ids = filled(conn)
    for column, value in (("meta", b"{}"), ("hash", b"00"), ("salt", "text"), ("body", 5), ("id", b"x")):
        kept = conn.execute(f"SELECT {column} FROM egress WHERE seq = 3").fetchone()[0]
        conn.execute(f"UPDATE egress SET {column} = ? WHERE seq = 3", (value,))
        result = EgressLog(conn).verify()
        assert (result.ok, result.first_bad) == (False, "x" if column == "id" else ids[2]), column
        assert f"its {column} is of type" in result.why
        conn.execute(f"UPDATE egress SET {column} = ? WHERE seq = 3", (kept,))
    assert EgressLog(conn).verify().ok


def test_bytes_cannot_move_between_salt_and_body(conn: sqlite3.Connection) -> None:
    ids = filled(conn)
    conn.execute("UPDATE egress SET body = substr(salt, 9) || body, salt = substr(salt, 1, 8) WHERE seq = 3")
    conn.execute("UPDATE egress SET body = CAST(body AS BLOB), salt = CAST(salt AS BLOB) WHERE seq = 3")
    assert EgressLog(conn).verify().first_bad == ids[2]


def test_a_damaged_record_is_one_line_when_read(conn: sqlite3.Connection) -> None:
    ids = filled(conn)
    conn.execute("UPDATE egress SET meta = 'not json' WHERE seq = 3")
    with pytest.raises(StoreError, match="is damaged; see: popi egress verify"):
        EgressLog(conn).get(ids[2])
    conn.execute("UPDATE egress SET meta = CAST(x'ff' AS TEXT) WHERE seq = 3")
    with pytest.raises(StoreError):
        EgressLog(conn).records()


# erasing ----------------------------------------------------------------------------------------------------
def test_an_erased_body_is_gone_and_the_chain_holds(tmp_path: Path) -> None:
    with Store.open(tmp_path / "popi.db") as store:
        log = EgressLog(store)
        i = send(log, b"a body that should go" * 500)
        log.outcome(i, status="ok", reply="x")
        send(log)
        tombstone = log.get(log.erase(i)[0])
        assert log.get(i).body is None
        assert log.get(i).to_json()["body"] is None
        assert (tombstone.type, tombstone.meta["request"]) == ("erase", i)
        assert log.verify().ok
        assert store.conn.execute("SELECT salt FROM egress WHERE id = ?", (i,)).fetchone()[0] == b""
        send(log)
        assert log.verify().ok
        with pytest.raises(StoreError, match="erased already"):
            log.erase(i)
        with pytest.raises(StoreError, match="no egress request"):
            log.erase(tombstone.id)
        store.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert b"a body that should go" not in (tmp_path / "popi.db").read_bytes()


def test_a_body_taken_away_without_a_record_of_it_is_named(conn: sqlite3.Connection) -> None:
    ids = filled(conn)
    conn.execute("UPDATE egress SET body = NULL, salt = x'' WHERE seq = 3")
    result = EgressLog(conn).verify()
    assert (result.ok, result.first_bad) == (False, ids[2])
    assert "no record says that it was erased" in result.why
