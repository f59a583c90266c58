"""The corpus as a page for people to read: what it is, what was checked, and three pairs of every dimension.

    python -m popi_training.corpus_page [OUT]        writes docs/corpus.md; the same bytes from the same corpus

Does not judge the replies: it shows figures and a few examples drawn by a seed; the files hold the rest.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_training import bagofwords, blind, splits
from popi_training.corpus import FOLDER, Corpus, Dimension, Pair, lengths, words
from popi_training.evaluate.journal import write_whole
from popi_training.follow import CAN_FOLLOW
from popi_training.warm import FOLLOW, FOLLOW_WIDE, followed

PAGE = FOLDER.parent.parent / "docs" / "corpus.md"
SEED = 20261124
SHOWN = 3
FAMILIES = {
    "elix": "Explaining",
    "form": "Form",
    "voice": "Voice",
    "manner": "Manner",
    "review": "Reviews",
    "roleplay": "Roleplay",
    "alignx": "Values",
}

INTRODUCTION = """\
# The corpus

Everyday prompts, each with two replies that differ in one thing: how long, how formal, how warm, what they value.
From such pairs people are made up who like one side, and from these popi learns to say in a sentence what a person
prefers. This page is for reading it. The files are in [training/corpus](../training/corpus), and `python -m
popi_training.corpus_page` writes the page from them.

It has {prompts} prompts and {pairs} pairs along {dimensions} dimensions, and beside each side of a dimension (its
*pole*) eight ways in which a summary, a statement, a post or a profile would say it. CC0 1.0: no rights reserved.

## How it was written

Text by text by a large language model under this project's direction: not filled from templates, and nothing copied.
It is in English, and no person's words or data are in it. The replies show tastes; nobody checked their advice, and
the figures in the replies of the pole `facts` are invented.

The held-out part ({held_prompts} prompts, {held_pairs} pairs, and phrasings of its own for every pole) was written
apart, by writers that did not see the training part. It is never trained on and not shown here. No text is in both,
but the same kind of model has the same ideas: a few held-out phrasings come close to training ones.

## What is held out

Fixed by a seed in [splits.json](../training/corpus/splits.json) before anything was trained:

- whole dimensions: {held_dimensions};
- {combinations} combinations of two dimensions, which no person in training has together;
- {dev_prompts} of the prompts here, for development: no training on their pairs;
- the prompts, pairs and phrasings written apart.

## What was checked

**The form**, by `python -m popi_training.corpus`: replies of 15 to 90 words, summaries in the words that popi may
say, and the same mean length of both poles of every dimension but `length`, within 15%.

**Readers** who had not written the corpus saw one reply, neither its prompt nor the other reply. *Choice*: which of
the dimension's two poles is it? *Open*: with only the list of all dimensions in sight, what does it show most? (the
first of up to three answers). They named the pole of {choice} by choice and of {open} in the open; of the held-out
part, {held_choice} by choice and {held_open} in the open.

Read this as an upper bound of what people would reach. The readers were fresh instances of the same kind of model as
the writers, and agreed almost always, also on poles that show only by absence (`just_answers`, `without_emoji`). No
person has been asked yet.

**A bag of words** does not share the writers' eye: naive Bayes over the words, marks and line breaks of one reply,
learned from the replies to all other prompts of the dimension (0.50 is chance; 95% intervals clustered by prompt). It
is right on {words} of the replies; on {equal} with bags of equal size and no length; on {words_held} of the held-out
part, learned from this one. So single words give most poles away, and the same ones in what was written apart: this
corpus is easier than what people write. Where it does worse, the pole lies in the order of things, in what a sentence
says as a whole, or in what is left out; this classifier sees none of these. *Longer* is the share of pairs in which
the pole that is usually the longer one is so. Equal means do not ensure 0.50: {tell}.

**The base** is the generator as it comes, untrained. *Accuracy*: how often a pole's own sentence moves it towards
that pole's reply. *Contrast*: how often more so than the opposite sentence. The {weak} dimensions with a contrast
below {follow:.2f} are marked "base does not follow"; they stay in, since a larger generator may follow them. From 40
pairs a contrast is known to about ±0.15, so the mark is a rough one.
"""


WIDE = """## The wide part

