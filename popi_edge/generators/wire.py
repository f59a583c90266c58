"""One POST of exact bytes under one total deadline. The only client-side socket of ``popi_edge.generators``.

It stands on httpcore2, the transport of httpx2, whose network streams can be wrapped: a limit *per read*,
which is all that HTTP clients offer, lets a server that drips one header byte a second hold the caller for
ever. No redirects, no cookies, no proxies from the environment, no decoding: what is given is what goes out.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpcore2

from popi_edge.errors import GeneratorError

PIECE = 8192


class Deadline:
    """A point in time, ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, more than 0. Raises httpcore2.ReadTimeout when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the deadline has passed")
        return left


class _Stream(httpcore2.NetworkStream):
    """A network stream of which every read and write ends at the deadline."""

    def __init__(self, inner: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In pieces: one write of a large body renews its timeout with every packet that a slow reader takes.
        for start in range(0, len(buffer), PIECE):
            self._inner.write(buffer[start : start + PIECE], self._deadline.remaining())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, self._deadline.remaining()), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore2.NetworkBackend):
    """Connects within the deadline.

    Name resolution, which cannot be interrupted, runs in a thread of its own.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        addresses = self._resolve(host, port)
        for i, address in enumerate(addresses):
            share = self._deadline.remaining() / (len(addresses) - i)  # a dead first address must leave time
            try:
                return _Stream(self._inner.connect_tcp(address, port, share), self._deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if i == len(addresses) - 1:
                    raise
        raise httpcore2.ConnectError("the host has no address")

    def _resolve(self, host: str, port: int) -> list[str]:
        answer: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

        def ask() -> None:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                answer.put(list(dict.fromkeys(str(a[4][0]) for a in found)))
            except OSError as e:
                answer.put(e)
            except UnicodeError as e:  # a label that IDNA refuses
                answer.put(OSError(str(e)))

        threading.Thread(target=ask, name="popi-resolve", daemon=True).start()
        try:
            result = answer.get(timeout=self._deadline.remaining())
        except queue.Empty:
            raise httpcore2.ConnectTimeout("the name was not resolved in time") from None
        if isinstance(result, OSError):
            raise httpcore2.ConnectError(result) from result
        return result


@dataclass(frozen=True)
class Response:
    """The head of a reply, and its body piece by piece. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


@contextmanager
def post(
    url: str, headers: Mapping[str, str], body: bytes, *, deadline: Deadline, max_bytes: int, who: str
) -> Iterator[Response]:
    """POST ``body`` as it is; the reply may be read inside the block.

    ``max_bytes`` bounds the reply's body. Every error is a GeneratorError of one line that starts with
    ``who``. Not covered: a resolver thread may outlive the deadline (it holds nothing), as may the platform's
    own checks of a certificate.
    """
    try:
        context = httpcore2.default_ssl_context() if url.startswith("https:") else None
    except OSError as e:  # SSL_CERT_FILE that is missing or no certificate
        raise GeneratorError(f"{who}: TLS cannot be set up ({clean(str(e), 100)})") from None
    try:
        pool = httpcore2.ConnectionPool(ssl_context=context, network_backend=_Backend(deadline), max_connections=1)
        pairs = [(k.encode("ascii"), v.encode("ascii")) for k, v in headers.items()]
        with pool, pool.stream("POST", url, headers=pairs, content=body) as response:
            seen = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers}
            yield Response(response.status, seen, _bounded(response.iter_stream(), deadline, max_bytes, who))
    except httpcore2.TimeoutException:
        raise GeneratorError(f"{who}: no complete reply within {deadline.seconds:g} s") from None
    except (httpcore2.ConnectError, httpcore2.ReadError, httpcore2.WriteError) as e:
        raise GeneratorError(f"{who}: {_network(e)}") from None
    except httpcore2.LocalProtocolError:
        raise GeneratorError(f"{who}: the key or a header cannot be sent") from None
    except httpcore2.ProtocolError as e:
        raise GeneratorError(f"{who}: {_protocol(e)}") from None
    except UnicodeEncodeError:
        raise GeneratorError(f"{who}: the key or a header is not plain ASCII") from None


def _bounded(chunks: Iterable[bytes], deadline: Deadline, max_bytes: int, who: str) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > max_bytes:
            raise GeneratorError(f"{who}: the reply is larger than {max_bytes:,} bytes; cut")
        deadline.remaining()
        yield chunk


def _network(error: Exception) -> str:
    cause = error.args[0] if error.args else None  # the pool drops __cause__, but keeps what it was made from
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its TLS certificate was refused ({clean(cause.verify_message, 100)})"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed ({clean(str(cause.reason or cause), 100)})"
    if isinstance(cause, socket.gaierror):
        return "the host's name cannot be resolved"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused; is it running?"
    reason = clean(str(getattr(cause, "strerror", None) or cause or "no reason given"), 100)
    if isinstance(error, httpcore2.ConnectError):
        return f"cannot connect ({reason})"
    return f"hung up in the middle ({reason})"


def _protocol(error: Exception) -> str:
    text = str(error)
    if "without sending a response" in text or "without sending complete" in text or "incomplete" in text:
        return "hung up before the reply was complete"
    if "too long" in text:
        return "the reply's headers are too long"
    return "what it sent is not HTTP"  # not what it sent: this goes into the egress log, for good


def clean(text: str, limit: int) -> str:
    """Foreign text made fit for one line: no control or format characters, at most ``limit`` long."""
    spaced = " ".join(text[: 20 * limit].split())
    line = "".join(c for c in spaced if unicodedata.category(c)[0] != "C")
    return line if len(line) <= limit else line[: limit - 1] + "…"
