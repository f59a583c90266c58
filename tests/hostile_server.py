"""A small server on loopback that answers well or badly, as told, and keeps what it received byte for byte.

Every behaviour is bounded in time and size, and stops when the server is closed. Not a test module itself.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

LONGEST_S = 8.0
"""No behaviour goes on for longer than this, whoever listens."""


@dataclass(frozen=True)
class Received:
    """One request: its first line, its headers (names as sent), and its body's exact bytes."""

    line: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """One connection, as a behaviour sees it: what came, and bounded ways to answer."""

    def __init__(self, sock: socket.socket, stop: threading.Event, request: Received) -> None:
        self._sock, self._stop, self.request = sock, stop, request
        self._end = time.monotonic() + LONGEST_S

    def alive(self) -> bool:
        return not self._stop.is_set() and time.monotonic() < self._end

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def wait(self, seconds: float) -> None:
        self._stop.wait(min(seconds, max(0.0, self._end - time.monotonic())))

    def answer(self, body: bytes, *, status: str = "200 OK", kind: str = "application/json", **headers: str) -> None:
        named = {"Content-Type": kind, "Content-Length": str(len(body))}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = f"HTTP/1.1 {status}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in named.items())
        self.send(f"{head}Connection: close\r\n\r\n".encode() + body)


Behaviour = Callable[[Peer], None]


class HostileServer:
    """Serves ``behaviour`` on a free port of 127.0.0.1 until closed. ``received``: the requests in order."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.received: list[Received] = []
        self.failures: list[BaseException] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> HostileServer:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LONGEST_S)
        self._listener.close()
        if error is None:
            assert not self.failures, self.failures

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(LONGEST_S)
            try:
                request = _read(sock)
                if request is None:
                    return
                with self._lock:
                    self.received.append(request)
                self._behaviour(Peer(sock, self._stop, request))
            except OSError:  # the client cut the connection, as it should
                pass
            except BaseException as e:
                self.failures.append(e)


def _read(sock: socket.socket) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return None
        data += piece
        if data[:1] == b"\x16":  # a TLS client hello: answer in plain text, and be gone
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return None
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rest = head.decode("latin-1").split("\r\n")
    headers = dict(h.split(": ", 1) for h in rest)
    while len(body) < int(headers.get("Content-Length", "0")):
        body += sock.recv(65536)
    return Received(line, headers, body)


# what a good server says ------------------------------------------------------------------------------------
def completion(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "c1", "object": "chat.completion", "choices": [choice]}).encode()


def events(*texts: str, done: bool = True) -> Iterator[bytes]:
    for delta in ({"role": "assistant"}, *({"content": t} for t in texts)):
        yield b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"
    if done:
        yield b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        yield b'data: {"choices":[],"usage":{"total_tokens":3}}\n\ndata: [DONE]\n\n'


def ok(text: str = "Use RAID 1.") -> Behaviour:
    return lambda peer: peer.answer(completion(text))


def ok_stream(*texts: str, piece: int | None = None, done: bool = True) -> Behaviour:
    """A stream in HTTP chunks: one for each event, or of ``piece`` bytes whatever they cut."""

    def serve(peer: Peer) -> None:
        _stream_head(peer)
        for event in events(*texts, done=done):
            step = piece or len(event)
            for i in range(0, len(event), step):
                peer.send(_chunk(event[i : i + step]))
        peer.send(b"0\r\n\r\n")

    return serve


def _stream_head(peer: Peer) -> None:
    head = b"Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"Connection: close\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# what a bad one does ----------------------------------------------------------------------------------------
def silent(peer: Peer) -> None:
    """Takes the request and says nothing."""
    peer.wait(LONGEST_S)


def dripping_headers(peer: Peer) -> None:
    """A byte of an endless header now and then: every single read succeeds."""
    peer.send(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    while peer.alive():
        peer.send(b"a")
        peer.wait(0.02)


def dripping_body(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
    while peer.alive():
        peer.send(b" ")
        peer.wait(0.02)


def dripping_stream(peer: Peer) -> None:
    """Keeps the stream alive with comments and says nothing."""
    _stream_head(peer)
    while peer.alive():
        peer.send(_chunk(b": still thinking\n\n"))
        peer.wait(0.02)


def endless_informational(peer: Peer) -> None:
    while peer.alive():
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 20)
        peer.wait(0.01)


def huge_body(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    for _ in range(64):
        if peer.alive():
            peer.send(b" " * 2**20)


def huge_stream(peer: Peer) -> None:
    """One event that never ends."""
    _stream_head(peer)
    peer.send(_chunk(b"data: "))
    for _ in range(64):
        if peer.alive():
            peer.send(_chunk(b"x" * 2**20))


def endless_headers(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\n")
    for i in range(2000):
        if peer.alive():
            peer.send(b"X-%d: " % i + b"a" * 1000 + b"\r\n")


def not_http(peer: Peer) -> None:
    peer.send(b"SSH-2.0-OpenSSH_9.9 \x1b[31mhello\r\n\r\n")


def not_json(peer: Peer) -> None:
    peer.answer(b"<html>It works!</html>", kind="text/html")


def deep_json(peer: Peer) -> None:
    peer.answer(b'{"choices":' + b"[" * 200_000)


def wrong_shape(peer: Peer) -> None:
    peer.answer(b'{"choices":[{"message":{"content":["not","text"]}}]}')


def no_choices(peer: Peer) -> None:
    peer.answer(b'["choices"]')


def error_in_stream(peer: Peer) -> None:
    _stream_head(peer)
    for event in events("Use ", done=False):
        peer.send(_chunk(event))
    peer.send(_chunk(b'data: {"error":{"message":"the model fell over"}}\n\n') + b"0\r\n\r\n")


def status(line: str, message: str = "key {key} is not good") -> Behaviour:
    """An HTTP error whose body repeats the key it was given, among control characters."""

    def serve(peer: Peer) -> None:
        key = peer.request.headers.get("Authorization", "Bearer none").removeprefix("Bearer ")
        text = "\x1b[2J" + message.format(key=key) + "\r\n\x07" + "x" * 5000
        peer.answer(json.dumps({"error": {"message": text}}).encode(), status=line)

    return serve


def status_dripping(peer: Peer) -> None:
    """An error status, and a body that never comes to an end."""
    peer.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 1000\r\n\r\n")
    while peer.alive():
        peer.send(b"a")
        peer.wait(0.02)


def redirect(target: str) -> Behaviour:
    return lambda peer: peer.answer(b"", status="307 Temporary Redirect", Location=target)


def hang_up_at_once(peer: Peer) -> None:
    """Takes the request and closes."""


def hang_up_in_body(peer: Peer) -> None:
    body = completion("Use RAID 1.")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
    peer.send(body[:20])


def hang_up_in_stream(peer: Peer) -> None:
    """Closes between two events, without chunks: by HTTP/1.0's rules the body is complete."""
    peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    for event in events("Use ", done=False):
        peer.send(event)


