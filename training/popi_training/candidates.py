"""The sentences that a recipe on our corpus teaches: what a bundle's summaries may be made of.

    python -m popi_training.candidates RECIPE [--measured FILE] [--generator FILE]... > candidates.json
    popi export RUN OUT --candidates candidates.json

For each dimension that is trained on a list of its poles, for each of those first what is said, the phrasing that moves
the untouched base most (``popi_training.follow``), then the phrasings that are taught (``train.options`` of them, those
that move it most), by which the model is asked what it means. ``--measured``: what is taught goes by that file alone,
and of a pole of which it has nothing those come first that do in the alphabet. That is how
training/adapters/warm-wide was taught, before all were measured. ``--generator``: how the pair's own generator follows
them (``popi_training.follow --every --bundle``); then said is what moves both most, in nats over the standard deviation
of each generator's figures, which are of one size then. Says on stderr how the two agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_training import recipe as recipes
from popi_training import warm
from popi_training.corpus import Pole


def candidates(
    data: warm.Set, options: int, moved: Mapping[str, float], known: Mapping[str, float]
) -> list[list[list[str]]]:
    """For each dimension of training and each of its poles what is said of it, then what is taught: the ``options`` (0:
    all) phrasings of which ``known`` (nats; 0 for what it lacks) says that the base follows them best. Said is the best
    of all by ``moved``."""

    def of(pole: Pole) -> list[str]:
        texts = pole.phrasings["summary"]
        taught = sorted(texts, key=lambda text: (-known.get(text, 0.0), text))[: options or None]
        return list(dict.fromkeys([max(texts, key=lambda text: (moved[text], text)), *taught]))

    poles = [data.corpus.dimensions[d].poles.values() for d in data.train.dimensions]
    return [[of(pole) for pole in some] for some in poles]


def together(base: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """How far each phrasing moves two generators (nats), each divided by its standard deviation, added up.

    Raises ConfigError where one of them lacks phrasings of the other, or is moved by all of them alike.
    """
    if base.keys() != own.keys():
        text = min(base.keys() ^ own.keys())
        raise ConfigError(f"one generator was measured on {text!r:.60} and the other was not")
    spreads = [statistics.pstdev(moved.values()) for moved in (base, own)]
    if not all(spreads):
        raise ConfigError("a generator that all phrasings move alike cannot say which is followed best")
    return {text: base[text] / spreads[0] + own[text] / spreads[1] for text in base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--measured", type=Path)
    parser.add_argument("--generator", type=Path, action="append", default=[])
    args = parser.parse_args()
    try:
        recipe = recipes.read(args.recipe)
        if recipe.data.world or recipe.data.file:
            raise ConfigError(f"{args.recipe} does not train on a corpus with phrasings")
        data, folder = warm.load(recipe, args.recipe), warm.corpus_folder(recipe, args.recipe)
        moved = warm.read_follow(folder / warm.FOLLOW)
        moved |= warm.read_follow(folder / warm.FOLLOW_WIDE) if recipe.data.wide else {}
        known = warm.read_follow(args.measured) if args.measured else moved
        if args.generator:
            own = {text: nats for file in args.generator for text, nats in warm.read_follow(file).items()}
            moved, base = together(moved, own), moved
            r = statistics.correlation(list(base.values()), [own[text] for text in base])
            print(f"{len(base)} phrasings, r = {r:.2f} between the two generators", file=sys.stderr)
        print(json.dumps(candidates(data, recipe.train.options, moved, known), ensure_ascii=False, indent=1))
    except PopiError as e:
        sys.exit(f"candidates: {e}")


if __name__ == "__main__":
    launch(main)
