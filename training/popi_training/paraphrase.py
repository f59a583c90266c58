"""A summary in other words, by rules and a table made by hand: what is left of its effect is not in its wording.

    python -m popi_training.paraphrase FILE.jsonl [--out OUT] [--field text] [--seed 0] [--share 0.4]

rewrites a field of each line (to OUT or standard output) and says how much changed (standard error). It changes all
that it can, or, with --share, no more than that share of each text's content words asks for. The table,
``paraphrase.json``, maps words and phrases to others, the longest phrase first; a comparison ("prefers X to Y") changes
its verb and its preposition together, so that the sides stay where they are. Every word of the table is in the lexicon,
and no entry adds or drops a negation: the tests hold it to both.

It does NOT understand: a sentence whose words the table does not know stays as it is, and a word is replaced whatever
it means there, unless a longer phrase says otherwise. The table was written with the corpus' summaries at hand.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import re
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.files import whole_file
from popi_edge.guard import spec
from popi_edge.vocabulary import MARKS, Lexicon, at_start
from popi_training.corpus import lines

FILE = Path(__file__).with_name("paraphrase.json")
TOKEN = re.compile(r"[^\s.,;:!?]+|[.,;:!?]+")
NEGATION = re.compile(
    r"\b(?:no|not|never|nothing|nobody|none|nor|neither|without|cannot|hardly|rarely|dislikes?|disliked|distrusts?"
    r"|avoid(?:s|ing)?|skip(?:s|ped)?|omit(?:s|ted|ting)?|(?:leaves?|leaving|left)(?: [a-z]+){0,3} out|instead"
    r"|rather than|away from|free of|[a-z]+-free)\b|n't\b"
)
"""Words that turn a sentence round. A paraphrase has as many as its original."""
DOUBLE = re.compile(r"([b-df-hj-kmnp-rtv-z])\1$")
VOWEL_SOUND = re.compile(r"(?!use|user|usual|uni|one\b|once)[aeiou]|hour|honest")
ENOUGH = 0.4
"""Share of content words that should change in a paraphrase."""
REACH = 3
"""Words before a ``to`` among which a ``from`` makes it the end of a range, not of a comparison."""


@dataclass(frozen=True)
class Comparison:
    """A verb and the connective that names its other side, with the pairs that may stand for them; ``unless``: words
    after which the connective means something else ("over many years")."""

    verb: str
    connective: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    unless: frozenset[str]


@dataclass(frozen=True)
class Piece:
    """Words of a sentence and what stands for them; pieces of one ``group`` change together."""

    before: str
    after: str
    group: tuple[int, int]


@dataclass(frozen=True)
class Table:
    """``synonyms``: words of a phrase → what may stand for it. ``openings``: the same at the start of a sentence, where
    an empty text drops it. ``to_takers``: words after which ``to`` compares nothing. ``irregular``: form → lemma."""

    synonyms: Mapping[tuple[str, ...], tuple[str, ...]]
    openings: Mapping[tuple[str, ...], tuple[str, ...]]
    comparisons: Sequence[Comparison]
    to_takers: frozenset[str]
    irregular: Mapping[str, str]

    @functools.cached_property
    def longest(self) -> int:
        """Words of the longest phrase."""
        return max(map(len, [*self.synonyms, *self.openings]))


@functools.cache
def table() -> Table:
    """The table as it is shipped."""
    data = json.loads(FILE.read_text("utf-8"))
    return Table(
        {tuple(k.split()): tuple(v) for k, v in data["synonyms"].items()},
        {tuple(k.split()): tuple(v) for k, v in data["openings"].items()},
        [
            Comparison(c["verb"], tuple(c["with"].split()), tuple(map(tuple, c["pairs"])), frozenset(c["unless"]))
            for c in data["comparisons"]
        ],
        frozenset(data["to_takers"]),
        {form: lemma for lemma, forms in data["irregular"].items() for form in forms},
    )


@functools.cache
def _lexicon() -> Lexicon:
    return Lexicon.load()


def lemma(word: str) -> str:
    """A word without its inflection: plural, third person, past, participle. Crude: it may cut too much, the same for
    every form of a word."""
    word = word.lower().replace("’", "'").removesuffix("'s")
    word = table().irregular.get(word, word)
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2 and re.search(r"[aeiouy]", stem):
            word = DOUBLE.sub(r"\1", stem)
            break
    word = word.replace("colour", "color").replace("favour", "favor").replace("humour", "humor")
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def content(text: str) -> Counter[str]:
    """Lemmas of the words that are not the guard's function words, with their counts."""
    function = frozenset(spec()["function_words"])
    return Counter(lemma(w) for w in _words(text) if w not in function)


