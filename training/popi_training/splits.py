"""What is trained on and what is kept apart: ``training/corpus/splits.json``, fixed before any training.

    python -m popi_training.splits           makes the file anew from the seed; must give the committed bytes

Held out are whole dimensions, combinations of two dimensions, and everything in ``corpus/heldout`` (prompts, pairs and
phrasings written apart). Some training prompts are for development: their pairs are never trained on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError
from popi_edge.files import whole_file
from popi_training.corpus import FOLDER, WIDE, Corpus, load

FILE = FOLDER / "splits.json"
SEED = 4
DIMENSIONS = ("analogies", "order", "energy", "company")
"""One each of explaining, form, voice and values; chosen before anything was trained."""
COMBINATIONS = 40
DEV_PROMPTS_A_FAMILY = 4


@dataclass(frozen=True)
class Splits:
    """``dimensions``: never trained on. ``combinations``: pairs of dimensions no training user has both of.
    ``dev_prompts``: ids of prompts whose pairs are for development."""

    seed: int
    dimensions: frozenset[str]
    combinations: frozenset[frozenset[str]]
    dev_prompts: frozenset[str]

    def allows(self, dimensions: list[str]) -> bool:
        """Whether a training user may have these dimensions together."""
        if self.dimensions & set(dimensions):
            return False
        return not any(frozenset(c) in self.combinations for c in itertools.combinations(dimensions, 2))


def make(corpus: Corpus, seed: int = SEED) -> dict[str, object]:
    """The split drawn by ``seed``, as it is written to the file."""
    rng = random.Random(seed)
    trained = sorted(set(corpus.dimensions) - set(DIMENSIONS))
    pairs = [list(p) for p in itertools.combinations(trained, 2)]
    families: dict[str, list[str]] = {}
    for name in sorted(corpus.prompts):
        families.setdefault(name.rsplit("-", 1)[0], []).append(name)
    dev = [n for names in families.values() for n in rng.sample(names, DEV_PROMPTS_A_FAMILY)]
    return {
        "seed": seed,
        "dimensions": sorted(DIMENSIONS),
        "combinations": sorted(rng.sample(pairs, COMBINATIONS)),
        "dev_prompts": sorted(dev),
        "heldout": "heldout/*.jsonl",
    }


def read(path: Path = FILE) -> Splits:
    """Read the split. Raises ConfigError where the file is missing or damaged, or a value is of another type."""
    try:
        value = json.loads(path.read_text("utf-8"))
        seed, combinations = int(value["seed"]), value["combinations"]
        dimensions, dev_prompts = value["dimensions"], value["dev_prompts"]
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        raise ConfigError(f"{path}: not a split: {e}") from None
    if not isinstance(combinations, list):
        raise ConfigError(f"{path}: combinations must be a list")
    pairs = [_ids(c, path, "combinations") for c in combinations]
    if (odd := next((c for c, pair in zip(combinations, pairs, strict=True) if len(pair) != 2), None)) is not None:
        raise ConfigError(f"{path}: combinations are of two dimensions each, not {odd!r:.60}")
    return Splits(seed, _ids(dimensions, path, "dimensions"), frozenset(pairs), _ids(dev_prompts, path, "dev_prompts"))


def _ids(value: Any, path: Path, key: str) -> frozenset[str]:
    """The ids of a list. Raises ConfigError naming the key where it is none."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{path}: {key} must hold lists of ids, not {value!r:.60}")
    return frozenset(value)


def refuse_unknown(split: Splits, corpus: Corpus, path: Path) -> None:
    """Raises ConfigError naming the first id of the split in ``path`` that the corpus beside it, with its wide part,
    does not have: what it should hold out would be trained on. ``corpus``: as much of it as is loaded."""
    if not _unknown(split, corpus):
        return
    wide = any((path.parent / WIDE).glob("*.jsonl"))
    for key, name in _unknown(split, load(path.parent, wide=wide)):
        raise ConfigError(f"{path}: {key}: the corpus has no {name!r:.60}")


def _unknown(split: Splits, corpus: Corpus) -> list[tuple[str, str]]:
    """(key, id) of what the corpus does not have."""
    combined = frozenset(itertools.chain.from_iterable(split.combinations))
    named = {"dimensions": split.dimensions, "combinations": combined, "dev_prompts": split.dev_prompts}
    there = {"dev_prompts": corpus.prompts}
    return [(k, n) for k, ids in named.items() for n in sorted(ids) if n not in there.get(k, corpus.dimensions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        made = json.dumps(make(load()), indent=1) + "\n"
        with whole_file(FILE) as out:
            out.write(made.encode("utf-8"))
    except (ConfigError, OSError) as e:
        sys.exit(f"splits: {e}")
    print(f"{FILE.name}: {len(read().combinations)} combinations, {len(read().dev_prompts)} development prompts")


if __name__ == "__main__":
    launch(main)
