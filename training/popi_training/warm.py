"""What the supervised warm start of ``infer`` learns from: users drawn by name, and what a summary would say."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge import prompts
from popi_edge.config import Settings
from popi_edge.engines.adapter import Adapter, read_adapter
from popi_edge.errors import ConfigError, ModelError
from popi_edge.models.bases import BASES, locate
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_edge.signals import Signal
from popi_edge.summarize import inference_prompt
from popi_edge.vocabulary import ClosedVocabulary, Lexicon
from popi_training import corpus as corpora
from popi_training import folder, splits
from popi_training.evaluate.data import same_text
from popi_training.pack import Ints, Packed, Sample, pack
from popi_training.recipe import Recipe, beside
from popi_training.runfolder import is_number
from popi_training.users import Material, Mix, User, Want, draw, draw_wants, mirror, say

FOLLOW, FOLLOW_WIDE = "follow.json", "follow-wide.json"
LONGEST_WORD = 24
"""No token needs more tokens than this to a sentence's end (13 with the base's tokenizer)."""
ROOM = 12
"""Tokens left at the end of a summary that could not be written with fewer."""
EASY: dict[str, Any] = {
    "wants": (1.0,), "signals": (0.5, 0.5), "least": 1, "noise": 0.0, "change": 0.0, "cancel": 0.0, "distractors": 0.0,
}  # fmt: skip
"""What an easy user is like: one pole, one or two signals that show it."""


@dataclass
class Set:
    """Training material, development material (pairs of other prompts), the training material of the dimensions that
    the latter has, the split and the phrasings' weights."""

    train: Material
    dev: Material
    shown: Material
    splits: splits.Splits
    weights: dict[str, float]
    corpus: corpora.Corpus
    heldout: corpora.Corpus


def corpus_folder(recipe: Recipe, where: Path) -> Path:
    """The corpus that a recipe is of: one beside it, or ours. Raises ConfigError for a name that no folder can have."""
    return beside(where, recipe.data.corpus, "data.corpus") if recipe.data.corpus else corpora.FOLDER


def load(recipe: Recipe, where: Path) -> Set:
    """Read and check the data of a recipe. Raises ConfigError where something of it is held out, or what is to be held
    out is not there."""
    folder = corpus_folder(recipe, where)
    corpus = corpora.load(folder, wide=recipe.data.wide, later=recipe.data.later)
    heldout = corpora.load(folder, heldout=True)
    split = splits.read(folder / splits.FILE.name)
    splits.refuse_unknown(split, corpus, folder / splits.FILE.name)
    dimensions = recipe.data.dimensions or tuple(d for d in corpus.dimensions if d not in split.dimensions)
    for name in dimensions:
        if name not in corpus.dimensions:
            raise ConfigError(f"{where}: data.dimensions: the corpus has no dimension {name!r}")
        if name in split.dimensions:
            raise ConfigError(f"{where}: data.dimensions: {name} is held out by {splits.FILE.name}")
    refuse_overlap(corpus, heldout, str(folder))
    train = Material(corpus, pairs=lambda p: p.prompt not in split.dev_prompts, dimensions=dimensions)
    dev = Material(corpus, pairs=lambda p: p.prompt in split.dev_prompts, dimensions=dimensions)
    _complete(recipe, train, dev, str(folder))
    shown = Material(corpus, pairs=lambda p: p.prompt not in split.dev_prompts, dimensions=dev.dimensions)
    weights = _weights(folder, recipe, corpus)
    return Set(train, dev, shown, split, weights, corpus, heldout)


def find_base(recipe: Recipe, where: Path, settings: Settings) -> Path:
    """The base's file or folder, by name or relative to the recipe. Raises ModelError where there is none, ConfigError
    for a folder where the recipe needs a GGUF file."""
    name, lora = recipe.base.name, recipe.lora
    path = beside(where, name, "base.name")
    if name in BASES or not (path.is_dir() or (path.is_file() and ("/" in name or name.endswith(".gguf")))):
        return locate(name, settings.models)
    if path.is_dir() and recipe.method != "joint":
        raise ConfigError(f"{where}: base.name: {name} is a folder; method \"{recipe.method}\" needs a GGUF file")
    if path.is_dir() and (lora.start or lora.start_generate):
        raise ConfigError(f"{where}: lora.start is an adapter for a GGUF base; {name} is a folder")
    return path


