"""``popi generator`` and ``popi egress``: what is kept where, and what a person sees."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keyring
import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi_edge.cli import main
from popi_edge.egress import EgressLog
from popi_edge.errors import ConfigError, PopiError
from popi_edge.generators import registry
from popi_edge.generators.registry import Entry
from popi_edge.store import Store
from tests import hostile_server as hostile
from tests.hostile_server import HostileServer
from tests.keyrings import LockedKeyring, MemoryKeyring, in_use

KEY = "sk-proj-0123456789abcdefghijklmnop"
URL = "https://api.example.org/v1"


@pytest.fixture
def ring() -> Iterator[MemoryKeyring]:
    with in_use(MemoryKeyring()) as found:
        yield found


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Popi = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def popi(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Popi:
    def run(*args: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["popi", *args[:2], "--home", str(home), *args[2:]])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Result(int(left.value.code or 0), out, err)

    return run


def add(popi: Popi, name: str = "cloud", url: str = URL, *more: str, stdin: str = "") -> Result:
    return popi("generator", "add", name, "--url", url, "--model", "m1", *more, stdin=stdin)


# generators.json --------------------------------------------------------------------------------------------
def test_add_list_remove(popi: Popi, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_KEY", KEY)
    done = add(popi, "cloud", URL, "--key-env", "CLOUD_KEY", "--timeout", "30", "--json")
    assert done.code == 0 and done.json["name"] == "cloud" and done.json["remote"] is True
    assert done.json["key"] == "environment variable CLOUD_KEY"
    found = popi("generator", "list", "--json").json
    assert [g["name"] for g in found] == ["local", "cloud"]
    assert (found[1]["url"], found[1]["model"], found[1]["timeout_s"]) == (URL, "m1", 30.0)
    text = popi("generator", "list").out.splitlines()
    assert text[0].startswith("local: ") and text[1].startswith("cloud: m1 at https://api.example.org/v1 (remote")
    assert KEY not in (home / "generators.json").read_text()
    assert popi("generator", "remove", "cloud").code == 0
    assert [g["name"] for g in popi("generator", "list", "--json").json] == ["local"]
    gone = popi("generator", "remove", "cloud")
    assert (gone.code, gone.err) == (1, "popi: there is no generator 'cloud' (known: local)\n")


def test_the_file_is_its_owners_alone_and_nothing_is_left_beside_it(popi: Popi, home: Path) -> None:
    add(popi)
    if os.name == "posix":
        assert stat.S_IMODE((home / "generators.json").stat().st_mode) == 0o600
    assert [p.name for p in home.iterdir()] == ["generators.json"]


def test_a_key_from_stdin_goes_to_the_keyring_and_nowhere_else(popi: Popi, home: Path, ring: MemoryKeyring) -> None:
    done = add(popi, "cloud", URL, "--key-stdin", stdin=f"  {KEY}\n")
    assert done.code == 0
    assert ring.kept == {("popi-edge", "cloud@api.example.org"): KEY}
    assert KEY not in done.out + done.err + popi("generator", "list", "--json").out
    assert all(KEY not in p.read_text() for p in home.iterdir())
    assert registry.open_generator(home, "cloud").key == KEY
    assert popi("generator", "remove", "cloud").code == 0
    assert ring.kept == {}


def test_changing_the_host_in_the_file_does_not_send_the_key_there(popi: Popi, home: Path, ring: MemoryKeyring) -> None:
    add(popi, "cloud", URL, "--key-stdin", stdin=KEY)
    path = home / "generators.json"
    path.write_text(path.read_text().replace("api.example.org", "evil.example.net"))
    with pytest.raises(PopiError, match=r"the keyring has no key for it at evil\.example\.net"):
        registry.open_generator(home, "cloud")


def test_no_keyring_is_one_line(popi: Popi, home: Path) -> None:
    from keyring.backends.fail import Keyring

    before = keyring.get_keyring()
    keyring.set_keyring(Keyring())
    try:
        done = add(popi, "cloud", URL, "--key-stdin", stdin=KEY)
    finally:
        keyring.set_keyring(before)
    assert done.code == 1
    assert "the system's keyring cannot be used" in done.err and "--key-env" in done.err
    assert KEY not in done.err
    assert not (home / "generators.json").exists()


def test_a_key_that_could_not_be_removed_is_said(popi: Popi, home: Path, ring: MemoryKeyring) -> None:
    from keyring.backends.fail import Keyring

    add(popi, "cloud", URL, "--key-stdin", stdin=KEY)
    keyring.set_keyring(Keyring())
    done = popi("generator", "remove", "cloud")
    assert done.code == 1 and "cloud was removed, but perhaps not its key" in done.err
    assert registry.load(home) == {}


def test_an_empty_key_is_refused(popi: Popi, ring: MemoryKeyring) -> None:
    done = add(popi, "cloud", URL, "--key-stdin", stdin="\n")
    assert (done.code, done.err, ring.kept) == (1, "popi: no key came on stdin\n", {})


def test_a_key_variable_that_is_not_set(popi: Popi, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_AT_ALL", raising=False)
    done = add(popi, "cloud", URL, "--key-env", "NOT_SET_AT_ALL")
    assert done.code == 0 and "NOT_SET_AT_ALL is not set now" in done.err
    with pytest.raises(PopiError, match="its key is expected in NOT_SET_AT_ALL, which is not set"):
        registry.open_generator(home, "cloud")


def test_a_key_given_for_its_variables_name_is_not_repeated(popi: Popi, home: Path) -> None:
    done = add(popi, "cloud", URL, "--key-env", KEY)
    assert done.code == 1 and "must be the name of an environment variable" in done.err
    assert KEY not in done.err and not (home / "generators.json").exists()


WRONG_URLS = {
    "ftp://example.org": "must start with http:// or https://",
    "example.org/v1": "must start with http:// or https://",
    "https://": "a host or port that makes no sense",
    "https://example.org:99999/v1": "a host or port that makes no sense",
    "https://example.org:/v1": "a host or port that makes no sense",
    "https://[::1/v1": "a host or port that makes no sense",
    "https://ann:secret@example.org/v1": "must not hold a user name or password",
    "https://example.org/v1?key=secret": "must have no '?'",
    "https://example.org/v1#x": "must have no '?'",
    "https://exämple.org/v1": "must be plain ASCII",
    "https://example.org/v1 x": "must be plain ASCII",
    "http://example.org/v1": "in clear text; use https, or say --allow-http",
    "http://127.0.0.1.example.org/v1": "in clear text",
    "http://10.0.0.1/v1": "in clear text",
}


@pytest.mark.parametrize(("url", "why"), WRONG_URLS.items())
def test_a_url_that_will_not_do_is_one_line(popi: Popi, home: Path, url: str, why: str) -> None:
    done = add(popi, "cloud", url)
    assert done.code == 1 and done.out == ""
    assert done.err.startswith("popi: generator cloud: the URL ") and why in done.err
    assert done.err.count("\n") == 1 and "secret" not in done.err
    assert not (home / "generators.json").exists()


@pytest.mark.parametrize("url", ["http://localhost:8080/v1", "http://127.0.0.1/v1", "http://[::1]:1234", URL])
def test_loopback_needs_no_permission_but_is_remote_all_the_same(popi: Popi, url: str) -> None:
    assert add(popi, "cloud", url, "--json").json["remote"] is True
    assert add(popi, "trusted", url, "--trusted", "--json").json["remote"] is False


def test_plain_http_elsewhere_is_possible_with_a_warning(popi: Popi, home: Path) -> None:
    done = add(popi, "lan", "http://192.168.0.9:8080/v1", "--allow-http")
    assert done.code == 0 and "everybody on the way can read" in done.err
    assert registry.load(home)["lan"].allow_http


@pytest.mark.parametrize("name", ["local", "Local", "-x", "a b", "", "x" * 65, "a/b", "ü"])
def test_a_name_that_will_not_do(popi: Popi, name: str) -> None:
    done = popi("generator", "add", "--url", URL, "--model", "m", "--", name)
    assert done.code == 1 and ("cannot be a generator's name" in done.err or "is taken" in done.err)


def test_a_name_is_taken_once(popi: Popi, home: Path) -> None:
    assert add(popi).code == 0
    before = (home / "generators.json").read_bytes()
    again = add(popi, "cloud", "https://other.example.org")
    assert (again.code, again.err) == (1, "popi: there is a generator cloud already; remove it first\n")
    assert (home / "generators.json").read_bytes() == before


def test_a_timeout_must_make_sense(popi: Popi) -> None:
    for value in ("0", "-1", "nan", "inf", "1e9"):
        done = add(popi, "cloud", URL, "--timeout", value)
        assert done.code == 1 and "timeout_s must be a number from 0.1 to 3,600" in done.err
    assert add(popi, "cloud", URL, "--timeout", "soon").code == 2


def file_of(**fields: object) -> str:
    return json.dumps({"version": 1, "generators": [{"name": "a", "url": "https://a", "model": "m"} | fields]})


BROKEN = {
    "": "not JSON",
    "{": "not JSON",
    "[]": "must be an object with version 1",
    '{"version":2,"generators":[]}': "must be an object with version 1",
    '{"version":1,"generators":{}}': "must be an object with version 1",
    '{"version":1,"generators":["x"]}': "an entry is not an object",
    '{"version":1,"generators":[{"name":"a"}]}': "an entry has no url",
    file_of(key="k"): "unknown field 'key'",
    file_of(url="http://a.b"): "in clear text",
    file_of(trusted=1): "trusted must be true",
    file_of(name=7): "cannot be a generator's name",
    file_of(name="local"): "is taken",
    file_of(model="m\n"): "model must be a name",
    file_of(max_tokens=1.5): "max_tokens must be",
    file_of(key_env="A", key_keyring=True): "not both",
    file_of().replace("]}", ', {"name": "a", "url": "https://b", "model": "m"}]}'): "is in it twice",
}


@pytest.mark.parametrize(("content", "why"), BROKEN.items())
def test_a_broken_file_is_one_line_and_stays_as_it_is(popi: Popi, home: Path, content: str, why: str) -> None:
    home.mkdir(mode=0o700)
    (home / "generators.json").write_text(content)
    for done in (popi("generator", "list"), add(popi), popi("generator", "remove", "a")):
        assert done.code == 1 and done.err.count("\n") == 1
        assert done.err.startswith(f"popi: {home / 'generators.json'}: ") and why in done.err
    assert (home / "generators.json").read_text() == content


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(lambda n: n.lower() != "local"),
    st.booleans(),
    st.floats(0.1, 3600),
    st.none() | st.integers(1, 10**6),
    st.none() | st.floats(0, 10),
)
def test_an_entry_comes_back_as_it_was(
    name: str, trusted: bool, timeout: float, tokens: int | None, temperature: float | None
) -> None:
    import tempfile

    entry = Entry(
        name=name,
        url=URL,
        model="m/1 ☂",
        trusted=trusted,
        timeout_s=timeout,
        max_tokens=tokens,
        temperature=temperature,
    )
    with tempfile.TemporaryDirectory() as folder:
        registry.add(Path(folder), entry)
        assert registry.load(Path(folder)) == {name: entry}


def test_a_file_that_cannot_be_written_leaves_no_key_behind(home: Path, ring: MemoryKeyring) -> None:
    home.mkdir(mode=0o700)
    (home / "generators.json").mkdir()
    entry = Entry(name="cloud", url=URL, model="m", key_keyring=True)
    with pytest.raises(ConfigError, match=r"generators\.json"):
        registry.add(home, entry, key=KEY)
    assert ring.kept == {}


# test -------------------------------------------------------------------------------------------------------
def test_a_generator_is_tried_and_the_log_has_it(popi: Popi, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_KEY", KEY)
    with HostileServer(hostile.ok("ready\x1b[2J\n" + "x" * 200)) as server:
        add(popi, "cloud", server.url, "--key-env", "CLOUD_KEY")
        done = popi("generator", "test", "cloud", "--json")
        assert done.code == 0, done.err
        (received,) = server.received
    assert done.json["reply"].startswith("ready[2J x") and len(done.json["reply"]) == 80
    assert done.json["seconds"] >= 0
    with Store.open(home / "popi.db") as store:
        record = EgressLog(store).get(done.json["egress_id"])
    assert record.body == received.body
    assert record.meta["summary_version"] is None
    assert "ready" in json.loads(received.body)["messages"][-1]["content"]
    assert all(KEY.encode() not in p.read_bytes() for p in home.iterdir())


def test_a_generator_that_fails_is_one_line_and_in_the_log(
    popi: Popi, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_KEY", KEY)
    with HostileServer(hostile.status("401 Unauthorized")) as server:
        add(popi, "cloud", server.url, "--key-env", "CLOUD_KEY")
        done = popi("generator", "test", "cloud")
    assert done.code == 1 and done.out == "" and done.err.count("\n") == 1
    assert ": HTTP 401: [2Jkey *** is not good" in done.err and KEY not in done.err
    (listed,) = popi("egress", "list", "--json").json
    assert (listed["outcome"]["status"], listed["outcome"]["http_status"]) == ("failed", 401)
    assert KEY not in json.dumps(listed)


def test_an_unknown_generator(popi: Popi) -> None:
    done = popi("generator", "test", "nobody")
    assert (done.code, done.err) == (1, "popi: there is no generator 'nobody' (known: local)\n")


# egress -----------------------------------------------------------------------------------------------------
@pytest.fixture
def sent(home: Path) -> list[str]:
    """Three requests: one well, one failed, one without an outcome."""
    home.mkdir(mode=0o700)
    with Store.open(home / "popi.db") as store:
        log = EgressLog(store)
        ids = [
            log.request("cloud", URL, {"Authorization": KEY}, f'{{"n":{n}}}'.encode(), user=user, summary_version=v)
            for n, (user, v) in enumerate((("me", 3), ("me", None), ("ann", 1)))
        ]
        log.outcome(ids[0], status="ok", http_status=200, reply="fine")
        log.outcome(ids[1], status="failed", error="generator cloud at x: connection refused; is it running?")
    return ids


def test_list_says_what_was_sent_and_what_came_of_it(popi: Popi, sent: list[str]) -> None:
    found = popi("egress", "list", "--json").json
    assert [f["id"] for f in found] == sent
    assert [f["outcome"] and f["outcome"]["status"] for f in found] == ["ok", "failed", None]
    assert [f["id"] for f in popi("egress", "list", "--limit", "1", "--json").json] == sent[2:]
    assert [f["id"] for f in popi("egress", "list", "--user", "me", "--json").json] == sent[:2]
    lines = popi("egress", "list").out.splitlines()
    assert lines[0].endswith("summary 3: ok") and "no summary: failed (generator cloud" in lines[1]
    assert lines[2].endswith("summary 1: no outcome recorded")


def test_nothing_sent(popi: Popi) -> None:
    assert popi("egress", "list").out == "nothing was ever sent\n"
    assert popi("egress", "list", "--json").json == []
    assert popi("egress", "verify", "--json").json["ok"] is True


def test_show_gives_the_exact_body(popi: Popi, sent: list[str], home: Path) -> None:
    shown = popi("egress", "show", sent[0], "--json").json
    assert shown["body"] == '{"n":0}' and shown["headers"] == {"Authorization": "***"}
    assert shown["outcome"]["http_status"] == 200
    assert popi("egress", "show", sent[1]).out.endswith('\n\n{"n":1}\n')
    with Store.open(home / "popi.db") as store:
        EgressLog(store).erase(sent[0])
    assert popi("egress", "show", sent[0], "--json").json["body"] is None
    assert "(the body was erased)" in popi("egress", "show", sent[0]).out
    gone = popi("egress", "show", "nothing")
    assert (gone.code, gone.err) == (1, "popi: there is no egress record 'nothing'\n")


def test_verify_names_what_was_changed_and_exits_1(popi: Popi, sent: list[str], home: Path) -> None:
    good = popi("egress", "verify", "--json")
    assert (good.code, good.json["ok"], good.json["records"], good.json["head"]) == (0, True, 5, "kept")
    with Store.open(home / "popi.db") as store:
        store.conn.execute("UPDATE egress SET body = ? WHERE id = ?", (b'{"n":7}', sent[1]))
    bad = popi("egress", "verify", "--json")
    assert (bad.code, bad.json["ok"], bad.json["first_bad"], bad.json["number"]) == (1, False, sent[1], 2)
    text = popi("egress", "verify")
    assert text.code == 1 and text.out == ""
    assert text.err == f"popi: egress record {sent[1]}: its body, salt or body_digest was changed\n"


def test_verify_says_where_the_head_is_and_names_a_cut(
    popi: Popi, ring: MemoryKeyring, sent: list[str], home: Path
) -> None:
    assert popi("egress", "verify").out == (
        "5 records, the chain holds and ends where its head says, in the keyring (keyrings MemoryKeyring)\n"
    )
    with Store.open(home / "popi.db") as store:
        store.conn.execute("DELETE FROM egress WHERE seq > 3")
    cut = popi("egress", "verify")
    assert (cut.code, cut.out) == (1, "")
    why = "records 4 to 5 are missing: the tail was cut, or an older copy was put in its place"
    assert cut.err == f"popi: egress record number 4: {why}\n"
    assert popi("egress", "verify", "--json").json["number"] == 4
    with HostileServer(hostile.ok("yes")) as server:
        add(popi, "cloud", server.url)
        no = popi("generator", "test", "cloud")
        assert no.code == 1 and no.err.count("\n") == 1 and "nothing is written or sent" in no.err
        assert server.received == []
        unsure = popi("egress", "anchor")
        assert unsure.code == 1 and "not confirmed: nothing was changed" in unsure.err
        done = popi("egress", "anchor", "--yes", "--json")
        assert done.code == 0, done.err
        assert popi("generator", "test", "cloud").code == 0
    assert done.json["record"] in popi("egress", "verify").out
    again = popi("egress", "anchor", "--yes")
    assert (again.code, again.err) == (1, "popi: the head fits the egress log: there is nothing to begin anew\n")


def test_a_lost_keyring_is_one_line_that_says_what_is_still_sure(
    popi: Popi, ring: MemoryKeyring, sent: list[str], home: Path
) -> None:
    ring.kept.clear()
    lost = popi("egress", "verify")
    assert (lost.code, lost.out) == (1, "") and lost.err.count("\n") == 1
    assert "the egress log's head is lost" in lost.err and "the chain of 5 records holds in itself" in lost.err
    assert popi("egress", "verify", "--json").json["chain_holds"] is True
    keyring.set_keyring(LockedKeyring())
    assert "the keyring cannot be used (KeyringLocked)" in popi("egress", "verify").err
    with Store.open(home / "popi.db") as store:
        store.conn.execute("UPDATE egress SET at = 'x' WHERE id = ?", (sent[2],))
    both = popi("egress", "verify")
    assert both.err.startswith(f"popi: egress record {sent[2]}: its seq, id or at")
    assert "the head is lost too" in both.err


def test_the_first_request_says_when_the_head_had_to_go_into_a_file(popi: Popi, home: Path) -> None:
    with HostileServer(hostile.ok("yes")) as server:
        add(popi, "cloud", server.url)
        first, second = popi("generator", "test", "cloud"), popi("generator", "test", "cloud")
    assert f"head is kept in {home / 'popi.egress-head'} (mode 0600), not in a keyring" in first.err
    assert (first.code, second.code, second.err) == (0, 0, "")


def test_erase_takes_bodies_and_leaves_the_chain(popi: Popi, sent: list[str], home: Path) -> None:
    assert popi("egress", "erase").code == 2
    assert popi("egress", "erase", sent[0], "--user", "me").code == 2
    unsure = popi("egress", "erase", sent[0])
    assert unsure.code == 1 and "nothing was erased" in unsure.err
    assert popi("egress", "erase", sent[0], "nobody", "--yes").code == 1
    assert popi("egress", "show", sent[0], "--json").json["body"] == '{"n":0}'
    done = popi("egress", "erase", sent[0], "--yes", "--json")
    assert done.json == {"erased": [sent[0]], "scrubbed": True}
    again = popi("egress", "erase", sent[0], "--yes")
    assert (again.code, again.err) == (1, f"popi: egress request {sent[0]} has been erased already\n")
    assert popi("egress", "erase", "--user", "me", "--yes").out == "erased the bodies of 1 requests\n"
    assert [f["erased"] for f in popi("egress", "list", "--json").json] == [True, True, False]
    assert popi("egress", "verify").code == 0
    on_disk = b"".join(f.read_bytes() for f in home.iterdir())
    assert b'{"n":2}' in on_disk and b'{"n":0}' not in on_disk and b'{"n":1}' not in on_disk