def gzip_bomb(peer: Peer) -> None:
    body = gzip.compress(b" " * 2**24)
    peer.answer(body, Content_Encoding="gzip")


# TLS --------------------------------------------------------------------------------------------------------
def _pem(name: str, content: str) -> str:
    lines = "\n".join(content[i : i + 64] for i in range(0, len(content), 64))
    return f"-----BEGIN {name}-----\n{lines}\n-----END {name}-----\n"


SELF_SIGNED = _pem(
    "PRIVATE KEY",
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgO34GxlAFqbXRQRfc"
    "k+l7od10KKIcgK/9B7K0E+cKbuGhRANCAAROvgE7dJl93FN60WFkKvQwu257jEAg"
    "p6ADQZ+D37Au6kAqsWRtkqOjemQlVD28X7697XbsDv7HRi6IUokq4PuU",
) + _pem(
    "CERTIFICATE",
    "MIIBnDCCAUGgAwIBAgIUECHUfpSjffBjAP5ZTXRd/ae43CYwCgYIKoZIzj0EAwIw"
    "FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNDE3MzcxMloYDzIxMjYxMDMx"
    "MTczNzEyWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO"
    "PQMBBwNCAAROvgE7dJl93FN60WFkKvQwu257jEAgp6ADQZ+D37Au6kAqsWRtkqOj"
    "emQlVD28X7697XbsDv7HRi6IUokq4PuUo28wbTAdBgNVHQ4EFgQUpeKFzsZgGpPB"
    "KAe2DH/IL6VK+TowHwYDVR0jBBgwFoAUpeKFzsZgGpPBKAe2DH/IL6VK+TowDwYD"
    "VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI"
    "zj0EAwIDSQAwRgIhANlWCHJXViM47F88XFZ42j5bU4NTlFQTQsPmtM4C2dEAAiEA"
    "pf1iNGJmN/nAg7++03ra+zWQtXkARRP8L1B8qcFgBZY=",
)
"""A key and a certificate for "localhost", until 2126, that nobody vouches for; for tests alone."""
