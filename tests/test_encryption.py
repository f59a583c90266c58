"""The store at rest under SQLCipher: everything comes back, nothing shows, and what goes wrong is one line."""

from __future__ import annotations

import errno
import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popi_edge import convert, encryption
from popi_edge.database import KEYED, WORDED, claim
from popi_edge.egress import EgressLog
from popi_edge.errors import ConfigError, StoreError
from popi_edge.signals import Statement
from popi_edge.store import Store
from tests.crash_encryption import SECRET, WORDS, dump, fill, planted
from tests.keyrings import LockedKeyring, MemoryKeyring, in_use

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def ring() -> Iterator[MemoryKeyring]:
    with in_use(MemoryKeyring()) as ring:
        yield ring


@pytest.fixture
def path(tmp_path: Path, ring: MemoryKeyring) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    fill(home / "popi.db", 40)
    return home / "popi.db"


def keys(ring: MemoryKeyring) -> list[str]:
    return [name for _, name in ring.kept if name.startswith("store-key:")]


def test_every_row_of_every_table_comes_back_under_each_kind_of_key_and_nothing_planted_shows(
    path: Path, ring: MemoryKeyring
) -> None:
    whole = dump(path)
    assert all(whole[t] for t in ("signals", "summaries", "egress", "_migrations", "sqlite_sequence"))
    assert planted(path.parent) == ["popi.db"]  # so the search can find something
    convert.change(path, encryption.in_keyring())
    assert claim(path).start.startswith(KEYED) and len(keys(ring)) == 1
    assert dump(path) == whole and planted(path.parent) == []
    first = keys(ring)
    convert.change(path, encryption.in_keyring())
    assert len(keys(ring)) == 1 and keys(ring) != first
    assert dump(path) == whole and planted(path.parent) == []
    convert.change(path, encryption.from_passphrase(WORDS))
    assert claim(path).start.startswith(WORDED) and keys(ring) == []
    assert dump(path, WORDS) == whole and planted(path.parent) == []
    convert.change(path, None, WORDS)
    assert dump(path) == whole and path.read_bytes().startswith(b"SQLite format 3\0")
    assert [p.name for p in path.parent.iterdir()] == ["popi.db"] and path.stat().st_mode & 0o777 == 0o600


def test_an_encrypted_store_works_like_a_plain_one_and_writes_no_plaintext_anywhere(path: Path) -> None:
    convert.change(path, encryption.in_keyring())
    with Store.open(path) as store:
        a = Statement(f"new {SECRET}")
        assert store.add([a, a]).duplicates == 1
        modes = [store.conn.execute(f"PRAGMA {m}").fetchone()[0] for m in ("journal_mode", "secure_delete")]
        assert modes == ["wal", 1]
        assert planted(path.parent) == [] and {p.name for p in path.parent.iterdir()} == {
            "popi.db", "popi.db-wal", "popi.db-shm"}  # fmt: skip
        with pytest.raises(RuntimeError), store.transaction():
            store.add([Statement("undone")])
            raise RuntimeError
        assert [s.signal.texts() for s in store.signals(newest=True, limit=1)] == [[f"new {SECRET}"]]
        assert store.delete([a.id]).scrubbed
        assert EgressLog(store).verify().ok
        with pytest.raises(sqlite3.IntegrityError):  # sqlite3's own, whichever library runs
            store.conn.execute("INSERT INTO signals SELECT * FROM signals")
        for bad in ("SELECT nonsense", "nonsense"):
            with pytest.raises(sqlite3.OperationalError):
                store.conn.execute(bad)
    with pytest.raises(StoreError, match="is closed"):
        store.count()
    assert planted(path.parent) == [] and claim(path).start.startswith(KEYED)  # the mark outlives a VACUUM


def test_what_cannot_be_opened_is_one_line_and_stays_as_it_is(path: Path, ring: MemoryKeyring) -> None:
    convert.change(path, encryption.in_keyring())
    before, [name] = path.read_bytes(), keys(ring)
    secret = ring.kept["popi-edge", name]
    for wrong, said in (("0" * 64, "does not open"), ("nonsense", "damaged"), (None, "has no key")):
        if wrong is None:
            del ring.kept["popi-edge", name]
        else:
            ring.kept["popi-edge", name] = wrong
        with pytest.raises(StoreError, match=said):
            Store.open(path)
    with in_use(LockedKeyring()), pytest.raises(StoreError, match=r"cannot be used \(KeyringLocked"):
        Store.open(path)
    ring.kept["popi-edge", name] = secret
    convert.change(path, encryption.from_passphrase(WORDS))
    after = path.read_bytes()
    assert before != after
    for asked, said in ((None, "set POPI_PASSPHRASE"), ("wrong", "the passphrase does not open"), (lambda: "", "set")):
        with pytest.raises(StoreError, match=said):
            Store.open(path, passphrase=asked)
        with pytest.raises(StoreError, match=said):
            convert.change(path, None, asked)
    assert path.read_bytes() == after and [p.name for p in path.parent.iterdir()] == ["popi.db"]
    with Store.open(path, passphrase=lambda: WORDS) as store:
        assert store.count() > 10


