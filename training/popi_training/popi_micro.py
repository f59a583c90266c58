"""popi-micro: a pair of small models, trained from nothing in the controlled world.

Both learn the world's words from scratch. Their reference is what they are at the end of the warm start, in which the
inference model imitates what the exact posterior means say in words (``Bayes.summaries``), while its states are held
to the same in numbers: these means, and the degree in which this summary names each attribute (``dense``). What a
generator makes of a summary beyond its words has to be found by the joint objective. The generator learns under what
is imitated too, on pairs judged as by somebody who wants just that, so that it follows to the letter: the choices of
the person themselves, of whom a summary says only part, teach the same far more slowly. DPO's labels are smoothed:
otherwise it is so sure of itself that a summary which is half right costs more than one that says nothing, and the
inference model learns to say nothing.
"""

from __future__ import annotations

import functools
import json
import random
import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from popi_edge import prompts
from popi_edge.errors import ConfigError
from popi_edge.signals import Comparison, Rating, Signal
from popi_training import micro, warm, world
from popi_training.dense import Dense
from popi_training.joint import Joint
from popi_training.people import Person
from popi_training.recipe import Recipe
from popi_training.roles import Models
from popi_training.team import several
from popi_training.train import digest, recipe_hash

SUMMARIES, LEAST = 96, 12
"""Summaries that a step of the warm start imitates, and the people whose they are at the least."""
STRESSED = 2
"""What the degree in which a summary names an attribute is divided by beside the posterior means, which are below 2."""
STIRRED = 0.5
"""How likely a reply that is trained on has its words in another order."""
END = "\n\n"
"""What a signal ends with."""
AT_ONCE = 24
"""Packed sequences that go through such a small model at once: a call takes longer than what it computes."""
VOCABULARY = 1_000
"""Tokens at most; the world has fewer, each of its words one."""


def phrases() -> list[str]:
    """What the prompt contract and the world always say in the same words: a token each, so that a prompt is half as
    long. Where one ends as another begins no text of the world joins the two, so that it has but one reading."""
    spec = prompts.spec()
    fixed = [spec["infer_system"], spec["infer_user"], spec["bare_system"], *(spec["signals"][k] for k in world.SHARES)]
    quoted = re.sub(r"{(?!score|signals|previous)(?=\w)", lambda m: spec["quote"] + m.group(), "\0".join(fixed))
    asked = [p.partition(" {}")[0] for p in world.WORLD["prompts"]]
    parts = [part.strip("\n").removeprefix(" ") for part in re.split(r"{\w+}|\0", quoted)]
    return list(dict.fromkeys([END, *(p for p in parts if " " in p), *asked]))


@functools.cache
def words() -> tuple[list[str], list[str], list[int]]:
    """The world's vocabulary, as ``micro.write`` takes it."""
    return micro.vocabulary(world.vocabulary_texts(), VOCABULARY, phrases())


@functools.cache
def reader() -> warm.Reader:
    """The tokenizer of the world under the prompt contract, read as a device would from a GGUF file."""
    with tempfile.TemporaryDirectory(prefix="popi-micro-") as folder:
        path = Path(folder) / "words.gguf"
        micro.write(path, micro.untrained(len(words()[0]), 0), words())
        return warm.Reader.of(path)


def people(recipe: Recipe, step: int) -> list[Person]:
    """The people of a step, none of whom comes back in another.

    While warming up they have one signal for a while, then more and more, and each is there once for every number of
    signals up to that, in a row, so that what those have in common is read once; the fewer signals, the more people.
    ``train.batch`` of them have targets for the generator."""
    warm, most, made = step < recipe.joint.warm, _most(recipe, step), list[Person]()
    for i in range(count(recipe, step)):
        name = f"{recipe.seed}-{step}-{i}"
        person, theta = world.draw(name, "train", most if warm else None)
        person = _stirred(person)
        if recipe.joint.identity and not warm:
            person = replace(person, alike=tuple(
                _stirred(world.draw(f"{name}-alike-{k}", "train", len(person.signals), theta=theta)[0]).signals
                for k in range(recipe.joint.alike)
            ))  # fmt: skip
        if i >= recipe.train.batch:
            person = replace(person, targets=())
        made += _upto(person, recipe) if warm else [person]
    return made