Written later, in the same way, by writers that did not see the rest: eight at once for what the first part lacks
(short tasks: reword, classify, define, name three …; long replies; dimensions more), then five for long replies as chat
assistants write them, for text that informs (news, encyclopedia, report) and for twelve of the dimensions. In all
{new} dimensions more, {prompts} prompts and {pairs} pairs, replies of {shortest} to {longest} words, in
[training/corpus/wide](../training/corpus/wide). A recipe trains on it with `data.wide = true`, on what the five wrote
with `data.later = true` too; no test set is made from it, and the held-out dimensions are not in it. That the replies
of the first part are all well-meant was seen on the developing half of a real data set (friendly against unfriendly
replies): `courtesy` and `sarcasm` are here because of it; that no text of it informs, on another one (news at three
reading levels): hence a third of the later pairs of `expertise`, `technical_depth` and `reading_level`.

Blind readers named the pole of {choice} by choice, and of {open} in the open, where the poles that show by absence
(no sayings, no recap, no questions back) are hard to name from a list of so many dimensions. *Contrast*: how the base
follows, as above, each of eight pairs under every phrasing (`follow-wide.json`).
"""


@dataclass(frozen=True)
class Sources:
    """All that the page is made from. ``guesses`` and ``corpora``: the training part, then the held-out one."""

    corpora: tuple[Corpus, Corpus, Corpus]
    guesses: tuple[dict[str, list[str]], ...]
    follow: dict[str, dict[str, Any]]
    split: splits.Splits
    words: dict[str, bagofwords.Result]


def read() -> Sources:
    """Everything from the committed files. Raises ConfigError naming what is missing or damaged."""
    train, held, wide = (blind.read_part(part) for part in blind.GUESSES)
    follow = _followed(FOLDER / FOLLOW, set(train.dimensions))
    follow |= _followed(FOLDER / FOLLOW_WIDE, set(wide.dimensions) - set(train.dimensions))
    guesses = tuple(blind.read_guesses(FOLDER / blind.GUESSES[part]) for part in blind.GUESSES)
    words = bagofwords.measure(train, held)
    return Sources((train, held, wide), guesses, follow, splits.read(), words)


def _followed(path: Path, dimensions: set[str]) -> dict[str, dict[str, Any]]:
    """How the base follows each of these. Raises ConfigError for a file that does not say it."""
    found = followed(path, "dimensions")
    if missing := sorted(dimensions - set(found)):
        raise ConfigError(f"{path.name}: nothing about {', '.join(missing)}; run popi_training.follow anew")
    return found


def examples(corpus: Corpus, dimension: str, n: int = SHOWN) -> list[Pair]:
    """Up to ``n`` pairs of a dimension, no two of one prompt, in an order drawn by the seed and its name."""
    pairs = [p for p in corpus.pairs if p.dimension == dimension]
    random.Random(f"{SEED}:{dimension}").shuffle(pairs)
    return list({p.prompt: p for p in reversed(pairs)}.values())[::-1][:n]


def cell(text: str) -> str:
    """A reply inside a table: its line breaks kept, and nothing in it taken for the table's own marks."""
    return re.sub(r"([\\|<$`])", r"\\\1", text.strip()).replace("\n", "<br>")


def page(sources: Sources) -> str:
    """The whole page."""
    families: dict[str, list[Dimension]] = {}
    for dimension in sources.corpora[0].dimensions.values():
        families.setdefault(dimension.family, []).append(dimension)
    order = sorted(families, key=lambda f: (list(FAMILIES).index(f) if f in FAMILIES else len(FAMILIES), f))
    out = [_introduction(sources), _table(sources, [d.id for f in order for d in families[f]])]
    for family in order:
        out.append(f"## {FAMILIES.get(family, family)}\n")
        out += [_section(sources, d) for d in families[family]]
    return "\n".join([*out, _wide(sources)])


def _introduction(sources: Sources) -> str:
    train, held, _ = sources.corpora
    results = sources.words.values()

    def named(part: int, kind: str) -> str:
        counts = blind.agreement(sources.corpora[part], sources.guesses[part], kind).values()
        asked = sum(c[0] for c in counts)
        return f"{sum(c[1] for c in counts):,} of {asked:,}" if asked else "none (not asked)"

    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.2f}"

    tell = sorted((d for d in sources.words if d != "length"), key=lambda d: -sources.words[d].longer.right)[:2]
    return INTRODUCTION.format(
        prompts=len(train.prompts),
        pairs=f"{len(train.pairs):,}",
        dimensions=len(train.dimensions),
        held_prompts=len(held.prompts),
        held_pairs=len(held.pairs),
        held_dimensions=", ".join(f"`{d}`" for d in sorted(sources.split.dimensions)),
        combinations=len(sources.split.combinations),
        dev_prompts=len(sources.split.dev_prompts),
        choice=named(0, "choice"),
        open=named(0, "open"),
        held_choice=named(1, "choice"),
        held_open=named(1, "open"),
        words=mean([r.full.right for r in results]),
        equal=mean([r.equal.right for r in results]),
        words_held=mean([r.held.right for r in results if r.held]),
        tell=", ".join(f"`{d}` {sources.words[d].longer.right:.2f}" for d in tell),
        weak=sum(not sources.follow[d]["follows"] for d in train.dimensions),
        follow=CAN_FOLLOW,
    )


