"""People of a data set (``popi_training.datasets``) to train both roles on, with some kept for development.

Kept apart by prompt: a prompt whose hash says so is for development, and no training person has a signal or a target on
one. What nobody may be trained on (an evaluation file) is refused by ``data.apart``, a file whose prompts must not
occur; the held-out texts of our own corpus are refused always.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from popi_edge.errors import ConfigError
from popi_training import corpus as corpora
from popi_training import datasets
from popi_training.evaluate.data import same_text
from popi_training.people import Person
from popi_training.recipe import Recipe, beside

DEV_SHARE = 10
"""One prompt in so many is kept for development."""


@dataclass(frozen=True)
class Filed:
    """``train`` and ``dev`` people, each with a signal and enough targets; the data set they come from."""

    train: tuple[Person, ...]
    dev: tuple[Person, ...]
    loaded: datasets.Loaded

    def batch(self, recipe: Recipe, step: int) -> list[Person]:
        """The people of a step: every one of them once before anybody comes twice, each round in another order."""
        size = recipe.train.batch
        places = (divmod(k, len(self.train)) for k in range(step * size, (step + 1) * size))
        return [self.train[_order(recipe.seed, turn, len(self.train))[place]] for turn, place in places]

    def couple(self, index: int) -> list[Person]:
        """Two development people who judge by different personas, where there are such."""
        first = self.dev[(2 * index) % len(self.dev)]
        others = [p for p in self.dev if self.loaded.persona(p) != self.loaded.persona(first)] or list(self.dev)
        return [first, others[(2 * index + 1) % len(others)]]


@functools.lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> list[int]:
    order = list(range(count))
    random.Random(f"round:{seed}:{turn}").shuffle(order)
    return order


def kept_apart(prompt: str) -> bool:
    """Whether a prompt is for development."""
    return hashlib.sha256(same_text(prompt).encode()).digest()[0] % DEV_SHARE == 0


def load(recipe: Recipe, where: Path) -> Filed:
    """The people of ``data.file``. Raises ConfigError: no such file, a public name that may not or cannot be
    downloaded, nobody left, a prompt that ``data.apart`` has, a held-out text of our own corpus, somebody with nothing
    to imitate where the recipe imitates."""
    j = recipe.joint
    wanted = j.pairs + (0 if j.shared_pairs else j.dpo_pairs)
    loaded = datasets.load(
        _place(recipe, where), recipe.data.format or "auto", seed=recipe.seed, signals=recipe.users.most,
        targets=j.pairs + (0 if j.shared_pairs else j.dpo_pairs * j.group), allow_download=recipe.data.download,
    )  # fmt: skip
    _refuse_heldout(loaded.people, where)
    parted = [(_only(person, dev=False), _only(person, dev=True)) for person in loaded.people]
    train = [p for p, _ in parted if p.signals and len(p.targets) >= wanted]
    dev = [p for _, p in parted if p.signals and p.targets]
    if not train:
        raise ConfigError(f"{where}: data.file: nobody with {wanted} targets or more is left to train on")
    if recipe.train.dev_users and len(dev) < 2:
        asked = "two with a target on a prompt that is kept for development are needed, or train.dev_users = 0"
        raise ConfigError(f"{where}: data.file: {len(dev)} people are left to develop on; {asked}")
    untold = next((p.id for p in train if not p.oracle), "")
    if untold and (j.schedule == "sft" or j.warm):
        key = "joint.warm" if j.warm else "joint.schedule \"sft\""
        raise ConfigError(f"{where}: {key} imitates what describes a person; data.file says nothing of {untold:.80}")
    if recipe.data.apart:
        _refuse(train, beside(where, recipe.data.apart, "data.apart"), recipe.data.apart_format, where)
    return Filed(tuple(train), tuple(dev), loaded)


def _place(recipe: Recipe, where: Path) -> str:
    """``data.file``: a path, or a public name. Raises ConfigError for a public name without ``data.download``, and for
    that key with anything else."""
    name, download = recipe.data.file, recipe.data.download
    path = beside(where, name, "data.file")
    place = str(path) if path.exists() else name
    known = datasets.public(place)
    if download and not known:
        names = ", ".join(datasets.PUBLIC.values())
        raise ConfigError(f"{where}: data.download is for a public name ({names}), not for {place:.200}")
    if known and not download:
        how = "is downloaded only with data.download = true; or give a local file of the same shape"
        raise ConfigError(f"{where}: data.file: {datasets.PUBLIC[known]} {how}")
    return place


def _only(person: Person, *, dev: bool) -> Person:
    """A training person without a word on development prompts; a development person with targets on those alone."""
    targets = tuple(t for t in person.targets if kept_apart(t.prompt) == dev)
    signals = tuple(s for s in person.signals if not kept_apart(str(getattr(s, "prompt", "") or "")))
    return replace(person, targets=targets, signals=signals)


def corpus_here() -> bool:
    """Whether our own corpus's held-out part is here to compare with; an installed package has none."""
    return (corpora.FOLDER / corpora.HELDOUT).is_dir()


def _refuse_heldout(people: Sequence[Person], where: Path) -> None:
    """Raises ConfigError naming the first prompt or reply of our own corpus's held-out part that somebody has."""
    if not corpus_here():
        return
    corpus = corpora.load(corpora.FOLDER, heldout=True)
    held = {same_text(t) for t in (*corpus.prompts.values(), *(t for p in corpus.pairs for t in p.replies.values()))}
    for person in people:
        targets = [text for t in person.targets for text in (t.prompt, t.chosen, t.rejected)]
        for text in (*targets, *(text for s in person.signals for text in s.texts())):
            if same_text(text) in held:
                raise ConfigError(f"{where}: data.file has a text that our corpus holds out: {text!r:.60}")


def _refuse(people: Sequence[Person], path: Path, format: str, where: Path) -> None:
    """Raises ConfigError naming the first prompt that is also in an evaluation file, or held out by a corpus."""
    from popi_training.evaluate.data import load as rows_of

    if format == "corpus":
        held = set(map(same_text, corpora.load(path, heldout=True).prompts.values()))
    else:
        held = {same_text(r.prompt) for r in rows_of(path, format).rows}
    for person in people:
        asked = [t.prompt for t in person.targets] + [str(getattr(s, "prompt", "") or "") for s in person.signals]
        for text in asked:
            if same_text(text) in held:
                raise ConfigError(f"{where}: data.apart, only for measuring, has a prompt of data.file: {text!r:.60}")
