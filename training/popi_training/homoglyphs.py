"""Makes ``popi_edge/spec/homoglyphs.json``, the characters that pass for a Latin letter or are a digit.

    python -m popi_training.homoglyphs --confusables confusables.json --out popi_edge/spec/homoglyphs.json

``--confusables`` is the data file of the PyPI package confusable-homoglyphs (MIT), made from confusables.txt of Unicode
Technical Standard 39 (Unicode License v3). Two more sources are Python's own character database: the digits of every
script, and characters whose name says which Latin letter they are a form of (turned, small capital, circled, with a
stroke). The same files under the same Python give the same bytes.

It does NOT hold pairs of letters that look like one ("rn" for "m"), nor letters that merely sound alike.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from popi_edge.cli.common import launch
from popi_edge.files import whole_file

LATIN = re.compile(
    r"(?:LATIN (?:LETTER )?(?:SMALL |CAPITAL )*(?:LETTER )?(?:SMALL CAPITAL )?"
    r"(?:(?:TURNED|REVERSED|INVERTED|SIDEWAYS|DOTLESS|SCRIPT|BARRED|INSULAR|LONG|BLACKLETTER|STRETCHED) )*"
    r"|NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER |REGIONAL INDICATOR SYMBOL LETTER )"
    r"(?P<letter>[A-Z]|AE|OE)(?: WITH .*| ROTUNDA)?"
)
LOOKS = re.compile("[a-z]|ae|oe")
FROM = (
    "Made by popi_training.homoglyphs; do not edit. From Unicode's confusables.txt as in the PyPI package "
    "confusable-homoglyphs (see NOTICE), and from names and digits of Python's character database, Unicode "
)


def folded(text: str) -> str:
    """Without case, width, ligature and accent, as ``popi_edge.guard.patterns`` does it before it looks here."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in parts if unicodedata.category(c) not in ("Mn", "Me", "Cf")).casefold()


def named(character: str) -> str:
    """The Latin letters that a character's name says it is a form of, or nothing."""
    found = LATIN.fullmatch(unicodedata.name(character, ""))
    return found["letter"].lower() if found else ""


def direct(character: str, confusable: Mapping[str, Any]) -> str:
    """The digit that a character is, or the one letter that Unicode says it can be taken for."""
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.digit(character))
    near = sorted(folded(str(n["c"])) for n in confusable.get(character, ()))
    return next((n for n in near if LOOKS.fullmatch(n)), "")


def indirect(character: str, confusable: Mapping[str, Any]) -> str:
    """The letter in a character's own name, or in that of a character that it can be taken for."""
    near = sorted(str(n["c"]) for n in confusable.get(character, ()) if len(n["c"]) == 1)
    return next((letter for letter in map(named, (character, *near)) if letter), "")


def pairs(confusable: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(character as folded, what it passes for), the best first: the two cases of a letter may look like two letters,
    and then the small one's counts."""
    everything = [chr(i) for i in range(128, sys.maxunicode + 1) if unicodedata.category(chr(i))[0] in "LNS"]
    for look in (direct, indirect):
        for small in (True, False):
            for character in everything:
                key = folded(character)
                if (character != character.casefold()) is small or len(key) != 1 or key.isascii():
                    continue
                if looks := look(character, confusable):
                    yield key, looks


def table(confusable: Mapping[str, Any]) -> dict[str, str]:
    """Letters → every character that passes for them, in order of code points."""
    known: dict[str, str] = {}
    for key, looks in pairs(confusable):
        known.setdefault(key, looks)
    made: dict[str, str] = {}
    for key in sorted(known):
        made[known[key]] = made.get(known[key], "") + key
    return dict(sorted(made.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--confusables", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        confusable = json.loads(options.confusables.read_text("utf-8"))
        if not confusable:
            raise ValueError("there is no character in it")
        letters = table(confusable)
        made = {"version": 1, "from": FROM + unicodedata.unidata_version + ".", "letters": letters}
        with whole_file(options.out) as file:
            file.write((json.dumps(made, ensure_ascii=False, indent=0) + "\n").encode())
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as e:
        sys.exit(f"homoglyphs: {options.confusables} or {options.out}: {e}")
    print(f"{sum(map(len, letters.values()))} characters for {len(letters)} letters and digits")


if __name__ == "__main__":
    launch(main)
