"""The façade: signals → store → select → prompt → engine → summary → guard → approval → seal → generator → reply."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi_edge import prompts
from popi_edge.approval import Approval, PreferenceSummary
from popi_edge.config import Settings, load, make_home
from popi_edge.errors import ConfigError, NotApproved
from popi_edge.signals import Signal

if TYPE_CHECKING:
    from popi_edge.egress import EgressLog
    from popi_edge.encryption import Passphrase
    from popi_edge.engines.base import Engine
    from popi_edge.generators import Generator, Request
    from popi_edge.guard import Finding
    from popi_edge.guard.index import SignalIndex
    from popi_edge.models.bundle import Bundle
    from popi_edge.store import Added, Store
    from popi_edge.vocabulary import ClosedVocabulary, Lexicon


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


class Popi(Approval):
    """One person's (or household's) signals and summaries on this device. Use as a context manager."""

    def __init__(
        self, settings: Settings, store: Store, answer: Callable[[Finding], bool] | None = None, *,
        egress: EgressLog | None = None,
    ) -> None:  # fmt: skip
        """``answer`` is asked about findings for which the settings say ``ask``; without it they block. ``egress``: the
        log to use, where it is not the store's with its head in the keyring."""
        self.settings, self.store, self.answer = settings, store, answer
        self._egress = egress
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
        passphrase: Passphrase = None,
        **flags: Any,
    ) -> Popi:
        """Open the store (``path``, else ``popi.db`` under the home). No model is loaded before it is needed.

        ``flags`` override settings (``engine``, ``model``, ``threads``, ``closed_vocabulary``); ``answer`` as in the
        constructor; ``passphrase`` as in ``Store.open``. Raises StoreError, ConfigError.
        """
        from popi_edge.store import Store

        settings = load(home, **flags)
        make_home(settings.home)
        return cls(settings, Store.open(Path(path) if path else settings.database, passphrase=passphrase), answer)

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
        return self._lexicon()

    @property
    def egress(self) -> EgressLog:
        """The record of everything sent."""
        if self._egress is None:
            from popi_edge.egress import EgressLog

            self._egress = EgressLog(self.store)
        return self._egress

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
            decoding=self.bundle.decoded(self.settings),
            judge=self.bundle.adapter("generate"),
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
        row = row or self.store.draft_summary(user)
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
        text = summary.text if summary else ""
        found = self._judged(summary, user) if summary else verdict("", (), self.lexicon)
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
