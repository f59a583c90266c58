"""popi-micro: both roles trained from nothing in the controlled world, where what can be known is known.

A person of the world has one signal at first and up to eight at the end of the warm start, in which the generator
learns under the truth and the inference model imitates what somebody would say who only counts (``world.counted``): all
of it is there to be read in the signals, but it is not the summary that helps the generator most. That one has to be
found by the joint objective.
"""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from popi_training import micro, warm, world
from popi_training.joint import Joint
from popi_training.people import Person
from popi_training.recipe import Recipe
from popi_training.roles import Models
from popi_training.train import digest, recipe_hash

VOCABULARY = 1_000
"""Tokens at most; the world has fewer, each of its words one."""


@functools.cache
def reader() -> warm.Reader:
    """The tokenizer of the world under the prompt contract, read as a device would from a GGUF file."""
    words = micro.vocabulary(world.vocabulary_texts(), VOCABULARY)
    with tempfile.TemporaryDirectory(prefix="popi-micro-") as folder:
        path = Path(folder) / "words.gguf"
        micro.write(path, micro.untrained(len(words[0]), 0), words)
        return warm.Reader.of(path)


def people(recipe: Recipe, step: int) -> list[Person]:
    """The people of a step; while warming up with few signals at first. Every person is seen once."""
    t, j = recipe.train, recipe.joint
    share = (step + 1) / (0.6 * j.warm) if step < j.warm else 1.0
    most = min(world.SIGNALS, 1 + int(share * (world.SIGNALS - 1)))
    made = []
    for i in range(t.batch):
        person, _ = world.draw(f"{recipe.seed}-{step * t.batch + i}", "train")
        kept = person.signals[: 1 + (len(person.signals) - 1) % most]
        made.append(replace(person, signals=kept, told=world.say(world.counted(kept))))
    return made


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
    return Joint(recipe, read, Models(*models), functools.partial(people, recipe), couple, made, device)