def _stirred(person: Person) -> Person:
    """The same person, every other reply (drawn) with its words in any order: the world has so few frames to train on
    that a model learns these by heart and loses its way in others."""
    rng = random.Random(f"stir:{person.id}")

    def stir(reply: str) -> str:
        some = reply.split()
        if rng.random() < STIRRED:
            rng.shuffle(some)
        return " ".join(some)

    def stirred(signal: Signal) -> Signal:
        match signal:
            case Comparison(chosen=c, rejected=r):
                return replace(signal, chosen=stir(c), rejected=stir(r))
            case Rating(response=r):
                return replace(signal, response=stir(r))
        return signal

    targets = tuple(replace(t, chosen=stir(t.chosen), rejected=stir(t.rejected)) for t in person.targets)
    return replace(person, signals=tuple(map(stirred, person.signals)), targets=targets)


def _upto(person: Person, recipe: Recipe) -> list[Person]:
    """Somebody after each of their signals, with what so many say and some of their targets, as that decides them;
    where it is asked for also with what these signals say, in numbers, and in other words than the generator is given.

    What they say is reckoned by somebody who knows of all users alike, not which wants no training user has together:
    otherwise the model learns that there are no such people.
    """
    law = world.bayes()
    posteriors = law.posteriors(person.signals)
    best = law.summaries(posteriors)
    degrees = np.array([[dict(said).get(a, 0) for a in range(len(world.ATTRIBUTES))] for said in best]) / STRESSED
    known = np.concatenate([posteriors @ law.types, degrees], 1)[: len(best) if recipe.joint.dense else 0]
    words = random.Random(f"say:{person.id}") if recipe.joint.other_words else None
    second = world.UNHEARD if recipe.joint.unheard_words else ()
    return [
        replace(
            person, signals=person.signals[:k], oracle=world.say(said, words, second), heard=world.say(said),
            known=tuple(map(tuple, known[:k].tolist())), targets=world.judged(said, person.targets[k - 1 :: len(best)]),
        )
        for k, said in enumerate(best, 1)
    ]  # fmt: skip


def count(recipe: Recipe, step: int) -> int:
    """How many different people a step has."""
    return max(LEAST, SUMMARIES // _most(recipe, step)) if step < recipe.joint.warm else recipe.train.batch


def _most(recipe: Recipe, step: int) -> int:
    """The most signals of anybody: one for the first fifth of the warm start, all from its last fifth on."""
    share = step / recipe.joint.warm if step < recipe.joint.warm else 1.0
    return min(world.SIGNALS, 1 + int(max(0.0, share - 0.2) / 0.6 * (world.SIGNALS - 1)))


def couple(index: int) -> list[Person]:
    """The index-th person of development and their opposite, on the same targets."""
    person, _ = world.draw(f"{index}", "dev")
    return [person, world.opposite(person)]


def drawn(recipe: Recipe, device: str) -> Models:
    """Both models as the recipe's seed draws them: what training begins with."""
    size = len(reader().tokenizer)
    return Models(*(micro.untrained(size, 2 * recipe.seed + k, recipe.scratch).to(device) for k in range(2)))


def open_run(recipe: Recipe, device: str) -> Joint:
    """Both models, drawn by the recipe's seed, and the world. Raises ConfigError in several processes: the people of a
    step that warms up cannot be shared out evenly."""
    if several():
        raise ConfigError("the controlled world is trained in one process")
    models = drawn(recipe, device)
    made = {
        "recipe": recipe_hash(recipe),
        "world": digest([dict(world.WORLD), asdict(recipe.scratch), json.loads(json.dumps(world.SEEDS))]),
        **({"device": device} if device != "cpu" else {}),
    }
    joint = Joint(recipe, reader(), models, functools.partial(people, recipe), couple, made, device)
    joint.at_once = AT_ONCE
    if recipe.joint.dense:
        joint.dense = Dense(recipe.joint.dense, reader().tokenizer.encode(END)[0])
    return joint
