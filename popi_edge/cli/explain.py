"""How ``popi summary explain`` puts an explanation on the screen."""

from __future__ import annotations

from collections.abc import Mapping

from popi_edge.approval import PreferenceSummary
from popi_edge.cli.signals import one_line
from popi_edge.explain import Explanation, Sentence, Support
from popi_edge.signals import Signal

SHOWN = 3
LEAST = 0.1
"""Nats below which a signal is not shown: engines round."""


def as_text(row: PreferenceSummary, found: Explanation, signals: Mapping[str, Signal], scored_by: str) -> str:
    """Each sentence, and the signals that speak for it and most against it."""
    lines = []
    for sentence in found.sentences:
        lines += [*_sentence(sentence, signals), ""]
    how = "under the closed vocabulary" if found.masked else "without the closed vocabulary"
    lines.append(f"version {row.version} · the model was run {found.calls} times, {how}")
    if row.model != scored_by:
        lines.append(f"written by {row.model}, scored by {scored_by}: this says what that model makes of the text")
    return "\n".join(lines)


def _sentence(s: Sentence, signals: Mapping[str, Signal]) -> list[str]:
    lines = [s.text, f"  all signals together: {s.total:+.1f} nats (log-probability {s.logprob:.1f})"]
    told = [x for x in s.support if x.nats >= LEAST][:SHOWN]
    against = [x for x in s.support[-1:] if x.nats <= -LEAST]
    lines += [f"  {x.nats:+7.1f}  {_who(x, signals)}" for x in (*told, *against)]
    if not told:
        lines.append("  no signal makes it likelier by itself; what several say alike is not lost with one of them")
    return lines


def _who(x: Support, signals: Mapping[str, Signal]) -> str:
    first = signals[x.signal_ids[0]]
    said = f"{first.id}  {first.kind}: {one_line(' | '.join(first.texts()))}"
    more = len(x.signal_ids) - 1
    return said if not more else f"{said} … and {more} more, up to {x.signal_ids[-1]}"
