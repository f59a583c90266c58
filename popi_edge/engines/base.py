"""The engine Protocol, and what every engine shares: lanes, prefix reuse, sampling under a mask, scoring."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ConfigError, EngineError, ModelError
from popi_edge.models.tokenizer import Tokenizer

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class Constraint(Protocol):
    """What may be decoded next: an automaton over tokens. States are opaque and hashable."""

    def start(self) -> Any:
        """The state before the first token."""

    def allowed(self, state: Any, remaining: int) -> Ids:
        """Ids that may follow, so that the text can still end within ``remaining`` tokens; shape [n], n ≥ 1."""

    def advance(self, state: Any, token: int) -> Any:
        """The state after ``token`` (one of the allowed ids)."""


@dataclass(frozen=True)
class Score:
    """Log-probabilities of one completion (nats): ``total`` is the sum of ``tokens``; tokens has shape [n]."""

    total: float
    tokens: tuple[float, ...]


@dataclass(frozen=True)
class Completion:
    """What was generated: ``ids`` without the end token, and whether it ended by itself."""

    text: str
    ids: tuple[int, ...]
    finished: bool


@runtime_checkable
class Engine(Protocol):
    """Runs one base model, with at most one adapter active in a call.

    ``adapter`` is a name given when the engine was opened, or None for the untouched base. Prompts are token
    ids made by ``popi_edge.models.tokenizer``, so that both engines see exactly the same tokens.
    """

    name: str
    context_length: int

    @property
    def tokenizer(self) -> Tokenizer: ...

    def count(self, text: str) -> int:
        """Tokens in plain text (control tokens in it stay text)."""

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        constraint: Constraint | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[int] = (),
        adapter: str | None = None,
    ) -> Iterator[int]:
        """Yield token ids until an end or ``stop`` token (not yielded) or ``max_tokens``. 0 is greedy."""

    def generate(self, prompt: Sequence[int], **options: Any) -> Completion:
        """``stream``, collected."""

    def score(
        self,
        prompt: Sequence[int],
        completions: Sequence[Sequence[int]],
        *,
        constraint: Constraint | None = None,
        max_tokens: int | None = None,
        adapter: str | None = None,
    ) -> list[Score]:
        """log p(completion | prompt) of each completion, all of its tokens.

        Under a ``constraint`` it is what ``stream`` samples from at temperature 1 (masked, renormalised; ``max_tokens``
        as there, by default each completion's own length): −inf from the first token on that may not follow.
        """

    def likeliest(
        self,
        prompt: Sequence[int],
        completions: Sequence[Sequence[int]],
        *,
        constraint: Constraint | None = None,
        max_tokens: int | None = None,
        adapter: str | None = None,
        within: float = 0.0,
    ) -> list[tuple[int, Score]]:
        """Which completions have a ``score`` within so many nats of the highest, and that, the likeliest first; none
        where the constraint lets none be written.

        Found by branch and bound over the tree of their tokens, so that far fewer are read than to score each.
        """

    def save_prefix(self, path: Path, *, adapter: str | None = None) -> None:
        """Write the lane's cached prefix (its tokens and keys/values) atomically."""

    def load_prefix(self, path: Path, *, adapter: str | None = None) -> int:
        """Restore a saved prefix; returns its length in tokens. A prefix of another model or adapter is refused."""

    def close(self) -> None: ...


@dataclass
class Lane:
    """One adapter's own key/value cache, and the tokens that are in it."""

    adapter: str | None
    tokens: list[int] = field(default_factory=list)
    state: Any = None




def check_template(tokenizer: Tokenizer, model: Path) -> None:
    """Try the model's chat template, where it has one, before a library opens the file. Raises ModelError."""
    if tokenizer.chat_template.strip():
        from popi_edge.models.template import render

        turns = [{"role": "user", "content": "x"}]
        try:
            render(tokenizer.chat_template, turns, add_generation_prompt=True, bos_token=tokenizer.bos, eos_token="")
        except ModelError as e:
            raise ModelError(f"{model}: {e}") from None


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n


def log_softmax_at(
    logits: Floats, targets: Sequence[int], constraint: Constraint | None = None, max_tokens: int = 0
) -> list[float]:
    """log softmax(logits)[i, targets[i]] in float64; logits [n, V], targets [n] → n floats (nats).

    Under a constraint the softmax is over what it allows, of at most ``max_tokens`` tokens in all; −inf from the first
    target on that it does not allow.
    """
    out: list[float] = []
    state = constraint.start() if constraint is not None else None
    for i, (row, t) in enumerate(zip(logits, targets, strict=True)):
        x = row.astype(np.float64)
        kept = x
        if constraint is not None:
            if i >= max_tokens or t not in (ids := constraint.allowed(state, max_tokens - i)):
                return out + [-math.inf] * (len(targets) - i)
            kept = x[ids]
            if i + 1 < len(targets):  # an end token leads nowhere
                state = constraint.advance(state, t)
        top = kept.max()
        out.append(float(x[t] - top - math.log(np.exp(kept - top).sum())))
    return out


def sample(logits: Floats, ids: Ids | None, temperature: float, rng: np.random.Generator) -> int:
    """One id from logits [V], restricted to ``ids`` (masked and renormalised); temperature 0 is the argmax.

    Raises EngineError where the largest of them is no finite number, as broken weights give.
    """
    x = logits if ids is None else logits[ids]
    if not math.isfinite(x.max()):
        raise EngineError("the model gave no usable numbers: its weights are broken")
    if temperature <= 0:
        pick = int(np.argmax(x))
    else:
        z = (x.astype(np.float64) - float(x.max())) / temperature
        p = np.exp(z)
        pick = int(rng.choice(len(p), p=p / p.sum()))
    return pick if ids is None else int(ids[pick])


class BaseEngine:
    """Lanes, prefix reuse, sampling and scoring on top of four primitives that a subclass gives."""

    name = "base"
    context_length: int
    tokenizer: Tokenizer
    identity: str

    def __init__(self, adapters: Mapping[str, Path]) -> None:
        self._adapters = dict(adapters)
        self._lanes: dict[str | None, Lane] = {}
        self._lock = threading.RLock()

    # primitives ---------------------------------------------------------------------------------------------
    def _open_lane(self, lane: Lane) -> None:
        raise NotImplementedError

    def _truncate(self, lane: Lane, length: int) -> None:
        raise NotImplementedError

    def _eval(self, lane: Lane, ids: Sequence[int], last: int) -> Floats:
        """Append ids to the lane; logits of the last ``last`` positions, shape [last, V]."""
        raise NotImplementedError

    # shared -------------------------------------------------------------------------------------------------
    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def lane(self, adapter: str | None) -> Lane:
        if adapter is not None and adapter not in self._adapters:
            raise EngineError(f"no adapter named {adapter!r} is loaded")
        with self._lock:
            if adapter not in self._lanes:
                lane = Lane(adapter)
                self._open_lane(lane)
                self._lanes[adapter] = lane
            return self._lanes[adapter]

    def _feed(self, lane: Lane, ids: Sequence[int], last: int) -> Floats:
        """Make the lane hold exactly ``ids``; logits of the last ``last`` positions.

        One at a time, and each call names all of its ids: so streams and scores may interleave, in threads too.
        """
        with self._lock:
            return self._fed(lane, ids, last)

    def _fed(self, lane: Lane, ids: Sequence[int], last: int) -> Floats:
        if not ids:
            raise EngineError("an empty prompt")
        if len(ids) > self.context_length:
            raise EngineError(f"{len(ids)} tokens do not fit the context of {self.context_length}")
        keep = min(common_prefix(lane.tokens, ids), len(ids) - last)
        if keep < len(lane.tokens):
            self._truncate(lane, keep)
            del lane.tokens[keep:]
        fresh = list(ids[keep:])
        try:
            logits = self._eval(lane, fresh, last)
        except BaseException:  # also a KeyboardInterrupt: what the cache holds is unknown now
            self._truncate(lane, 0)
            lane.tokens.clear()
            raise
        lane.tokens.extend(fresh)
        return logits

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        constraint: Constraint | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[int] = (),
        adapter: str | None = None,
    ) -> Iterator[int]:
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}; it must be at least 1")
        lane = self.lane(adapter)
        ends = {*self.tokenizer.eos_ids, *stop}
        rng = np.random.default_rng(seed)
        room = min(max_tokens, self.context_length - len(prompt))
        if room < 1:
            raise EngineError(f"the prompt of {len(prompt)} tokens leaves no room in {self.context_length}")
        state = constraint.start() if constraint is not None else None
        ids = list(prompt)
        logits = self._feed(lane, ids, 1)[0]
        for left in range(room, 0, -1):
            allowed = constraint.allowed(state, left) if constraint is not None else None
            token = sample(logits, allowed, temperature, rng)
            if token in ends:
                return
            yield token
            if constraint is not None:
                state = constraint.advance(state, token)
            ids.append(token)
            if left == 1:
                return
            logits = self._feed(lane, ids, 1)[0]

    def generate(self, prompt: Sequence[int], **options: Any) -> Completion:
        ids: list[int] = []
        room = options["max_tokens"]
        for token in self.stream(prompt, **options):
            ids.append(token)
        return Completion(text=self.tokenizer.decode(ids), ids=tuple(ids), finished=len(ids) < room)

    def score(
        self,
        prompt: Sequence[int],
        completions: Sequence[Sequence[int]],
        *,
        constraint: Constraint | None = None,
        max_tokens: int | None = None,
        adapter: str | None = None,
    ) -> list[Score]:
        lane = self.lane(adapter)
        out = []
        for completion in completions:
            if not completion:
                raise EngineError("an empty completion has no score")
            ids = [*prompt, *completion[:-1]]
            logits = self._feed(lane, ids, len(completion))
            tokens = tuple(log_softmax_at(logits, completion, constraint, max_tokens or len(completion)))
            out.append(Score(total=math.fsum(tokens), tokens=tokens))
        return out

    def likeliest(
        self,
        prompt: Sequence[int],
        completions: Sequence[Sequence[int]],
        *,
        constraint: Constraint | None = None,
        max_tokens: int | None = None,
        adapter: str | None = None,
        within: float = 0.0,
    ) -> list[tuple[int, Score]]:
        lane, found, best = self.lane(adapter), list[tuple[int, Score]](), -math.inf
        tree, room = _tree(list(enumerate(map(tuple, completions)))), max_tokens or max(map(len, completions))

        def likely(logits: Floats, wanted: Iterable[int], state: Any, read: int) -> list[tuple[float, int]]:
            """(log-probability, token) of what is wanted and may be written after so many tokens."""
            if constraint is None:
                return _logprobs(logits, wanted, None)
            return _logprobs(logits, wanted, constraint.allowed(state, room - read)) if read < room else []

        def after(state: Any, token: int) -> Any:
            return constraint.advance(state, token) if constraint is not None else None

        def visit(node: _Node, ids: list[int], before: list[float], state: Any, logits: Floats) -> None:
            """Everything below a node whose tokens are ``ids``, the likeliest first."""
            nonlocal best
            for p, first in sorted(likely(logits, node.below, state, len(ids)), reverse=True):
                if math.fsum([*before, p]) < best - within:
                    return
                (chain, child), tokens, at = node.below[first], [*before, p], state
                read = chain if child.below else chain[:-1]
                rows = list(self._feed(lane, [*prompt, *ids, *read], len(read))) if read else []
                for row, last, token in zip(rows, chain, chain[1:], strict=False):
                    at = after(at, last)
                    step = likely(row, [token], at, len(tokens))
                    if not step or math.fsum([*tokens, step[0][0]]) < best - within:
                        break
                    tokens.append(step[0][0])
                else:
                    if child.ends is not None:
                        found.append((child.ends, Score(math.fsum(tokens), tuple(tokens))))
                        best = max(best, found[-1][1].total)
                    if child.below:
                        visit(child, [*ids, *chain], tokens, after(at, chain[-1]), rows[-1])

        start = constraint.start() if constraint is not None else None
        visit(tree, [], [], start, self._feed(lane, list(prompt), 1)[0])
        near = [(i, score) for i, score in found if score.total >= best - within]
        return sorted(near, key=lambda both: -both[1].total)


