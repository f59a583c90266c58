"""Files made by other programs → signals. A module a format, with a function from a record to its signals.

A record that is wrong names its line and field and is counted; the good ones go in. ``read`` gives the
items of a file one by one, ``import_file`` puts them into a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from popi_edge.errors import ConfigError, StoreError
from popi_edge.importers import alignx, iterater, jsonl, oasst
from popi_edge.importers.jsonl import Item, LineError, Record, Skipped, records
from popi_edge.signals import Signal, check_name

if TYPE_CHECKING:
    from popi_edge.store import Store

READERS: dict[str, Callable[[Record, str | None, str | None], Iterator[Item]]] = {
    "jsonl": jsonl.items,
    "alignx": alignx.items,
    "oasst": oasst.items,
    "iterater": iterater.items,
}
FORMATS = ("auto", *READERS)
SHOWN = 20
"""So many errors are kept in a report; all are counted."""
BATCH = 500
BATCH_CHARACTERS = 8_000_000


@dataclass
class Report:
    """What an import did. ``read`` counts good signals; every one was added, or is a duplicate, or a conflict
    (its id belongs to another signal: counted among the errors)."""

    format: str
    read: int = 0
    added: int = 0
    duplicates: int = 0
    users: set[str] = field(default_factory=set)
    skipped: dict[str, int] = field(default_factory=dict)
    errors: list[LineError] = field(default_factory=list)
    error_count: int = 0

    def fail(self, error: LineError) -> None:
        """Count an error, and keep it if it is one of the first."""
        self.error_count += 1
        if len(self.errors) < SHOWN:
            self.errors.append(error)


def detect(path: Path) -> str:
    """The format of a file, by the keys of its first records. Raises SignalError when it cannot be read."""
    for number, record in enumerate(records(path)):
        if isinstance(record, Record):
            keys = record.value.keys()
            if "kind" in keys:
                return "jsonl"
            if alignx.HISTORY in keys:
                return "alignx"
            if "message_tree_id" in keys or isinstance(record.value.get("prompt"), dict):
                return "oasst"
            if "accept_or_reject" in keys:
                return "iterater"
        if number >= SHOWN:
            break
    return "jsonl"  # its errors say best what a signal must look like


def read(
    path: Path,
    format: str = "auto",
    *,
    user: str | None = None,
    source: str | None = None,
    seen: Callable[[int], None] = lambda n: None,
) -> Iterator[tuple[int, Item]]:
    """(line, signal or LineError or Skipped) for everything in the file; ``seen`` is told the bytes read.

    ``user`` None lets the format choose (a signal's own user; one user a row or annotator where there is
    none). Raises ConfigError for an unknown format, SignalError for a user or source that cannot be one, or
    for a file that cannot be read at all.
    """
    if format not in FORMATS:
        raise ConfigError(f"there is no format {format!r:.40}; choose {', '.join(FORMATS)}")
    for name, value in (("user", user), ("source", source)):
        if value is not None:
            check_name(value, name)
    reader = READERS[detect(path) if format == "auto" else format]
    for record in records(path, seen):
        if isinstance(record, LineError):
            yield record.line, record
            continue
        for item in reader(record, user, source):
            yield record.line, item


def import_file(
    store: Store,
    path: Path,
    format: str = "auto",
    *,
    user: str | None = None,
    source: str | None = None,
    seen: Callable[[int], None] = lambda n: None,
    batch: int = BATCH,
) -> Report:
    """Put a file's signals into the store, ``batch`` at a time, each batch in one transaction.

    Raises what ``read`` raises, and StoreError; then whole batches before it are in, and running it again
    is safe.
    """
    report = Report(detect(path) if format == "auto" else format)
    held: list[tuple[int, Signal]] = []
    size = 0
    for line, item in read(path, report.format, user=user, source=source, seen=seen):
        if isinstance(item, LineError):
            report.fail(item)
        elif isinstance(item, Skipped):
            report.skipped[item.reason] = report.skipped.get(item.reason, 0) + 1
        else:
            held.append((line, item))
            size += sum(map(len, item.texts()))
            if len(held) >= batch or size >= BATCH_CHARACTERS:
                _store(store, held, report)
                held, size = [], 0
    _store(store, held, report)
    return report


def _store(store: Store, held: list[tuple[int, Signal]], report: Report) -> None:
    if not held:
        return
    try:
        done = store.add((signal for _, signal in held), strict=False)
    except StoreError as e:
        raise StoreError(f"{e} ({report.added} signals were added before)") from None
    report.read += len(held)
    report.added += len(done.added)
    report.duplicates += done.duplicates
    report.users.update(signal.user for _, signal in held)
    for index in done.conflicts:
        line, signal = held[index]
        report.fail(LineError(line, f"id {signal.id} already belongs to another signal", "id"))
