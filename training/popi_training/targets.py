"""Our corpus as people: users made from it, each with held-out pairs of what they want."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from popi_edge.signals import Signal
from popi_training import warm
from popi_training.people import Person, Target
from popi_training.recipe import Recipe
from popi_training.users import Material, User, draw


def batch(recipe: Recipe, data: warm.Set, reader: warm.Reader, step: int) -> list[Person]:
    """The people of a step: those of ``warm.users_of``, each with targets enough to reward and to learn from.

    The two of a couple, who are opposite in everything, have the same targets the other way round, so that no reply is
    better than the other whoever asks.
    """
    j = recipe.joint
    count = j.pairs + (0 if j.shared_pairs else j.dpo_pairs * j.group)
    people = []
    for user in warm.users_of(recipe, data, step):
        oracle = reader.say(user.wants, data.train, random.Random(f"say:{user.id}"), data.weights)
        person = _person(user, data.train, count, recipe.seed, oracle)
        people.append(replace(person, alike=_alike(recipe, data, user)) if j.identity else person)
    return people


def _alike(recipe: Recipe, data: warm.Set, user: User) -> tuple[tuple[Signal, ...], ...]:
    """The signals of ``joint.alike`` others who want the same; nobody's, of somebody who wants nothing."""
    names = [f"{user.id}:alike:{k}" for k in range(recipe.joint.alike if user.wants else 0)]
    return tuple(draw(name, data.train, recipe.users, wants=user.wants).signals for name in names)


def dev_couple(recipe: Recipe, data: warm.Set, index: int) -> list[Person]:
    """The index-th couple of development: signals of training pairs, targets of the prompts kept for development."""
    users = warm.couple(f"joint-dev:{index}", data.shown, recipe.users, data.splits)
    return [_person(user, data.dev, recipe.joint.pairs, recipe.seed) for user in users]


def _person(user: User, material: Material, count: int, seed: int, oracle: str = "") -> Person:
    """A user with up to ``count`` targets about what they want, on prompts that their signals are not about."""
    name = re.sub(r"(:\d+):[01]$", r"\1", user.id)  # both of a couple are called by the couple's name and a number
    rng = random.Random(f"targets:{seed}:{name}")
    asked = {text for signal in user.signals for text in signal.texts()}
    wanted = {want.dimension: want.pole for want in user.wants}
    pairs = [p for d in sorted(wanted) for p in material.pairs.get(d, ())]
    rng.shuffle(pairs)
    targets: dict[str, Target] = {}
    for pair in pairs:
        prompt = material.corpus.prompts[pair.prompt]
        if len(targets) < count and prompt not in asked and prompt not in targets:
            pole = wanted[pair.dimension]
            other = next(p for p in sorted(pair.replies) if p != pole)
            targets[prompt] = Target(prompt, pair.replies[pole], pair.replies[other])
    return Person(user.id, user.signals, tuple(targets.values()), oracle)
