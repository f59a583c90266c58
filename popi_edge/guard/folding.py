"""Folding that sees through disguises: case, width, ligatures, accents, invisible characters, look-alike letters.

The look-alikes are data, ``spec/homoglyphs.json``. ``normal`` goes on to a word's stem, by the rules in
``spec/guard.json``, so that a plural is the same word. Both sides of every comparison are folded, so a letter that is
folded wrongly (a Greek word in capitals) costs a name in a message, never a block.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
APOSTROPHES = frozenset("’‘ʼ＇")
INVISIBLE = ("Mn", "Me", "Cf")
"""Categories of characters that folding drops."""


@dataclass(frozen=True)
class Word:
    """A folded word, and where it stands in the text it comes from."""

    text: str
    start: int
    end: int


@functools.cache
def spec() -> Mapping[str, Any]:
    """The guard's data."""
    data: Mapping[str, Any] = json.loads(files("popi_edge.spec").joinpath("guard.json").read_text("utf-8"))
    return data


@functools.cache
def _homoglyphs() -> Mapping[str, str]:
    """Character → the letters that it passes for, or the digit that it is."""
    data = json.loads(files("popi_edge.spec").joinpath("homoglyphs.json").read_text("utf-8"))
    return {c: looks for looks, characters in data["letters"].items() for c in characters}


@functools.cache
def plain() -> frozenset[str]:
    """Words that tell nothing: function words and those for how replies can be, but for forms among them that do."""
    data = spec()
    return frozenset([*data["function_words"], *data["reply_words"]]).difference(data["telling_words"])


@functools.cache
def small() -> frozenset[str]:
    """Function words, but for forms among them that tell: what a sentence can do without."""
    return frozenset(spec()["function_words"]).difference(spec()["telling_words"])


@functools.lru_cache(maxsize=20_000)
def _fold(character: str) -> str:
    if character in APOSTROPHES:
        return "'"
    parts = unicodedata.normalize("NFKD", character.casefold())
    kept = "".join(c for c in parts if unicodedata.category(c) not in INVISIBLE).casefold()
    return "".join("'" if c in APOSTROPHES else _homoglyphs().get(c, c) for c in kept)


def fold(text: str) -> str:
    """The text folded; texts that look the same to a reader fold to the same."""
    return text.lower() if text.isascii() else "".join(map(_fold, text))


def fold_with_places(text: str) -> tuple[str, list[int]]:
    """The text folded, and for each folded character (and its end) the place it comes from."""
    if text.isascii():
        return text.lower(), list(range(len(text) + 1))
    folded, places = [], []
    for i, character in enumerate(text):
        part = _fold(character)
        folded.append(part)
        places += [i] * len(part)
    return "".join(folded), [*places, len(text)]


@functools.lru_cache(maxsize=8)
def words(text: str) -> tuple[Word, ...]:
    """The folded words of a text, with their places in it. The last few are kept: every rule asks for the same."""
    folded, places = fold_with_places(text)
    return tuple(Word(h.group(), places[h.start()], places[h.end() - 1] + 1) for h in WORD.finditer(folded))


@functools.lru_cache(maxsize=50_000)
def normal(word: str) -> str:
    """A folded word as it is compared: its stem, or itself where it is plain, short or not of letters a to z."""
    if word in plain():
        return word
    stem = word
    for suffix, instead in spec()["suffixes"]:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            stem = word[: -len(suffix)] + instead
            break
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "aeiou":
        stem = stem[:-1]
    if len(stem) > 3 and stem.endswith("e"):
        stem = stem[:-1]
    return stem[:-1] + "i" if len(stem) > 3 and stem.endswith("y") else stem
