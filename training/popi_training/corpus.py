"""The corpus: everyday prompts with contrasting replies along preference dimensions, and how people say each pole.

    python -m popi_training.corpus [FOLDER] [--heldout | --wide]     checks every rule and prints a table

One JSON Lines file a family; a line is a ``dimension`` (two poles, each with phrasings), a ``prompt`` or a ``pair``
(one reply for each of two poles to one prompt). Summaries keep to the lexicon, replies have 15 to 90 words.
``facts.jsonl`` holds what is no preference: a ``fact`` in a voice, and a ``reaction`` that does not say to what.
The folder ``heldout`` has the same form and was written apart; ``wide`` adds to the whole more dimensions, short tasks
and long replies (5 to 200 words), in lines that may name the dimensions of the whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.vocabulary import Lexicon

FOLDER = Path(__file__).resolve().parent.parent / "corpus"
VOICES = ("summary", "statement", "post", "profile")
PHRASINGS = 6
HELDOUT = "heldout"
WIDE = "wide"
LATER = ("teaching", "tempers", "thorough", "variety", "ways", "worlds")
"""Files of the wide part that were written after popi-smol 0.5.0 had been trained on the others."""
HELDOUT_PHRASINGS = 5
REACTIONS = ("pleased", "displeased")
SETS = ("train", "held")
WORDS = (15, 90)
WIDE_WORDS = (5, 200)
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
    """Everything in the folder: dimensions and prompts by id, pairs in the files' order.

    ``facts``: set (train, held) → voice → texts; ``reactions``: set → pleased or displeased → texts.
    """

    dimensions: dict[str, Dimension] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    facts: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    reactions: dict[str, dict[str, list[str]]] = field(default_factory=dict)


def words(text: str) -> int:
    """Words, split at white space."""
    return len(text.split())


def lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each line. Raises ConfigError naming file and line."""
    try:
        whole = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    for number, line in enumerate(whole.removesuffix(b"\n").split(b"\n"), 1):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line.decode("utf-8"))
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{where}: not valid Unicode (a lone surrogate)") from None
        except (ValueError, RecursionError) as e:
            raise ConfigError(f"{where}: not JSON: {e}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: not an object")
        yield where, value


def _texts(value: Any, where: str, what: str, least: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(t, str) and t.strip() for t in value):
        raise ConfigError(f"{where}: {what} must be a list of texts")
    if len(set(value)) < least:
        raise ConfigError(f"{where}: {what} has {len(set(value))} different texts; at least {least}")
    return tuple(value)


def _dimension(row: dict[str, Any], where: str, family: str, lexicon: Lexicon, least: int) -> Dimension:
    poles: dict[str, Pole] = {}
    for pole in row["poles"] if isinstance(row.get("poles"), list) else []:
        if not isinstance(pole, dict) or not isinstance(pole.get("id"), str):
            raise ConfigError(f"{where}: a pole needs an id")
        phrasings = {v: _texts(pole.get(v), where, f"{pole.get('id')}.{v}", least) for v in VOICES}
        for text in phrasings["summary"]:
            if problems := lexicon.explain(text):
                raise ConfigError(f"{where}: the summary {text!r} breaks {problems[0].rule}: {problems[0].text!r}")
        poles[str(pole["id"])] = Pole(str(pole["id"]), phrasings)
    if len(poles) != 2 or len(row["poles"]) != 2:
        raise ConfigError(f"{where}: a dimension needs two poles")
    return Dimension(str(row["id"]), family, str(row.get("about", "")), poles)


def _pair(row: dict[str, Any], where: str, corpus: Corpus, limits: tuple[int, int]) -> Pair:
    dimension, prompt, replies = row.get("dimension"), row.get("prompt"), row.get("replies")
    if not (isinstance(dimension, str) and isinstance(prompt, str)) or not (
        dimension in corpus.dimensions and prompt in corpus.prompts
    ):
        raise ConfigError(f"{where}: its dimension or prompt is not defined above it")
    poles = set(corpus.dimensions[dimension].poles)
    if not isinstance(replies, dict) or len(replies) != 2 or not set(replies) <= poles:
        raise ConfigError(f"{where}: replies must name two poles of {dimension}")
    for pole, text in replies.items():
        if not isinstance(text, str) or not limits[0] <= words(text) <= limits[1]:
            raise ConfigError(f"{where}: the {pole} reply has {words(str(text))} words; {limits[0]} to {limits[1]}")
    return Pair(str(row["id"]), dimension, prompt, dict(replies))


def _fact(row: dict[str, Any], where: str, corpus: Corpus) -> None:
    set_, text = row.get("set"), row.get("text")
    kind, known, into = (
        (row.get("voice"), VOICES[1:], corpus.facts)
        if row["type"] == "fact"
        else (row.get("kind"), REACTIONS, corpus.reactions)
    )
    if set_ not in SETS or kind not in known:
        raise ConfigError(f"{where}: a {row['type']} is of a set ({', '.join(SETS)}) and one of {', '.join(known)}")
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where}: text is missing")
    into.setdefault(set_, {}).setdefault(str(kind), []).append(text)


def load(folder: Path = FOLDER, *, heldout: bool = False, wide: bool = False, later: bool = True) -> Corpus:
    """Read and check the whole corpus, with what ``wide`` adds to it (``later``: all of it) or without, or its held-out
    part. Raises ConfigError naming file and line of the first rule broken."""
    corpus, lexicon, seen = Corpus(), Lexicon.load(), set()
    least = HELDOUT_PHRASINGS if heldout else PHRASINGS
    parts = [folder / HELDOUT] if heldout else [folder, *([folder / WIDE] if wide else [])]
    for part in parts:
        if not any(part.glob("*.jsonl")):
            hint = "; it is in a clone: pip install -e . there" if folder == FOLDER else ""
            raise ConfigError(f"{part}: no corpus (JSON Lines files) there{hint}")
    for path in (path for part in parts for path in sorted(part.glob("*.jsonl"))):
        in_wide = path.parent.name == WIDE
        if in_wide and path.stem in LATER and not later:
            continue
        limits = WIDE_WORDS if in_wide else WORDS
        for where, row in lines(path):
            if row.get("type") in ("fact", "reaction"):
                _fact(row, where, corpus)
                continue
            key = (str(row.get("type")), row.get("id"))
            if not isinstance(row.get("id"), str) or key in seen:
                raise ConfigError(f"{where}: id {row.get('id')!r} is missing or taken")
            seen.add(key)
            match row.get("type"):
                case "dimension":
                    corpus.dimensions[row["id"]] = _dimension(row, where, path.stem, lexicon, least)
                case "prompt":
                    if not isinstance(row.get("text"), str) or not row["text"].strip():
                        raise ConfigError(f"{where}: text is missing")
                    if row["text"] in corpus.prompts.values():
                        raise ConfigError(f"{where}: another prompt has the same text")
                    corpus.prompts[row["id"]] = row["text"]
                case "pair":
                    corpus.pairs.append(_pair(row, where, corpus, limits))
                case other:
                    raise ConfigError(f"{where}: unknown type {other!r:.40}")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--heldout", action="store_true")
    part.add_argument("--wide", action="store_true")
    options = parser.parse_args()
    try:
        corpus = load(options.folder, heldout=options.heldout, wide=options.wide)
    except (PopiError, OSError) as e:
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
    launch(main)