def refuse_base(recipe: Recipe, name: str, sha256: str) -> None:
    """Raises ModelError where the base called ``name`` is not the one that the recipe wants."""
    if recipe.base.sha256 and sha256 != recipe.base.sha256.lower():
        raise ModelError(f"{name} has SHA-256 {sha256[:12]}…, but the recipe wants {recipe.base.sha256[:12]}…")


def read_start(recipe: Recipe, where: Path, base: Path, role: str = "infer") -> Adapter | None:
    """The adapter that a role starts from, if any; ``base``: the base's GGUF. Raises ConfigError for another rank or
    scale than the recipe's, ModelError for a file that is no adapter of this base."""
    lora, key = recipe.lora, "start" if role == "infer" else f"start_{role}"
    named = getattr(lora, key)
    if not named:
        return None
    adapter = read_adapter(beside(where, named, f"lora.{key}"), Gguf(base))
    rank = next(iter(adapter.layers.values()))[0].shape[0]
    alpha = adapter.scale * rank
    if rank != lora.rank or not math.isclose(alpha, lora.alpha, rel_tol=1e-6):
        raise ConfigError(
            f"{where}: lora.{key} has rank {rank} and alpha {alpha:g}, the recipe {lora.rank} and {lora.alpha:g}"
        )
    return adapter


def _complete(recipe: Recipe, train: Material, dev: Material, where: str) -> None:
    """Raises ConfigError where the corpus lacks something that the recipe's users are made of."""
    if not train.dimensions or (recipe.train.dev_users and not dev.dimensions):
        raise ConfigError(f"{where}: no pairs are left to {'develop' if train.dimensions else 'train'} on")
    if train.lacks_facts(recipe.users):
        raise ConfigError(f"{where}: no facts for training; users.silent and users.distractors need some of each voice")
    if train.lacks_reactions(recipe.users):
        raise ConfigError(f"{where}: no pleased reactions for training; users.kinds.conversation needs some")


def refuse_overlap(corpus: corpora.Corpus, heldout: corpora.Corpus, where: str) -> None:
    """Raises ConfigError naming the first prompt, reply or phrasing that stands both in training and in held-out."""
    trained = {same_text(t): what for what, t in all_texts(corpus)}
    for what, text in all_texts(heldout):
        if same_text(text) in trained:
            raise ConfigError(f"{where}: held-out {what} is also the training {trained[same_text(text)]}: {text!r:.60}")


def all_texts(corpus: corpora.Corpus) -> list[tuple[str, str]]:
    """(what it is, text) of every prompt, reply and phrasing."""
    out = [(f"prompt {i}", t) for i, t in corpus.prompts.items()]
    out += [(f"reply of pair {p.id}", t) for p in corpus.pairs for t in p.replies.values()]
    for dimension in corpus.dimensions.values():
        for pole in dimension.poles.values():
            for voice, texts in pole.phrasings.items():
                out += [(f"{voice} of {dimension.id}.{pole.id}", t) for t in texts]
    return out


