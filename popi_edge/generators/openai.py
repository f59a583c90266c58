"""A generator behind an OpenAI-compatible URL.

``POST …/chat/completions``, streamed (SSE) or in one piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from popi_edge.errors import GeneratorError
from popi_edge.generators import AnsweredBadly, Reply, Request, Stream, collect, messages_of
from popi_edge.generators.wire import Deadline, Response, clean, post

if TYPE_CHECKING:
    from popi_edge.seal import Sealed

MAX_REPLY_BYTES = 4 * 2**20
MAX_ERROR_BYTES = 64 * 1024
ERROR_CHARS = 200
KEY_PIECE = 8
"""A run of this many characters of the key is masked wherever a server repeats it."""


@dataclass(frozen=True)
class OpenAIGenerator:
    """One model behind one URL. ``key`` is sent as a bearer token; it is neither shown nor logged.

    ``url`` is the base, such as ``https://api.example.org/v1``. ``timeout_s`` seconds are the total for a
    request: finding, connecting, sending, and the whole reply. ``max_reply_bytes`` bounds the reply as
    received. Not covered: what the operator does with a request; proxies (none is used, whatever the
    environment says).
    """

    name: str
    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    trusted: bool = False
    timeout_s: float = 120.0
    max_tokens: int | None = 512
    temperature: float | None = None
    max_reply_bytes: int = MAX_REPLY_BYTES

    @property
    def remote(self) -> bool:
        return not self.trusted

    @property
    def who(self) -> str:
        """How errors name this generator: its name and its host."""
        return f"generator {self.name} at {urlsplit(self.url).netloc}"

    def prepare(self, sealed: Sealed, *, stream: bool = False) -> Request:
        """The exact bytes for this request; nothing is sent. Raises GeneratorError."""
        content: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in messages_of(sealed)],
            "stream": stream,
        }
        if self.max_tokens is not None:
            content["max_tokens"] = self.max_tokens
        if self.temperature is not None:
            content["temperature"] = self.temperature
        try:
            body = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except UnicodeEncodeError:
            raise GeneratorError(f"{self.who}: a message is not valid Unicode (a lone surrogate)") from None
        made = self.request(body, accept="text/event-stream" if stream else "application/json")
        return replace(made, sealed=sealed)

    def request(self, body: bytes, *, accept: str = "application/json") -> Request:
        """A body with where it goes and its headers. Raises GeneratorError for a key that no header can carry."""
        destination = f"{self.url.rstrip('/')}/chat/completions"
        headers = {
            "Host": urlsplit(destination).netloc,
            "User-Agent": "popi-edge",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Accept": accept,
            "Accept-Encoding": "identity",
        }
        if self.key is not None:
            if not re.fullmatch(r"[!-~]+", self.key):
                raise GeneratorError(f"{self.who}: its key is empty or holds characters that a header cannot carry")
            headers["Authorization"] = f"Bearer {self.key}"
        return Request(destination, headers, body)

    def stream(self, request: Request) -> Stream:
        """Send, yielding pieces of text as they come; returns the Reply. Raises GeneratorError.

        A server that was asked to stream and answers in one piece, or the other way round, is understood.
        """
        deadline = Deadline(self.timeout_s)
        with post(
            request.destination, request.headers, request.body,
            deadline=deadline, max_bytes=self.max_reply_bytes, who=self.who,
        ) as response:  # fmt: skip
            self._refuse(response)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "text/event-stream":
                return (yield from self._events(response))
            body = b"".join(response.chunks)
            choice = self._choice(body)
            text = _text(choice.get("message"))
            if text is None:
                raise self._error("the reply has no choices[0].message.content", response.status)
            yield text
            return Reply(text, response.status, _finish(choice))

    def send(self, request: Request, *, on_text: Callable[[str], Any] | None = None) -> Reply:
        """``stream``, collected."""
        return collect(self.stream(request), on_text)

    # reading a reply ----------------------------------------------------------------------------------------
    def _refuse(self, response: Response) -> None:
        """Raise for a redirect, an error status or an encoded body, before anything of it is used."""
        status = response.status
        encoding = clean(response.headers.get("content-encoding", "identity"), 40)
        plain = encoding.lower() in ("identity", "")
        if 300 <= status < 400:
            place = self._hide(clean(response.headers.get("location", "nowhere"), 100))
            text = f"redirects to {place} (HTTP {status}); not followed"
            raise self._error(text, status, f"redirects (HTTP {status}); not followed")
        if status != 200:
            said = self._said(_up_to(response.chunks, MAX_ERROR_BYTES)) if plain else ""
            raise self._error(f"HTTP {status}" + (f": {said}" if said else ""), status, f"HTTP {status}")
        if not plain:
            text = "which was not asked for"
            raise self._error(f"the reply is encoded as {encoding}, {text}", status, f"the reply is encoded, {text}")

    def _said(self, body: bytes) -> str:
        """The short message in the body of an error, with the key masked and made fit for one line."""
        text: Any = body.decode("utf-8", "replace")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            text = value
            for step in ("error", "message", "detail"):
                if isinstance(text, dict) and step in text:
                    text = text[step]
        if not isinstance(text, str):
            return ""
        if text.lstrip().startswith("<"):  # a page of HTML says nothing on one line
            return ""
        return clean(self._hide(clean(text, 20 * ERROR_CHARS)), ERROR_CHARS)

    def _hide(self, text: str) -> str:
        """``text`` with each run of KEY_PIECE or more characters of the key (or all of a shorter key) masked."""
        key = self.key
        if not key:
            return text
        least = min(KEY_PIECE, len(key))
        out, i = [], 0
        while i < len(text):
            j = i + least
            if j <= len(text) and text[i:j] in key:
                while j < len(text) and text[i : j + 1] in key:
                    j += 1
                out.append("***")
                i = j
            else:
                out.append(text[i])
                i += 1
        return "".join(out)

    def _choice(self, body: bytes) -> dict[str, Any]:
        """The first choice of a reply or of one event. Raises GeneratorError where it is not such."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise self._error("the reply is not JSON", 200) from None
        if isinstance(value, dict) and value.get("error"):
            said = self._said(body)
            raise self._error("it reports an error" + (f": {said}" if said else ""), 200, "it reports an error")
        choices = value.get("choices") if isinstance(value, dict) else None
        if choices == []:  # an event with the usage alone
            return {}
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            raise self._error("the reply is JSON, but not of a chat completion (no choices)", 200)
        first: dict[str, Any] = choices[0]
        return first

    def _events(self, response: Response) -> Stream:
        parser, parts, finish, done = EventParser(), [], None, False
        for data in _each(parser, response.chunks):
            if data.strip() == b"[DONE]":
                done = True
                break
            choice = self._choice(data)
            finish = _finish(choice) or finish
            text = _text(choice.get("delta"))
            if text:
                parts.append(text)
                yield text
        if not done and finish is None:
            raise self._error("hung up in the middle of the stream", response.status)
        return Reply("".join(parts), response.status, finish)

    def _error(self, text: str, http_status: int, ours: str | None = None) -> GeneratorError:
        """``ours``: the text without what the generator said in it."""
        return AnsweredBadly(f"{self.who}: {text}", http_status, None if ours is None else f"{self.who}: {ours}")


