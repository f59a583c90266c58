"""Channels beside the words: invisible characters, kinds of space, strings of marks, capitals inside words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from popi_edge.guard.finding import Finding

UNSEEN = {
    "Cc": "a control character", "Cf": "an invisible character", "Co": "a private character", "Cn": "no character",
    "Cs": "half a character", "Zl": "a line separator", "Zp": "a paragraph separator", "Zs": "an unusual space",
}  # fmt: skip
SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef\u115f\u1160\u3164\uffa0\u2800]")
"""Characters that Unicode does not call invisible, and that are: variation selectors and fillers."""
GAP = re.compile(r"\s{2,}|[\t\n\r\f\v]|^\s+|\s+\Z")
STACKED = re.compile(r"\w[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]{2,}")


def hidden(text: str) -> list[Finding]:
    """What a reader does not see: invisible characters, spaces other than one plain space, stacked accents."""
    found = []
    for i, character in enumerate(text):
        kind = UNSEEN.get(unicodedata.category(character)) or ("a filler" if SELECTORS.match(character) else None)
        if kind and character not in " \t\n\r\f\v":
            why = f"{kind} (U+{ord(character):04X}) can carry what nobody sees"
            found.append(Finding("hidden", i, i + 1, character, None, why))
    for pattern, what in ((GAP, "a gap that is not one plain space"), (STACKED, "accents on top of each other")):
        for hit in pattern.finditer(text):
            found.append(Finding("hidden", hit.start(), hit.end(), hit.group(), None, f"{what} can carry a code"))
    return found


def marks(text: str, allowed: str, limits: Mapping[str, Any]) -> list[Finding]:
    """Strings of marks that are no punctuation: longer than ``mark_run``, or one mark after another without words."""
    found, before = [], False
    for piece in re.finditer(r"\S+", text):
        alone = all(c in allowed for c in piece.group())
        for hit in re.finditer(f"[{re.escape(allowed)}]+", piece.group()):
            too_long = len(hit.group()) > limits["mark_run"] or (alone and len(hit.group()) > 1)
            if too_long or (alone and before):
                a, b = piece.start() + hit.start(), piece.start() + hit.end()
                found.append(Finding("marks", a, b, text[a:b], None, f"{text[a:b][:20]!r} is not punctuation"))
        before = alone
    return found


def capitals(text: str, own: Iterable[str]) -> list[Finding]:
    """Words with capitals in strange places, except a person's own as they wrote them."""
    kept = set(own)
    return [
        Finding("capitals", a, b, text[a:b], None, f"{text[a:b][:40]!r} has capitals where no word has any")
        for a, b in _words(text)
        if text[a:b] not in kept and not _regular(text[a:b])
    ]


def _words(text: str) -> Iterator[tuple[int, int]]:
    for hit in re.finditer(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text):
        yield hit.span()


def _regular(word: str) -> bool:
    """Small, capitalised, or all in capitals; before an apostrophe the same ("I'm")."""
    return word == word.lower() or word == word.upper() or word == word[0] + word[1:].lower()
