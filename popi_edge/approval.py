"""What the person decides: which words, which version, what the guard is overruled on; and what they see of it.

The half of ``Popi`` that stands between a draft and a generator: nothing leaves that was not approved or written here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from popi_edge import prompts
from popi_edge.config import Settings
from popi_edge.errors import GuardBlocked, StoreError

if TYPE_CHECKING:
    from popi_edge.diff import Change
    from popi_edge.egress import EgressLog
    from popi_edge.engines.base import Engine
    from popi_edge.explain import Explanation
    from popi_edge.guard import Finding, Verdict
    from popi_edge.guard.index import SignalIndex
    from popi_edge.guard.overrule import Overruled
    from popi_edge.guard.policy import Policy
    from popi_edge.models.bundle import Bundle
    from popi_edge.store import Store
    from popi_edge.versions import SummaryRow
    from popi_edge.vocabulary import ClosedVocabulary, Lexicon


@dataclass(frozen=True)
class PreferenceSummary:
    """One version of a person's summary. ``tokens`` are the base's; ``status`` as in the store; ``reason`` in words.

    ``overruled``: what the guard found in it and the person let stand.
    """

    text: str
    tokens: int
    status: str
    signal_ids: tuple[str, ...]
    model: str
    version: int
    reason: str
    user: str
    at: str
    id: str
    overruled: tuple[Overruled, ...] = ()

    @classmethod
    def of(cls, row: SummaryRow) -> PreferenceSummary:
        """From the store's row."""
        names = cls.__dataclass_fields__
        return cls(**{k: v for k, v in vars(row).items() if k in names})


@dataclass(frozen=True)
class Difference:
    """Two versions of a summary, and how the text of ``new`` comes from that of ``old``."""

    old: PreferenceSummary
    new: PreferenceSummary
    changes: tuple[Change, ...]


