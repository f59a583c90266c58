"""What the supervised warm start of ``infer`` learns from: users drawn by name, and what a summary would say."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
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
    weights = _weights(folder / FOLLOW, recipe.train.sharpness)
    return Set(train, dev, split, weights, corpus, heldout)


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


def example(recipe: Recipe, data: Set, reader: Reader, index: int) -> tuple[User, Packed]:
    """The index-th training user, and their signals with summaries behind them, some after half of the signals."""
    name = name_of(recipe, index)
    user = draw(name, data.train, recipe.users, allows=data.splits.allows)
    rng = random.Random(f"say:{name}")
    samples = _samples(recipe.train.phrasings, user.signals, user.wants, data, reader, rng)
    half = len(user.signals) // 2
    if recipe.train.halfway and half >= 2:
        samples += _samples(recipe.train.halfway, user.signals[:half], user.upto[half - 1], data, reader, rng)
    return user, pack(samples)


def _samples(
    count: int, signals: tuple[Signal, ...], wants: tuple[Want, ...], data: Set, reader: Reader, rng: random.Random
) -> list[Sample]:
    prompt = reader.prompt(signals)
    texts = {say(wants, data.train, rng, reader.tokenizer, weights=data.weights) for _ in range(count)}
    return [reader.sample(prompt, text, 1.0 / len(texts)) for text in sorted(texts)]


def dev_example(recipe: Recipe, data: Set, reader: Reader, index: int) -> tuple[User, Packed]:
    """The index-th development user: two summaries of their wants, then two of the opposite wants (weight 0).

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
    texts = [say(user.wants, data.dev, rng, reader.tokenizer) for _ in range(2)]
    texts += [say(mirror(user.wants, data.dev), data.dev, rng, reader.tokenizer) for _ in range(2)]
    return user, pack([reader.sample(prompt, t, float(i < 2)) for i, t in enumerate(texts)])
