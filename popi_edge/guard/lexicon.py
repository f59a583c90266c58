"""Words outside the lexicon, whoever wrote the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from popi_edge.guard.finding import Finding
from popi_edge.guard.folding import spec
from popi_edge.vocabulary import Lexicon, Problem

FORM = {
    "empty": "the text is empty",
    "word": "{text!r} is not in the lexicon",
    "capital": "{text!r} is capitalised where it should not be, or the other way round",
    "space": "a space too many",
    "punctuation": "{text!r} does not stand directly after a word and before a space",
    "end": "the text does not end with a sentence mark",
}


def outside(text: str, lexicon: Lexicon, *, form: bool) -> list[Finding]:
    """What is not made of the lexicon's words; with ``form``, also what breaks the form of decoded summaries."""
    if form:
        return [_broken(p) for p in lexicon.explain(text)]
    return [
        Finding("lexicon", start, end, text[start:end], None, f"{text[start:end]!r} is not in the lexicon")
        for start, end in _strangers(text, lexicon)
    ]


def _broken(p: Problem) -> Finding:
    rule = "lexicon" if p.rule == "word" else "form"
    return Finding(rule, p.start, p.end, p.text, None, FORM[p.rule].format(text=p.text))


def _strangers(text: str, lexicon: Lexicon) -> Iterator[tuple[int, int]]:
    """Places of words that are not the lexicon's. Words may be joined by hyphens and slashes, and end in 's."""
    marks = str(spec()["punctuation"])
    joints = re.compile(f"[{re.escape(marks.replace('.', '').replace(chr(39), ''))}]+")
    for piece in re.finditer(r"\S+", text):
        left = len(piece.group()) - len(piece.group().lstrip(marks))
        core = piece.group().strip(marks)
        if not core or _known(core, lexicon) or _known(piece.group().rstrip(".,;:!?"), lexicon):
            continue
        start = piece.start() + left
        for part in _parts(core, joints):
            if not _known(core[part[0] : part[1]], lexicon):
                yield start + part[0], start + part[1]


def _parts(core: str, joints: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    place = 0
    for joint in (*joints.finditer(core), None):
        end = joint.start() if joint else len(core)
        if end > place:
            yield place, end
        place = joint.end() if joint else place


def _known(word: str, lexicon: Lexicon) -> bool:
    word = word.replace("’", "'")
    return word in lexicon or (word.endswith("'s") and word[:-2] in lexicon)