def _wide(sources: Sources) -> str:
    """What the wide part adds, dimension by dimension."""
    train, _, wide = sources.corpora
    choice, free = (blind.agreement(wide, sources.guesses[2], kind) for kind in ("choice", "open"))
    shortest, longest = (f(words(t) for p in wide.pairs for t in p.replies.values()) for f in (min, max))

    def whole(counts: dict[str, tuple[int, int, int]]) -> str:
        return f"{sum(c[1] for c in counts.values()):,} of {sum(c[0] for c in counts.values()):,}"

    text = WIDE.format(
        prompts=len(set(wide.prompts) - set(train.prompts)), pairs=len(wide.pairs), shortest=shortest, longest=longest,
        new=len(set(wide.dimensions) - set(train.dimensions)), choice=whole(choice), open=whole(free),
    )  # fmt: skip
    heads = ("dimension", "about", "pairs", "mean words", "choice", "open", "contrast")
    out = [text, "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, dimension in wide.dimensions.items():
        means = ", ".join(f"{pole} {n:.0f}" for pole, n in lengths(wide, name).items())
        asked = [f"{c[name][1]}/{c[name][0]}" for c in (choice, free)]
        about = dimension.about if name not in train.dimensions else "as above"
        asked.append("as above" if name in train.dimensions else f"{sources.follow[name]['contrast']:.2f}")
        count = sum(p.dimension == name for p in wide.pairs)
        out.append(f"| {name} | {about} | {count} | {means} | {' | '.join(asked)} |")
    return "\n".join(out) + "\n"


def _table(sources: Sources, names: list[str]) -> str:
    train = sources.corpora[0]
    choice, free = (blind.agreement(train, sources.guesses[0], kind) for kind in ("choice", "open"))
    heads = ("dimension", "pairs", "mean words", "choice", "open", "bag of words", "equal bags", "longer",
             "base: accuracy", "contrast", "")  # fmt: skip
    out = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in names:
        follow, words = sources.follow[name], sources.words[name]
        marks = ["held out"] * (name in sources.split.dimensions) + ["base does not follow"] * (not follow["follows"])
        cells = (
            f"[{name}](#{name})",
            str(sum(p.dimension == name for p in train.pairs)),
            ", ".join(f"{pole} {n:.0f}" for pole, n in lengths(train, name).items()),
            f"{choice[name][1]}/{choice[name][0]}",
            f"{free[name][1]}/{free[name][0]}",
            bagofwords.text(words.full),
            f"{words.equal.right:.2f}",
            f"{words.longer.right:.2f}",
            f"{follow['accuracy']:.2f}",
            f"{follow['contrast']:.2f}",
            ", ".join(marks),
        )
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def _section(sources: Sources, dimension: Dimension) -> str:
    train = sources.corpora[0]
    poles = list(dimension.poles.values())
    about = dimension.about[:1].upper() + dimension.about[1:]
    out = [f"### {dimension.id}", "", f"{about}."]
    if dimension.id in sources.split.dimensions:
        out += ["", "*Held out as a whole: never trained on.*"]
    out += ["", *(f"- **{pole.id}**: “{pole.phrasings['summary'][0]}”" for pole in poles)]
    for pair in examples(train, dimension.id):
        shown = [pole.id for pole in poles if pole.id in pair.replies]
        out += [
            "",
            f"**{train.prompts[pair.prompt]}**",
            "",
            "| " + " | ".join(shown) + " |",
            "|---|---|",
            "| " + " | ".join(cell(pair.replies[pole]) for pole in shown) + " |",
        ]
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=PAGE)
    out = parser.parse_args().out
    try:
        write_whole(out, page(read()))
    except (PopiError, OSError) as e:
        sys.exit(f"corpus_page: {e}")
    print(f"wrote {out}")


if __name__ == "__main__":
    launch(main)
