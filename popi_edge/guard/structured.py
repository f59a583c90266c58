"""Personal data and secrets that have a form: addresses, cards, accounts, national ids, phones, keys, places.

The patterns are data (``spec/guard.json``, ``structured``), over the folded text, so that no look-alike digit hides a
number; a candidate must pass its check digits, have one of its words ``near`` before or after it, or not have those
``without`` before it. ``popi_edge.guard.libraries`` adds what installed Python libraries find.

It does NOT know names, streets, or numbers of a country that no pattern is for and that no word announces.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from popi_edge.guard.checks import CHECKS
from popi_edge.guard.finding import Clock, Finding, outermost
from popi_edge.guard.folding import fold_with_places, spec

TRACE = re.compile(r"[\d@/=_+#%{}]|[.:]\w|-----|\bat\b")
"""What a text without any structured data does without, so that most texts are done with at once."""
LOADED = re.compile(r"\d|\S{20}|-----")
"""The same for what the libraries find; loading them takes a second."""


@dataclass(frozen=True)
class Pattern:
    """One of the spec's patterns, compiled. ``mixed``: must have small letters, capitals and digits as written."""

    rule: str
    what: str
    regex: re.Pattern[str]
    check: str | None
    near: re.Pattern[str] | None
    without: re.Pattern[str] | None
    prefix: bool
    whole: bool
    mixed: bool
    digits: tuple[int, int]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Pattern:
        """From the spec's entry."""
        near, without = entry.get("near"), entry.get("without")
        low, high = entry.get("digits", (0, 1_000_000))
        return cls(
            entry["rule"], entry["what"], re.compile(entry["pattern"]), entry.get("check"),
            re.compile(near) if near else None, re.compile(f"(?:{without})[ :#]*$") if without else None,
            entry.get("prefix", False), entry.get("whole", False), entry.get("mixed", False), (low, high),
        )  # fmt: skip


@functools.cache
def patterns() -> tuple[Pattern, ...]:
    """The spec's patterns."""
    return tuple(map(Pattern.of, spec()["structured"]))


def structured(text: str, *, libraries: bool = True, clock: Clock | None = None) -> list[Finding]:
    """What in a text has the form of personal data or a secret, each place once. Raises TimeoutError."""
    clock = clock or Clock(float(spec()["limits"]["seconds"]))
    folded, places = fold_with_places(text)
    if not TRACE.search(folded):
        return []
    found = []
    for pattern in patterns():
        clock.check()
        for start, end in _hits(pattern, folded, text, places):
            a, b = places[start], places[end - 1] + 1
            found.append(Finding(pattern.rule, a, b, text[a:b], None, f"{pattern.what}: {text[a:b][:60]!r}"))
    if libraries and LOADED.search(folded):
        from popi_edge.guard.libraries import added

        found += added(text, clock)
    return outermost(found)


def _hits(pattern: Pattern, folded: str, text: str, places: list[int]) -> Iterator[tuple[int, int]]:
    """Places of a pattern's matches in the folded text that hold up."""
    for hit in pattern.regex.finditer(folded):
        group = 1 if hit.re.groups and not pattern.whole else 0
        start, end = hit.span(group)
        if pattern.prefix:
            end = _account_end(folded, start, end)
        if end > start and _holds(pattern, folded, start, end) and _mixed(pattern, text, places, start, end):
            yield start, end


def _holds(pattern: Pattern, folded: str, start: int, end: int) -> bool:
    core = "".join(c for c in folded[start:end] if c.isalnum())
    low, high = pattern.digits
    if not low <= sum(map(str.isdigit, core)) <= high:
        return False
    if pattern.check and not CHECKS[pattern.check](core):
        return False
    reach = int(spec()["near"])
    before, after = folded[max(0, start - reach) : start], folded[end : end + reach]
    if pattern.near and not (pattern.near.search(before) or pattern.near.search(after)):
        return False
    return not (pattern.without and pattern.without.search(before))


def _account_end(folded: str, start: int, end: int) -> int:
    """Where an account number that begins at ``start`` ends by its country's length; ``start`` where it cannot."""
    length, place = spec()["iban_lengths"].get(folded[start : start + 2], 0), start
    while length and place < end:
        length -= folded[place].isalnum()
        place += 1
    return place if not length and place > start and (place == len(folded) or not folded[place].isalnum()) else start


def _mixed(pattern: Pattern, text: str, places: list[int], start: int, end: int) -> bool:
    raw = text[places[start] : places[end - 1] + 1]
    return not pattern.mixed or all(any(map(test, raw)) for test in (str.islower, str.isupper, str.isdigit))