class EventParser:
    """Server-sent events, bytes in pieces of any size → the data of each event (WHATWG HTML, section 9.2)."""

    _END = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of every event that this chunk completes."""
        self._buffer += chunk
        start = 0
        at = self._scanned
        while end := self._END.search(self._buffer, at):
            yield from self._line(bytes(self._buffer[start : end.start()]))
            start = at = end.end()
        del self._buffer[:start]
        self._scanned = max(0, len(self._buffer) - 1)  # a last \r may turn out to be half of \r\n

    def end(self) -> Iterator[bytes]:
        """The data of a last event that no empty line ended."""
        yield from self._line(bytes(self._buffer).rstrip(b"\r"))
        self._buffer.clear()
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[bytes]:
        if not line:
            if self._data:
                yield b"\n".join(self._data)
                self._data.clear()
            return
        name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))


def _each(parser: EventParser, chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield from parser.feed(chunk)
    yield from parser.end()


def _up_to(chunks: Iterator[bytes], limit: int) -> bytes:
    """The first ``limit`` bytes.

    Less where the connection breaks: the status matters more than the message.
    """
    got = bytearray()
    try:
        for chunk in chunks:
            got += chunk
            if len(got) >= limit:
                break
    except Exception:  # of the transport, whichever: the caller has an error to report already
        pass
    return bytes(got[:limit])


def _text(message: Any) -> str | None:
    """The content of a message or delta, with lone surrogates (from ``\\ud800`` escapes) replaced."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        return None
    return content.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _finish(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return clean(reason, 40) if isinstance(reason, str) else None
