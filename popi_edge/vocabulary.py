"""The closed vocabulary: the words a summary may be made of, and the automaton that lets nothing else be written.

``Lexicon`` holds the words. ``Lexicon.explain`` checks a finished text; ``ClosedVocabulary`` masks tokens while one
is decoded. The two share nothing but the words, so that each is a test of the other.

It does NOT keep out secrets that are made of ordinary words (a seed phrase): the guard's overlap rule is for those.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from popi_edge.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]

MARKS = ".!?"
"""What may end a sentence."""
INNER = ",;:"
"""What may stand after a word inside a sentence."""
MAX_TOKENS = 48
MAX_WORD = 60
MAX_EXTRA = 500
OWN_WORD = re.compile(r"[^\W_](?:[^\W_]|[-'+#&/])*")
SENSITIVE = "sensitive"


@dataclass(frozen=True)
class Problem:
    """One reason why a text is not made by the rules: ``rule`` is empty, word, capital, space, punctuation or end.

    ``start`` and ``end`` are offsets in characters; ``text`` is what stands there.
    """

    rule: str
    start: int
    end: int
    text: str


@functools.cache
def _listed(name: str) -> tuple[str, ...]:
    lines = files("popi_edge.spec").joinpath(name).read_text("utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


@functools.cache
def ordinary_words() -> frozenset[str]:
    """The shipped lexicon's words, folded: without anybody's own, and without the sensitive ones."""
    return frozenset(word.casefold() for word in _listed("lexicon.txt"))


def own_words(entries: Iterable[str]) -> tuple[str, ...]:
    """A person's own entries as words, in order: "Thai food" is two. Raises ConfigError for what is not a word."""
    words: dict[str, None] = {}
    for entry in entries:
        if not isinstance(entry, str) or not entry.strip():
            raise ConfigError("an own word is empty")
        for word in unicodedata.normalize("NFC", entry).replace("’", "'").split():
            if not OWN_WORD.fullmatch(word) or len(word) > MAX_WORD:
                form = f"up to {MAX_WORD} letters, digits and - ' + # & /, a letter or digit first"
                raise ConfigError(f"own word {word[:40]!r} cannot be one: {form}")
            words[word] = None
    if len(words) > MAX_EXTRA:
        raise ConfigError(f"{len(words)} own words; the limit is {MAX_EXTRA}")
    return tuple(words)


def at_start(word: str) -> str:
    """How a word is written at the start of a sentence; one with a capital of its own stays as it is."""
    return word if word != word.lower() else word[0].upper() + word[1:]


class Lexicon:
    """The ordinary words of the spec plus a person's own.

    ``words`` holds all of them folded (lower case), for look-up; ``inside`` as they are written inside a sentence and
    ``first`` as at its start; ``own`` the person's, as they wrote them.
    """

    def __init__(self, words: Iterable[str], own: Sequence[str] = ()) -> None:
        self.own = tuple(own)
        self.inside = frozenset((*words, *own))
        self.first = frozenset(map(at_start, self.inside))
        self.words = frozenset(word.casefold() for word in self.inside)

    @classmethod
    def load(cls, extra: Iterable[str] = (), *, sensitive: bool = False) -> Lexicon:
        """The shipped lexicon, a person's ``extra`` words, and the ``sensitive`` ones where they switched them on.

        Raises ConfigError for an extra word that cannot be one.
        """
        return _loaded(own_words(extra), sensitive)

    def __contains__(self, word: str) -> bool:
        return word.casefold() in self.words

    def __len__(self) -> int:
        return len(self.inside)

    def accepts(self, text: str) -> bool:
        """Whether a text keeps every rule that the automaton enforces, whatever made it."""
        return not self.explain(text)

    def explain(self, text: str) -> list[Problem]:
        """Every rule of decoded summaries that a text breaks, in order of place. Length is not among them."""
        if not text:
            return [Problem("empty", 0, 0, "")]
        found = [*self._form(text), *self._spelling(text)]
        return sorted(found, key=lambda p: (p.start, p.end, p.rule))

    def _form(self, text: str) -> Iterator[Problem]:
        rules = (
            ("space", r"^\s+|\s+\Z|(?<=\s)\s+|[^\S ]"),
            ("punctuation", r"(?<=[\s.,;:!?])[.,;:!?]+|^[.,;:!?]+|[.,;:!?](?=[^\s.,;:!?])"),
            ("end", r"[^.!?](?=\Z)"),
        )
        for rule, pattern in rules:
            for hit in re.finditer(pattern, text):
                yield Problem(rule, hit.start(), hit.end(), hit.group())

    def _spelling(self, text: str) -> Iterator[Problem]:
        for hit in re.finditer(r"[^\s.,;:!?]+", text):
            before = text[: hit.start()].rstrip()
            allowed = self.first if not before or before[-1] in MARKS else self.inside
            if hit.group() not in allowed:
                rule = "capital" if hit.group().casefold() in self.words else "word"
                yield Problem(rule, hit.start(), hit.end(), hit.group())