def changed(before: str, after: str) -> float:
    """Share of the content words of ``before`` that ``after`` no longer has, as multisets of lemmas; 0 of no words.

    A word counts as kept in whatever form and place it comes back, also where the guard calls the form a function word
    (*likes*, *would like*).
    """
    old = content(before)
    kept = old & Counter(map(lemma, _words(after)))
    return 1 - kept.total() / old.total() if old else 0.0


def negations(text: str) -> int:
    """How often a text says no: negations, and verbs of leaving out."""
    return len(NEGATION.findall(text.lower().replace("’", "'")))


def _is_verb(word: str) -> bool:
    """Whether a word may be an infinitive: the lexicon has its other forms."""
    known, stem = _lexicon().words, word.removesuffix("e")
    return word in ("be", "do", "have") or (
        (word + "s" in known or word + "es" in known) and (stem + "ing" in known or word + word[-1:] + "ing" in known)
    )


def _compares(words: Sequence[str], place: int, verb: int) -> bool:
    """Whether the ``to`` at ``place`` names what the verb's object is preferred to."""
    before, after = words[place - 1], words[place + 1] if place + 1 < len(words) else "."
    return (
        place > verb + 1
        and before not in table().to_takers
        and "from" not in words[max(verb, place - REACH) : place]
        and after[0] not in ".,;:!?"
        and not _is_verb(after)
    )


def _comparison(words: Sequence[str]) -> tuple[int, int, Comparison] | None:
    """(place of the verb, place of the connective, the entry), where a sentence compares."""
    for entry in table().comparisons:
        if entry.verb not in words:
            continue
        verb, length = words.index(entry.verb), len(entry.connective)
        for place in range(verb + 2, len(words) - length):
            if tuple(words[place : place + length]) != entry.connective or words[place + length] in entry.unless:
                continue
            if entry.connective != ("to",) or _compares(words, place, verb):
                return verb, place, entry
    return None


class _Chooser:
    """Picks, by seed, among the options that keep least of the original and repeat least of what was written."""

    def __init__(self, text: str, seed: int) -> None:
        self.original, self.written, self.used = content(text), Counter[str](), Counter[str]()
        self.rng = random.Random(f"{seed}:{text}")

    def _cost(self, option: str) -> tuple[int, int, float]:
        found = content(option)
        again = (self.written & found).total() + self.used[option]
        return (self.original & found).total(), again, self.rng.random()

    def pick(self, options: Sequence[str]) -> str:
        best = min(options, key=self._cost)
        self.written.update(content(best))
        self.used[best] += 1
        return best


def _pieces(tokens: Sequence[str], number: int, chooser: _Chooser) -> list[Piece]:
    """The pieces of the ``number``-th sentence; those of a comparison change together."""
    words, data = [t.lower() for t in tokens], table()
    fixed: dict[int, tuple[int, str]] = {}
    if found := _comparison(words):
        verb, place, entry = found
        first, _, then = chooser.pick([f"{a} … {b}" for a, b in entry.pairs]).partition(" … ")
        fixed = {verb: (1, first), place: (len(entry.connective), then)}
    out: list[Piece] = []
    i = 0
    while i < len(tokens):
        if i in fixed:
            length, text = fixed[i]
        else:
            length, text = _replace(tokens, words, i, min([p for p in fixed if p > i] + [len(tokens)]), data, chooser)
        kept = " ".join([_unopened(tokens[i]) if i == 0 else tokens[i], *tokens[i + 1 : i + length]])
        out.append(Piece(kept, text, (number, min(fixed) if i in fixed else i)))
        i += length
    return out