@dataclass
class _Node:
    """Completions that begin alike: which one ends here, and by first token what follows up to the next such node."""

    ends: int | None = None
    below: dict[int, tuple[tuple[int, ...], _Node]] = field(default_factory=dict)


def _tree(completions: Sequence[tuple[int, tuple[int, ...]]]) -> _Node:
    """The tree of numbered completions. Raises EngineError for an empty one, or none at all."""
    if not completions or not all(ids for _, ids in completions):
        raise EngineError("an empty completion has no score" if completions else "there is nothing to choose from")
    node = _Node()
    ranked = sorted(completions, key=lambda both: both[1])
    for first, group in itertools.groupby(ranked, key=lambda both: both[1][0]):
        some = list(group)
        alike = common_prefix(some[0][1], some[-1][1])
        rest = [(i, ids[alike:]) for i, ids in some if len(ids) > alike]
        child = _tree(rest) if rest else _Node()
        child.ends = next((i for i, ids in some if len(ids) == alike), None)
        node.below[first] = (some[0][1][:alike], child)
    return node


def _logprobs(logits: Floats, wanted: Iterable[int], allowed: Ids | None) -> list[tuple[float, int]]:
    """(log-probability, token) of the wanted tokens; of those alone that are allowed, which are renormalised."""
    x = logits.astype(np.float64)
    kept = x if allowed is None else x[allowed]
    top = kept.max()
    whole = float(top + math.log(np.exp(kept - top).sum()))
    may = set(wanted) if allowed is None else set(wanted) & set(allowed.tolist())
    return [(float(x[t]) - whole, t) for t in may]


def open_engine(
    name: str, model: Path, *, adapters: Mapping[str, Path] | None = None, threads: int | None = None
) -> Engine:
    """Open engine ``onnx`` or ``llama_cpp`` on a GGUF file. Raises EngineError, ModelError."""
    if name == "onnx":
        from popi_edge.engines.onnx import OnnxEngine

        return OnnxEngine(model, adapters=adapters or {}, threads=threads)
    if name == "llama_cpp":
        from popi_edge.engines.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(model, adapters=adapters or {}, threads=threads)
    raise EngineError(f"there is no engine {name!r}; choose onnx or llama_cpp")
