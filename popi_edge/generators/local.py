"""The generator in this process: an Engine on the user's own machine. No socket is opened."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from popi_edge.errors import GeneratorError
from popi_edge.generators import IN_PROCESS, LOCAL, Reply, Request, Stream, collect, messages_of

if TYPE_CHECKING:
    from popi_edge.engines.base import Engine, Ids
    from popi_edge.seal import Sealed


NO_REPEAT = 4
"""What keeps SmolLM2-135M from going round in circles."""


@dataclass(frozen=True)
class LocalGenerator:
    """Answers with ``engine``; ``adapter`` is the role's adapter (``generate``), None for the untouched base.

    ``max_tokens`` bounds the reply; the engine cuts it earlier where its context ends. Temperature 0 is
    greedy. ``no_repeat``: no run of so many tokens comes twice (0: any may).
    """

    engine: Engine
    adapter: str | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    no_repeat: int = 0
    name: str = LOCAL
    remote: bool = False

    def prepare(self, sealed: Sealed, *, stream: bool = False) -> Request:
        """The messages as canonical JSON: what the engine will be given. Raises GeneratorError."""
        import rfc8785

        messages = [{"role": role, "content": text} for role, text in messages_of(sealed)]
        try:
            body = rfc8785.dumps(messages)
        except (rfc8785.CanonicalizationError, UnicodeError):
            raise GeneratorError(f"generator {self.name}: a message is not valid Unicode (a lone surrogate)") from None
        return Request(IN_PROCESS, {}, bytes(body), sealed)

    def stream(self, request: Request) -> Stream:
        """Generate, yielding pieces of text; returns the Reply. Raises EngineError."""
        from popi_edge.prompts import chat_ids

        messages = [(m["role"], m["content"]) for m in json.loads(request.body)]
        tokenizer = self.engine.tokenizer
        prompt = chat_ids(tokenizer, messages)
        count = 0
        parts: list[str] = []

        def counted() -> Iterator[int]:
            nonlocal count
            for token in self.engine.stream(
                prompt,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
                constraint=NoRepeat(self.no_repeat, len(tokenizer.token_bytes)) if self.no_repeat else None,
                adapter=self.adapter,
            ):
                count += 1
                yield token

        for piece in text_pieces(counted(), tokenizer.token_bytes):
            parts.append(piece)
            yield piece
        room = min(self.max_tokens, self.engine.context_length - len(prompt))
        return Reply("".join(parts), None, "stop" if count < room else "length")

    def send(self, request: Request, *, on_text: Callable[[str], Any] | None = None) -> Reply:
        """``stream``, collected."""
        return collect(self.stream(request), on_text)


class NoRepeat:
    """A constraint under which no run of ``length`` tokens comes twice. A state is the tokens so far."""

    def __init__(self, length: int, vocabulary: int) -> None:
        self._length, self._all = length, np.arange(vocabulary)

    def start(self) -> tuple[int, ...]:
        return ()

    def allowed(self, state: tuple[int, ...], remaining: int) -> Ids:
        """All ids but those that would end a run that is there already."""
        before = self._length - 1
        tail = state[len(state) - before :]
        ended = [state[i + before] for i in range(len(state) - before) if state[i : i + before] == tail]
        return np.delete(self._all, ended)

    def advance(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*state, token)


def text_pieces(ids: Iterable[int], token_bytes: list[bytes | None]) -> Iterator[str]:
    """Text as it becomes certain: bytes of a character split over tokens wait; broken UTF-8 becomes U+FFFD.

    Joined, the pieces are what ``Tokenizer.decode`` gives for all the ids.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for i in ids:
        piece = decoder.decode(token_bytes[i] or b"")
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest
