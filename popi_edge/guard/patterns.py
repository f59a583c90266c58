"""Mail addresses and numbers, also in disguise; and the folding that sees through disguises."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from popi_edge.guard import Finding

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
EMAIL = re.compile(
    r"[^\s@]+\s?@\s?[^\s@]+"
    r"|[\w.+-]+\s*[\[({]?\s*\bat\b\s*[\])}]?\s*[\w-]+\s*[\[({]?\s*\bdot\b\s*[\])}]?\s*\w+"
)


@dataclass(frozen=True)
class Word:
    """A folded word, and where it stands in the text it comes from."""

    text: str
    start: int
    end: int


@functools.lru_cache(maxsize=20_000)
def _fold(character: str) -> str:
    """Without case, width, ligature, accent and invisibility (NFKD, marks and format characters dropped)."""
    if character in "’‘ʼ＇":
        return "'"
    parts = unicodedata.normalize("NFKD", character.casefold())
    return "".join(c for c in parts if unicodedata.category(c) not in ("Mn", "Me", "Cf")).casefold()


def fold(text: str) -> str:
    """The text folded; texts that are the same to a reader fold to the same."""
    return text.lower() if text.isascii() else "".join(map(_fold, text))


def fold_with_places(text: str) -> tuple[str, list[int]]:
    """The text folded, and for each folded character (and its end) the place it comes from."""
    folded, places = [], []
    for i, character in enumerate(text):
        part = _fold(character)
        folded.append(part)
        places += [i] * len(part)
    return "".join(folded), [*places, len(text)]


def words(text: str) -> list[Word]:
    """The folded words of a text, with their places in it."""
    folded, places = fold_with_places(text)
    return [Word(h.group(), places[h.start()], places[h.end() - 1] + 1) for h in WORD.finditer(folded)]


def _found(rule: str, text: str, start: int, end: int, message: str) -> Finding:
    return Finding(rule, start, end, text[start:end], None, message)


def emails(text: str) -> list[Finding]:
    """Mail addresses, also spelled "name (at) example dot org"."""
    folded, places = fold_with_places(text)
    spans = [(places[h.start()], places[h.end() - 1] + 1) for h in EMAIL.finditer(folded)]
    return [_found("email", text, a, b, f"a mail address: {text[a:b]!r}") for a, b in spans]


def numbers(text: str, own: Iterable[str], spec: Mapping[str, Any]) -> list[Finding]:
    """Digits of any script, except inside a person's own words as they wrote them, and runs of number words."""
    kept = set(own)
    found = []
    for piece in re.finditer(r"\S+", text):
        if piece.group().strip(".,;:!?'\"()") in kept:
            continue
        for hit in re.finditer(r"[^\D]+|.", piece.group()):
            if unicodedata.category(hit.group()[0])[0] == "N":
                a, b = piece.start() + hit.start(), piece.start() + hit.end()
                found.append(_found("number", text, a, b, f"a number: {text[a:b]!r}"))
    for a, b in _number_runs(text, frozenset(spec["number_words"]), int(spec["number_run"])):
        found.append(_found("number", text, a, b, f"a number in words: {text[a:b]!r}"))
    return found


def _number_runs(text: str, number_words: frozenset[str], least: int) -> Iterator[tuple[int, int]]:
    run: list[Word] = []
    for word in (*words(text), Word("", 0, 0)):
        if word.text in number_words:
            run.append(word)
        elif not (run and word.text == "and"):
            if len(run) >= least:
                yield run[0].start, run[-1].end
            run = []
