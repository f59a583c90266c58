"""Whom the pair is trained on: a person's signals, and pairs of the same person that they have not judged yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from popi_edge.signals import Signal


@dataclass(frozen=True)
class Target:
    """A held-out pair (x, y⁺, y⁻): the prompt, the reply that the person would choose, the other one."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Person:
    """``signals`` in order of time; ``targets``: held-out pairs, of other prompts than the signals are about, each
    prompt once; ``oracle``: what somebody who knows them would say, where that is known; ``heard``: what a generator is
    taught under in its place, where that is not the same; ``known``: what the first 1, 2, … signals say of each
    attribute, in numbers; ``alike``: the signals of other people who want the same, where the identity term needs some.
    """

    id: str
    signals: tuple[Signal, ...]
    targets: tuple[Target, ...]
    oracle: str = ""
    heard: str = ""
    known: tuple[tuple[float, ...], ...] = ()
    alike: tuple[tuple[Signal, ...], ...] = ()


def leaks(text: str, signals: Sequence[Signal]) -> float:
    """The share of a summary's words that stand in what it shares with its person's signals, as the device's guard
    finds it (``popi_edge.guard.overlap``, fillers between included): 0 for none, 1 for all."""
    from popi_edge.guard import spec
    from popi_edge.guard.folding import words
    from popi_edge.guard.overlap import overlaps

    own = words(text)
    found = overlaps(text, [(s.id, t) for s in signals for t in s.texts()], spec())
    caught = sum(any(f.start <= w.start and w.end <= f.end for f in found) for w in own)
    return caught / len(own) if own else 0.0
