"""Mail addresses and numbers, also in disguise."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from popi_edge.guard.finding import Finding
from popi_edge.guard.folding import Word, fold_with_places, words

EMAIL = re.compile(
    r"(?<![^\s@])[^\s@]+\s?@\s?[^\s@]+"
    r"|(?<![\w.+-])[\w.+-]+\s*[\[({]?\s*\bat\b\s*[\])}]?\s*[\w-]+\s*[\[({]?\s*\bdot\b\s*[\])}]?\s*\w+"
)
AND = ("and", "und", "et", "y", "e", "en")


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
    some = words(text)
    spans: dict[tuple[int, int], str] = {}
    for language, number_words in {"": spec["number_words"], **spec["number_words_elsewhere"]}.items():
        for span in _number_runs(some, number_words, int(spec["number_run"])):
            spans.setdefault(span, f" ({language})" if language else "")
    return found + [_found("number", text, a, b, f"a number in words{x}: {text[a:b]!r}") for (a, b), x in spans.items()]


def _number_runs(some: Sequence[Word], number_words: Sequence[str], least: int) -> Iterator[tuple[int, int]]:
    """Where at least so many number words stand one behind the other; "and" may stand between them."""
    known = {w.text for w in some}.intersection(number_words)
    run: list[Word] = []
    for word in (*some, Word("", 0, 0)) if known else ():
        if word.text in known:
            run.append(word)
        elif not (run and word.text in AND):
            if len(run) >= least:
                yield run[0].start, run[-1].end
            run = []