class Approval:
    """What ``Popi`` has for words, versions and the guard."""

    settings: Settings
    store: Store
    answer: Callable[[Finding], bool] | None
    _mask: ClosedVocabulary | None
    _lock: threading.RLock
    _seen: dict[str, tuple[tuple[int, int], SignalIndex]]

    if TYPE_CHECKING:

        @property
        def bundle(self) -> Bundle: ...

        @property
        def engine(self) -> Engine: ...

        @property
        def lexicon(self) -> Lexicon: ...

        @property
        def egress(self) -> EgressLog: ...

        def _constraint(self) -> ClosedVocabulary | None: ...

    # the person's own words -----------------------------------------------------------------------------------
    def own_words(self) -> tuple[str, ...]:
        """The words that the person added to the lexicon. Raises ConfigError naming file and line."""
        from popi_edge.own_words import read

        return read(self.settings.home)

    def add_words(self, *words: str) -> tuple[str, ...]:
        """Add words to the person's own; returns those that were not there. Adds none when it raises ConfigError."""
        from popi_edge import own_words

        with self.store.transaction():  # its lock keeps other programs from writing the file meanwhile
            new = [w for w in own_words.as_words(words) if w not in self.lexicon.inside]
            added = own_words.add(self.settings.home, new)
        self._mask = None
        return added

    def remove_words(self, *words: str) -> tuple[str, ...]:
        """Remove words from the person's own: all of them, or none when it raises ConfigError.

        A summary that says one of them can then no longer leave.
        """
        from popi_edge import own_words

        with self.store.transaction():
            gone = own_words.remove(self.settings.home, own_words.as_words(words))
        self._mask = None
        return gone

    # versions -------------------------------------------------------------------------------------------------
    def summary(self, user: str = "me") -> PreferenceSummary | None:
        """The newest version, whatever its status."""
        row = self.store.latest_summary(user)
        return PreferenceSummary.of(row) if row else None

    def history(self, user: str = "me") -> list[PreferenceSummary]:
        """Every version, oldest first."""
        return [PreferenceSummary.of(row) for row in self.store.summaries(user)]

    def departures(self, user: str = "me") -> dict[int, dict[str, int]]:
        """Version → where its text was sent, and in how many requests, the model in this process left out; from the
        egress log. Each text tells of the person, and several tell more than the last one. Raises StoreError."""
        from popi_edge.generators import IN_PROCESS

        found: dict[int, dict[str, int]] = {}
        for record in self.egress.records(user=user, kind="request"):
            version, place = record.meta.get("summary_version"), str(record.meta.get("destination"))
            if isinstance(version, int) and place != IN_PROCESS:
                sent = found.setdefault(version, {})
                sent[place] = sent.get(place, 0) + 1
        return found

    def approve(self, user: str = "me", version: int | None = None) -> PreferenceSummary:
        """Approve a draft or a revoked version, the newest unless another is named: from then on it may leave.

        Raises NotApproved, StoreError; GuardBlocked when the guard finds something in it.
        """
        row = self.store.summary_version(user, version)
        self._insist(self._judged(row, user))
        return PreferenceSummary.of(self.store.approve(user, row.version))

    def revoke(self, user: str = "me", version: int | None = None) -> list[PreferenceSummary]:
        """Take approval back, of one version or else of all that have it; nothing approved, nothing leaves.

        Raises NotApproved when nothing is approved, StoreError. What was sent before cannot be called back.
        """
        return [PreferenceSummary.of(row) for row in self.store.revoke(user, version)]

    def rollback(self, version: int, user: str = "me") -> PreferenceSummary:
        """Make an older version the newest, as a new version: approved or edited if it is that still, else a draft.

        Raises GuardBlocked when the guard now finds something in it; StoreError when it is not there, has no text
        (stale or insufficient), or is the newest already.
        """
        with self.store.transaction():  # so that no deletion comes between reading and writing
            row, last = self.store.summary_version(user, version), self.store.summary_version(user)
            if not row.text:
                raise StoreError(f"summary version {version} is {row.status}: it has no text to go back to")
            if row.version == last.version:
                raise StoreError(f"summary version {version} is the newest already")
            self._insist(self._judged(row, user))
            made = self.store.add_summary(
                user=user, text=row.text, tokens=row.tokens, reason=f"version {version} again", model=row.model,
                status=row.status if row.status in ("approved", "edited") else "draft", contract=row.contract,
                signal_ids=row.signal_ids, overruled=row.overruled,
            )  # fmt: skip
        return PreferenceSummary.of(made)

    def edit(
        self, text: str, user: str = "me", *, allow: tuple[str, ...] = (), overrule: tuple[str, ...] = ()
    ) -> PreferenceSummary:
        """Keep the person's own wording as a new version that may leave; ``allow`` adds words to their lexicon.

        What the settings say to mask is masked first, and what they say to ask about is asked. ``overrule`` names words
        for this version alone: a finding all of whose words are named, or that was answered for, is let stand, and
        recorded with it. Raises GuardBlocked listing every other finding, ConfigError for a name that is in none;
        nothing is changed then.
        """
        from popi_edge import own_words, vocabulary
        from popi_edge.guard.overrule import accepted
        from popi_edge.guard.overrule import overrule as let_stand

        text = self._masked(" ".join(text.split()), user, extra=allow)
        found = self.check(text, user, extra=allow, asking=False).findings
        overruled = let_stand(text, found, overrule)
        passed = self.check(text, user, extra=allow, overruled=overruled)
        self._insist(passed)
        overruled += accepted(text, passed.overruled)
        tokens = self.engine.count(text)
        with self.store.transaction():
            last = self.store.latest_summary(user)
            made_from = last.signal_ids if last and last.status != "stale" else ()
            quoted = (o.signal_id for o in overruled if o.signal_id)  # their words are in it: they go, it goes
            row = self.store.add_summary(
                user=user, text=text, tokens=tokens, status="edited", reason="written by the person",
                model="person", contract=prompts.CONTRACT, signal_ids=dict.fromkeys((*made_from, *quoted)),
                overruled=overruled,
            )  # fmt: skip
            own_words.add(self.settings.home, vocabulary.own_words(allow))
        self._mask = None
        return PreferenceSummary.of(row)

    def diff(self, old: int | None = None, new: int | None = None, user: str = "me") -> Difference:
        """What changed from version ``old`` (the one before ``new``) to ``new`` (the newest).

        Raises StoreError when one is not there, or is stale: its text is erased.
        """
        from popi_edge.diff import changes

        after = self.store.summary_version(user, new)
        if old is None and after.version == 1:
            raise StoreError("summary version 1 is the first: there is none before it")
        before = self.store.summary_version(user, after.version - 1 if old is None else old)
        for row in (before, after):
            if row.status == "stale":
                raise StoreError(f"the text of summary version {row.version} is erased: {row.reason}")
        return Difference(PreferenceSummary.of(before), PreferenceSummary.of(after), changes(before.text, after.text))

    def explain(
        self, user: str = "me", *, calls: int = 24, each: Callable[[], object] = lambda: None
    ) -> tuple[PreferenceSummary, Explanation]:
        """Which signals each sentence of the newest version rests on, by leaving signals out and scoring again.

        The model reads the prompt at most ``calls`` times, and ``each`` is called after every time. Raises StoreError
        where there is no text, or it was not made from signals. See ``popi_edge.explain`` for what it cannot show.
        """
        from popi_edge.explain import explain

        row = self.store.summary_version(user)
        if not row.text or not row.signal_ids:
            why = "was not made from signals" if row.text else f"is {row.status}"
            raise StoreError(f"summary version {row.version} {why}: there is nothing to explain")
        signals = [s.signal for s in sorted(map(self.store.get, row.signal_ids), key=lambda s: s.seq)]
        done = explain(
            self.engine, signals, row.text, constraint=self._constraint(), adapter=self.bundle.adapter("infer"),
            opening=self.bundle.decoding.opening, calls=calls, each=each,
        )  # fmt: skip
        return PreferenceSummary.of(row), done

    def check(
        self, text: str, user: str = "me", *, extra: tuple[str, ...] = (), form: bool = False,
        overruled: tuple[Overruled, ...] = (), asking: bool = True,
    ) -> Verdict:  # fmt: skip
        """The guard's verdict on a text, against all of the user's signals, under the settings' policy, but for what
        the person ``overruled``; unless it is ``asking``, what it would ask about is a finding.

        ``form`` also asks for the form of decoded summaries, which whatever a model wrote must have.
        """
        from popi_edge.guard import verdict

        return verdict(
            text, self._index(user), self._lexicon(extra), form=form, policy=self._policy(),
            answer=self.answer if asking else None, overruled=overruled,
        )  # fmt: skip

    def _judged(self, version: SummaryRow | PreferenceSummary, user: str) -> Verdict:
        """The verdict on a version: on its form too, unless a person wrote it."""
        return self.check(version.text, user, form=version.model != "person", overruled=version.overruled)

    def _lexicon(self, extra: tuple[str, ...] = ()) -> Lexicon:
        """The words that may be said: the closed vocabulary's, the person's own and ``extra`` ones."""
        from popi_edge.vocabulary import Lexicon

        return Lexicon.load([*self.own_words(), *extra])

    def _policy(self) -> Policy:
        from popi_edge.guard.policy import Policy

        return Policy.of(self.settings.guard)

    def _masked(self, text: str, user: str, *, extra: tuple[str, ...] = (), form: bool = False) -> str:
        """The text with what the settings say to mask masked, where that leaves something that passes."""
        from popi_edge.guard import masked

        if not text or "mask" not in self.settings.guard.values():
            return text
        return masked(text, self._index(user), self._lexicon(extra), self._policy(), form=form)

    def _index(self, user: str) -> SignalIndex:
        """The user's signals as the guard looks at them: kept, added to, and made anew when one was deleted."""
        from popi_edge.guard.index import SignalIndex

        with self._lock:
            (count, last), index = self._seen.pop(user, ((0, -1), SignalIndex()))
            now = self.store.extent(user)
            if now != (count, last):
                new = list(self.store.each(user, after=last)) if now[0] > count else []
                if not new or now[0] != count + len(new):
                    new, index = list(self.store.each(user)), SignalIndex()
                    count = 0
                for stored in new:
                    for text in stored.signal.texts():
                        index.add(stored.signal.id, text)
                now = (count + len(new), new[-1].seq if new else -1)
            self._seen[user] = now, index
            return index

    @staticmethod
    def _insist(found: Verdict) -> None:
        if not found.ok:
            why = "; ".join(f.message for f in found.findings[:3])
            rest = len(found.findings) - 3
            why += f"; and {rest} more" if rest > 0 else ""
            raise GuardBlocked(f"the guard blocked the summary: {why}", found.findings)
