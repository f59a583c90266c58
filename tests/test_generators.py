"""Generators: the prepared bytes go on the wire and into the log; each way to fail is one clear line."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi_edge.egress import MASK, EgressLog
from popi_edge.errors import GeneratorError, PopiError
from popi_edge.generators import AnsweredBadly, Generator, Reply, Request, deliver
from popi_edge.generators.openai import EventParser, OpenAIGenerator
from popi_edge.guard import verdict
from popi_edge.prompts import generate_system
from popi_edge.seal import Sealed, seal
from popi_edge.store import Store
from popi_edge.vocabulary import Lexicon
from tests import hostile_server as hostile
from tests.hostile_server import Behaviour, HostileServer

KEY = "sk-proj-0123456789abcdefghijklmnop"
BOUND_S = 6.0
"""A call that has a deadline of 0.6 s and is not back after this long has none."""


def generator(url: str, **options: Any) -> OpenAIGenerator:
    return OpenAIGenerator(**{"name": "cloud", "url": url, "model": "m1", "key": KEY, "timeout_s": 5.0} | options)


def make_sealed(prompt: str = "Explain RAID") -> Sealed:
    summary = "The user prefers short answers."
    found = verdict(summary, (), Lexicon.load())
    return seal(summary, [("user", prompt)], system=generate_system(summary), verdict=found)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of ``call``, or what it raised; fails when it does not come back in time."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(call())
        except BaseException as e:
            out.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert out, "it did not come back"
    return out[0]


def failure(behaviour: Behaviour, *, stream: bool = False, **options: Any) -> str:
    """The one line with which a request to such a server fails."""
    with HostileServer(behaviour) as server:
        g = generator(server.url, **options)
        error = within(BOUND_S, lambda: g.send(g.prepare(make_sealed(), stream=stream)))
        assert isinstance(error, GeneratorError), repr(error)
        line = str(error)
        assert line.startswith(f"generator cloud at 127.0.0.1:{server.port}: ")
        assert line.isprintable()
        assert KEY not in line
        return line


# the bytes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True])
def test_the_logged_bytes_are_the_bytes_received(tmp_path: Path, stream: bool) -> None:
    behaviour = hostile.ok_stream("Use ", "RAID 1.") if stream else hostile.ok("Use RAID 1.")
    with HostileServer(behaviour) as server, Store.open(tmp_path / "popi.db") as store:
        g, log = generator(server.url), EgressLog(store)
        request = g.prepare(make_sealed('Explain RAID ☂ "now"'), stream=stream)
        reply, egress_id = collect_delivery(g, request, log)
        record = log.get(egress_id)
        (received,) = server.received
    assert reply.text == "Use RAID 1."
    assert received.body == record.body == request.body
    assert received.line == "POST /v1/chat/completions HTTP/1.1"
    assert received.headers == dict(request.headers)
    assert received.headers["Authorization"] == f"Bearer {KEY}"
    assert record.meta["headers"] == {**request.headers, "Authorization": MASK}
    assert record.meta["destination"] == f"{server.url}/chat/completions"
    assert all(KEY.encode() not in f.read_bytes() for f in tmp_path.iterdir())


def collect_delivery(g: Generator, request: Any, log: EgressLog, **options: Any) -> Any:
    steps = deliver(g, request, log, user="me", summary_version=1, **options)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_the_body_is_what_was_sealed_and_the_settings() -> None:
    g = generator("https://api.example.org/v1/", temperature=0.5, max_tokens=64)
    sealed = make_sealed("Explain RAID")
    request = g.prepare(sealed)
    assert json.loads(request.body) == {
        "model": "m1",
        "messages": [{"role": m.role, "content": m.content} for m in sealed.messages],
        "stream": False,
        "max_tokens": 64,
        "temperature": 0.5,
    }
    assert request.destination == "https://api.example.org/v1/chat/completions"
    assert b": " not in request.body.replace(b"answers: ", b"")
    assert g.prepare(sealed) == request


def test_only_what_is_sealed_is_taken() -> None:
    for wrong in (
        "Explain RAID",
        [("user", "Explain RAID")],
        {"messages": []},
        None,
        json.loads('{"messages":[]}'),
    ):
        with pytest.raises(GeneratorError, match="takes only what the guard has sealed"):
            generator("https://api.example.org").prepare(wrong)


def test_the_key_is_nowhere_to_be_seen() -> None:
    g = generator("https://api.example.org")
    assert KEY not in repr(g)
    assert KEY not in repr(g.prepare(make_sealed()))


def test_a_key_that_would_break_the_headers_is_refused() -> None:
    for key in ("abc\r\nX-Evil: 1", "", "schlüssel", "a b"):
        with pytest.raises(GeneratorError, match="its key is empty or holds characters") as caught:
            generator("https://api.example.org", key=key).prepare(make_sealed())
        assert "Evil" not in str(caught.value)


def test_no_key_no_authorization() -> None:
    request = generator("https://api.example.org", key=None).prepare(make_sealed())
    assert "Authorization" not in request.headers


def test_proxies_and_cookies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HostileServer(lambda peer: peer.answer(hostile.completion("yes"), Set_Cookie="track=1")) as server:
        g = generator(server.url)
        for _ in range(2):
            assert g.send(g.prepare(make_sealed())).text == "yes"
        assert all("Cookie" not in r.headers for r in server.received)


# good replies -----------------------------------------------------------------------------------------------
def test_text_comes_as_it_is_streamed() -> None:
    with HostileServer(hostile.ok_stream("Use ", "RAID ", "1 ☂.")) as server:
        g, pieces = generator(server.url), []
        reply = g.send(g.prepare(make_sealed(), stream=True), on_text=pieces.append)
    assert pieces == ["Use ", "RAID ", "1 ☂."]
    assert reply == Reply("Use RAID 1 ☂.", 200, "stop")


@pytest.mark.parametrize("piece", [1, 2, 7])
def test_a_stream_may_be_cut_anywhere(piece: int) -> None:
    with HostileServer(hostile.ok_stream("a☂", "𝄞b", piece=piece)) as server:
        g = generator(server.url)
        assert g.send(g.prepare(make_sealed(), stream=True)).text == "a☂𝄞b"


def test_an_answer_in_one_piece_where_a_stream_was_asked_for_and_the_other_way_round() -> None:
    for behaviour, stream in ((hostile.ok("Yes."), True), (hostile.ok_stream("Y", "es."), False)):
        with HostileServer(behaviour) as server:
            g = generator(server.url)
            assert g.send(g.prepare(make_sealed(), stream=stream)).text == "Yes."


def test_lone_surrogates_in_a_reply_are_replaced() -> None:
    body = b'{"choices":[{"message":{"content":"a\\ud800b\\ud83d\\ude00"},"finish_reason":"length"}]}'
    with HostileServer(lambda peer: peer.answer(body)) as server:
        g = generator(server.url)
        reply = g.send(g.prepare(make_sealed()))
    assert reply == Reply("a�b😀", 200, "length")


# bad replies ------------------------------------------------------------------------------------------------
SLOW = [
    hostile.silent,
    hostile.dripping_headers,
    hostile.dripping_body,
    hostile.dripping_stream,
    hostile.endless_informational,
]


@pytest.mark.parametrize("behaviour", SLOW)
def test_a_slow_or_dripping_server_is_cut_at_the_deadline(behaviour: Behaviour) -> None:
    assert failure(behaviour, timeout_s=0.6).endswith(": no complete reply within 0.6 s")


WRONG: list[tuple[Behaviour, str]] = [
    (hostile.huge_body, "the reply is larger than 65,536 bytes; cut"),
    (hostile.huge_stream, "the reply is larger than 65,536 bytes; cut"),
    (hostile.endless_headers, "the reply's headers are too long"),
    (hostile.not_http, "what it sent is not HTTP"),
    (hostile.not_json, "the reply is not JSON"),
    (lambda peer: peer.answer(b""), "the reply is not JSON"),
    (lambda peer: peer.answer(b"\xff\xfe"), "the reply is not JSON"),
    (lambda peer: peer.answer(b"9" * 60_000), "the reply is not JSON"),
    (hostile.wrong_shape, "the reply has no choices[0].message.content"),
    (hostile.no_choices, "the reply is JSON, but not of a chat completion"),
    (lambda peer: peer.answer(b'{"choices":[1]}'), "the reply is JSON, but not of a chat completion"),
    (lambda peer: peer.answer(b'{"choices":[]}'), "the reply has no choices[0].message.content"),
    (lambda peer: peer.answer(b'{"error":"no such model"}'), "it reports an error: no such model"),
    (hostile.error_in_stream, "it reports an error: the model fell over"),
    (hostile.hang_up_at_once, "hung up before the reply was complete"),
    (hostile.hang_up_in_body, "hung up before the reply was complete"),
    (hostile.hang_up_in_stream, "hung up in the middle of the stream"),
    (hostile.ok_stream("Use ", done=False), "hung up in the middle of the stream"),
    (hostile.gzip_bomb, "the reply is encoded as gzip, which was not asked for"),
]


@pytest.mark.parametrize(("behaviour", "said"), WRONG)
def test_a_reply_that_makes_no_sense_is_one_clear_line(behaviour: Behaviour, said: str) -> None:
    assert f": {said}" in failure(behaviour, max_reply_bytes=65536)


def test_json_nested_without_end_is_not_json() -> None:
    assert failure(hostile.deep_json).endswith("the reply is not JSON")


@pytest.mark.parametrize("line", ["401 Unauthorized", "429 Too Many Requests", "500 Internal Server Error"])
def test_an_error_status_repeats_the_servers_words_but_not_the_key(line: str) -> None:
    said = failure(hostile.status(line))
    assert f": HTTP {line[:3]}: [2Jkey *** is not good xxx" in said
    assert len(said.partition(f"HTTP {line[:3]}: ")[2]) <= 200


def test_a_part_of_the_key_is_masked_too() -> None:
    said = failure(hostile.status("401 Unauthorized", f"key {KEY[:20]}****, {KEY[-8:]}, ab{KEY}cd, "))
    assert "key ******, ***, ab***cd, x" in said.replace("*******", "******")
    assert KEY[:8] not in said and KEY[-8:] not in said


def test_a_key_hidden_among_control_characters_is_masked() -> None:
    broken = "\x00".join(KEY)
    said = failure(hostile.status("401 Unauthorized", f"key {broken} is not good"))
    assert "key *** is not good" in said


def test_an_error_status_with_an_endless_body_still_says_the_status() -> None:
    assert ": HTTP 500" in failure(hostile.status_dripping, timeout_s=0.6)


def test_a_redirect_is_not_followed() -> None:
    with HostileServer(hostile.ok()) as other:
        said = failure(hostile.redirect(f"{other.url}/chat/completions?key={KEY}"))
        assert f"redirects to {other.url}/chat/completions?key=*** (HTTP 307); not followed" in said
        assert other.received == []


def test_the_http_status_of_a_bad_answer_is_known() -> None:
    with HostileServer(hostile.status("429 Too Many Requests")) as server:
        g = generator(server.url)
        with pytest.raises(AnsweredBadly) as caught:
            g.send(g.prepare(make_sealed()))
    assert caught.value.http_status == 429


# no reply ---------------------------------------------------------------------------------------------------
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


def refused(url: str, **options: Any) -> str:
    g = generator(url, **options)
    error = within(BOUND_S, lambda: g.send(g.prepare(make_sealed())))
    assert isinstance(error, GeneratorError), repr(error)
    return str(error)


def test_nobody_listens() -> None:
    port = unused_port()
    assert refused(f"http://127.0.0.1:{port}/v1") == (
        f"generator cloud at 127.0.0.1:{port}: connection refused; is it running?"
    )


def test_a_host_that_does_not_exist() -> None:
    assert refused("https://nobody.invalid/v1") == (
        "generator cloud at nobody.invalid: the host's name cannot be resolved"
    )


def test_a_name_that_is_never_resolved_is_cut_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: release.wait(BOUND_S) and [])
    said = refused("http://slow.example/v1", timeout_s=0.3)
    release.set()
    assert said == "generator cloud at slow.example: no complete reply within 0.3 s"


def test_tls_to_a_server_without_it() -> None:
    with HostileServer(hostile.ok()) as server:
        said = refused(server.url.replace("http:", "https:"))
    assert ": TLS failed (" in said


def test_a_handshake_that_is_never_answered_is_cut_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        said = refused(f"https://127.0.0.1:{s.getsockname()[1]}/v1", timeout_s=0.4)
    assert said.endswith(": no complete reply within 0.4 s")


def test_a_server_that_never_reads_is_cut_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        url = f"http://127.0.0.1:{s.getsockname()[1]}/v1"
        body = bytes(2**25)
        request = Request(url, {"Host": "x", "Content-Length": str(len(body))}, body)
        error = within(BOUND_S, lambda: generator(url, timeout_s=0.5).send(request))
    assert str(error).endswith(": no complete reply within 0.5 s")


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    """A key pair for this test alone; nothing is sent over the connection."""
    pem = tmp_path / "selfsigned.pem"
    pem.write_text(hostile.SELF_SIGNED)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        got: list[bytes] = []

        def serve() -> None:
            raw, _ = listener.accept()
            with raw:
                raw.settimeout(BOUND_S)
                try:
                    with context.wrap_socket(raw, server_side=True) as tls:
                        got.append(tls.recv(1000))
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        said = refused(f"https://localhost:{listener.getsockname()[1]}/v1")
        thread.join(BOUND_S)
    assert ": its TLS certificate was refused (self" in said
    assert b"".join(got) == b""


# the record of it -------------------------------------------------------------------------------------------
def outcome(tmp_path: Path, behaviour: Behaviour, *, stream: bool = False, **options: Any) -> tuple[Any, Any]:
    with HostileServer(behaviour) as server, Store.open(tmp_path / "popi.db") as store:
        g, log = generator(server.url, **options), EgressLog(store)
        try:
            result = collect_delivery(g, g.prepare(make_sealed(), stream=stream), log)
        except PopiError as e:
            result = e
        request, record = log.records()
        assert log.verify().ok
        assert record.meta["request"] == request.id
        return result, record.meta


def test_a_success_is_recorded_without_its_text(tmp_path: Path) -> None:
    (reply, _), meta = outcome(tmp_path, hostile.ok("Use RAID 1."))
    assert (meta["status"], meta["http_status"], meta["error"]) == ("ok", 200, None)
    assert meta["reply_sha256"] == reply.sha256
    assert meta["elapsed_ms"] >= 0


@pytest.mark.parametrize(
    ("behaviour", "http_status", "kept", "shown"),
    [
        (hostile.status("500 Internal Server Error", "you said zebra"), 500, "HTTP 500", "zebra"),
        (hostile.error_in_stream, 200, "it reports an error", "fell over"),
        (hostile.redirect("http://127.0.0.1:9/zebra"), 307, "redirects (HTTP 307); not followed", "zebra"),
        (hostile.not_json, 200, "the reply is not JSON", ""),
    ],
)
def test_a_failure_is_recorded_with_its_line_but_not_what_the_server_said(
    tmp_path: Path, behaviour: Any, http_status: int, kept: str, shown: str
) -> None:
    """A record is for good, and an error may repeat the summary that was sent."""
    error, meta = outcome(tmp_path, behaviour, stream=behaviour is hostile.error_in_stream)
    assert (meta["status"], meta["http_status"]) == ("failed", http_status)
    assert meta["error"].endswith(f": {kept}") and shown in str(error) and str(error).startswith(meta["error"][:20])
    assert not shown or shown not in json.dumps(meta)
    assert meta["reply_sha256"] is None
    assert KEY not in json.dumps(meta)


def test_the_record_is_there_when_the_bytes_arrive(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(peer: hostile.Peer) -> None:
        with Store.open(tmp_path / "popi.db") as other:
            seen.append(len(EgressLog(other).records()))
        peer.answer(hostile.completion("x"))

    outcome(tmp_path, look)
    assert seen == [1]


def test_when_the_log_cannot_be_written_nothing_is_sent(tmp_path: Path) -> None:
    with HostileServer(hostile.ok()) as server, Store.open(tmp_path / "popi.db") as store:
        g = generator(server.url)
        request = g.prepare(make_sealed())
        store.conn.execute("DROP TABLE egress")
        with pytest.raises(PopiError):
            collect_delivery(g, request, EgressLog(store))
        time.sleep(0.1)
        assert server.received == []


def test_a_caller_that_stops_half_way_is_recorded(tmp_path: Path) -> None:
    with HostileServer(hostile.ok_stream("a", "b", "c")) as server, Store.open(tmp_path / "popi.db") as store:
        g, log = generator(server.url), EgressLog(store)
        steps = deliver(g, g.prepare(make_sealed(), stream=True), log, user="me")
        assert next(steps) == "a"
        steps.close()
        assert log.records()[1].meta["error"] == "stopped by the caller"


# parsing ----------------------------------------------------------------------------------------------------
def parse(data: bytes, cuts: list[int]) -> list[bytes]:
    parser, out, start = EventParser(), [], 0
    for cut in [*sorted(c % (len(data) + 1) for c in cuts), len(data)]:
        out += parser.feed(data[start:cut])
        start = cut
    return out + list(parser.end())


LINES = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1, max_size=20)


@given(
    st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 500), max_size=8),
)
def test_events_are_the_same_wherever_they_are_cut(data: list[list[str]], end: str, cuts: list[int]) -> None:
    text = "".join("".join(f"data: {line}{end}" for line in event) + f": note{end}id: 7{end}{end}" for event in data)
    assert parse(text.encode(), cuts) == ["\n".join(event).encode() for event in data]


def test_a_last_event_without_an_empty_line_counts() -> None:
    assert parse(b"data: a\n\ndata:[DONE]", []) == [b"a", b"[DONE]"]
    assert parse(b"event: x\n\n: only a comment\n\n", []) == []