@pytest.mark.parametrize("offset", [20, 4100, -40])
def test_a_damaged_page_is_one_line(path: Path, offset: int) -> None:
    convert.change(path, encryption.in_keyring())
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset > 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises((StoreError, sqlite3.DatabaseError), match=r"damaged|malformed"):
        dump(path)
    with pytest.raises(StoreError, match="damaged"):
        convert.change(path, None)
    assert [p.name for p in path.parent.iterdir()] == ["popi.db"]


def test_a_store_that_somebody_has_open_is_not_converted(path: Path, ring: MemoryKeyring) -> None:
    whole = dump(path)
    code = "import sys; from popi_edge.store import Store; s = Store.open(sys.argv[1]); s.count(); print(1, flush=True)"
    child = subprocess.Popen([sys.executable, "-c", f"{code}; input()", str(path)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, cwd=ROOT)  # fmt: skip
    assert child.stdout is not None and child.stdout.readline()
    with pytest.raises(StoreError, match="locked by another program"):
        convert.change(path, encryption.in_keyring(), timeout=0.05)
    child.communicate(b"\n")
    assert keys(ring) == [] and dump(path) == whole
    convert.change(path, encryption.in_keyring(), timeout=0.05)
    assert dump(path) == whole


OPENER = """
import sys
from popi_edge.signals import Statement
from popi_edge.store import Store
for i in range(12):
    with Store.open(sys.argv[1], passphrase="words", timeout=30) as store:
        print(store.add([Statement(f"{sys.argv[2]} {i}")]).added[0], flush=True)
"""


def test_what_others_write_while_it_is_converted_again_and_again_is_not_lost(path: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", OPENER, str(path), str(n)], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True, cwd=ROOT) for n in range(2)]  # fmt: skip
    done = 0
    while any(child.poll() is None for child in children):
        try:
            convert.change(path, None if done % 2 else encryption.from_passphrase("words"), "words", timeout=0.5)
            done += 1
        except StoreError as e:
            assert "locked" in str(e)
        time.sleep(0.03)
    told = [child.communicate() for child in children]
    assert [errors for _, errors in told] == ["", ""]
    acknowledged = {line for out, _ in told for line in out.split()}
    with Store.open(path, passphrase="words") as store:
        assert acknowledged <= {s.signal.id for s in store.signals()} and len(acknowledged) == 24
    assert done > 0


@pytest.mark.parametrize("limit", [0, 8192, 30_000])
def test_a_full_disk_leaves_the_store_as_it_was(path: Path, ring: MemoryKeyring, limit: int) -> None:
    whole = dump(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StoreError, match="disk") as caught:
            convert.change(path, encryption.in_keyring())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert keys(ring) == [] and dump(path) == whole
    assert [p.name for p in path.parent.iterdir()] == ["popi.db"]


def test_a_folder_that_takes_no_new_file_leaves_the_store_and_no_key(
    path: Path, ring: MemoryKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    whole = dump(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(StoreError, match="Permission denied"):
            convert.change(path, encryption.in_keyring())
    assert keys(ring) == [] and dump(path) == whole and [p.name for p in path.parent.iterdir()] == ["popi.db"]


def test_somebodys_hard_link_is_not_overwritten_and_the_file_itself_is(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with path.open("rb") as old:
        convert.change(path, encryption.in_keyring())
        assert set(old.read()) == {0}
    copy.hardlink_to(path)
    start = copy.read_bytes()[:16]
    convert.change(path, encryption.in_keyring())
    assert copy.read_bytes()[:16] == start != claim(path).start and copy.stat().st_size == path.stat().st_size


def test_what_a_killed_decrypt_had_written_is_gone_at_the_next_open(path: Path) -> None:
    convert.change(path, encryption.in_keyring())
    convert.draft_of(path).write_text(SECRET)
    Store.open(path).close()
    assert planted(path.parent) == [] and not convert.draft_of(path).exists()


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "x'00'", "\udc80"])
def test_a_passphrase_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="passphrase"):
        encryption.from_passphrase(text)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda t: t.strip() and not t.startswith("x'")))  # fmt: skip
