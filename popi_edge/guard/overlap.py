"""Words that a text shares with a signal: stretches of it, in order or not, and many of its words at one place.

A stretch is a row of consecutive words of a signal all of which stand in the text. In order, with up to ``gap`` words
between them, each counts one, and ``telling`` more when it is neither a function word nor of the plain vocabulary of
how replies can be; out of order a word counts only once. ``score`` blocks. So six words in a row with three telling
ones block, eight with two, twelve whatever they are, and four where each of them tells: a person who says "I like short
and direct answers with examples" may be summarised in these words, but nobody's seed phrase, street or sentence may.
A copy is in order with nothing between, and counts more strictly. Function words of the signal may be missing in it,
since a sentence can do without them; a row where some are may weigh ``missing`` less. A word for a person counts
``person`` more: "likes warm baths" is what a summary says, "my back is broken and" is somebody telling. But where the
signal says a taste ("like", "rather", in the row or just ``before``), nothing may be missing, and "I like" and "my
answers" count as any words do.
``scattered``: so many different telling words that stand within one ``window`` of words of a signal, whatever stands
between them there. A long text is looked at by ``window`` words at a time, halfway overlapping.

It does NOT find what is said in other words, nor three words of a seed phrase, nor the four or five telling words of a
sentence without its other words: "strong tea and dark chocolate" may be a preference said back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from popi_edge.guard.finding import Clock, Finding, SignalText
from popi_edge.guard.folding import Word, normal, plain, words
from popi_edge.guard.index import SignalIndex

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Shared:
    """What a text shares with a signal: the places (of words) in the text, and how much they weigh."""

    places: tuple[int, ...]
    score: int
    signal_id: str


def overlaps(
    text: str, signals: SignalIndex | Iterable[SignalText], spec: Mapping[str, Any], clock: Clock | None = None
) -> list[Finding]:
    """What a text shares with any signal, the heaviest of each place; the first signal that has it is named.

    Raises TimeoutError when the clock's time is over.
    """
    clock = clock or Clock(float(spec["limits"]["seconds"]))
    index = signals if isinstance(signals, SignalIndex) else SignalIndex(signals)
    ours = words(text)
    if not ours or not len(index):
        return []
    mine = [index.number(w.text) for w in ours]
    anywhere, copied = weigh(ours, spec)
    shared: list[Shared] = []
    for start, end in _windows(len(ours), int(spec["overlap"]["window"])):
        some, their = mine[start:end], anywhere[start:end]
        hits = Hits.of(some, index)
        both = [
            *stretches(some, their, copied[start:end], index, hits, spec["overlap"], clock),
            *scattered(some, their, index, hits, spec["scattered"], clock),
        ]
        shared += [Shared(tuple(start + p for p in f.places), f.score, f.signal_id) for f in both]
    findings: list[Finding] = []
    taken: list[tuple[int, int]] = []
    for each in sorted(shared, key=lambda s: (-s.score, s.places)):
        first, last = each.places[0], each.places[-1]
        if not any(a <= first and last <= b for a, b in taken):  # inside a heavier one
            taken.append((first, last))
            findings.append(_finding(text, ours, each))
    return findings


def _windows(length: int, window: int) -> Iterator[tuple[int, int]]:
    """Pieces of so many words that overlap by half."""
    for start in range(0, max(1, length - window // 2), window // 2):
        yield start, min(length, start + window)


def tells(word: Word) -> bool:
    """Whether a word says more than function words and words about replies do."""
    return normal(word.text) not in plain()


def weigh(ours: Sequence[Word], spec: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """What each word counts: wherever it stands, and in a copy, where words for persons tell most.

    Not where a taste is said right behind one ("I like", "my answers"): that may be a person's own summary.
    """
    persons, tastes = frozenset(spec["person_words"]), frozenset(spec["taste_words"])
    limits = spec["overlap"]
    anywhere = [1 + int(limits["telling"]) * tells(w) for w in ours]
    copied = [
        1 + int(limits["person"])
        if word.text in persons and not any(w.text in tastes for w in ours[i + 1 : i + 3]) else anywhere[i]
        for i, word in enumerate(ours)
    ]  # fmt: skip
    return anywhere, copied


def _finding(text: str, ours: Sequence[Word], found: Shared) -> Finding:
    a, b = ours[found.places[0]].start, ours[found.places[-1]].end
    how = "in a row" if found.places[-1] - found.places[0] + 1 == len(found.places) else "with others between them"
    why = f"{len(found.places)} words {how} are those of signal {found.signal_id}: {' '.join(text[a:b].split())[:60]!r}"
    return Finding("overlap", a, b, text[a:b], found.signal_id, why)


@dataclass(frozen=True)
class Hits:
    """The places of the index whose words the text has, in order, and the words' numbers; both of shape [hits]."""

    places: NDArray[np.int32]
    numbers: NDArray[np.int32]

    @staticmethod
    def of(mine: Sequence[int], index: SignalIndex) -> Hits:
        """Looked up once: all that is done afterwards is done with these."""
        places = index.places(mine)
        return Hits(places, index.row.take(places))

    def weighed(self, mine: Sequence[int], weights: Sequence[int], index: SignalIndex) -> NDArray[np.int64]:
        """The most that the word at each place counts in the text; shape [hits]."""
        import numpy as np

        table = np.zeros(index.size, dtype=np.int64)
        for number, weight in zip(mine, weights, strict=True):
            if number > 0:
                table[number] = max(table[number], weight)
        weighed: NDArray[np.int64] = table.take(self.numbers)
        return weighed

    def rows(
        self, counts: NDArray[np.int64], index: SignalIndex, least: int, score: int
    ) -> Iterator[NDArray[np.int32]]:
        """The places of every row of at least so many words and so much weight. A row goes on where nothing but small
        words stands between two of its places."""
        import numpy as np

        if not len(self.places):
            return
        before, after = index.large.take(self.places[1:]), index.large.take(self.places[:-1] + 1)
        begins = np.append(0, 1 + np.flatnonzero(before != after))
        ends = np.append(begins[1:], len(self.places))
        long = ends - begins >= least
        begins, ends = begins[long], ends[long]
        sums = np.append(0, np.cumsum(counts))
        heavy = sums[ends] - sums[begins] >= score
        for begin, end in zip(begins[heavy].tolist(), ends[heavy].tolist(), strict=True):
            yield self.places[begin:end]


