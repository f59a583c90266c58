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
from popi_edge.errors import ConfigError
from popi_edge.select import window
from popi_edge.signals import Signal
from popi_edge.vocabulary import ClosedVocabulary, Lexicon
from popi_training import corpus as corpora
from popi_training import splits
from popi_training.evaluate.data import same_text
from popi_training.pack import Ints, Packed, Sample, pack
from popi_training.recipe import Recipe
from popi_training.users import Material, User, Want, draw, mirror, say

FOLLOW = "follow.json"
EASY: dict[str, Any] = {
    "wants": (1.0,), "signals": (0.0, 0.7, 0.3), "noise": 0.0, "change": 0.0, "cancel": 0.0, "distractors": 0.0,
}  # fmt: skip
"""What an easy user is like: one pole, two or three signals that all show it."""


@dataclass
class Set:
    """Training material, development material (pairs of other prompts), the split and the phrasings' weights."""

    train: Material
    dev: Material
    splits: splits.Splits
    weights: dict[str, float]
    corpus: corpora.Corpus
    heldout: corpora.Corpus


def load(recipe: Recipe, where: Path) -> Set:
    """Read and check the data of a recipe. Raises ConfigError where something of it is held out."""
    folder = (where.parent / recipe.data.corpus).resolve() if recipe.data.corpus else corpora.FOLDER
    corpus, heldout = corpora.load(folder), corpora.load(folder, heldout=True)
    split = splits.read(folder / splits.FILE.name)
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
    weights = _weights(folder / FOLLOW, recipe.train.sharpness)
    return Set(train, dev, split, weights, corpus, heldout)


def _complete(recipe: Recipe, train: Material, dev: Material, where: str) -> None:
    """Raises ConfigError where the corpus lacks something that the recipe's users are made of."""
    if not train.dimensions or (recipe.train.dev_users and not dev.dimensions):
        raise ConfigError(f"{where}: no pairs are left to {'develop' if train.dimensions else 'train'} on")
    facts, u = set(train.facts), recipe.users
    if (u.silent or u.distractors) and not facts >= {"statement", "post", "profile"}:
        raise ConfigError(f"{where}: no facts for training; users.silent and users.distractors need some of each voice")
    if u.kinds.get("conversation") and not train.reactions.get("pleased"):
        raise ConfigError(f"{where}: no pleased reactions for training; users.kinds.conversation needs some")


def refuse_overlap(corpus: corpora.Corpus, heldout: corpora.Corpus, where: str) -> None:
    """Raises ConfigError naming the first prompt, reply or phrasing that stands both in training and in held-out."""
    trained = {same_text(t): what for what, t in _texts(corpus)}
    for what, text in _texts(heldout):
        if same_text(text) in trained:
            raise ConfigError(f"{where}: held-out {what} is also the training {trained[same_text(text)]}: {text!r:.60}")


def _texts(corpus: corpora.Corpus) -> list[tuple[str, str]]:
    out = [(f"prompt {i}", t) for i, t in corpus.prompts.items()]
    out += [(f"reply of pair {p.id}", t) for p in corpus.pairs for t in p.replies.values()]
    for dimension in corpus.dimensions.values():
        for pole in dimension.poles.values():
            for voice, texts in pole.phrasings.items():
                out += [(f"{voice} of {dimension.id}.{pole.id}", t) for t in texts]
    return out


