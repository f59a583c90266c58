"""What stands in front of a prompt under each condition, and under the same condition for somebody opposite.

none               the bare prompt
raw                the user's signals themselves
shuffled_summary   the summary of a random other row, against that of yet another
summary            the summary of the user's signals, against that of a row of the opposite persona
untrained_summary  the same as the untouched base writes it, zero-shot (where the bundle has an inference adapter)
oracle_summary     the persona's own sentence, against the opposite persona's
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence, Set
from dataclasses import dataclass

from popi_edge.errors import ConfigError
from popi_edge.signals import Signal
from popi_training.evaluate.data import Row, generator, same_text

CONDITIONS = ("none", "raw", "untrained_summary", "shuffled_summary", "summary", "oracle_summary")
FROM_SIGNALS = ("raw", "untrained_summary", "shuffled_summary", "summary")
"""The conditions that depend on what counts as the user's signals (with or without the profile)."""


@dataclass(frozen=True)
class Context:
    """A summary, or raw signals, or (both empty) nothing: the bare prompt."""

    summary: str = ""
    signals: tuple[Signal, ...] = ()


BARE = Context()


@dataclass(frozen=True)
class Donors:
    """For one row the rows (by index) that lend it a context: one of the opposite persona, two of any."""

    opposite: int
    shuffled: int
    shuffled_too: int


def user_signals(row: Row, profile: bool) -> tuple[Signal, ...]:
    """The row's signals; with ``profile`` its description first, as it was there before the choices."""
    return (row.profile, *row.signals) if profile and row.profile else row.signals


def signals_key(signals: Sequence[Signal]) -> str:
    """A hash of what the signals say and of their order, the same for two rows with the same history."""
    return hashlib.sha256(json.dumps([s.content_hash() for s in signals]).encode()).hexdigest()


def draw_donors(rows: Sequence[Row], seed: int) -> list[Donors]:
    """Donors of each row, drawn by ``seed`` and the row's id alone among ``rows``.

    A row whose own signals are about the prompt in question never lends: an opposite user's past choice on
    that very pair would decide it by copying. A row that names its mirror is contrasted with that one. Raises
    ConfigError where no row is left to lend.
    """
    named = {row.id: k for k, row in enumerate(rows)}
    asked = [{same_text(getattr(s, "prompt", None) or "") for s in r.signals} for r in rows]
    said = [{same_text(t) for s in r.signals for t in s.texts()} for r in rows]
    out = []
    for i, row in enumerate(rows):
        fit = [k for k in range(len(rows)) if k != i and same_text(row.prompt) not in asked[k]]
        opposite = [k for k in fit if rows[k].user_key != row.user_key]
        if row.mirror:
            opposite = [k for k in opposite if k == named.get(row.mirror)]
        if not opposite:
            raise ConfigError(f"too few rows: none of the opposite persona can lend its signals to {row.id}")
        rng = generator(seed, "donors", row.id)
        # Drawn again where it is a conversation that is about the prompt, so that all other rows keep their donors.
        fresh = {k for k in fit if same_text(row.prompt) not in said[k]} or set(fit)
        drawn = [_drawn(rng, opposite, fresh), _drawn(rng, fit, fresh)]
        drawn += [_drawn(rng, [k for k in fit if k != drawn[1]] or [drawn[1]], fresh)]
        out.append(Donors(*drawn))
    return out


def _drawn(rng: random.Random, among: Sequence[int], fresh: Set[int]) -> int:
    """One of ``among``, by lot, until it is a ``fresh`` one, if any is."""
    found = rng.choice(among)
    while found not in fresh and not fresh.isdisjoint(among):
        found = rng.choice(among)
    return found


def contexts(
    condition: str,
    i: int,
    rows: Sequence[Row],
    donors: Sequence[Donors],
    summaries: Sequence[str],
    profile: bool,
    untrained: Sequence[str] = (),
) -> tuple[Context, Context]:
    """The context of row ``i`` under a condition, and the one it is contrasted with."""
    row, donor = rows[i], donors[i]
    match condition:
        case "none":
            return BARE, BARE
        case "raw":
            other = user_signals(rows[donor.opposite], profile)
            return Context(signals=user_signals(row, profile)), Context(signals=other)
        case "shuffled_summary":
            return Context(summaries[donor.shuffled]), Context(summaries[donor.shuffled_too])
        case "summary":
            return Context(summaries[i]), Context(summaries[donor.opposite])
        case "untrained_summary":
            return Context(untrained[i]), Context(untrained[donor.opposite])
        case "oracle_summary":
            return Context(row.oracle), Context(row.opposite_oracle)
    raise ConfigError(f"there is no condition {condition!r}")
