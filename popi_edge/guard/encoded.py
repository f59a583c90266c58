"""Words and numbers of a signal in disguise: letters of a text that spell them, and codes that decode to them.

``spelled`` reads letters across words: neighbouring words joined, first, second, third and last letters, first letters
of sentences, capitals, and all of these backwards; what it looks for are the signals' rare words. ``decoded`` takes
what is not made of the lexicon's words and tries base64, base32, hex, percent signs, entities, character codes, Morse,
shifted, mirrored and reversed letters, and leetspeak.

It does NOT find a code that only both ends know (which of two harmless words is chosen, how long words are), nor a
short word spelled by letters.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import string
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from popi_edge.guard.finding import Clock, Finding
from popi_edge.guard.folding import Word, fold, normal, plain, spec, words
from popi_edge.guard.index import SignalIndex
from popi_edge.vocabulary import Lexicon

MARKS_AROUND = ".,;:!?'\"()"
"""Marks that belong to the sentence around a piece."""
LETTERS = string.ascii_lowercase
SHORTEST = 4
"""Fewest letters of a word, or digits of a number, that is looked for in what was decoded."""


@dataclass(frozen=True)
class Channel:
    """Letters read from a text in some way, and the piece of the text that each comes from."""

    name: str
    letters: str
    places: tuple[tuple[int, int], ...]


def spelled(text: str, index: SignalIndex, lexicon: Lexicon, clock: Clock) -> list[Finding]:
    """Rare words of signals that letters of the text spell across its words. Raises TimeoutError."""
    found = []
    for channel in channels(text):
        clock.check()
        for i in index.heads(channel.letters):
            for word, signal_id in index.rare(channel.letters, i):
                places = channel.places[i : i + len(word)]
                if word in lexicon or not _meant(channel, i, len(word)):
                    continue
                a, b = min(places)[0], max(places)[1]
                why = f"{channel.name} letters spell {word!r}, a word of signal {signal_id}"
                found.append(Finding("spelled", a, b, text[a:b], signal_id, why))
    return found


def _meant(channel: Channel, start: int, length: int) -> bool:
    """Whether letters that spell a word can hardly do so by chance.

    Joined ones are many, so they must come from more than one word, and either be ``joined`` letters and more or come
    from whole words, all of them single letters or none of them plain: "wood | stock" does, "see | the" does not.
    Others than first letters must be one letter more than those.
    """
    places, end, least = channel.places, start + length, spec()["spelled"]
    if not channel.name.startswith("joined"):
        return length >= int(least["first" if channel.name in ("first", "sentences' first") else "others"])
    parts = ["".join(c for _, c in group) for _, group in groupby(
        zip(places[start:end], channel.letters[start:end], strict=True), key=lambda pair: pair[0])]  # fmt: skip
    begun = start == 0 or places[start - 1] != places[start]
    ended = end == len(places) or places[end - 1] != places[end]
    said = all(len(p) == 1 for p in parts) or not any(p in plain() or p[::-1] in plain() for p in parts)
    return len(parts) > 1 and (length >= int(least["joined"]) or (begun and ended and said))


def channels(text: str) -> Iterator[Channel]:
    """All ways of reading letters across words."""
    some = [w for w in words(text) if w.text.replace("'", "").isalnum()]
    letters = "".join(w.text.replace("'", "") for w in some)
    places = tuple((w.start, w.end) for w in some for c in w.text if c != "'")
    yield from _both("joined", letters, places)
    for name, k in (("first", 0), ("second", 1), ("third", 2), ("last", -1)):
        chosen = [w for w in some if len(w.text) > max(k, 0)]
        yield from _both(name, "".join(w.text[k] for w in chosen), tuple((w.start, w.end) for w in chosen))
    starts = [w for w, before in zip(some, [None, *some], strict=False) if _begins(text, before, w)]
    yield from _both("sentences' first", "".join(w.text[0] for w in starts), tuple((w.start, w.end) for w in starts))
    upper = [(i, fold(c)) for i, c in enumerate(text) if c.isupper()]
    capitals = [(i, c) for i, c in upper if len(c) == 1]
    yield from _both("capital", "".join(c for _, c in capitals), tuple((i, i + 1) for i, _ in capitals))


def _begins(text: str, before: Word | None, word: Word) -> bool:
    return before is None or any(mark in text[before.end : word.start] for mark in ".!?\n")


def _both(name: str, letters: str, places: tuple[tuple[int, int], ...]) -> Iterator[Channel]:
    yield Channel(name, letters, places)
    yield Channel(f"{name} (backwards)", letters[::-1], places[::-1])


# codes ------------------------------------------------------------------------------------------------------
def decoded(text: str, index: SignalIndex, lexicon: Lexicon, clock: Clock) -> list[Finding]:
    """Pieces that are not of the lexicon's words and that mean words or numbers of a signal. Raises TimeoutError."""
    found = []
    for start, end in _strange(text, lexicon):
        clock.check()
        piece = text[start:end]
        for how, meant in readings(piece):
            known = _known(meant, index, lexicon)
            if known:
                what, signal_id = known
                core = piece.strip(MARKS_AROUND) or piece
                a = start + piece.index(core)
                why = f"{core[:40]!r} is {what[:40]!r} of signal {signal_id} ({how})"
                found.append(Finding("encoded", a, a + len(core), core, signal_id, why))
                break
    return found