def stretches(
    mine: Sequence[int], anywhere: Sequence[int], copied: Sequence[int], index: SignalIndex,
    hits: Hits, limits: Mapping[str, Any], clock: Clock,
) -> Iterator[Shared]:  # fmt: skip
    """The heavy runs of every row of a signal's words that are all the text's, small ones that it lacks passed over.

    Two ways of each: the row as a copy, and its pieces without gaps, in order with others between or in any order.
    """
    import numpy as np

    least, score, missing = (int(limits[name]) for name in ("words", "score", "missing"))

    def shared(places: NDArray[np.int32], weights: Sequence[int], gap: int, *, any_order: bool) -> Iterator[Shared]:
        stretch = index.row[places].tolist()
        wanted = set(stretch)
        enough = score - missing * (int(places[-1] - places[0]) >= len(places))
        if sum(w for n, w in zip(mine, weights, strict=True) if n in wanted) < enough:
            return  # not even all of them in order would do
        found, heavy = heaviest(mine, weights, stretch, gap, clock, enough=enough)
        if any_order and (heavy < enough or len(found) < least):
            found, heavy = unordered(mine, weights, wanted)
        if heavy >= enough and len(found) >= least:
            yield Shared(found, heavy, index.signal(index.text_at(int(places[0]))))

    for row in hits.rows(hits.weighed(mine, copied, index), index, least, score - missing):
        pieces = np.split(row, np.flatnonzero(np.diff(row) != 1) + 1)
        for places in pieces if _of_taste(row, index, int(limits["before"])) else [row]:
            yield from shared(places, copied, 0, any_order=False)
        for places in pieces:
            yield from shared(places, anywhere, int(limits["gap"]), any_order=True)


