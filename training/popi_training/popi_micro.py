"""popi-micro: a pair of small models, trained from nothing in the controlled world.

Both learn the world's words from scratch. Their reference is what they are at the end of the warm start, in which the
inference model imitates what somebody would say who only counts (``world.counted``): all of it is there to be read in
the signals, but it is not the summary that helps the generator most. That one has to be found by the joint objective.
While it does so its states are held to what the signals say in numbers, the exact posterior means (``dense``). The
generator learns under the truth, which it can learn to follow in a few hundred steps, and by and by half under what is
counted, with DPO's labels smoothed: otherwise it is so sure of itself that a summary which is half right costs more
than one that says nothing, and the inference model learns to say nothing.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from popi_edge import prompts
from popi_training import micro, warm, world
from popi_training.dense import Dense
from popi_training.joint import Joint
from popi_training.people import Person
from popi_training.recipe import Recipe
from popi_training.roles import Models
from popi_training.train import digest, recipe_hash

SUMMARIES, LEAST = 96, 12
"""Summaries that a step of the warm start imitates, and the people whose they are at the least."""
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
def reader() -> warm.Reader:
    """The tokenizer of the world under the prompt contract, read as a device would from a GGUF file."""
    words = micro.vocabulary(world.vocabulary_texts(), VOCABULARY, phrases())
    with tempfile.TemporaryDirectory(prefix="popi-micro-") as folder:
        path = Path(folder) / "words.gguf"
        micro.write(path, micro.untrained(len(words[0]), 0), words)
        return warm.Reader.of(path)


def people(recipe: Recipe, step: int) -> list[Person]:
    """The people of a step, none of whom comes back in another.

    While warming up they have one signal for a while, then more and more, and each is there once for every number of
    signals up to that, in a row, so that what those have in common is read once; the fewer signals, the more people.
    ``train.batch`` of them have targets for the generator."""
    warm, law = step < recipe.joint.warm, world.bayes()
    most, made = _most(recipe, step), list[Person]()
    for i in range(count(recipe, step)):
        person, _ = world.draw(f"{recipe.seed}-{step}-{i}", "train", most if warm else None)
        last = len(person.signals)
        means = law.means(person.signals) if warm and recipe.joint.dense else np.zeros((0, 0))
        best = law.best_summaries(law.posteriors(person.signals)[:most]) if warm else []
        for k in range(1, most + 1) if warm else [last]:
            told = world.say(best[k - 1]) if warm else ""
            targets = person.targets if k == last and i < recipe.train.batch else ()
            known = tuple(map(tuple, means[:k].tolist()))
            made.append(replace(person, signals=person.signals[:k], told=told, targets=targets, known=known))
    return made


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


def open_run(recipe: Recipe, device: str) -> Joint:
    """Both models, drawn by the recipe's seed, and the world."""
    read = reader()
    models = [micro.untrained(len(read.tokenizer), 2 * recipe.seed + k, recipe.scratch).to(device) for k in range(2)]
    made = {
        "recipe": recipe_hash(recipe),
        "world": digest([dict(world.WORLD), asdict(recipe.scratch), json.loads(json.dumps(world.SEEDS))]),
        **({"device": device} if device != "cpu" else {}),
    }
    joint = Joint(recipe, read, Models(*models), functools.partial(people, recipe), couple, made, device)
    joint.at_once = AT_ONCE
    if recipe.joint.dense:
        joint.dense = Dense(recipe.joint.dense, read.tokenizer.encode(END)[0])
    return joint
