"""Makes ``popi_edge/spec/lexicon.txt``, the words that a summary may be made of.

    python -m popi_training.lexicon          # in a clone

The public lists stand in ``training/lexicon`` (its README says from where, under which licence, and what is taken of
each): the 3esl list of 12dicts (public domain), and lists of the Corpora project (CC0), a folder of JSON files or one
JSON object by name. Our own words and exclusions stand beside ``--out``, in lexicon_added.txt and
lexicon_excluded.txt. lexicon_sensitive.txt, the words that a person may switch on, is written there too. Nothing is
written unless everything could be read. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.files import whole_file

SOURCES = Path("training/lexicon")
PLAIN = ("words/common", "words/adverbs", "words/encouraging_words", "words/prepositions", "humans/descriptions")
VERBS = ("words/infinitive_verbs",)
PASTS = "words/verbs"
THINGS = ("foods/fruits", "foods/vegetables", "foods/herbs_n_spices", "foods/breads_and_pastries",
          "foods/pizzaToppings")  # fmt: skip
WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")
OWN = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*")
SHORTEST = 3
"""Shortest word taken from the public lists; shorter ones are listed by hand (most are abbreviations)."""
LATE_ACCENT = re.compile(
    "admit|begin|commit|compel|control|debug|embed|equip|forbid|forget|format|infer|occur|omit|permit|prefer|program|"
    "recap|refer|regret|submit|transfer|transmit|unplug|unwrap|upset"
)
"""Longer words whose last letter is doubled all the same."""


@dataclass(frozen=True)
class Made:
    """The two lists, and the own words that an exclusion took back."""

    words: tuple[str, ...]
    sensitive: tuple[str, ...]
    refused: tuple[str, ...]


class BadInput(Exception):
    """A source that cannot be read or is not of the expected shape; its text is one line."""


def plural(word: str) -> str:
    """A noun's plural, and a verb's third person, by the spelling rules."""
    if re.search(r"[aeiou]z$", word):
        return word + "zes"
    if re.search(r"(s|x|z|ch|sh)$", word) or word in {"go", "do", "overdo", "tomato", "potato", "hero", "echo"}:
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def _stem(word: str) -> str:
    """What -ed, -ing, -er and -est are put behind: the last letter doubled after one short, accented vowel."""
    short = re.fullmatch(r"(?:qu|[^aeiou])*[aeiou][bdglmnprtz]", word)
    return word + word[-1] if short or LATE_ACCENT.fullmatch(word) else word


def past(word: str) -> str:
    """A regular verb's past."""
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if re.search(r"[^aeiou]y$", word) else _stem(word) + "ed"


def progressive(word: str) -> str:
    """A verb's -ing form."""
    if word.endswith("ie"):
        return word[:-2] + "ying"
    return word[:-1] + "ing" if re.search(r"[^eoy]e$", word) else _stem(word) + "ing"


def compared(word: str) -> tuple[str, str]:
    """A short adjective's -er and -est."""
    if word.endswith("e"):
        return word + "r", word + "st"
    stem = word[:-1] + "i" if re.search(r"[^aeiou]y$", word) else _stem(word)
    return stem + "er", stem + "est"


def adverb(word: str) -> str:
    """An adjective's -ly form."""
    if re.search(r"[^aeiou]le$", word):
        return word[:-1] + "y"
    if word.endswith("ic"):
        return word + "ally"
    if word.endswith("ll"):
        return word + "y"
    return word[:-1] + "ily" if re.search(r"[^aeiou]y$", word) else word + "ly"