def _of_taste(row: NDArray[np.int32], index: SignalIndex, before: int) -> bool:
    """Whether the signal says a taste in the row or by one of the ``before`` words before it."""
    start = int(row[0])
    while before and start and index.row[start - 1]:
        start, before = start - 1, before - 1
    return bool(index.taste[start : int(row[-1]) + 1].any())


def unordered(
    mine: Sequence[int], weights: Sequence[int], wanted: Collection[int]
) -> tuple[tuple[int, ...], int]:
    """The first place in ``mine`` of each of the ``wanted`` words, and what they weigh."""
    first: dict[int, int] = {}
    for place, number in enumerate(mine):
        if number in wanted:
            first.setdefault(number, place)
    places = tuple(sorted(first.values()))
    return places, sum(weights[p] for p in places)


def heaviest(
    mine: Sequence[int], weights: Sequence[int], stretch: Sequence[int], gap: int, clock: Clock, *,
    enough: int | None = None,
) -> tuple[tuple[int, ...], int]:  # fmt: skip
    """The heaviest run: places in ``mine`` that rise by at most ``gap`` + 1 and hold consecutive words of ``stretch``.

    Of equally heavy ones, the one found first. Once one of ``enough`` was found, what is more than ``mine`` behind it
    is not looked at.
    """
    at: dict[int, list[int]] = {}
    for place, number in enumerate(mine):
        at.setdefault(number, []).append(place)
    best: tuple[tuple[int, ...], int] = ((), 0)
    before: dict[int, tuple[tuple[int, ...], int]] = {}
    last_gain = 0
    for step, number in enumerate(stretch):
        clock.check()
        if enough is not None and best[1] >= enough and step - last_gain > len(mine):
            break
        now: dict[int, tuple[tuple[int, ...], int]] = {}
        for place in at.get(number, ()):
            chain: tuple[int, ...] = ()
            score = 0
            for last in range(max(0, place - gap - 1), place):
                if last in before and before[last][1] > score:
                    chain, score = before[last]
            now[place] = ((*chain, place), score + weights[place])
            if now[place][1] > best[1]:
                best, last_gain = now[place], step
        before = now
    return best


def scattered(
    mine: Sequence[int], weights: Sequence[int], index: SignalIndex, hits: Hits, limits: Mapping[str, Any],
    clock: Clock,
) -> Iterator[Shared]:  # fmt: skip
    """For each text that has it, one place where enough different telling words of ours stand close together."""
    import numpy as np

    least, window = int(limits["words"]), int(limits["window"])
    telling = [w > 1 for w in weights]
    if sum(telling) < least:
        return
    telling_hits = hits.places[hits.weighed(mine, weights, index) > 1]
    if len(telling_hits) < least:
        return
    near = np.flatnonzero(telling_hits[least - 1 :] - telling_hits[: len(telling_hits) - least + 1] < window)
    done: set[int] = set()
    for i in near:
        clock.check()
        start = int(telling_hits[i])
        text = index.text_at(start)
        if text in done:
            continue
        close = index.row[start : start + window].tolist()
        if 0 in close:
            close = close[: close.index(0)]
        shared = set(close) & {n for n, t in zip(mine, telling, strict=True) if t}
        if len(shared) >= least:
            done.add(text)
            places, _ = unordered(mine, weights, shared)
            yield Shared(places, len(shared), index.signal(text))


def common_runs(ours: Sequence[str], theirs: Sequence[str], least: int) -> Iterator[tuple[int, int]]:
    """Runs of ≥ ``least`` words that both have, as (start in ours, length); each cannot be made longer."""
    if len(ours) < least or len(theirs) < least:
        return
    places: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(ours) - least + 1):
        places.setdefault(tuple(ours[i : i + least]), []).append(i)
    known = set(ours)
    streak = 0
    for j, word in enumerate(theirs):
        streak = streak + 1 if word in known else 0
        if streak < least:
            continue
        first = j - least + 1
        for i in places.get(tuple(theirs[first : j + 1]), ()):
            if i and first and ours[i - 1] == theirs[first - 1]:
                continue  # found already, one word earlier
            rest = zip(ours[i + least :], theirs[j + 1 :], strict=False)
            yield i, least + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], rest))
