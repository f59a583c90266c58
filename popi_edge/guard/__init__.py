"""What may not leave: words outside the lexicon, what stands in a signal, codes, addresses, numbers, secrets.

    folding.py index.py   how texts are compared: look-alikes and word forms folded, the signals as a row of numbers
    lexicon.py            words outside the lexicon, whoever wrote the text
    overlap.py            runs of a signal's words, with gaps; many of them at one place in any order
    encoded.py            a signal's words spelled by letters, or in a code
    disguise.py           invisible characters, strings of marks, capitals inside words
    patterns.py           mail addresses and numbers, in digits and in words
    structured.py         cards, accounts, ids, keys, addresses, by the patterns in the spec; libraries.py adds to them
    policy.py             what the person wants done with a finding: block, mask, ask

Pure functions; every finding blocks, and a rule that fails, or takes too long, blocks too. The figures and patterns
stand in ``spec/guard.json``, the look-alikes in ``spec/homoglyphs.json``: what bindings share.

It does NOT judge meaning: a summary of ordinary words in their own order says what it says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from popi_edge.guard.finding import RULES, Clock, Finding, SignalText, outermost
from popi_edge.guard.folding import spec

if TYPE_CHECKING:
    from popi_edge.guard.index import SignalIndex
    from popi_edge.guard.overrule import Overruled
    from popi_edge.guard.policy import Policy
    from popi_edge.vocabulary import Lexicon

__all__ = ["RULES", "Finding", "SignalText", "Verdict", "check", "genuine", "masked", "spec", "verdict"]

@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Verdict:
    """The guard's word on ``text``: ``ok`` means that nothing was found but what the person overruled before in this
    text, or when asked (``overruled``).

    One made elsewhere than by ``verdict`` seals nothing.
    """

    ok: bool
    findings: tuple[Finding, ...] = ()
    text: str = field(default="", repr=False)
    overruled: tuple[Finding, ...] = ()


_given: WeakKeyDictionary[Verdict, tuple[bool, str]] = WeakKeyDictionary()


def check(
    text: str,
    signals: SignalIndex | Iterable[SignalText],
    lexicon: Lexicon,
    *,
    form: bool = False,
    seconds: float | None = None,
) -> tuple[Finding, ...]:
    """Everything in ``text`` that may not leave, in order of place; never raises.

    ``signals`` are all texts of all stored signals, or an index of them, which saves going through them again.
    ``form`` also asks for the form of decoded summaries (single spaces, few marks, capitals only where sentences
    start); without it punctuation is free. ``seconds`` bounds the work (the spec's limit unless given): what is not
    done by then blocks.
    """
    if not isinstance(text, str):
        return (Finding("text", 0, 0, "", None, "what the guard was given is not text", failed=True),)
    try:
        return _checked(text, signals, lexicon, form, seconds) if text else ()
    except Exception as e:
        return (_failed("text", text, e),)


def _checked(
    text: str, signals: SignalIndex | Iterable[SignalText], lexicon: Lexicon, form: bool, seconds: float | None
) -> tuple[Finding, ...]:
    limits = spec()["limits"]
    if len(text) > limits["characters"]:
        why = f"a text of {len(text):,} characters is no summary (the limit is {limits['characters']:,})"
        return (Finding("size", 0, len(text), text[:60], None, why),)
    clock = Clock(float(limits["seconds"]) if seconds is None else seconds)
    index, broken = _indexed(signals, clock)
    found = [] if broken is None else [_failed("overlap", text, broken)]
    for name, rule in _rules(text, index, lexicon, form, clock):
        if broken is not None and name in FROM_SIGNALS:
            continue
        try:
            clock.check()
            found += rule()
        except Exception as e:  # a rule that cannot decide must not let anything through
            found.append(_failed(name, text, e))
    traced = [_traced(f, index) for f in outermost(found, by_rule=True)]
    return tuple(sorted(traced, key=lambda f: (f.start, f.end, f.rule)))


FROM_SIGNALS = ("overlap", "spelled", "encoded")
"""Rules that cannot decide without the signals."""


def _rules(
    text: str, index: SignalIndex, lexicon: Lexicon, form: bool, clock: Clock
) -> Iterable[tuple[str, Callable[[], list[Finding]]]]:
    from popi_edge.guard.disguise import capitals, hidden, marks
    from popi_edge.guard.encoded import decoded, spelled
    from popi_edge.guard.lexicon import outside
    from popi_edge.guard.overlap import overlaps
    from popi_edge.guard.patterns import emails, numbers
    from popi_edge.guard.structured import structured

    return (
        ("lexicon", lambda: outside(text, lexicon, form=form)),
        ("hidden", lambda: hidden(text)),
        ("marks", lambda: marks(text, str(spec()["punctuation"]), spec())),
        ("capitals", lambda: capitals(text, lexicon.own)),
        ("email", lambda: emails(text)),
        ("number", lambda: numbers(text, lexicon.own, spec())),
        ("structured", lambda: structured(text, clock=clock)),
        ("overlap", lambda: overlaps(text, index, spec(), clock)),
        ("spelled", lambda: spelled(text, index, lexicon, clock)),
        ("encoded", lambda: decoded(text, index, lexicon, clock)),
    )


def _indexed(signals: SignalIndex | Iterable[SignalText], clock: Clock) -> tuple[SignalIndex, Exception | None]:
    """The index of the signals, and why it is not whole if it is not."""
    from popi_edge.guard.index import SignalIndex

    if isinstance(signals, SignalIndex):
        return signals, None
    index = SignalIndex()
    try:
        for signal_id, text in signals:
            clock.check()
            index.add(signal_id, text)
    except Exception as e:
        return index, e
    return index, None


def _failed(rule: str, text: str, error: Exception) -> Finding:
    why = f"the guard's rule {rule!r} failed ({type(error).__name__}), so nothing may leave"
    return Finding(rule, 0, len(text), text[:60], None, why, failed=True)


def _traced(found: Finding, index: SignalIndex) -> Finding:
    """A finding with the signal that it stands in, where one has it word for word."""
    from popi_edge.guard.folding import words

    if found.signal_id is not None or found.failed or found.rule in ("form", "hidden", "marks", "size"):
        return found
    some = [w.text for w in words(found.excerpt)]
    digits = "".join(c for w in some for c in w if c.isdigit())
    signal_id = index.locate(some) or (index.digits(digits) if digits else None)
    if signal_id is None:
        return found
    return dataclasses.replace(
        found, signal_id=signal_id, message=f"{found.message} (it stands in signal {signal_id})"
    )


def verdict(
    text: str,
    signals: SignalIndex | Iterable[SignalText],
    lexicon: Lexicon,
    *,
    form: bool = False,
    policy: Policy | None = None,
    answer: Callable[[Finding], bool] | None = None,
    overruled: Sequence[Overruled] = (),
) -> Verdict:
    """``check``, as a verdict that ``popi_edge.seal`` accepts for this very text. Never raises.

    Findings that the person has ``overruled`` in this text are left out. A finding that the ``policy`` asks about is
    put to ``answer``, once nothing else was found; without ``answer`` it blocks like the others. What is to be masked
    blocks too: see ``masked``.
    """
    from popi_edge.guard.overrule import standing

    findings, answered = check(text, signals, lexicon, form=form), list[Finding]()
    try:
        findings = policy.applied(findings) if policy is not None else findings
        if overruled and isinstance(text, str):
            findings = standing(text, findings, overruled)
        if findings and answer is not None and all(f.action == "ask" for f in findings):
            answered = [f for f in findings if answer(f) is True]
            findings = tuple(f for f in findings if f not in answered)
    except Exception as e:
        findings, answered = (*findings, _failed("text", str(text), e)), []
    made = Verdict(not findings, findings, text if isinstance(text, str) else "", tuple(answered))
    _given[made] = (made.ok, made.text)
    return made


def masked(
    text: str,
    signals: SignalIndex | Iterable[SignalText],
    lexicon: Lexicon,
    policy: Policy,
    *,
    form: bool = False,
) -> str:
    """The text with what the policy masks replaced by something neutral, until nothing is left to mask.

    Where something is left after three rounds, or something blocks, it is the text as it was.
    """
    from popi_edge.guard.policy import mask

    now = text
    for _ in range(3):
        findings = policy.applied(check(now, signals, lexicon, form=form))
        if any(f.action == "block" for f in findings):
            return text
        if not any(f.action == "mask" for f in findings):
            return now
        now = mask(now, findings)
    return text


def genuine(value: object) -> bool:
    """Whether ``verdict`` made this very object, and nobody changed it since."""
    known = _given.get(value) if type(value) is Verdict else None
    return known is not None and isinstance(value, Verdict) and known == (value.ok, value.text)