def _weights(path: Path, sharpness: float) -> dict[str, float]:
    if not sharpness:
        return {}
    try:
        moved = json.loads(path.read_text("utf-8"))["phrasings"]
        return {str(text): math.exp(sharpness * float(nats)) for text, nats in moved.items()}
    except OSError as e:
        raise ConfigError(f"train.sharpness needs {path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
        raise ConfigError(f"{path}: not a table of phrasings: {e}") from None


class Reader:
    """Signals → prompt ids exactly as the runtime makes them, and summaries → completions with what was allowed."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        self.limits = prompts.spec()["limits"]
        self.vocabulary = ClosedVocabulary(
            Lexicon.load(), tokenizer.token_bytes, tokenizer.eos_ids, max_tokens=self.limits["summary_tokens"]
        )
        self._known: dict[int, Ints] = {}

    def prompt(self, signals: tuple[Signal, ...]) -> tuple[int, ...]:
        """The inference prompt's ids, the oldest signals left out where they do not fit."""
        texts = [prompts.signal_text(s, self.tokenizer) for s in signals]
        frame = len(prompts.chat_ids(self.tokenizer, prompts.infer_messages([])))
        room = min(self.limits["infer_tokens"], self.context - self.limits["summary_tokens"]) - frame - 8
        start = window([len(self.tokenizer.encode(t)) for t in texts], room, self.limits["drop_block"])
        return tuple(prompts.chat_ids(self.tokenizer, prompts.infer_messages(texts[start:])))

    def completion(self, text: str) -> tuple[tuple[int, ...], tuple[Ints, ...]]:
        """The summary's ids and the end token; for each, the ids that the closed vocabulary allowed there."""
        ids = (*self.tokenizer.encode(text), self.tokenizer.eos)
        state, allowed = self.vocabulary.start(), []
        for i, token in enumerate(ids):
            allowed.append(self._allowed(state, self.limits["summary_tokens"] - i))
            if token not in allowed[-1]:
                raise ConfigError(f"the summary {text!r:.80} cannot be written under the closed vocabulary")
            if token != self.tokenizer.eos:
                state = self.vocabulary.advance(state, token)
        return ids, tuple(allowed)

    def _allowed(self, state: int, remaining: int) -> Ints:
        if remaining < 12:  # near the limit it depends on how many tokens are left
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


def batch(recipe: Recipe, data: Set, reader: Reader, step: int) -> list[tuple[User, Packed]]:
    """The users of a step, each packed with summaries of their own behind their signals (some after half of them) and,
    where there is a contrast, with one summary of each of the others."""
    t, users = recipe.train, list[User]()
    mix = replace(recipe.users, **EASY) if step < t.easy else recipe.users
    for index in range(step * t.batch, (step + 1) * t.batch):
        name = name_of(recipe, index)
        wants = None
        if users and len(users) % 2 and users[-1].wants and random.Random(f"mirror:{name}").random() < t.mirrored:
            wants = mirror(users[-1].wants, data.train)
        users.append(draw(name, data.train, mix, allows=data.splits.allows, wants=wants))
    own = [_own(recipe, data, reader, user, i) for i, user in enumerate(users)]
    out = []
    for i, user in enumerate(users):
        samples = list(own[i])
        if t.contrast:
            prompt = own[i][0].prompt
            others = {o[0].completion: (j, o[0]) for j, o in enumerate(own) if o[0].completion != own[i][0].completion}
            samples += [replace(s, prompt=prompt, weight=0.0, of=j) for j, s in others.values()]
        out.append((user, pack(samples)))
    return out


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
    texts = {say(wants, data.train, rng, reader.tokenizer, weights=data.weights): None for _ in range(count)}
    if len(texts) == 1 and count > 1 and wants:  # sharp weights make the same phrasing likely
        texts[say(wants, data.train, rng, reader.tokenizer)] = None
    return [reader.sample(prompt, text, 1.0 / len(texts)) for text in texts]


def _wrong(wants: tuple[Want, ...], material: Material, rng: random.Random, turn: int) -> tuple[Want, ...]:
    """Wants near the right ones: one of them the other way round, every second time another dimension instead; and
    where nothing should be said, anything. Every fifth time it is nothing."""
    if wants and turn % 5 == 4:
        return ()
    if not wants or turn % 2:
        dimension = rng.choice([d for d in material.dimensions if d not in {w.dimension for w in wants}])
        other = Want(dimension, rng.choice(sorted(material.words.dimensions[dimension].poles)))
        place = rng.randrange(len(wants)) if wants else 0
        return (*wants[:place], other, *wants[place + 1 :])
    place = rng.randrange(len(wants))
    return (*wants[:place], material.opposite(wants[place]), *wants[place + 1 :])


def dev_example(recipe: Recipe, data: Set, reader: Reader, index: int) -> tuple[User, Packed]:
    """The index-th development user: a summary of their wants, one of the opposite, four others (weight 0).

    Silent users are passed over, as they have no opposite.
    """
    step = 0
    while True:
        user = draw(f"dev:{index}:{step}", data.dev, recipe.users, allows=data.splits.allows)
        if user.wants:
            break
        step += 1
    rng = random.Random(f"say:{user.id}")
    prompt = reader.prompt(user.signals)
    said = [user.wants, mirror(user.wants, data.dev), *(_wrong(user.wants, data.dev, rng, k) for k in range(1, 5))]
    texts = [say(wants, data.dev, rng, reader.tokenizer) for wants in said]
    return user, pack([reader.sample(prompt, t, float(i == 0)) for i, t in enumerate(texts)])
