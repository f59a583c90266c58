"""Who answers under the summary: an OpenAI-compatible URL or this process. Generators take ``Sealed`` alone.

``prepare`` gives the exact bytes; ``deliver`` records them in the egress log, then sends them, then records
the outcome. Nothing here reads the store of signals.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from collections.abc import Generator as Iteration
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from popi_edge.errors import GeneratorError, PopiError

if TYPE_CHECKING:
    from popi_edge.egress import EgressLog
    from popi_edge.seal import Sealed

LOCAL = "local"
IN_PROCESS = "in-process"

Stream = Iteration[str, None, "Reply"]
"""Pieces of the reply's text as they come; the generator's return value is the whole Reply."""


class AnsweredBadly(GeneratorError):
    """A generator answered with ``http_status``, but not with a usable reply.

    ``ours`` is the message without what the generator itself said in it, which may repeat what it was sent.
    """

    def __init__(self, message: str, http_status: int, ours: str | None = None) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.ours = message if ours is None else ours


@dataclass(frozen=True)
class Request:
    """What will go out.

    ``body`` is exactly what is sent and logged. ``headers`` hold the key, so are not shown. ``sealed`` is what it was
    prepared from; ``deliver`` sends none that has none (only evaluation, on public text, makes such).
    """

    destination: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    sealed: Sealed | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Reply:
    """What came back.

    ``http_status`` is None in-process; ``finish`` is the reason to stop: stop, length, …
    """

    text: str
    http_status: int | None = None
    finish: str | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@runtime_checkable
class Generator(Protocol):
    """One place that answers.

    ``remote`` is False only for what may see a draft: in-process, or trusted by name.
    """

    @property
    def name(self) -> str: ...

    @property
    def remote(self) -> bool: ...

    def prepare(self, sealed: Sealed, *, stream: bool = False) -> Request:
        """The exact bytes for this request; nothing is sent. Raises GeneratorError."""

    def stream(self, request: Request) -> Stream:
        """Send, yielding pieces of text; returns the Reply. Raises GeneratorError."""

    def send(self, request: Request, *, on_text: Callable[[str], Any] | None = None) -> Reply:
        """``stream``, collected."""


def collect(stream: Stream, on_text: Callable[[str], Any] | None = None) -> Reply:
    """Run a stream to its end, handing each piece of text to ``on_text``."""
    try:
        while True:
            try:
                piece = next(stream)
            except StopIteration as end:
                reply: Reply = end.value
                return reply
            if on_text is not None and piece:
                on_text(piece)
    finally:
        stream.close()


def messages_of(sealed: Sealed | None) -> list[tuple[str, str]]:
    """The (role, content) pairs of a Sealed. Raises GeneratorError for anything else."""
    from popi_edge.seal import require_sealed

    try:
        known = require_sealed(sealed)
    except TypeError as e:
        raise GeneratorError(f"a generator takes only what the guard has sealed: {e}") from None
    return [(m.role, m.content) for m in known.messages]


def _insist_prepared(generator: Generator, request: Request) -> None:
    """Raise GeneratorError unless ``request`` is, byte for byte, what ``generator`` makes of something sealed."""
    messages_of(request.sealed)
    sealed: Any = request.sealed
    if request not in [generator.prepare(sealed, stream=stream) for stream in (False, True)]:
        raise GeneratorError("this request is not what the generator makes of the messages that were sealed")


def deliver(
    generator: Generator,
    request: Request,
    log: EgressLog,
    *,
    user: str,
    summary_id: str | None = None,
    summary_version: int | None = None,
) -> Iteration[str, None, tuple[Reply, str]]:
    """Record, send, record the outcome; yields pieces of text, returns (reply, egress id).

    The request's record is committed before the first byte goes out; when the log cannot be written, or the request
    is not what ``generator`` prepared from something sealed, nothing is sent. What a generator says in an error is for
    the caller, not for the record: it may repeat the summary. Raises StoreError, GeneratorError. A caller that stops
    half-way leaves the outcome "failed: stopped by the caller".
    """
    _insist_prepared(generator, request)
    egress_id = log.request(
        generator.name, request.destination, request.headers, request.body,
        user=user, summary_id=summary_id, summary_version=summary_version,
    )  # fmt: skip
    start = time.monotonic()

    def failed(error: str, http_status: int | None = None) -> None:
        elapsed = int((time.monotonic() - start) * 1000)
        with contextlib.suppress(PopiError):  # what went wrong first is what the caller must hear
            log.outcome(egress_id, status="failed", error=error, http_status=http_status, elapsed_ms=elapsed)

    try:
        reply = yield from generator.stream(request)
    except PopiError as e:
        said = e.ours if isinstance(e, AnsweredBadly) else str(e)  # a record is for good; bodies alone can be erased
        failed(" ".join(said.split()), e.http_status if isinstance(e, AnsweredBadly) else None)
        raise
    except (GeneratorExit, KeyboardInterrupt):
        failed("stopped by the caller")
        raise
    except BaseException as e:
        failed(f"stopped by {type(e).__name__}")
        raise
    elapsed = int((time.monotonic() - start) * 1000)
    log.outcome(egress_id, status="ok", http_status=reply.http_status, reply=reply.text, elapsed_ms=elapsed)
    return reply, egress_id
