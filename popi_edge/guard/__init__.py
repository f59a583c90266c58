"""What may not leave: words outside the lexicon, verbatim runs of a signal, mail addresses, numbers.

Pure functions; every finding blocks, and a rule that fails blocks too. The figures stand in ``spec/guard.json``.

It does NOT judge meaning: a summary of ordinary words in their own order says what it says.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from popi_edge.guard.overrule import Overruled
    from popi_edge.vocabulary import Lexicon

SignalText = tuple[str, str]
"""A signal's id and one of its texts."""


@dataclass(frozen=True)
class Finding:
    """One reason to block: characters ``start`` to ``end`` of the text, and the signal they come from, if any.

    ``failed``: the rule could not decide, so nobody may overrule it.
    """

    rule: str
    start: int
    end: int
    excerpt: str
    signal_id: str | None
    message: str
    failed: bool = False


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Verdict:
    """The guard's word on ``text``: ``ok`` means that nothing was found. One made elsewhere seals nothing."""

    ok: bool
    findings: tuple[Finding, ...] = ()
    text: str = field(default="", repr=False)


_given: WeakKeyDictionary[Verdict, tuple[bool, str]] = WeakKeyDictionary()


@functools.cache
def spec() -> Mapping[str, Any]:
    """The guard's data."""
    data: Mapping[str, Any] = json.loads(files("popi_edge.spec").joinpath("guard.json").read_text("utf-8"))
    return data


def check(
    text: str, signal_texts: Iterable[SignalText], lexicon: Lexicon, *, form: bool = False
) -> tuple[Finding, ...]:
    """Everything in ``text`` that may not leave, in order of place; never raises.

    ``signal_texts`` are all texts of all stored signals. ``form`` also asks for the form of decoded summaries
    (single spaces, few marks, capitals only where sentences start); without it punctuation is free.
    """
    from popi_edge.guard.lexicon import outside
    from popi_edge.guard.overlap import overlaps
    from popi_edge.guard.patterns import emails, numbers

    if not isinstance(text, str):
        return (Finding("text", 0, 0, "", None, "what the guard was given is not text", failed=True),)
    if not text:
        return ()
    rules: Sequence[tuple[str, Callable[[], list[Finding]]]] = (
        ("lexicon", lambda: outside(text, lexicon, form=form)),
        ("email", lambda: emails(text)),
        ("number", lambda: numbers(text, lexicon.own, spec())),
        ("overlap", lambda: overlaps(text, signal_texts, spec())),
    )
    found: list[Finding] = []
    for name, rule in rules:
        try:
            found += rule()
        except Exception as e:  # a rule that cannot decide must not let anything through
            why = f"the guard's rule {name!r} failed ({type(e).__name__}), so nothing may leave"
            found.append(Finding(name, 0, len(text), text[:60], None, why, failed=True))
    return tuple(sorted(found, key=lambda f: (f.start, f.end, f.rule)))


def verdict(
    text: str,
    signal_texts: Iterable[SignalText],
    lexicon: Lexicon,
    *,
    form: bool = False,
    overruled: Sequence[Overruled] = (),
) -> Verdict:
    """``check``, as a verdict that ``popi_edge.seal`` accepts for this very text. Never raises.

    Findings that the person has ``overruled`` in this text are left out.
    """
    from popi_edge.guard.overrule import standing

    findings = check(text, signal_texts, lexicon, form=form)
    if overruled and isinstance(text, str):
        findings = standing(text, findings, overruled)
    made = Verdict(not findings, findings, text if isinstance(text, str) else "")
    _given[made] = (made.ok, made.text)
    return made


def genuine(value: object) -> bool:
    """Whether ``verdict`` made this very object, and nobody changed it since."""
    known = _given.get(value) if type(value) is Verdict else None
    return known is not None and isinstance(value, Verdict) and known == (value.ok, value.text)
