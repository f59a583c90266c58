"""The versions of a person's summary in the store: added at the end, approved, revoked; never changed otherwise.

A version is a ``draft`` until the person approves it; ``edited`` ones are the person's own; a ``revoked`` one was
either, and may no longer leave; ``insufficient`` ones say nothing; a ``stale`` one was made from a signal that is
deleted, and its text is gone for good.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi_edge.errors import NotApproved, StoreError
from popi_edge.guard.overrule import Overruled
from popi_edge.signals import new_id, now

STATUSES = ("draft", "approved", "edited", "revoked", "insufficient", "stale")
LEAVING = ("approved", "edited")
"""Statuses of versions that may leave the device."""


@dataclass(frozen=True)
class SummaryRow:
    """One version of a user's summary; ``text`` is empty once ``status`` is stale."""

    id: str
    user: str
    version: int
    text: str
    tokens: int
    status: str
    reason: str
    model: str
    contract: int
    signal_ids: tuple[str, ...]
    at: str
    approved_at: str | None
    revoked_at: str | None = None
    overruled: tuple[Overruled, ...] = ()


class Versions:
    """The part of ``Store`` that keeps summaries."""

    path: Path
    db: Any

    if TYPE_CHECKING:

        def transaction(self) -> AbstractContextManager[Any]: ...

        def _rows(self, table: str, where: str, args: Sequence[Any], **options: Any) -> list[dict[str, Any]]: ...

    def add_summary(
        self,
        *,
        user: str = "me",
        text: str,
        tokens: int,
        status: str,
        reason: str = "",
        model: str,
        contract: int,
        signal_ids: Iterable[str],
        overruled: Iterable[Overruled] = (),
    ) -> SummaryRow:
        """Keep a new version of a user's summary, numbered on from the last.

        Raises StoreError for a status that does not exist or fit, and when one of ``signal_ids`` is no longer
        there: what was made from a signal that was deleted meanwhile is not kept.
        """
        if status not in STATUSES or status in ("stale", "revoked"):
            raise StoreError(f"a summary cannot be added with status {status!r:.40}")
        if status in ("draft", *LEAVING) and not text.strip():
            raise StoreError(f"a summary with status {status} needs a text")
        made_from, at = tuple(signal_ids), now()
        with self.transaction():
            for id in made_from:
                if not self.db["signals"].count_where("id = ? AND user = ?", [id, user]):
                    raise StoreError(f"signal {id!r:.80} of {user!r:.80} is not there; summarize again")
            last = self.latest_summary(user)
            row = SummaryRow(
                id=new_id(),
                user=user,
                version=last.version + 1 if last else 1,
                text=text,
                tokens=tokens,
                status=status,
                reason=reason,
                model=model,
                contract=contract,
                signal_ids=made_from,
                at=at,
                approved_at=at if status in LEAVING else None,
                overruled=tuple(overruled),
            )
            kept = {"signal_ids": json.dumps(made_from), "overruled": json.dumps([asdict(o) for o in row.overruled])}
            values = {**vars(row), **kept}
            names, places = ", ".join(values), ", ".join("?" * len(values))
            self.db.execute(f"INSERT INTO summaries ({names}) VALUES ({places})", list(values.values()))
        return row

    def _summaries(self, where: str, args: Sequence[Any], **options: Any) -> list[SummaryRow]:
        return [self._summary(row) for row in self._rows("summaries", where, args, **options)]

    def _summary(self, row: dict[str, Any]) -> SummaryRow:
        try:
            overruled = tuple(Overruled(**o) for o in json.loads(row["overruled"]))
            return SummaryRow(**{**row, "signal_ids": tuple(json.loads(row["signal_ids"])), "overruled": overruled})
        except (ValueError, TypeError) as e:
            raise StoreError(f"{self.path}: a summary is damaged ({e})") from None

    def summaries(self, user: str = "me") -> list[SummaryRow]:
        """Every version of a user's summary, the first one first."""
        return self._summaries("user = ?", [user], order_by="version")

    def summary_version(self, user: str = "me", version: int | None = None) -> SummaryRow:
        """One version, the newest unless another is named. Raises StoreError when it is not there."""
        row = self.latest_summary(user)
        if row is None:
            raise StoreError(f"{user!r:.80} has no summary yet; run: popi summary refresh")
        if version is not None and version != row.version:
            row = next((r for r in self.summaries(user) if r.version == version), None)
        if row is None:
            raise StoreError(f"{user!r:.80} has no summary version {version}")
        return row

    def latest_summary(self, user: str = "me") -> SummaryRow | None:
        """The newest version, whatever its status."""
        return next(iter(self._summaries("user = ?", [user], order_by="version desc", limit=1)), None)

    def approved_summary(self, user: str = "me") -> SummaryRow | None:
        """The newest version that the person approved or edited: the one that may leave the device."""
        where = "user = ? AND status IN ('approved', 'edited')"
        return next(iter(self._summaries(where, [user], order_by="version desc", limit=1)), None)

    def draft_summary(self, user: str = "me") -> SummaryRow | None:
        """The newest draft, unless a version after it was revoked: what was turned down hides what came before it."""
        where = "user = ? AND status IN ('draft', 'revoked')"
        row = next(iter(self._summaries(where, [user], order_by="version desc", limit=1)), None)
        return row if row and row.status == "draft" else None

    def approve(self, user: str = "me", version: int | None = None) -> SummaryRow:
        """Approve a draft or a revoked version, the newest version unless another is named.

        Raises StoreError when there is no such version, NotApproved when it is neither.
        """
        with self.transaction():
            row = self.summary_version(user, version)
            if row.status not in ("draft", "revoked"):
                why = "only a draft or a revoked version can be approved"
                raise NotApproved(f"summary version {row.version} is {row.status}; {why}")
            sql = "UPDATE summaries SET status = 'approved', approved_at = ?, revoked_at = NULL WHERE id = ?"
            self.db.execute(sql, [now(), row.id])
            return self.summary_version(user, row.version)

    def revoke(self, user: str = "me", version: int | None = None) -> list[SummaryRow]:
        """Take approval back, of one version or else of all that have it: they may no longer leave. Oldest first.

        Raises StoreError when there is no such version, NotApproved when nothing is approved.
        """
        with self.transaction():
            rows = self.summaries(user) if version is None else [self.summary_version(user, version)]
            found = [r for r in rows if r.status in LEAVING]
            if not found:
                one = f"summary version {version} is {rows[0].status}" if version is not None else ""
                raise NotApproved(f"{one or f'no summary of {user!r:.80} is approved'}, so there is nothing to revoke")
            at = now()
            for row in found:
                self.db.execute("UPDATE summaries SET status = 'revoked', revoked_at = ? WHERE id = ?", [at, row.id])
            return [self.summary_version(user, r.version) for r in found]