def _replace(
    tokens: Sequence[str], words: Sequence[str], i: int, end: int, data: Table, chooser: _Chooser
) -> tuple[int, str]:
    """(words used up, what stands for them) of the longest phrase that begins at ``i`` and ends before ``end``."""
    for length in range(min(data.longest, end - i), 0, -1):
        key = tuple(words[i : i + length])
        for source in (data.openings,) * (i == 0) + (data.synonyms,):
            if key in source:
                return length, chooser.pick(source[key])
    return 1, _unopened(tokens[i]) if i == 0 else tokens[i]


def _unopened(word: str) -> str:
    """The first word of a sentence as it is written inside of one."""
    return word.lower() if word.lower() in _lexicon().inside else word


def _spell(parts: Sequence[str]) -> str:
    """A sentence of words and marks: articles fitted to the next word, a capital first."""
    out: list[str] = []
    for i, part in enumerate(parts):
        if part in ("a", "an") and i + 1 < len(parts):
            part = "an" if VOWEL_SOUND.match(parts[i + 1]) else "a"
        out.append(part if part[0] in ".,;:!?" or not out else f" {part}")
    text = "".join(out)
    first, _, rest = text.partition(" ")
    return " ".join(filter(None, (at_start(first), rest)))


def paraphrase(text: str, seed: int = 0, share: float | None = None) -> str:
    """The summary in other words, the same for the same seed; what the table does not know stays. With a ``share`` no
    more is changed than that share of the content words asks for, as far as the table goes."""
    sentences: list[list[str]] = [[]]
    for token in TOKEN.findall(text):
        sentences[-1].append(token)
        if token[-1] in MARKS and token[0] in ".,;:!?":
            sentences.append([])
    chooser = _Chooser(text, seed)
    made = [_pieces(s, number, chooser) for number, s in enumerate(sentences) if s]
    kept = set[tuple[int, int]]()
    if share is not None:
        for candidate in _in_turn(made, chooser):
            if changed(text, _written(made, kept | {candidate})) >= share:
                kept.add(candidate)
    return _written(made, kept)


def _in_turn(made: Sequence[Sequence[Piece]], chooser: _Chooser) -> list[tuple[int, int]]:
    """What changes together, in an order drawn."""
    found = list(dict.fromkeys(p.group for pieces in made for p in pieces if p.before != p.after))
    chooser.rng.shuffle(found)
    return found


def _written(made: Sequence[Sequence[Piece]], kept: set[tuple[int, int]]) -> str:
    """The pieces as text, those ``kept`` as they were."""
    parts = ([w for p in pieces for w in (p.before if p.group in kept else p.after).split()] for pieces in made)
    return " ".join(map(_spell, parts))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="paraphrase", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, help="JSON Lines")
    parser.add_argument("--out", type=Path, help="where the rewritten lines go (default: standard output)")
    parser.add_argument("--field", default="text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=as_share, help="of the content words (default: all that the table knows)")
    return parser.parse_args()


def as_share(text: str) -> float:
    """A share that is asked for on the command line: above 0, at most 1. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text:.20} is no share: above 0 and at most 1")
    return value


def rewrite(
    path: Path, field: str = "text", seed: int = 0, share: float | None = None
) -> tuple[list[dict[str, Any]], list[float]]:
    """The lines of a file with ``field`` in other words, and the share changed of each; an empty text stays.

    Raises ConfigError naming the line where the field is missing, OSError where the file is.
    """
    rows, shares = [], []
    for where, row in lines(path):
        text = row.get(field)
        if not isinstance(text, str):
            raise ConfigError(f"{where}: {field} is missing")
        other = paraphrase(text, seed, share)
        rows.append(row | {field: other})
        if content(text):
            shares.append(changed(text, other))
    if not shares:
        raise ConfigError(f"{path}: no {field} to rewrite")
    return rows, shares


def main() -> None:
    arguments = _arguments()
    try:
        rows, shares = rewrite(arguments.file, arguments.field, arguments.seed, arguments.share)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if arguments.out:
            with whole_file(arguments.out) as out:
                out.write(text.encode())
    except (PopiError, OSError) as e:
        sys.exit(f"paraphrase: {e}")
    if not arguments.out:
        sys.stdout.write(text)
    enough = sum(s >= ENOUGH for s in shares) / len(shares)
    print(f"{len(shares)} texts, changed: mean {statistics.mean(shares):.3f}, least {min(shares):.3f}, "
          f"{ENOUGH} or more in {enough:.1%}", file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    launch(main)
