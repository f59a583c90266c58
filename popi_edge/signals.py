"""The seven kinds of signal: what a person chose, rated, edited, said, posted, discussed, or is.

Each is a frozen dataclass with the same four common fields (``id``, ``at``, ``source``, ``user``) and its own
texts. ``to_json`` and ``from_json`` are inverse to each other; ``from_json`` is strict and names the field at
fault.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

import uuid6

from popi_edge.errors import SignalError

MAX_TEXT = 2_000_000
"""Longest text of one field, in characters; longer ones are refused (the prompt cuts far earlier)."""
MAX_NAME = 200
ROLES = ("user", "assistant", "system")


def new_id() -> str:
    """A UUIDv7: unique, and sortable by the time it was made (RFC 9562, section 5.7)."""
    return str(uuid6.uuid7())


def now() -> str:
    """The time now as RFC 3339, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: Any, name: str, limit: int = MAX_TEXT, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise SignalError(f"{name} must be text, not {type(value).__name__}", field=name)
    if not empty and not value.strip():
        raise SignalError(f"{name} is empty", field=name)
    if len(value) > limit:
        raise SignalError(f"{name} has {len(value):,} characters; the limit is {limit:,}", field=name)
    if "\0" in value:  # engines and tools written in C would stop reading there
        raise SignalError(f"{name} contains a NUL character", field=name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise SignalError(f"{name} is not valid Unicode (a lone surrogate)", field=name) from None
    return value


def check_name(value: Any, name: str) -> str:
    """``value`` if it can be an id, source or user: one line of 1 to 200 characters. Raises SignalError."""
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in _text(value, name, MAX_NAME)):
        raise SignalError(f"{name} contains a line break or another control character", field=name)
    return str(value)


@dataclass(frozen=True, kw_only=True)
class _Common:
    id: str = field(default_factory=new_id)
    at: str = field(default_factory=now)
    source: str = "api"
    user: str = "me"

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for name in ("id", "source", "user"):
            check_name(getattr(self, name), name)
        _text(self.at, "at", 64)
        try:
            at = datetime.fromisoformat(self.at)
            if at.tzinfo is None:
                raise SignalError(f"at has no time zone: {self.at[:40]!r}", field="at")
            utc = at.astimezone(UTC)  # overflows at both ends of the calendar
        except (ValueError, OverflowError):
            raise SignalError(f"at is not an RFC 3339 time: {self.at[:40]!r}", field="at") from None
        text = utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        object.__setattr__(self, "at", text)

    def _check(self, *names: str) -> None:
        for name in names:
            _text(getattr(self, name), name)

    def content(self) -> dict[str, Any]:
        """The fields of this kind alone, without ``id``, ``at``, ``source`` and ``user``."""
        common = {f.name for f in dataclasses.fields(_Common)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in common}

    def content_hash(self) -> str:
        """SHA-256 (hex) of kind and content: the same for a duplicate, whoever sent it and when."""
        value = [self.kind, self.content()]
        blob = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(blob.encode()).hexdigest()

    def texts(self) -> list[str]:
        """Every free text in this signal, for the guard to compare a summary with."""
        return [v for v in self.content().values() if isinstance(v, str)]


@dataclass(frozen=True)
class Comparison(_Common):
    """Of two replies to ``prompt`` the person preferred ``chosen`` to ``rejected``."""

    prompt: str
    chosen: str
    rejected: str
    kind: ClassVar[str] = "comparison"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Rating(_Common):
    """The person gave ``response`` a ``score`` between 0 (worst) and 1 (best)."""

    prompt: str
    response: str
    score: float
    kind: ClassVar[str] = "rating"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("prompt", "response")
        score = self.score
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise SignalError("score must be a number between 0 and 1", field="score")
        if not 0 <= score <= 1:  # also NaN, and whole numbers too large for a float
            raise SignalError("score must lie between 0 and 1", field="score")
        object.__setattr__(self, "score", float(score) + 0.0)  # -0.0 and 0.0 are the same rating


@dataclass(frozen=True)
class Edit(_Common):
    """The person changed a reply from ``original`` to ``edited``."""

    prompt: str
    original: str
    edited: str
    kind: ClassVar[str] = "edit"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("prompt", "original", "edited")


@dataclass(frozen=True)
class Statement(_Common):
    """The person said outright what they like or dislike."""

    text: str
    kind: ClassVar[str] = "statement"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("text")


@dataclass(frozen=True)
class Post(_Common):
    """What the person wrote elsewhere (a review, a comment, a mail), perhaps in answer to ``prompt``."""

    text: str
    prompt: str | None = None
    kind: ClassVar[str] = "post"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("text")
        if self.prompt is not None:
            self._check("prompt")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: ``role`` is user, assistant or system."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            known = ", ".join(ROLES)
            raise SignalError(f"messages: role {self.role!r:.40} is not one of {known}", field="messages")
        _text(self.content, "messages", empty=True)


@dataclass(frozen=True)
class Conversation(_Common):
    """A conversation the person had; ``messages`` in order, at least one of them by the user."""

    messages: tuple[Message, ...]
    kind: ClassVar[str] = "conversation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.messages, (list, tuple)) or not self.messages:
            raise SignalError("messages must be a list with at least one message", field="messages")
        turns = tuple(_message(m) for m in self.messages)
        if not any(m.role == "user" and m.content.strip() for m in turns):
            raise SignalError("messages: none of them is by the user", field="messages")
        object.__setattr__(self, "messages", turns)

    def texts(self) -> list[str]:
        return [m.content for m in self.messages]


@dataclass(frozen=True)
class Profile(_Common):
    """A description of the person, by themselves or by another program."""

    text: str
    kind: ClassVar[str] = "profile"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("text")


Signal = Comparison | Rating | Edit | Statement | Post | Conversation | Profile
KINDS: dict[str, type[Signal]] = {
    c.kind: c for c in (Comparison, Rating, Edit, Statement, Post, Conversation, Profile)
}


def _message(value: Any) -> Message:
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping) or set(value) != {"role", "content"}:
        raise SignalError("messages: each must be an object with role and content", field="messages")
    if not isinstance(value["role"], str):
        raise SignalError("messages: role must be text", field="messages")
    return Message(role=value["role"], content=_text(value["content"], "messages", empty=True))


def to_json(signal: Signal) -> dict[str, Any]:
    """The signal as one JSON object: ``kind``, the common fields, then its own."""
    head = {"kind": signal.kind, "id": signal.id, "at": signal.at}
    return head | {"source": signal.source, "user": signal.user} | signal.content()


def from_json(value: Any, **defaults: Any) -> Signal:
    """The signal that a JSON object says, strictly: no unknown and no missing field.

    ``defaults`` fill common fields that the object lacks. Raises SignalError, naming the field.
    """
    if not isinstance(value, Mapping):
        raise SignalError("not a JSON object")
    kind = value.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise SignalError(f"kind is {kind!r:.60}; it must be one of {', '.join(KINDS)}", field="kind")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given = {**defaults, **{k: v for k, v in value.items() if k != "kind"}}
    for name in given:
        if name not in fields:
            raise SignalError(f"{name!r:.60} is not a field of a {kind}", field=str(name)[:60])
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise SignalError(f"{name} is missing", field=name)
    return cls(**given)
