"""The corpus: everyday prompts with contrasting replies along preference dimensions, and how people say each pole.

    python -m popi_training.corpus [FOLDER]        checks every rule and prints a table

One JSON Lines file a family; a line is a ``dimension`` (two or more poles, each with phrasings), a ``prompt`` or a
``pair`` (one reply for each of two poles to one prompt). Summaries keep to the lexicon, replies have 15 to 90 words.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError, PopiError
from popi_edge.vocabulary import Lexicon

FOLDER = Path(__file__).resolve().parent.parent / "corpus"
VOICES = ("summary", "statement", "post", "profile")
PHRASINGS = 6
WORDS = (15, 90)
BALANCE = 0.15
"""Most by which the mean length of a dimension's poles may differ, relative to the longer (``length`` excepted)."""


@dataclass(frozen=True)
class Pole:
    """One end of a dimension: ``phrasings`` maps summary, statement, post and profile to texts."""

    id: str
    phrasings: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Dimension:
    """A dimension of taste and its poles by id."""

    id: str
    family: str
    about: str
    poles: dict[str, Pole]


@dataclass(frozen=True)
class Pair:
    """Contrasting replies to one prompt: pole id → text."""

    id: str
    dimension: str
    prompt: str
    replies: dict[str, str]


@dataclass
class Corpus:
    """Everything in the folder: dimensions and prompts by id, pairs in the files' order."""

    dimensions: dict[str, Dimension] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)


def words(text: str) -> int:
    """Words, split at white space."""
    return len(text.split())


def lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each line. Raises ConfigError naming file and line."""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        where = f"{path.name}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as e:
            raise ConfigError(f"{where}: not JSON: {e}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: not an object")
        yield where, value


def _texts(value: Any, where: str, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(t, str) and t.strip() for t in value):
        raise ConfigError(f"{where}: {what} must be a list of texts")
    if len(set(value)) < PHRASINGS:
        raise ConfigError(f"{where}: {what} has {len(set(value))} different texts; at least {PHRASINGS}")
    return tuple(value)


def _dimension(row: dict[str, Any], where: str, family: str, lexicon: Lexicon) -> Dimension:
    poles = {}
    for pole in row.get("poles", []):
        phrasings = {v: _texts(pole.get(v), where, f"{pole.get('id')}.{v}") for v in VOICES}
        for text in phrasings["summary"]:
            if problems := lexicon.explain(text):
                raise ConfigError(f"{where}: the summary {text!r} breaks {problems[0].rule}: {problems[0].text!r}")
        poles[str(pole["id"])] = Pole(str(pole["id"]), phrasings)
    if len(poles) < 2:
        raise ConfigError(f"{where}: a dimension needs two poles")
    return Dimension(str(row["id"]), family, str(row["about"]), poles)


def _pair(row: dict[str, Any], where: str, corpus: Corpus) -> Pair:
    dimension, prompt, replies = row.get("dimension"), row.get("prompt"), row.get("replies")
    if dimension not in corpus.dimensions or prompt not in corpus.prompts:
        raise ConfigError(f"{where}: its dimension or prompt is not defined above it")
    poles = set(corpus.dimensions[dimension].poles)
    if not isinstance(replies, dict) or len(replies) != 2 or not set(replies) <= poles:
        raise ConfigError(f"{where}: replies must name two poles of {dimension}")
    for pole, text in replies.items():
        if not isinstance(text, str) or not WORDS[0] <= words(text) <= WORDS[1]:
            raise ConfigError(f"{where}: the {pole} reply has {words(str(text))} words; {WORDS[0]} to {WORDS[1]}")
    return Pair(str(row["id"]), dimension, prompt, dict(replies))


def load(folder: Path = FOLDER) -> Corpus:
    """Read and check the whole corpus. Raises ConfigError naming file and line of the first rule broken."""
    corpus, lexicon, seen = Corpus(), Lexicon.load(), set()
    for path in sorted(folder.glob("*.jsonl")):
        for where, row in lines(path):
            key = (row.get("type"), row.get("id"))
            if not row.get("id") or key in seen:
                raise ConfigError(f"{where}: id {row.get('id')!r} is missing or taken")
            seen.add(key)
            match row.get("type"):
                case "dimension":
                    corpus.dimensions[row["id"]] = _dimension(row, where, path.stem, lexicon)
                case "prompt":
                    corpus.prompts[row["id"]] = str(row["text"])
                case "pair":
                    corpus.pairs.append(_pair(row, where, corpus))
                case other:
                    raise ConfigError(f"{where}: unknown type {other!r}")
    if len(set(corpus.prompts.values())) != len(corpus.prompts):
        raise ConfigError("two prompts have the same text")
    return corpus


def lengths(corpus: Corpus, dimension: str) -> dict[str, float]:
    """Mean words of each pole's replies."""
    found: dict[str, list[int]] = {}
    for pair in corpus.pairs:
        if pair.dimension == dimension:
            for pole, text in pair.replies.items():
                found.setdefault(pole, []).append(words(text))
    return {pole: statistics.mean(n) for pole, n in found.items()}


def unbalanced(corpus: Corpus) -> list[str]:
    """Dimensions other than ``length`` whose poles differ in mean length by more than ``BALANCE``."""
    out = []
    for name in corpus.dimensions:
        mean = lengths(corpus, name)
        if name != "length" and mean and min(mean.values()) < (1 - BALANCE) * max(mean.values()):
            out.append(name)
    return out


def main() -> None:
    try:
        corpus = load(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    except (PopiError, OSError, KeyError) as e:
        sys.exit(f"corpus: {e}")
    for name, dimension in corpus.dimensions.items():
        pairs = [p for p in corpus.pairs if p.dimension == name]
        longer = sum(len(p.replies[a]) > len(p.replies[b]) for p in pairs for a, b in [sorted(p.replies)])
        mean = ", ".join(f"{k} {v:.0f}" for k, v in lengths(corpus, name).items())
        print(f"{dimension.family:<10}{name:<18}{len(pairs):>4} pairs  mean words: {mean}  first pole longer: {longer}")
    print(f"{len(corpus.dimensions)} dimensions, {len(corpus.prompts)} prompts, {len(corpus.pairs)} pairs")
    if bad := unbalanced(corpus):
        sys.exit(f"corpus: lengths are not balanced in: {', '.join(bad)}")


if __name__ == "__main__":
    main()