def test_any_passphrase_opens_what_it_closed_and_only_that(path: Path, text: str) -> None:
    path.unlink()
    Store.open(path).close()
    convert.change(path, encryption.from_passphrase(text))
    Store.open(path, passphrase=text).close()
    with pytest.raises(StoreError, match="does not open"):
        Store.open(path, passphrase=text + "x")


def test_letters_are_the_same_however_they_are_typed() -> None:
    assert encryption.from_passphrase("fu\u0308r").secret == encryption.from_passphrase("f\u00fcr").secret


def test_a_plain_store_loads_none_of_it(path: Path) -> None:
    code = ("import sys; from popi_edge.store import Store; Store.open(sys.argv[1]).close(); "
            "print([m for m in sys.modules if m in ('keyring', 'popi_edge.encryption', 'popi_edge.convert') "
            "or m.startswith('sqlcipher')])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_kills_at_any_line_and_inside_sqlcipher_leave_one_whole_store() -> None:
    environment = os.environ | {"PYTHON_KEYRING_BACKEND": "tests.keyrings.FileKeyring"}
    done = subprocess.run([sys.executable, "-m", "tests.crash_encryption", "--json", "--step", "9"], cwd=ROOT,
                          env=environment, capture_output=True, text=True)  # fmt: skip
    found = json.loads(done.stdout or "{}")  # all of the lines: python -m tests.crash_encryption
    assert done.returncode == 0 and found["wrong"] == [], done.stderr + done.stdout
    kinds = ("plain to keyring", "keyring to plain", "keyring to keyring", "passphrase to passphrase")
    assert found["kills"] > 40 and {what.split(": ")[0] for what in found["after"]} == set(kinds)
    assert {what.split(": ")[1] for what in found["after"]} == {"as before", "done"}, found["after"]


# as a person runs it ----------------------------------------------------------------------------------------
def test_the_commands(tmp_path: Path) -> None:
    home = {"POPI_HOME": str(tmp_path / "home"), "POPI_TEST_KEYRING": str(tmp_path / "ring.json"),
            "PYTHON_KEYRING_BACKEND": "tests.keyrings.FileKeyring"}  # fmt: skip

    def popi(*words: str, said: str = "", code: int = 0, **more: str) -> str:
        done = subprocess.run([sys.executable, "-m", "popi_edge", *words], env=os.environ | home | more, cwd=ROOT,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
        assert not code or done.stderr.count("\n") == 1, done.stderr
        return done.stdout

    popi("store", "encrypt", code=1, said="no store yet")
    popi("record", "statement", SECRET)
    null = {"PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring"}
    popi("store", "encrypt", code=1, said="--key passphrase", **null)
    popi("store", "decrypt", code=1, said="is not encrypted")
    popi("store", "rekey", code=1, said="popi store encrypt")
    assert json.loads(popi("store", "status", "--json"))["encrypted"] is False
    popi("store", "encrypt")
    popi("store", "encrypt", code=1, said="encrypted already (key: keyring)")
    assert json.loads(popi("store", "status", "--json"))["key"] == "keyring"
    popi("signals", "list", code=1, said="has no key", **null)
    hidden = tmp_path / "hidden" / "sqlcipher3"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')\n")
    without = {"PYTHONPATH": f"{hidden.parent}{os.pathsep}{ROOT}"}
    popi("signals", "list", code=1, said="pip install 'popi-edge[encrypted]'", **without)
    popi("store", "rekey", "--key", "passphrase", code=1, said="POPI_NEW_PASSPHRASE")
    popi("store", "rekey", "--key", "passphrase", POPI_NEW_PASSPHRASE="it's mine")
    popi("signals", "list", code=1, said="set POPI_PASSPHRASE")
    popi("signals", "list", code=1, said="the passphrase does not open", POPI_PASSPHRASE="nobody's")
    popi("record", "statement", "more", POPI_PASSPHRASE="it's mine")
    assert planted(tmp_path) == []
    popi("store", "decrypt", POPI_PASSPHRASE="it's mine")
    assert SECRET in popi("signals", "list")
    assert [k for k in json.loads((tmp_path / "ring.json").read_text()) if "store-key" in k] == []
