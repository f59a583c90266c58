"""Search bytes for needles, as they stand and decoded: what the privacy report looks for canaries with.

``views`` gives a blob and what is inside it: gzip and zlib streams, base64, hex, JSON and percent escapes, UTF-16,
three layers deep. ``Needles`` looks through every view, case-folded, and once more through letters and digits alone.

It does NOT undo encryption, other compressions, or codes that are not listed here.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator

DEPTH = 3
MOST = 16 * 2**20
"""Bytes that one compressed stream may unfold to; the rest of it is not looked at."""
ZLIB = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{10,}")
WRAPPED = re.compile(rb"(?<=[A-Za-z0-9+/])(?:\r?\n|\\r?\\n)(?=[A-Za-z0-9+/])")
HEX = re.compile(rb"(?:[0-9a-fA-F]{2}[ :,-]?){5,}[0-9a-fA-F]{2}")
UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})")
SIMPLE = re.compile(r"\\([\"\\/bfnrt])")
CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
START = 6
"""Shortest needle, and how many of its first characters find it."""


def _inflated(blob: bytes) -> Iterator[bytes]:
    for hit in ZLIB.finditer(blob):
        unfold, out = zlib.decompressobj(zlib.MAX_WBITS | 32), b""
        try:  # in pieces, so that what stands before a damaged place is seen
            for at in range(hit.start(), len(blob), 512):
                out += unfold.decompress(blob[at : at + 512], MOST - len(out))
                if unfold.eof or len(out) >= MOST:
                    break
        except zlib.error:
            pass
        if out:
            yield out


def _unbase64(blob: bytes) -> Iterator[bytes]:
    """Every run at every alignment: what is encoded may stand behind other letters."""
    for text in dict.fromkeys((blob, WRAPPED.sub(b"", blob))):
        runs = [r.translate(bytes.maketrans(b"-_", b"+/")) for r in BASE64.findall(text)]
        for shift in range(4):
            parts = [base64.b64decode(r[shift : shift + (len(r) - shift) // 4 * 4]) for r in runs]
            tails = [r[shift + (len(r) - shift) // 4 * 4 :] for r in runs]
            whole = [p + _tail(t) for p, t in zip(parts, tails, strict=True)]
            if runs:
                yield b"\n".join(whole)


def _tail(rest: bytes) -> bytes:
    """The last two or three characters of a run, without their padding."""
    return base64.b64decode(rest + b"=" * (4 - len(rest))) if len(rest) > 1 else b""


def _unhex(blob: bytes) -> Iterator[bytes]:
    runs = [re.sub(rb"[ :,-]", b"", r) for r in HEX.findall(blob)]
    for shift in range(2):
        if runs:
            yield b"\n".join(binascii.unhexlify(r[shift : shift + (len(r) - shift) // 2 * 2]) for r in runs)


def _unescaped(blob: bytes) -> Iterator[bytes]:
    text = blob.decode("utf-8", "replace")
    if "\\" in text:
        plain = UNICODE.sub(lambda m: chr(int(m[1], 16)), SIMPLE.sub(lambda m: CONTROLS.get(m[1], m[1]), text))
        yield plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    if b"%" in blob:
        yield urllib.parse.unquote_to_bytes(blob)


def _utf16(blob: bytes) -> Iterator[bytes]:
    if b"\0" in blob:
        yield blob.replace(b"\0", b"")  # Latin text in UTF-16 or UTF-32 of either order, at any alignment


STEPS = {"deflate": _inflated, "base64": _unbase64, "hex": _unhex, "escapes": _unescaped, "utf-16": _utf16}


def views(blob: bytes, depth: int = DEPTH) -> Iterator[tuple[str, bytes]]:
    """(how, bytes) of a blob and of everything inside it; ``how`` names the steps, "plain" for the blob itself."""
    seen, waiting = {blob}, [("plain", blob, depth)]
    while waiting:
        how, now, left = waiting.pop(0)
        yield how, now
        if not left:
            continue
        for name, step in STEPS.items():
            for inner in step(now):
                if len(inner) >= START and inner not in seen:
                    seen.add(inner)
                    waiting.append((name if how == "plain" else f"{how} > {name}", inner, left - 1))


def folded(text: str) -> str:
    """One form for spellings that differ in case, width and white space alone."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def squeezed(text: str) -> str:
    """Letters and digits alone: a number with other separators, a word that is spaced out."""
    return "".join(c for c in folded(text) if c.isalnum())


class Needles:
    """Made-up words, numbers and addresses to look for. Raises ValueError for one of fewer than six characters."""

    def __init__(self, needles: Iterable[str]) -> None:
        self._by_start: dict[str, set[tuple[str, str]]] = {}
        self.count = 0
        for needle in dict.fromkeys(needles):
            self.count += 1
            for form in {folded(needle), squeezed(needle)}:
                if len(form) < START:
                    raise ValueError(f"a needle of fewer than {START} characters: {needle!r}")
                self._by_start.setdefault(form[:START], set()).add((form, needle))

    def within(self, text: str) -> set[str]:
        """The needles that stand in a text, as they are or squeezed."""
        found = set()
        for form in {folded(text), squeezed(text)}:
            for i in range(len(form) - START + 1):
                for needle, name in self._by_start.get(form[i : i + START], ()):
                    if form.startswith(needle, i):
                        found.add(name)
        return found

    def search(self, blob: bytes) -> dict[str, str]:
        """Needles in a blob → how each was first found."""
        found: dict[str, str] = {}
        for how, inner in views(blob):
            for name in self.within(inner.decode("utf-8", "replace")):
                found.setdefault(name, how)
        return found
