"""Whether a private unit stands in a text, and whether the lexicon lets it be written: pure, for the PUPA section.

A unit is what PUPA's annotators marked as private in a conversation. Both sides are folded (NFKC, case, white space);
a unit counts as found where it stands on word boundaries. Scripts that put no spaces between words have none: there it
counts wherever it stands. It does NOT find a unit that is said in other words, inflected or misspelled.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable

from bench.privacy_search import folded
from popi_edge.vocabulary import Lexicon

LEAST = 3
_FUNCTION = """
a about above after again all also am an and another any are as at be because been before being below between
both but by can cannot could did do does doing done down during each either else ever every few for from further
had has have having he her here hers him his how i if in into is it its just may me might mine more most much
must my neither no nor not now of off on once one only or other others our ours out over own per same shall she
should since so some such than that the their theirs them then there these they this those though through thus
to too under until up upon us very via was we were what when where whether which while who whom whose why will
with within without would yes yet you your yours
"""
FUNCTION_WORDS = frozenset(_FUNCTION.split())
PIECE = re.compile(r"[^\W_]+")


def units(marked: str) -> list[str]:
    """The units to count of a row's ``pii_units``, each once: three characters and more, not function words alone."""
    found = dict.fromkeys(folded(u) for u in marked.split("||"))
    return [u for u in found if len(u) >= LEAST and not (set(PIECE.findall(u)) or {u}) <= FUNCTION_WORDS]


def _edge(character: str, before: bool) -> str:
    """What must not stand beside a unit's first or last character."""
    unspaced = unicodedata.category(character) == "Lo"  # letters without case: Chinese, Thai, and the like
    if unspaced or not (character.isalnum() or character == "_"):
        return ""
    return r"(?<!\w)" if before else r"(?!\w)"


@functools.lru_cache(maxsize=4096)
def _pattern(unit: str) -> re.Pattern[str]:
    return re.compile(_edge(unit[0], True) + re.escape(unit) + _edge(unit[-1], False))


def stands(unit: str, text: str) -> bool:
    """Whether a unit (as ``units`` gives it) stands in a text."""
    return _pattern(unit).search(folded(text)) is not None


def leaked(of: Iterable[str], text: str) -> list[str]:
    """The units that stand in a text."""
    whole = folded(text)
    return [u for u in of if _pattern(u).search(whole)]


@functools.lru_cache(maxsize=4)
def pieces(lexicon: Lexicon) -> frozenset[str]:
    """Every run of letters and digits that a text of the lexicon can hold."""
    return frozenset(p for w in lexicon.words for p in PIECE.findall(folded(w)))


def unwritable(unit: str, lexicon: Lexicon) -> bool:
    """Whether no text of the lexicon's words can hold the unit on word boundaries: a piece of it is in no word.

    A unit of signs alone is called writable. In scripts without spaces, where ``stands`` asks for no boundaries, a
    piece that is part of a word would do; the shipped lexicon has no such words.
    """
    return any(p not in pieces(lexicon) for p in PIECE.findall(unit))
