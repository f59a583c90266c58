"""The façade: signals → store → select → prompt → engine → summary → guard → approval → seal → generator → reply."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi_edge import prompts
from popi_edge.config import Settings, load, make_home
from popi_edge.errors import ConfigError, GuardBlocked, NotApproved
from popi_edge.signals import Signal

if TYPE_CHECKING:
    from popi_edge.egress import EgressLog
    from popi_edge.engines.base import Engine
    from popi_edge.generators import Generator, Request
    from popi_edge.guard import Finding, Verdict
    from popi_edge.guard.index import SignalIndex
    from popi_edge.guard.policy import Policy
    from popi_edge.models.bundle import Bundle
    from popi_edge.store import Added, Store, SummaryRow
    from popi_edge.vocabulary import ClosedVocabulary, Lexicon


@dataclass(frozen=True)
class PreferenceSummary:
    """One version of a person's summary. ``tokens`` are the base's; ``status`` as in the store; ``reason`` in words."""

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

    @classmethod
    def of(cls, row: SummaryRow) -> PreferenceSummary:
        """From the store's row."""
        names = cls.__dataclass_fields__
        return cls(**{k: v for k, v in vars(row).items() if k in names})


@dataclass(frozen=True)
class Preview:
    """What would be sent, byte for byte, and the summary in it (None: the bare prompt)."""

    generator: str
    remote: bool
    request: Request
    summary: PreferenceSummary | None


@dataclass(frozen=True)
class Answer:
    """A generator's reply and the id of the record of what was sent for it."""

    text: str
    egress_id: str
    summary: PreferenceSummary | None