def read_sections(path: Path) -> dict[str, list[str]]:
    """Words by section of one of our own files; ``#`` starts a comment line, ``[name]`` a section."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate(_read(path).splitlines(), 1):
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            if current is None:
                raise BadInput(f"{path}, line {number}: words before the first [section]")
            for word in line.split():
                if not OWN.fullmatch(word):
                    raise BadInput(f"{path}, line {number}: {word[:40]!r} is not a word")
                current.append(word)
    return sections


def read_words(path: Path) -> tuple[set[str], set[str]]:
    """The core list: its plain lower-case words, and lower-cased those that it (also) has with a capital."""
    lines = [line.strip() for line in _read(path).splitlines()]
    plain = {w for w in lines if WORD.fullmatch(w)}
    names = {w.rstrip(".").lower() for w in lines if w != w.lower() and " " not in w}
    if len(plain) < 10:
        raise BadInput(f"{path}: holds {len(plain)} lower-case words; is it the right file?")
    return plain, names


def read_lists(path: Path) -> Mapping[str, Any]:
    """The CC0 lists by name, of a folder that holds them as NAME.json or of one file with all of them."""
    needed = (*PLAIN, *VERBS, PASTS, *THINGS)
    if path.is_dir():
        return {n: _json(path / f"{n}.json") for n in needed}
    lists = _json(path)
    missing = [n for n in needed if not isinstance(lists, dict) or n not in lists]
    if missing:
        raise BadInput(f"{path}: lacks the list {missing[0]!r}")
    return dict(lists)


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as e:
        raise BadInput(f"{path}: not JSON: line {e.lineno}: {e.msg}") from None


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def entries(value: Any, name: str) -> Iterator[str]:
    """The lower-case words of a list; entries with a capital, descriptions and sources are passed over."""
    if isinstance(value, str):
        if value == value.lower() or name.startswith("foods/herbs"):  # that list has capitals throughout
            yield from WORD.findall(value.lower())
    elif isinstance(value, list):
        for item in value:
            yield from entries(item, name)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key.lower() not in ("description", "source"):
                yield from entries(item, name)


def _pasts(lists: Mapping[str, Any]) -> dict[str, str]:
    pairs = lists[PASTS]["verbs"] if isinstance(lists[PASTS], dict) else []
    good = (p for p in pairs if isinstance(p, dict) and WORD.fullmatch(str(p.get("past"))))
    return {str(p.get("present")): str(p["past"]) for p in good}


def verb_forms(verb: str, pasts: Mapping[str, str]) -> set[str]:
    """A verb and its forms; an irregular past comes from the list."""
    if "-" in verb:
        head, _, tail = verb.rpartition("-")
        return {f"{head}-{form}" for form in verb_forms(tail, pasts)}
    return {verb, plural(verb), pasts.get(verb, past(verb)), progressive(verb)}


def public(core: set[str], lists: Mapping[str, Any], bare: set[str]) -> set[str]:
    """Words of the public lists that the core list has too; the common ones of them with their inflections."""
    pasts = _pasts(lists)

    def of(names: Iterable[str]) -> set[str]:
        return {w for n in names for w in entries(lists[n], n) if w in core and len(w) >= SHORTEST}

    things, common = of(THINGS), of(PLAIN[:1])
    verbs = of(VERBS) & common
    words = of(PLAIN) | verbs | things
    words |= {form for v in verbs - bare for form in verb_forms(v, pasts)}
    no_noun = of(PLAIN[1:]) | verbs | bare
    words |= {plural(w) for w in (common - no_noun) | (things - bare)}
    words |= {form for w in of(("humans/descriptions",)) if (form := adverb(w)) in core}
    return words


def own(sections: Mapping[str, list[str]], core: set[str], lists: Mapping[str, Any]) -> set[str]:
    """Our own words with their inflections."""
    pasts, words = _pasts(lists), {w for s, ws in sections.items() if s != "no plural" for w in ws}
    pairs = sections.get("irregular", [])
    if len(pairs) % 2:
        raise BadInput(f"lexicon_added.txt, [irregular]: {pairs[-1]!r} has no past")
    pasts |= zip(pairs[::2], pairs[1::2], strict=True)
    for verb in sections.get("verbs", []):
        words |= verb_forms(verb, pasts)
    bare = set(sections.get("no plural", []))
    words |= {plural(n) for n in sections.get("nouns", []) if n not in bare and not n.endswith("s")}
    for adjective in sections.get("short adjectives", []):
        words |= set(compared(adjective))
    for adjective in (*sections.get("adjectives", []), *sections.get("short adjectives", [])):
        words |= {form for form in (adverb(adjective),) if form in core}
    return words


def make(
    core: set[str], names: set[str], lists: Mapping[str, Any], added: Mapping[str, list[str]],
    excluded: Mapping[str, list[str]],
) -> Made:  # fmt: skip
    """Both lists from everything that was read."""
    delicate = {w for s, ws in excluded.items() if s.startswith("sensitive") for w in ws}
    forms = {f for w in delicate for f in (*verb_forms(w, _pasts(lists)), *compared(w), adverb(w))}
    plainly = {w for s, ws in excluded.items() if not s.startswith("sensitive") for w in ws}
    mine = own(added, core, lists)
    listed = {w for ws in added.values() for w in ws}
    # "marks" and "roses" go with "mark" and "rose"
    of_names = {plural(w) for w in (plainly | names) - listed if len(w) >= SHORTEST} - listed
    every = ((public(core, lists, set(added.get("no plural", []))) - names) | mine) - of_names
    words = {w for w in every if w not in forms and w not in plainly and not set(w.split("-")) & delicate}
    sensitive = (delicate | (forms & (every | core))) - plainly
    refused = {w for w in mine if w not in words}
    return Made(*(tuple(sorted(s)) for s in (words, sensitive, refused)))


def read_units(path: Path) -> list[str]:
    """Private units of a CSV file, for measuring: nothing of them goes into the lexicon."""
    rows = csv.DictReader(_read(path).splitlines(keepends=True))
    if "pii_units" not in (rows.fieldnames or ()):
        raise BadInput(f"{path}: has no column pii_units")
    return [u.strip() for row in rows for u in (row["pii_units"] or "").split("||") if u.strip()]


def can_be_written(unit: str, words: frozenset[str]) -> bool:
    """Whether every word (letters and apostrophes) and number of a unit is in the lexicon, whatever its case."""
    parts = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+", unit)
    return all(part.lower().replace("’", "'") in words for part in parts)


HEADER = """\
# {title}
# {count:,} words, one a line, sorted. Made; do not edit: change lexicon_added.txt or lexicon_excluded.txt.
# From: the 3esl list of 12dicts by Alan Beale (public domain); lists of the Corpora project by Darius Kazemi and
# contributors (CC0), named below; our own words and inflections (Apache-2.0).
{lists}
# Remade by: python -m popi_training.lexicon   (the public lists stand in training/lexicon)
"""


def _write(path: Path, title: str, words: tuple[str, ...]) -> None:
    used = "\n".join(f"#   {name}" for name in (*PLAIN, *VERBS, PASTS, *THINGS))
    text = HEADER.format(title=title, count=len(words), lists=used) + "".join(w + "\n" for w in words)
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))
    path.chmod(0o644)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m popi_training.lexicon", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--words", type=Path, default=SOURCES / "3esl.txt", help="12dicts' list (default: %(default)s)")
    p.add_argument("--lists", type=Path, default=SOURCES / "corpora",
                   help="the Corpora project's lists, a folder or one JSON object (default: %(default)s)")  # fmt: skip
    p.add_argument("--out", type=Path, default=Path("popi_edge/spec/lexicon.txt"),
                   help="the lexicon to write (default: %(default)s)")  # fmt: skip
    p.add_argument("--added", type=Path, help="our own words (default: lexicon_added.txt beside --out)")
    p.add_argument("--excluded", type=Path, help="our exclusions (default: lexicon_excluded.txt beside --out)")
    p.add_argument("--units", type=Path, help="measure only: a CSV with a column pii_units, units separated by ||")
    p.add_argument("--refused", action="store_true", help="also print own words that an exclusion takes back")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write both lists; 0 done, 1 a source that is wrong (one line on stderr)."""
    a = parse_arguments(argv)
    folder = a.out.parent
    try:
        core, names = read_words(a.words)
        lists = read_lists(a.lists)
        added = read_sections(a.added or folder / "lexicon_added.txt")
        excluded = read_sections(a.excluded or folder / "lexicon_excluded.txt")
        made = make(core, names, lists, added, excluded)
        units = read_units(a.units) if a.units else []
        _write(folder / "lexicon_sensitive.txt", "Words that a person may switch on, left out of summaries otherwise.",
               made.sensitive)  # fmt: skip
        _write(a.out, "The words that a preference summary may be made of.", made.words)
    except (BadInput, OSError) as e:
        print(f"lexicon: {e}", file=sys.stderr)
        return 1
    if units:
        free = [u for u in units if can_be_written(u, frozenset(w.lower() for w in made.words))]
        print(f"{1 - len(free) / len(units):.2%} of {len(units)} private units hold a word that cannot be written")
    if a.refused:
        print(" ".join(made.refused))
    print(f"{a.out}: {len(made.words):,} words; {len(made.sensitive):,} sensitive ones beside it", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
