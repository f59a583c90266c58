"""A person's signals as the guard looks at them: one long row of word numbers, built once and added to.

A word's number stands for its normal form (``folding.normal``); 0 ends a text. What a text shares with the signals is
looked for at the places of its own words alone, in numpy. Nothing of it is written to disk.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from popi_edge.guard.finding import SignalText
from popi_edge.guard.folding import WORD, fold, normal, small, spec
from popi_edge.vocabulary import ordinary_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUMBER = re.compile(r"\+?\d(?:[\s().,:/+-]{0,3}\d){2,}")
RARE = re.compile("[a-z]{6,}")
PART = 6
"""Fewest digits that are looked for inside a longer number."""
HEAD = 6
"""Letters by which rare words are looked up."""


class _Numbers(dict[str, int]):
    """Folded word → its number, given out as words are met; remembers where a rare word was met first."""

    def __init__(self) -> None:
        self.forms: dict[str, int] = {}
        self.rare: dict[str, list[tuple[str, int]]] = {}
        self.text = 0

    def __missing__(self, word: str) -> int:
        number = self.forms.setdefault(normal(word), len(self.forms) + 1)
        self[word] = number
        if word not in ordinary_words() and RARE.fullmatch(word):
            self.rare.setdefault(word[:HEAD], []).append((word, self.text))
        return number


class SignalIndex:
    """All texts of a person's stored signals; add to it with ``add``. Raises TypeError for what is not text."""

    def __init__(self, texts: Iterable[SignalText] = ()) -> None:
        self._numbers = _Numbers()
        self._row = array("i")
        self._starts: list[int] = []
        self._ids: list[str] = []
        self._digits: dict[str, int] = {}
        self._array: NDArray[np.int32] | None = None
        self._places: tuple[NDArray[np.int32], NDArray[np.intp]] | None = None
        self._marks: dict[str, NDArray[np.bool_]] = {}
        self._large: NDArray[np.int32] | None = None
        for signal_id, text in texts:
            self.add(signal_id, text)

    def add(self, signal_id: str, text: str) -> None:
        """Take in one text of a signal."""
        folded, numbers = fold(text), self._numbers
        numbers.text = len(self._ids)
        found = [numbers[word] for word in WORD.findall(folded)]
        self._starts.append(len(self._row))
        self._ids.append(signal_id)
        self._row.extend(found)
        self._row.append(0)
        for hit in NUMBER.finditer(folded):
            self._digits.setdefault("".join(filter(str.isdigit, hit.group())), len(self._ids) - 1)
        self._array = None

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def row(self) -> NDArray[np.int32]:
        """The numbers of all words in order, each text ended by 0; shape [n]."""
        if self._array is None:
            import numpy as np

            self._array = np.array(self._row, dtype=np.int32)
            self._marks, self._large, self._places = {}, None, None
        return self._array

    def places(self, numbers: Iterable[int]) -> NDArray[np.int32]:
        """Every place of the row that holds one of these words, in order; shape [hits].

        Each word's places are kept together, so that what a text lacks is not gone through: with 3,000 signals this
        takes half of what a pass over the row takes.
        """
        import numpy as np

        row = self.row
        if self._places is None:
            order = np.argsort(row, kind="stable").astype(np.int32)
            self._places = order, np.searchsorted(row[order], np.arange(self.size + 1))
        order, starts = self._places
        found = [order[starts[n] : starts[n + 1]] for n in sorted(set(numbers)) if 0 < n < self.size]
        places: NDArray[np.int32] = np.sort(np.concatenate([order[:0], *found]))
        return places

    @property
    def small(self) -> NDArray[np.bool_]:
        """Which places of the row hold a function word that tells nothing; shape [n]."""
        return self._marked("small", small())

    @property
    def large(self) -> NDArray[np.int32]:
        """How many of the places before each hold no small word (but an end of a text, say); shape [n + 1]."""
        import numpy as np

        small = self.small
        if self._large is None:
            self._large = np.zeros(len(small) + 1, dtype=np.int32)
            np.cumsum(~small, out=self._large[1:])
        return self._large

    @property
    def taste(self) -> NDArray[np.bool_]:
        """Which places of the row hold a word by which somebody says a taste ("like", "rather"); shape [n]."""
        return self._marked("taste", frozenset(map(normal, spec()["taste_words"])))

    def _marked(self, name: str, words: frozenset[str]) -> NDArray[np.bool_]:
        import numpy as np

        row = self.row
        if name not in self._marks:
            table = np.zeros(self.size, dtype=np.bool_)
            table[[number for form, number in self._numbers.forms.items() if form in words]] = True
            self._marks[name] = table[row]
        return self._marks[name]

    @property
    def size(self) -> int:
        """One more than the highest number of a word."""
        return len(self._numbers.forms) + 1

    def number(self, word: str) -> int:
        """The number of a folded word, or -1 where no signal has it in any form."""
        known = self._numbers.get(word)  # dict.get does not go through __missing__
        return known if known is not None else self._numbers.forms.get(normal(word), -1)

    def text_at(self, place: int) -> int:
        """Which text a place of the row belongs to."""
        return bisect_right(self._starts, place) - 1

    def signal(self, text: int) -> str:
        """The id of the signal that a text is of."""
        return self._ids[text]

    def rare(self, letters: str, start: int = 0) -> list[tuple[str, str]]:
        """The rare words (not in the lexicon, six letters and more) that begin at ``start``, and their signals."""
        some = self._numbers.rare.get(letters[start : start + HEAD], ())
        return [(word, self._ids[text]) for word, text in some if letters.startswith(word, start)]

    def heads(self, letters: str) -> list[int]:
        """The places in ``letters`` where a rare word may begin: looked through at once, since nearly none does."""
        rare = self._numbers.rare
        return [i for i in range(len(letters) - HEAD + 1) if letters[i : i + HEAD] in rare]

    def digits(self, digits: str) -> str | None:
        """The first signal with this number, however it is grouped there; from six digits on also with more before or
        behind it on either side (a country's code)."""
        text = self._digits.get(digits)
        if text is None and len(digits) >= PART:
            longer = (t for d, t in self._digits.items() if len(d) >= PART and (d in digits or digits in d))
            text = next(longer, None)
        return None if text is None else self._ids[text]

    def locate(self, words: Sequence[str]) -> str | None:
        """The first signal in which these folded words stand one behind the other, in any form."""
        import numpy as np

        wanted = [self.number(word) for word in words]
        if not wanted or min(wanted) < 0 or len(wanted) > len(self._row):
            return None
        row = self.row
        here = np.flatnonzero(row[: len(row) - len(wanted) + 1] == wanted[0])
        for i, number in enumerate(wanted[1:], 1):
            here = here[row[here + i] == number]
        return self._ids[self.text_at(int(here[0]))] if len(here) else None
