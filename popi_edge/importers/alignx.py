"""AlignX rows: a person's past choices (``Pair-wise Comparative Feedback``) and who they are (``profile``).

The row's own prompt, chosen and rejected replies and its persona are what a summary is judged by; they are
never imported. Without a user given, every row is a person of its own: ``alignx-0000``, ``alignx-0001``, …
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from popi_edge.errors import SignalError
from popi_edge.importers.jsonl import Item, LineError, Record, Skipped
from popi_edge.signals import Comparison, Profile

HISTORY = "Pair-wise Comparative Feedback"


def items(record: Record, user: str | None, source: str | None) -> Iterator[Item]:
    """The signals in one row: its profile, then its past pairs; a pair that is wrong takes no other along."""
    row, line = record.value, record.line
    who = {"user": user or f"alignx-{record.row:04d}", "source": source or "alignx"}
    if HISTORY not in row and "profile" not in row:
        yield LineError(line, f"neither {HISTORY!r} nor 'profile' is in the row", HISTORY)
        return
    profile = row.get("profile")
    if profile is None or profile == "":
        yield Skipped(line, "the profile is empty")
    else:
        try:
            yield Profile(text=profile, **who)
        except SignalError as e:
            yield LineError(line, f"profile: {e}", "profile")
    pairs = row.get(HISTORY, [])
    if not isinstance(pairs, list):
        yield LineError(line, f"{HISTORY} must be a list", HISTORY)
        return
    for number, pair in enumerate(pairs, 1):
        where = f"{HISTORY}, pair {number}"
        if not isinstance(pair, Mapping):
            yield LineError(line, f"{where}: not a JSON object", HISTORY)
            continue
        try:
            texts = {name: pair.get(name) for name in ("prompt", "chosen", "rejected")}
            yield Comparison(**texts, **who)  # type: ignore[arg-type]  # checked by Comparison itself
        except SignalError as e:
            yield LineError(line, f"{where}: {e}", e.field)