class Popi:
    """One person's (or household's) signals and summaries on this device. Use as a context manager."""

    def __init__(
        self, settings: Settings, store: Store, answer: Callable[[Finding], bool] | None = None
    ) -> None:
        """``answer`` is asked about findings for which the settings say ``ask``; without it they block."""
        self.settings, self.store, self.answer = settings, store, answer
        self._lock = threading.RLock()
        self._bundle: Bundle | None = None
        self._engine: Engine | None = None
        self._mask: ClosedVocabulary | None = None
        self._seen: dict[str, tuple[tuple[int, int], SignalIndex]] = {}

    @classmethod
    def open(
        cls,
        path: str | Path | None = None,
        *,
        home: str | Path | None = None,
        answer: Callable[[Finding], bool] | None = None,
        **flags: Any,
    ) -> Popi:
        """Open the store (``path``, else ``popi.db`` under the home). No model is loaded before it is needed.

        ``flags`` override settings (``engine``, ``model``, ``threads``, ``closed_vocabulary``); ``answer`` as in the
        constructor. Raises StoreError, ConfigError.
        """
        from popi_edge.store import Store

        settings = load(home, **flags)
        make_home(settings.home)
        return cls(settings, Store.open(Path(path) if path else settings.database), answer)

    def __enter__(self) -> Popi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close store and engine."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            self.store.close()

    # what the rooms need ------------------------------------------------------------------------------------
    @property
    def bundle(self) -> Bundle:
        """The bundle in use, verified. Raises ModelError."""
        with self._lock:
            if self._bundle is None:
                from popi_edge.models.bundle import open_bundle

                self._bundle = open_bundle(self.settings.model, self.settings)
            return self._bundle

    @property
    def engine(self) -> Engine:
        """The engine, opened on first use. Raises ModelError, EngineError."""
        with self._lock:
            if self._engine is None:
                self._engine = self.bundle.engine(self.settings.engine, threads=self.settings.threads)
            return self._engine

    @property
    def lexicon(self) -> Lexicon:
        """The closed vocabulary's words, the person's own among them."""
        from popi_edge.vocabulary import Lexicon

        return Lexicon.load(self._own_words())

    @property
    def egress(self) -> EgressLog:
        """The record of everything sent."""
        from popi_edge.egress import EgressLog

        return EgressLog(self.store)

    def _own_words(self) -> list[str]:
        path = self.settings.home / "lexicon.txt"
        try:
            return [w for w in path.read_text("utf-8").splitlines() if w.strip()] if path.is_file() else []
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: cannot be read: {e}") from None

    def _constraint(self) -> ClosedVocabulary | None:
        if not self.settings.closed_vocabulary:
            return None
        if self._mask is None:
            from popi_edge.vocabulary import ClosedVocabulary

            t = self.engine.tokenizer
            limit = prompts.spec()["limits"]["summary_tokens"]
            self._mask = ClosedVocabulary(self.lexicon, t.token_bytes, t.eos_ids, max_tokens=limit)
        return self._mask

    # signals and summaries ----------------------------------------------------------------------------------
    def record(self, *signals: Signal) -> Added:
        """Keep signals; duplicates are recognised. On the disk when this returns. Raises StoreError, SignalError."""
        return self.store.add(signals)

    def summarize(self, user: str = "me") -> PreferenceSummary:
        """Infer a new summary from the user's signals and keep it as a draft (or as ``insufficient``)."""
        from popi_edge.summarize import infer

        signals = [s.signal for s in self.store.signals(user)]
        done = infer(
            self.engine,
            signals,
            constraint=self._constraint(),
            adapter=self.bundle.adapter("infer"),
            lexicon=self.lexicon,
            decoding=self.bundle.decoding,
        )
        text = self._masked(done.text, user, form=True)
        row = self.store.add_summary(
            user=user,
            text=text,
            tokens=done.tokens if text == done.text else self.engine.count(text),
            status=done.status,
            reason=done.reason,
            model=self.bundle.identity,
            contract=prompts.CONTRACT,
            signal_ids=done.signal_ids,
        )
        return PreferenceSummary.of(row)

    def summary(self, user: str = "me") -> PreferenceSummary | None:
        """The newest version, whatever its status."""
        row = self.store.latest_summary(user)
        return PreferenceSummary.of(row) if row else None

    def history(self, user: str = "me") -> list[PreferenceSummary]:
        """Every version, oldest first."""
        return [PreferenceSummary.of(row) for row in self.store.summaries(user)]

    def approve(self, user: str = "me", version: int | None = None) -> PreferenceSummary:
        """Approve a draft, the newest unless another is named: from then on it may leave the device.

        Raises NotApproved, StoreError; GuardBlocked when the guard finds something in it.
        """
        rows = [r for r in self.store.summaries(user) if version in (None, r.version)]
        if rows and rows[-1].text:
            self._insist(self.check(rows[-1].text, user, form=rows[-1].status != "edited"))
        return PreferenceSummary.of(self.store.approve(user, version))

    def edit(self, text: str, user: str = "me", *, allow: tuple[str, ...] = ()) -> PreferenceSummary:
        """Keep the person's own wording as a new version that may leave; ``allow`` adds words to their lexicon.

        What the settings say to mask is masked first. Raises GuardBlocked, listing every finding; nothing is changed
        then.
        """
        text = self._masked(" ".join(text.split()), user, extra=allow)
        self._insist(self.check(text, user, extra=allow))
        if allow:
            from popi_edge.models.bases import write_atomic

            words = dict.fromkeys([*self._own_words(), *allow])
            write_atomic(self.settings.home / "lexicon.txt", "".join(w + "\n" for w in words).encode())
            self._mask = None
        last = self.store.latest_summary(user)
        tokens = self.engine.count(text)
        made_from = last.signal_ids if last and last.status != "stale" else ()
        row = self.store.add_summary(
            user=user, text=text, tokens=tokens, status="edited", reason="written by the person",
            model="person", contract=prompts.CONTRACT, signal_ids=made_from,
        )  # fmt: skip
        return PreferenceSummary.of(row)

    def check(
        self, text: str, user: str = "me", *, extra: tuple[str, ...] = (), form: bool = False
    ) -> Verdict:
        """The guard's verdict on a text, against all of the user's signals, under the settings' policy.

        ``form`` also asks for the form of decoded summaries, which whatever a model wrote must have.
        """
        from popi_edge.guard import verdict
        from popi_edge.vocabulary import Lexicon

        lexicon = Lexicon.load([*self._own_words(), *extra])
        return verdict(text, self._index(user), lexicon, form=form, policy=self._policy(), answer=self.answer)

    def _policy(self) -> Policy:
        from popi_edge.guard.policy import Policy

        return Policy.of(self.settings.guard)

    def _masked(self, text: str, user: str, *, extra: tuple[str, ...] = (), form: bool = False) -> str:
        """The text with what the settings say to mask masked, where that leaves something that passes."""
        from popi_edge.guard import masked
        from popi_edge.vocabulary import Lexicon

        if not text or "mask" not in self.settings.guard.values():
            return text
        lexicon = Lexicon.load([*self._own_words(), *extra])
        return masked(text, self._index(user), lexicon, self._policy(), form=form)

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
            raise GuardBlocked(f"the guard blocked the summary: {why}", found.findings)

    # asking -------------------------------------------------------------------------------------------------
    def generator(self, name: str) -> Generator:
        """The generator of that name. Raises ConfigError listing the names there are."""
        if name == "local":
            from popi_edge.generators.local import NO_REPEAT, LocalGenerator

            role = self.bundle.adapter("generate")
            return LocalGenerator(self.engine, adapter=role, no_repeat=NO_REPEAT)
        from popi_edge.generators.registry import open_generator

        return open_generator(self.settings.home, name)

    def _usable(self, user: str, remote: bool) -> PreferenceSummary | None:
        row = self.store.approved_summary(user)
        if row is None and remote:
            raise NotApproved(
                f"no summary of {user!r} is approved, and only an approved one may leave; see it with "
                "'popi summary show' (or make one: 'popi summary refresh'), then run: popi summary approve"
            )
        if row is None:
            drafts = [r for r in self.store.summaries(user) if r.status == "draft"]
            row = drafts[-1] if drafts else None
        return PreferenceSummary.of(row) if row else None

    def preview(
        self, prompt: str, *, generator: str = "local", user: str = "me", personal: bool = True, stream: bool = False
    ) -> Preview:
        """The exact bytes that ``ask`` would send. Raises NotApproved, GuardBlocked, GeneratorError."""
        return self._prepare(self._target(prompt, generator), prompt, user, personal, stream)

    def _target(self, prompt: str, generator: str) -> Generator:
        """The generator, once there is something to ask it."""
        if not prompt.strip():
            raise ConfigError("the prompt is empty")
        return self.generator(generator)

    def _prepare(self, target: Generator, prompt: str, user: str, personal: bool, stream: bool) -> Preview:
        from popi_edge.guard import verdict
        from popi_edge.seal import seal

        summary = self._usable(user, target.remote) if personal else None
        text = summary.text if summary else None
        if summary and text:
            found = self.check(text, user, form=summary.status != "edited")
        else:
            found = verdict("", (), self.lexicon)
        sealed = seal(text, [("user", prompt)], system=prompts.generate_system(text), verdict=found)
        request = target.prepare(sealed, stream=stream)
        return Preview(target.name, target.remote, request, summary)

    def stream(
        self, prompt: str, *, generator: str = "local", user: str = "me", personal: bool = True
    ) -> Iterator[str]:
        """``ask``, piece by piece as the text comes."""
        yield from self._deliver(prompt, generator, user, personal, stream=True)

    def ask(
        self, prompt: str, *, generator: str = "local", user: str = "me", personal: bool = True
    ) -> Answer:
        """Ask a generator under the summary; ``personal=False`` sends the bare prompt.

        A remote generator gets the last approved or edited version, a local one may get a draft. The request is in
        the egress log before it goes out. Raises NotApproved, GuardBlocked, GeneratorError, StoreError.
        """
        steps = self._deliver(prompt, generator, user, personal, stream=False)
        try:
            while True:
                next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer

    def _deliver(self, prompt: str, generator: str, user: str, personal: bool, *, stream: bool) -> Any:
        from popi_edge.generators import deliver

        target = self._target(prompt, generator)
        ready = self._prepare(target, prompt, user, personal, stream)
        s = ready.summary
        reply, egress_id = yield from deliver(
            target, ready.request, self.egress, user=user,
            summary_id=s.id if s else None, summary_version=s.version if s else None,
        )  # fmt: skip
        return Answer(reply.text, egress_id, s)

    async def asummarize(self, user: str = "me") -> PreferenceSummary:
        """``summarize`` in a thread."""
        return await asyncio.to_thread(self.summarize, user)

    async def aask(
        self, prompt: str, *, generator: str = "local", user: str = "me", personal: bool = True
    ) -> Answer:
        """``ask`` in a thread."""
        return await asyncio.to_thread(self.ask, prompt, generator=generator, user=user, personal=personal)
