"""What the summaries of a run of the world say of whose they are, beyond what these people want.

    python -m popi_training.world_leak RUN [--couples N] [--role infer] [--json]

Couples are two people of ``users`` who want the same and showed it by other signals, equally many. The attacker has the
inference model and both people's signals, and says of a summary that it is whose signals make it likelier: the
strongest there is for a model that is known. ``right``: how often that is so (½ is chance; ties count half), ``nats``:
by how much, both of the likeliest summaries and of drawn ones; ``same``: couples of whom both have the same likeliest
summary. ``accuracy``: the targets told right under the likeliest ones by the run's generator, which is what a cost of
the leak may cost. ``--role start``: of the summaries and the model that the joint phase began with.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from popi_edge.cli.common import at_least, launch
from popi_edge.errors import PopiError
from popi_training import world
from popi_training.evaluate.metrics import entry
from popi_training.joint import Joint
from popi_training.loss import scored
from popi_training.pack import pack
from popi_training.people import Person
from popi_training.rollout import Draw, rollout
from popi_training.world_eval import TOGETHER, margins, open_trained


def couples(count: int) -> list[tuple[Person, Person]]:
    """Two people each who want the same, told by as many other signals."""
    out = []
    for k in range(count):
        one, theta = world.draw(f"leak-{k}", "users")
        out.append((one, world.draw(f"leak-{k}-other", "users", len(one.signals), theta=theta)[0]))
    return out


@torch.no_grad()
def drawn(trainer: Joint, people: Sequence[Person], role: str, temperature: float) -> list[Draw]:
    """A summary of each, under the closed vocabulary if the run's are; the likeliest at temperature 0."""
    out: list[Draw] = []
    for i in range(0, len(people), TOGETHER):
        asked = [trainer.reader.prompt(p.signals) for p in people[i : i + TOGETHER]]
        seeds = None if not temperature else list(range(i, i + len(asked)))
        with trainer.roles.playing(role) as model:
            found = rollout(
                model, trainer.reader, asked, group=1, temperature=temperature, seeds=seeds,
                mask=trainer.recipe.joint.mask,
            )  # fmt: skip
        out += [d for (d,) in found]
    return out


@torch.no_grad()
def likelihoods(trainer: Joint, people: Sequence[Person], draws: Sequence[Draw], role: str) -> np.ndarray:
    """log π_φ(z|s) of a summary behind each one's signals, over what was allowed, renormalised, at temperature 1."""
    out: list[float] = []
    for i in range(0, len(people), TOGETHER):
        some = zip(people[i : i + TOGETHER], draws[i : i + TOGETHER], strict=True)
        packs = [pack([d.sample(trainer.reader.prompt(p.signals))]) for p, d in some]
        with trainer.roles.playing(role) as model:
            found = scored(model, packs)
        out += [float(each.sum()) for each in found.logprobs().split([n for p in packs for n in p.sizes])]
    return np.array(out)


def measure(trainer: Joint, count: int, role: str = "infer", seed: int = 0) -> dict[str, Any]:
    """The figures, with intervals over couples."""
    both = couples(count)
    own, others = [p for pair in both for p in pair], [p for a, b in both for p in (b, a)]
    names = [str(k) for k in range(count) for _ in range(2)]
    out: dict[str, Any] = {"couples": count, "role": role}
    for how, temperature in (("likeliest", 0.0), ("drawn", 1.0)):
        draws = drawn(trainer, own, role, temperature)
        apart = likelihoods(trainer, own, draws, role) - likelihoods(trainer, others, draws, role)
        right = np.where(np.abs(apart) < 1e-4, 0.5, (apart > 0).astype(float))
        out[how] = {"right": entry(right, names, seed, "share"), "nats": entry(apart, names, seed, "mean")}
        if how == "likeliest":
            said = [trainer.said(d) for d in draws]
            out["same"] = sum(a == b for a, b in zip(said[::2], said[1::2], strict=True))
            told = margins(trainer, own, said, "generate" if role == "infer" else "reference")
            hit = np.where(told == 0, 0.5, (told > 0).astype(float))
            clusters = [n for n, p in zip(names, own, strict=True) for _ in p.targets]
            out["accuracy"] = entry(hit, clusters, seed)
            out["tokens"] = float(np.mean([len(d.ids) - d.finished for d in draws]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--couples", type=at_least(2), default=300)
    parser.add_argument("--role", choices=["infer", "start"], default="infer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        found = measure(open_trained(options.run), options.couples, options.role)
    except PopiError as e:
        sys.exit(f"world_leak: {e}")
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"accuracy {found['accuracy']['accuracy']:.3f}, {found['tokens']:.1f} tokens, {found['same']} of "
          f"{found['couples']} couples have the same summary")  # fmt: skip
    for how in ("likeliest", "drawn"):
        print(f"{how}: whose it is {found[how]['right']['share']:.3f}, by {found[how]['nats']['mean']:.2f} nats")


if __name__ == "__main__":
    launch(main)