def followed(path: Path, part: str) -> dict[str, Any]:
    """The ``part`` (``dimensions`` or ``phrasings``) of what ``popi_training.follow`` wrote. Raises ConfigError for a
    file that is missing or is no such table."""
    try:
        found = json.loads(path.read_text("utf-8"))[part]
        return {str(name): found[name] for name in found}
    except OSError as e:
        raise ConfigError(f"cannot read {path}, which says how phrasings are followed: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ConfigError(f"{path}: not what popi_training.follow writes: {e}") from None


def read_follow(path: Path) -> dict[str, float]:
    """How far each summary phrasing moves the untouched base (nats), measured on training pairs (``follow``).

    Raises ConfigError for a file that is missing or is no such table.
    """
    found = followed(path, "phrasings")
    if odd := next((text for text, nats in found.items() if not is_number(nats)), None):
        raise ConfigError(f"{path}: not what popi_training.follow writes: no number for {odd!r:.60}")
    return {text: float(nats) for text, nats in found.items()}


def _weights(folder: Path, recipe: Recipe, corpus: corpora.Corpus) -> dict[str, float]:
    """How often each summary phrasing is taught, from how far it moves the generator; empty: all alike. Raises
    ConfigError for one that was not measured, which would be taught for its place in the alphabet."""
    sharpness, options = recipe.train.sharpness, recipe.train.options
    if not sharpness and not options:
        return {}
    moved = read_follow(folder / FOLLOW) | (read_follow(folder / FOLLOW_WIDE) if recipe.data.wide else {})
    poles = [p.phrasings["summary"] for d in corpus.dimensions.values() for p in d.poles.values()]
    if unknown := [text for said in poles for text in said if text not in moved]:
        raise ConfigError(
            f"{folder}: how {unknown[0]!r:.60} is followed was not measured, nor {len(unknown) - 1} more phrasings; "
            "run popi_training.follow, or leave train.sharpness and train.options out"
        )
    try:
        weights = {text: math.exp(sharpness * nats) for text, nats in moved.items()}
    except OverflowError:
        raise ConfigError(f"train.sharpness is too large for the figures in {folder / FOLLOW}") from None
    for said in poles:
        ranked = sorted(said, key=lambda t: (-moved[t], t))
        weights |= {text: 0.0 for text in ranked[options:] if options}
        if not 0 < sum(weights[text] for text in said) < math.inf:
            raise ConfigError(f"train.sharpness is too large for the figures in {folder / FOLLOW}: {said[0]!r:.60}")
    return weights


class Reader:
    """Signals → prompt ids exactly as the runtime makes them, and summaries → completions with what was allowed."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        self.limits = prompts.spec()["limits"]
        self.vocabulary = ClosedVocabulary(
            Lexicon.load(), tokenizer.token_bytes, tokenizer.eos_ids, max_tokens=self.limits["summary_tokens"]
        )
        self._known: dict[int, Ints] = {}

    @classmethod
    def of(cls, path: Path) -> Reader:
        """For the tokenizer and the context of a GGUF file or a Hugging Face folder. Raises ModelError."""
        if path.is_dir():
            return cls(folder.FolderTokenizer(path), int(folder.read_config(path)["max_position_embeddings"]))
        file = Gguf(path)
        return cls(Tokenizer(file), int(file.need("llama.context_length", int)))

    def prompt(self, signals: tuple[Signal, ...]) -> tuple[int, ...]:
        """The inference prompt's ids, the oldest signals left out where they do not fit."""
        return tuple(inference_prompt(self.tokenizer, signals, self.context)[1])

    def completion(self, text: str) -> tuple[tuple[int, ...], tuple[Ints, ...]]:
        """The summary's ids and the end token; for each, the ids that the closed vocabulary allowed there."""
        ids = (*self.tokenizer.encode(text), self.tokenizer.eos)
        state, allowed = self.vocabulary.start(), []
        for i, token in enumerate(ids):
            allowed.append(self.allowed(state, self.limits["summary_tokens"] - i))
            if token not in allowed[-1]:
                raise ConfigError(f"the summary {text!r:.80} cannot be written under the closed vocabulary")
            if token != self.tokenizer.eos:
                state = self.vocabulary.advance(state, token)
        return ids, tuple(allowed)

    def say(
        self, wants: tuple[Want, ...], material: Material, rng: random.Random, weights: dict[str, float] | None = None
    ) -> str:
        """A summary of the wants. Near the limit the vocabulary keeps room to end a word letter by letter, so that a
        few that are short enough could not be written: then a shorter one."""
        text = say(wants, material, rng, self.tokenizer, weights=weights)
        try:
            self.completion(text)
        except ConfigError:
            text = say(wants, material, rng, self.tokenizer, self.limits["summary_tokens"] - ROOM, weights)
        return text

    def allowed(self, state: int, remaining: int) -> Ints:
        """Ids that the closed vocabulary allows in a state with so many tokens left."""
        if remaining <= LONGEST_WORD:  # near the limit it depends on how many tokens are left
            return np.array(self.vocabulary.allowed(state, remaining))
        if state not in self._known:
            self._known[state] = np.array(self.vocabulary.allowed(state, remaining))
        return self._known[state]

    def sample(self, prompt: tuple[int, ...], text: str, weight: float = 1.0) -> Sample:
        """One summary behind a prompt."""
        ids, allowed = self.completion(text)
        return Sample(prompt, ids, allowed, weight)


def name_of(recipe: Recipe, index: int) -> str:
    """The name of the index-th training user of a recipe, from which everything about them follows."""
    return f"{recipe.seed}:train:{index}"


def users_of(recipe: Recipe, data: Set, step: int) -> list[User]:
    """The users of a step, most of them in couples."""
    t, users = recipe.train, list[User]()
    mix = replace(recipe.users, **EASY) if step < t.easy else recipe.users
    while len(users) < t.batch:
        name = name_of(recipe, step * t.batch + len(users))
        if len(users) + 2 <= t.batch and random.Random(f"couple:{name}").random() < t.mirrored:
            users += couple(name, data.train, mix, data.splits)
        else:
            users.append(draw(name, data.train, mix, allows=data.splits.allows))
    return users


def batch(recipe: Recipe, data: Set, reader: Reader, step: int) -> list[tuple[User, Packed]]:
    """The users of a step, each packed with summaries of their own behind their signals (some after half of them) and,
    where there is a contrast, with one summary of each of the others."""
    users = users_of(recipe, data, step)
    own = [_own(recipe, data, reader, user, i) for i, user in enumerate(users)]
    return [(user, pack(_with_others(own, i) if recipe.train.contrast else own[i])) for i, user in enumerate(users)]


def couple(name: str, material: Material, mix: Mix, split: splits.Splits) -> list[User]:
    """Two users who are opposite in everything and have the same signals, chosen the other way round: nothing but what
    each of them preferred tells them apart."""
    wants = draw_wants(random.Random(f"couple:{name}:wants"), material, mix, split.allows)
    both = (wants, list(mirror(wants, material)))
    return [replace(draw(name, material, mix, wants=w), id=f"{name}:{k}") for k, w in enumerate(both)]


def _with_others(own: list[list[Sample]], i: int) -> list[Sample]:
    """User i's samples, and the first of each other user as it would stand behind i's signals."""
    first = own[i][0]
    others = {o[0].completion: replace(o[0], prompt=first.prompt, weight=0.0, of=j) for j, o in enumerate(own)}
    others.pop(first.completion)
    return [*own[i], *others.values()]


def _own(recipe: Recipe, data: Set, reader: Reader, user: User, index: int) -> list[Sample]:
    """A user's own samples; the first is the one that is compared over the batch."""
    rng = random.Random(f"say:{user.id}")
    samples = _samples(recipe.train.phrasings, user.signals, user.wants, data, reader, rng)
    samples[0] = replace(samples[0], of=index)
    half = len(user.signals) // 2
    if recipe.train.halfway and half >= 2:
        samples += _samples(recipe.train.halfway, user.signals[:half], user.upto[half - 1], data, reader, rng)
    return samples


def _samples(
    count: int, signals: tuple[Signal, ...], wants: tuple[Want, ...], data: Set, reader: Reader, rng: random.Random
) -> list[Sample]:
    prompt = reader.prompt(signals)
    texts, tries = {reader.say(wants, data.train, rng, data.weights): None}, 3 * count
    while len(texts) < count and wants and tries:  # sharp weights make the same phrasing likely
        texts[reader.say(wants, data.train, rng, data.weights)] = None
        tries -= 1
    return [reader.sample(prompt, text, 1.0 / len(texts)) for text in texts]


def dev_couple(recipe: Recipe, data: Set, reader: Reader, index: int) -> list[Packed]:
    """The index-th development couple: each packed with a summary of their wants and one of the other's."""
    users = couple(f"dev:{index}", data.dev, recipe.users, data.splits)
    rng = random.Random(f"say:dev:{index}")
    texts = [reader.say(user.wants, data.dev, rng, data.weights) for user in users]
    return [
        pack([reader.sample(prompt, texts[i]), reader.sample(prompt, texts[1 - i], 0.0)])
        for i, prompt in enumerate(reader.prompt(user.signals) for user in users)
    ]