@functools.lru_cache(maxsize=8)
def _loaded(own: tuple[str, ...], sensitive: bool) -> Lexicon:
    words = _listed("lexicon.txt")
    return Lexicon(words + _listed("lexicon_sensitive.txt") if sensitive else words, own)


DEAD, START, WORD, INSIDE, ENDABLE = range(5)
"""States of the automaton: none; before a sentence's first word; before another word; after inner punctuation; after
a sentence mark. All higher states are places inside a word."""
AFTER = [(32, WORD), *((ord(c), INSIDE) for c in INNER), *((ord(c), ENDABLE) for c in MARKS)]
"""Bytes that may stand after a whole word, and the states that they lead to."""
FAR = 1 << 20


@dataclass(frozen=True)
class _Automaton:
    """``table[state, column[byte]]`` is the next state (0: none); ``distance[state]`` bytes to an end, FAR if none."""

    table: NDArray[np.int32]
    column: NDArray[np.uint8]
    distance: NDArray[np.int32]


class _Builder:
    """Collects the edges of a prefix tree whose roots and word ends are joined by spaces and punctuation."""

    def __init__(self) -> None:
        self.edges: list[tuple[int, int, int]] = []
        self.ends: list[int] = []
        self.nodes = ENDABLE + 1
        self.shared: list[tuple[int, int, int]] = []

    def add(self, root: int, words: Iterable[bytes]) -> None:
        path, last = [root], b""
        for word in sorted(set(words)):
            same = 0
            limit = min(len(word), len(last))
            while same < limit and word[same] == last[same]:
                same += 1
            del path[same + 1 :]
            for byte in word[same:]:
                self.edges.append((path[-1], byte, self.nodes))
                path.append(self.nodes)
                self.nodes += 1
            self.ends.append(path[-1])
            last = word


def _build(lexicon: Lexicon, single: frozenset[int]) -> _Automaton:
    """The automaton over bytes. ``single`` are the bytes that are a token by themselves, which distances count."""
    import numpy as np

    inside = [word.encode() for word in lexicon.inside]
    b = _Builder()
    b.add(WORD, inside)
    # Under a first letter of lower-case words alone, sentence starts lead into the same tree; the rest get their own.
    roots = {byte: node for parent, byte, node in b.edges if parent == WORD}
    own_case = {w.lower().encode()[0] for w in lexicon.inside if w != w.lower()}
    linked = {c: c - 32 for c in roots if 97 <= c <= 122 and c not in own_case}
    b.add(START, (at_start(w).encode() for w in lexicon.inside if w.encode()[0] not in linked))
    b.shared = [(START, upper, roots[lower]) for lower, upper in linked.items()]

    joints = [(INSIDE, 32, WORD), (ENDABLE, 32, START)]
    edges = np.array([*b.edges, *b.shared, *joints], dtype=np.int32)
    ends = np.array(b.ends, dtype=np.int32)
    column = np.zeros(256, dtype=np.uint8)
    used = np.union1d(edges[:, 1], np.array([byte for byte, _ in AFTER], dtype=np.int32))
    column[used] = np.arange(1, len(used) + 1)
    table = np.zeros((b.nodes, len(used) + 1), dtype=np.int32)
    table[edges[:, 0], column[edges[:, 1]]] = edges[:, 2]
    for byte, state in AFTER:
        table[ends, column[byte]] = state

    far = [FAR] * b.nodes
    far[ENDABLE] = 0
    if any(ord(c) in single for c in MARKS):
        for node in b.ends:
            far[node] = 1
    for parent, byte, node in (*reversed(b.edges), *b.shared, *joints):  # children have higher numbers
        if byte in single:
            far[parent] = min(far[parent], far[node] + 1)
    return _Automaton(table, column, np.minimum(np.array(far, dtype=np.int32), FAR))