def _strange(text: str, lexicon: Lexicon) -> Iterator[tuple[int, int]]:
    """Pieces without white space that hold something else than the lexicon's words and a person's own, and whole
    rows of such pieces."""
    row: list[tuple[int, int]] = []
    for hit in (*re.finditer(r"\S+", text), None):
        if hit is not None and _is_strange(hit.group(), lexicon):
            row.append(hit.span())
            continue
        yield from row
        if len(row) > 1:
            yield row[0][0], row[-1][1]
        row = []


def _is_strange(piece: str, lexicon: Lexicon) -> bool:
    core = piece.strip(str(spec()["punctuation"])) or piece
    if core in lexicon or piece.rstrip(".,;:!?") in lexicon:
        return False
    parts = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", core)
    return not parts or not all(p.replace("’", "'") in lexicon for p in parts)


def _known(meant: str, index: SignalIndex, lexicon: Lexicon) -> tuple[str, str] | None:
    """The first word or number of a signal in a text that was decoded, and the signal's id."""
    for word in words(meant):
        letters = word.text.replace("'", "")
        if len(letters) < SHORTEST or normal(word.text) in plain():
            continue
        signal_id = index.locate([word.text]) or (index.digits(letters) if letters.isdigit() else None)
        if signal_id is None and not letters.isdigit():
            rare = index.rare(letters)
            signal_id = rare[0][1] if rare else None
        if signal_id is not None:
            return word.text, signal_id
    digits = "".join(filter(str.isdigit, fold(meant)))
    if len(digits) >= SHORTEST and (signal_id := index.digits(digits)) is not None:
        return digits, signal_id
    return None


def readings(piece: str) -> Iterator[tuple[str, str]]:
    """(how, what it may mean) of a piece of text: as it stands, with its parts joined, and decoded in every way."""
    folded = fold(piece)
    joined = "".join(c for c in folded if c.isalnum())
    yield "as it stands", folded
    yield "its parts joined", joined
    yield "backwards", joined[::-1]
    for how, decode in CODES.items():
        meant = decode(piece)
        if meant:
            yield how, meant
    for leet in spec()["leet"]:
        table = str.maketrans(leet)
        plainly = fold(piece.translate(table))
        yield "leetspeak", "".join(c for c in plainly if c.isalnum())
    if len(joined) > SHORTEST and joined.isascii():
        yield "the alphabet mirrored", joined.translate(str.maketrans(LETTERS, LETTERS[::-1]))
        for n in range(1, 26):
            shifted = joined.translate(str.maketrans(LETTERS, LETTERS[-n:] + LETTERS[:-n]))
            yield f"letters shifted by {n}", shifted


def _text(data: bytes) -> str:
    """Decoded bytes as text, where they are text."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""


def _base64(piece: str) -> str:
    core = re.sub(r"[\s.,;:!?'\"()]", "", piece).rstrip("=")
    if len(core) < 6 or not re.fullmatch(r"[\w+/-]+", core, re.ASCII):
        return ""
    usual = core.translate(str.maketrans("-_", "+/")) + "=" * (-len(core) % 4)
    try:
        return _text(base64.b64decode(usual, validate=True))
    except (binascii.Error, ValueError):
        return ""


def _base32(piece: str) -> str:
    core = re.sub(r"[\s.,;:!?'\"()]", "", piece).rstrip("=").upper()
    try:
        return _text(base64.b32decode(core + "=" * (-len(core) % 8))) if len(core) >= 8 else ""
    except (binascii.Error, ValueError):
        return ""


def _hex(piece: str) -> str:
    core = re.sub(r"0x|\\x|[\s.,:;-]", "", piece)
    return _text(bytes.fromhex(core)) if re.fullmatch(r"(?:[0-9a-fA-F]{2}){4,}", core) else ""


def _percent(piece: str) -> str:
    return urllib.parse.unquote(piece) if "%" in piece else ""


def _entities(piece: str) -> str:
    return html.unescape(piece) if "&" in piece else ""


def _codes(piece: str) -> str:
    """Numbers of characters, in decimal, octal or binary, with something between them."""
    numbers = re.findall(r"\d+", piece)
    if len(numbers) < SHORTEST:
        return ""
    for base, shape in ((2, r"[01]{7,8}"), (10, r"\d{2,3}"), (8, r"[0-7]{2,3}")):
        if all(re.fullmatch(shape, n) for n in numbers) and all(31 < int(n, base) < 256 for n in numbers):
            return "".join(chr(int(n, base)) for n in numbers)
    return ""


def _morse(piece: str) -> str:
    signs = re.split(r"[\s/]+", piece.translate(str.maketrans("·•−–—_", "..----")).strip())
    known = spec()["morse"]
    return "".join(known.get(s, "") for s in signs) if len(signs) >= SHORTEST else ""


CODES: dict[str, Callable[[str], str]] = {
    "base64": _base64,
    "base32": _base32,
    "hex": _hex,
    "percent signs": _percent,
    "entities": _entities,
    "character codes": _codes,
    "Morse": _morse,
}
