"""Text edits that annotators accepted or rejected (R3, IteraTeR), one a line.

An accepted edit becomes an Edit from ``before`` to ``after``; a rejected one a Comparison in which
``before`` was preferred. Pure insertions and deletions have only one of the two texts: they are skipped and
counted, because a signal needs both. Without a user given, every annotator is one: ``iterater-ann1``, …
"""

from __future__ import annotations

from collections.abc import Iterator

from popi_edge.errors import SignalError
from popi_edge.importers.jsonl import Item, LineError, Record, Skipped
from popi_edge.signals import Comparison, Edit

PROMPT = "Revise this text."


def items(record: Record, user: str | None, source: str | None) -> Iterator[Item]:
    """The signal in one row, or why there is none."""
    row, line = record.value, record.line
    verdict = row.get("accept_or_reject")
    if verdict not in ("Accept", "Reject"):
        error = f"accept_or_reject is {verdict!r:.40}; it must be Accept or Reject"
        yield LineError(line, error, "accept_or_reject")
        return
    texts = {}
    for name in ("before", "after"):
        text = row.get(name)
        if text is not None and not isinstance(text, str):
            yield LineError(line, f"{name} must be text or null", name)
            return
        if text is None or not text.strip():
            yield Skipped(line, f"{name} is empty (a pure {'insertion' if name == 'before' else 'deletion'})")
            return
        texts[name] = text
    before, after = texts["before"], texts["after"]
    if before == after:
        yield Skipped(line, "before and after are the same")
        return
    annotator = row.get("annotator")
    if user is None and (not isinstance(annotator, str) or not annotator.strip()):
        yield LineError(line, "annotator is missing", "annotator")
        return
    who = {"user": user or f"iterater-{annotator}", "source": source or "iterater"}
    try:
        if verdict == "Accept":
            yield Edit(prompt=PROMPT, original=before, edited=after, **who)
        else:
            yield Comparison(prompt=PROMPT, chosen=before, rejected=after, **who)
    except SignalError as e:
        yield LineError(line, str(e), e.field)
