"""``Sealed``: the only thing a generator accepts, and only the guard's verdict makes it.

What is in it is what goes on the wire: the system message that the prompt contract makes of the summary, and the
person's own messages as they typed them.

It does NOT protect against code in this process that means harm: Python cannot. It keeps an honest mistake anywhere
in the program from sending what the guard has not seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from popi_edge.errors import ConfigError, GuardBlocked, PopiError
from popi_edge.guard import Verdict, genuine
from popi_edge.signals import Message

TYPED = ("user", "assistant")
"""Roles of messages that a person's conversation holds; the system message is popi's."""


class NotSealed(PopiError, TypeError):
    """Something that ``seal`` did not make, or that was changed since."""


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Sealed:
    """A request's messages, and the summary among them (None: the bare prompt). Made by ``seal`` alone."""

    summary: str | None
    messages: tuple[Message, ...] = field(repr=False)

    def __post_init__(self) -> None:
        raise NotSealed("only popi_edge.seal.seal makes a Sealed")

    def __init_subclass__(cls, **_: Any) -> None:
        raise NotSealed("Sealed has no subclasses")

    def _refuse(self, *_: Any) -> NoReturn:
        raise NotSealed("a Sealed is neither copied nor pickled")

    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __replace__ = _refuse


_made: WeakKeyDictionary[Sealed, bytes] = WeakKeyDictionary()


def _digest(sealed: Sealed) -> bytes:
    """SHA-256 over the exact content, with lengths, so that no two contents are written alike.

    Raises NotSealed for any other type than popi's own: a kind of string or list may show one thing and be another.
    """
    parts = ["", ""] if sealed.summary is None else ["+", sealed.summary]
    if type(sealed.messages) is not tuple or any(type(m) is not Message for m in sealed.messages):
        raise NotSealed("a sealed message was changed")
    for message in sealed.messages:
        parts += [message.role, message.content]
    h = hashlib.sha256()
    for part in parts:
        if type(part) is not str:
            raise NotSealed("a sealed text is not plain text")
        data = part.encode("utf-8", "surrogatepass")
        h.update(len(data).to_bytes(8, "big") + data)
    return h.digest()


def seal(
    summary: str | None, messages: Iterable[Message | tuple[str, str]], *, system: str, verdict: Verdict
) -> Sealed:
    """Seal the person's ``messages`` under a summary that the guard has seen (None or empty: the bare prompt).

    ``system`` must be what the prompt contract makes of that summary, ``verdict`` the guard's own on that text.
    Raises GuardBlocked with the findings, or when the verdict is not the guard's; ConfigError for messages that are
    not the person's conversation.
    """
    from popi_edge.prompts import generate_system

    text = summary or ""
    if {type(text), type(system)} != {str}:  # a kind of string may compare equal to what it is not
        raise GuardBlocked("the summary and the system message must be plain text")
    if not genuine(verdict) or type(verdict.text) is not str or verdict.text != text:
        raise GuardBlocked("this verdict is not the guard's own on this summary")
    if not verdict.ok:
        why = "; ".join(f.message for f in verdict.findings[:3])
        raise GuardBlocked(f"the guard blocked the summary: {why}", verdict.findings)
    if system != generate_system(summary):
        raise GuardBlocked("the system message is not what the prompt contract makes of this summary")
    turns = tuple(m if isinstance(m, Message) else Message(*m) for m in messages)
    strange = [m.role for m in turns if type(m.role) is not str or type(m.content) is not str or m.role not in TYPED]
    if strange or not any(m.role == "user" for m in turns):
        raise ConfigError("messages must be the person's conversation: user and assistant, at least one of the user")
    made = object.__new__(Sealed)
    object.__setattr__(made, "summary", summary or None)
    object.__setattr__(made, "messages", (Message("system", system), *turns))
    _made[made] = _digest(made)
    return made


def require_sealed(value: object) -> Sealed:
    """``value``, if ``seal`` made this very object and it has not changed since. Raises NotSealed (a TypeError)."""
    if type(value) is not Sealed:
        raise NotSealed(f"a {type(value).__name__} is not a Sealed")
    known = _made.get(value)
    try:
        same = known is not None and known == _digest(value)
    except (AttributeError, TypeError):
        same = False
    if not same:
        raise NotSealed("this Sealed was not made by the guard, or was changed since")
    return value
