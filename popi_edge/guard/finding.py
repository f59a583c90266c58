"""What the guard reports, and the clock that bounds its work."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

SignalText = tuple[str, str]
"""A signal's id and one of its texts."""
RULES = (
    "text", "size", "lexicon", "form", "hidden", "marks", "capitals", "number", "overlap", "spelled", "encoded",
    "structured", "email", "card", "iban", "national_id", "phone", "key", "jwt", "url", "ip", "mac", "coordinates",
    "wallet",
)  # fmt: skip
"""Every name that a finding's rule can have. ``structured`` is all from ``email`` on, where they could not decide."""
OWN = "popi"
"""The finder of what the rules in ``spec/guard.json`` find; libraries are named by their own names."""


@dataclass(frozen=True)
class Finding:
    """One reason to block: characters ``start`` to ``end`` of the text, and the signal they come from, if any.

    ``by`` names who found it: the shared rules, or a Python library on top of them. ``action`` is what the policy says:
    block, mask or ask; whichever it is, a text with a finding does not pass. ``failed``: the rule could not decide,
    which always blocks.
    """

    rule: str
    start: int
    end: int
    excerpt: str
    signal_id: str | None
    message: str
    by: str = OWN
    action: str = "block"
    failed: bool = False


def outermost(found: Iterable[Finding], *, by_rule: bool = False) -> list[Finding]:
    """Without what lies inside something longer or was found there before; ``by_rule``: by the same rule."""
    kept: list[Finding] = []
    for f in sorted(found, key=lambda f: f.start - f.end):
        if not any(k.start <= f.start and f.end <= k.end and (k.rule == f.rule or not by_rule) for k in kept):
            kept.append(f)
    return sorted(kept, key=lambda f: (f.start, f.end))


class Clock:
    """Bounds the guard's work in seconds; ``check`` raises TimeoutError once they are over."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise TimeoutError when the time is over."""
        if time.monotonic() >= self._end:
            raise TimeoutError("it took too long")