class ClosedVocabulary:
    """The mask: a ``Constraint`` over the tokens' decoded bytes. States are small integers.

    ``token_bytes[i]`` is what token i decodes to (None for a control token); ``end_ids`` end a text. A text that is
    decoded under it always stands at a sentence's end after at most ``max_tokens`` tokens, the end token not counted.
    Raises ConfigError where the tokens cannot spell any sentence in that many.
    """

    CACHED = 128

    def __init__(
        self,
        lexicon: Lexicon,
        token_bytes: Sequence[bytes | None],
        end_ids: Sequence[int],
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        import numpy as np

        self.lexicon, self.max_tokens = lexicon, max_tokens
        self._ends = np.array(sorted(set(end_ids)), dtype=np.int64)
        ends = set(end_ids)
        texts = [b"" if t is None or i in ends else t for i, t in enumerate(token_bytes)]
        self._texts = texts
        self._automaton = _build(lexicon, frozenset(t[0] for t in texts if len(t) == 1))
        self._index(texts)
        column = self._automaton.column
        joints = [(column[byte], state) for byte, state in AFTER]
        self._joints = np.array(sorted(joints), dtype=np.int64).T
        self._behind: tuple[Ids, NDArray[np.int32]] | None = None
        self._far = self._automaton.distance.copy()
        self._rescue()
        self._cache: OrderedDict[int, tuple[Ids, NDArray[np.int32], int]] = OrderedDict()
        if self._far[START] > max_tokens or not len(self._ends):
            raise ConfigError(f"with these tokens no sentence can be written and ended in {max_tokens} tokens")

    def _index(self, texts: Sequence[bytes]) -> None:
        """Put the tokens' bytes, as columns of the table, one behind the other, sorted by first byte."""
        import numpy as np

        size = np.array([len(t) for t in texts], dtype=np.int32)
        columns = self._automaton.column[np.frombuffer(b"".join(texts) or b"\0", dtype=np.uint8)]
        start = np.cumsum(size) - size
        ids = np.flatnonzero(size > 0)
        first = columns[start[ids]]
        order = np.argsort(first, kind="stable")
        ids, first = ids[order], first[order]
        self._ids, self._size, self._start, self._columns = ids.astype(np.int64), size[ids], start[ids], columns
        self._groups = np.searchsorted(first, np.arange(self._automaton.table.shape[1] + 1))

    def _step(self, state: int) -> tuple[Ids, NDArray[np.int32]]:
        """All tokens that can follow ``state``, in order, and the states after them.

        What may follow a whole word, but for its own continuations, is the same for every word, and most of the tokens:
        it is worked out once.
        """
        import numpy as np

        row = self._automaton.table[state]
        columns = np.flatnonzero(row)
        joints, after = self._joints
        if not np.array_equal(row[joints], after):
            return self._walk(state, columns)
        if self._behind is None:
            self._behind = self._walk(state, joints)
        (ids, nexts), (more, reached) = self._behind, self._walk(state, np.setdiff1d(columns, joints))
        at = np.searchsorted(ids, more)
        return np.insert(ids, at, more), np.insert(nexts, at, reached)

    def _walk(self, state: int, columns: NDArray[np.int64]) -> tuple[Ids, NDArray[np.int32]]:
        """The tokens whose first byte is in one of these ``columns`` and that can follow, in order, and where they
        lead."""
        import numpy as np

        table = self._automaton.table
        groups = [np.arange(self._groups[c], self._groups[c + 1]) for c in columns]
        rows = np.concatenate(groups) if groups else np.zeros(0, dtype=np.int64)
        states = np.full(len(rows), state, dtype=np.int32)
        found: list[Ids] = []
        reached: list[NDArray[np.int32]] = []
        place = 0
        while len(rows):
            states = table[states, self._columns[self._start[rows] + place]]
            place += 1
            alive = states != DEAD
            rows, states = rows[alive], states[alive]
            done = self._size[rows] == place
            found.append(self._ids[rows[done]])
            reached.append(states[done])
            rows, states = rows[~done], states[~done]
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
        ids, nexts = np.concatenate(found), np.concatenate(reached)
        order = np.argsort(ids)
        return ids[order], nexts[order]

    def _rescue(self) -> None:
        """Find tokens to an end, by longer tokens, for states that no single-byte tokens lead out of."""
        stuck = [int(s) for s in (self._far >= FAR).nonzero()[0] if s != DEAD]
        ways = [(s, self._step(s)[1]) for s in stuck]
        changed = bool(ways)
        while changed:
            changed = False
            for state, nexts in ways:
                best = min(FAR, int(self._far[nexts].min()) + 1) if len(nexts) else FAR
                if best < self._far[state]:
                    self._far[state], changed = best, True

    def start(self) -> int:
        """The state before the first token."""
        return START

    def allowed(self, state: int, remaining: int | None = None) -> Ids:
        """Ids that may follow, ascending, so that the text stands at an end within ``remaining`` tokens; shape [n].

        ``remaining`` counts the tokens that may still come, this one included, the end token not; None means
        ``max_tokens``. Raises ConfigError where that is too few to reach an end.
        """
        left = self.max_tokens if remaining is None else remaining
        ids, need, most = self._allowed(state)
        if left < most:
            ids = ids[need <= left]
        if not len(ids):
            raise ConfigError(f"{left} tokens are too few to end a sentence")
        return ids

    def _allowed(self, state: int) -> tuple[Ids, NDArray[np.int32], int]:
        """Allowed ids, how many tokens each needs to an end (itself included), and the most that one needs."""
        import numpy as np

        known = self._cache.get(state)
        if known is not None:
            self._cache.move_to_end(state)
            return known
        ids, nexts = self._step(state)
        need = self._far[nexts] + 1
        possible = need <= self.max_tokens
        ids, need = ids[possible], need[possible]
        if state == ENDABLE:
            ids = np.concatenate([ids, self._ends])
            need = np.concatenate([need, np.zeros(len(self._ends), dtype=np.int32)])
            order = np.argsort(ids)
            ids, need = ids[order], need[order]
        ids.flags.writeable = False
        self._cache[state] = result = (ids, need, int(need.max(initial=0)))
        while len(self._cache) > self.CACHED:
            self._cache.popitem(last=False)
        return result

    def advance(self, state: int, token: int) -> int:
        """The state after ``token``. Raises ConfigError for a token that may not follow."""
        text = self._texts[token]
        for byte in text:
            state = int(self._automaton.table[state, self._automaton.column[byte]])
        if not text or state == DEAD:
            raise ConfigError(f"token {token} may not follow here")
        return state
