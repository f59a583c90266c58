"""A run of popi-micro in the world: every condition beside the Bayes predictor, on people that nothing was trained on.

    python -m popi_training.world_eval RUN [--users N] [--json]

Conditions, each with accuracy (m > 0, ties ½) and contrast (m under the own summary against m under that of the
opposite person, on the same pair), intervals clustered by person:

    none               the trained generator without a summary
    raw                the same with the signals themselves before it, which it was never taught to read
    raw_untrained      the generator as it was drawn, with the signals before it
    untrained_summary  what the inference model as it was drawn writes, under the trained generator
    warm_summary       the warm start's summary under the generator of the warm start
    warm_in_joint      the same summary under the trained generator
    summary            the trained pair
    shuffled_summary   another person's summary
    constant_summary   of the summaries that were written, the one that is best for everybody
    counted_summary    what somebody would say who only counts
    best_summary       what the exact posterior means of the same signals say in words (world.Bayes.summaries)
    oracle_summary     the truth
    bayes              no summary: the exact predictor from the same signals, who knows of which part somebody is
    bayes_any          the same who does not know: of all users alike

``gap_closed`` is (value − none)/(bayes − none), ½ standing for none in contrast. ``worth`` is the reward less the
costs of its recipe (nats; ``popi_training.objective``), here of the likeliest summary: what the joint phase maximizes,
without what it pays for moving away from the warm start (``kl``) and for identity. ``f1``: of the poles named against
those wanted. ``tests``: paired differences between conditions. ``baselines``: the longer reply.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from popi_edge import config, prompts
from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.signals import Signal
from popi_training import objective, popi_micro, train, world
from popi_training import recipe as recipes
from popi_training.evaluate.conditions import CONDITIONS
from popi_training.evaluate.metrics import Outcome, Values, baseline, comparisons, entry, gap_closed, longer
from popi_training.evaluate.run import short_margins
from popi_training.joint import Joint
from popi_training.loss import pair_logprobs
from popi_training.people import Person, leaks
from popi_training.roles import Roles
from popi_training.rollout import rollout
from popi_training.runfolder import RECIPE

PARTS = ("users", "combinations", "phrasings")
TOGETHER = 16
"""People whose summaries are drawn at once."""


def open_trained(run: Path) -> Joint:
    """The trainer of a run of the world with what it learnt. Raises ConfigError, ModelError."""
    recipe = recipes.read(run / RECIPE)
    if not recipe.data.world:
        raise ConfigError(f"{run} is no run of the controlled world; its recipe has not data.world")
    trainer = train.open_run(recipe, run / RECIPE, config.load())
    trainer.restore(run)
    assert isinstance(trainer, Joint)
    return trainer


@torch.no_grad()
def written(trainer: Joint, people: Sequence[Person], role: str, roles: Roles | None = None) -> list[str]:
    """The likeliest summary of everybody, by ``infer`` or by ``start`` of the trainer's roles, or of others."""
    said: list[str] = []
    for i in range(0, len(people), TOGETHER):
        asked = [trainer.reader.prompt(p.signals) for p in people[i : i + TOGETHER]]
        with (roles or trainer.roles).playing(role) as model:
            drawn = rollout(model, trainer.reader, asked, group=1, temperature=0.0, mask=trainer.recipe.joint.mask)
        said += [trainer.said(d) for (d,) in drawn]
    return said


@torch.no_grad()
def margins(trainer: Joint, people: Sequence[Person], texts: Sequence[str], role: str = "generate") -> np.ndarray:
    """m of everybody's targets under a summary each, [people × targets], by ``generate`` or ``reference``."""
    asked = [(z, t) for p, z in zip(people, texts, strict=True) for t in p.targets]
    once = list(dict.fromkeys(asked))
    found = trainer.ratios(role, once) - trainer.references([t for _, t in once])
    value = dict(zip(once, found.tolist(), strict=True))
    return np.array([value[a] for a in asked], np.float64)


def evaluate(trainer: Joint, part: str, users: int, *, seed: int = 0, signals: int | None = None) -> dict[str, Any]:
    """The table of a part's first users; ``signals``: so many each (default: as drawn)."""
    return examined(trainer, part, users, seed=seed, signals=signals)[0]


Listing = list[dict[str, Any]]


def examined(
    trainer: Joint, part: str, users: int, *, seed: int = 0, signals: int | None = None
) -> tuple[dict[str, Any], Listing, Listing]:
    """The same, and its summaries after training and before, a line for each target, as ``popi eval`` lists them."""
    drawn = [world.draw(str(i), part, signals) for i in range(users)]
    own, truth = [p for p, _ in drawn], [theta for _, theta in drawn]
    both = [*own, *(world.opposite(p) for p in own)]
    law = world.bayes()
    posterior = [law.posterior(p.signals, part) for p in own]
    best = law.summaries(np.array(posterior))
    summary, warm = written(trainer, both, "infer"), written(trainer, both, "start")
    fresh = popi_micro.drawn(trainer.recipe, trainer.device)
    said: dict[str, list[str]] = {
        "none": [""] * 2 * users,
        "untrained_summary": written(trainer, both, "infer", fresh),
        "warm_in_joint": warm,
        "summary": summary,
        "shuffled_summary": [*summary[1:], summary[0]],
        "counted_summary": [world.say(world.counted(p.signals)) for p in both],
        "best_summary": [world.say(w) for w in best] + [world.mirror(world.say(w)) for w in best],
        "oracle_summary": [p.oracle for p in both],
    }
    said["constant_summary"] = [_constant(trainer, own, summary[:users])] * 2 * users
    found = {name: _outcome(trainer, own, texts) for name, texts in said.items()}
    found["warm_summary"] = _outcome(trainer, own, warm, "reference")
    found |= {"raw": _read(trainer, both, trainer.roles), "raw_untrained": _read(trainer, both, fresh)}
    found["bayes"] = _predicted(own, posterior)
    found["bayes_any"] = _predicted(own, [law.posterior(p.signals, "any") for p in own])
    clusters = [p.id for p in own for _ in p.targets]
    length = {name: [len(trainer.reader.tokenizer.encode(t)) for t in texts[:users]] for name, texts in said.items()}
    length["warm_summary"] = length["warm_in_joint"]
    worths = {name: _worth(trainer, found[name], tokens) for name, tokens in length.items()}
    length |= {name: found[name].tokens.tolist() for name in ("raw", "raw_untrained")}
    conditions: dict[str, dict[str, Any]] = {
        name: entry(o.right, clusters, seed) | entry(o.beats, clusters, seed, "contrast")
        | {"tokens": float(np.mean(length.get(name, 0)))}
        for name, o in found.items()
    }
    for name, worth in worths.items():
        conditions[name] |= entry(worth, clusters, seed, "worth")
    none = {"accuracy": conditions["none"]["accuracy"], "contrast": 0.5}
    table = {
        "part": part,
        "signals": signals,
        "conditions": conditions,
        "gap_closed": {
            name: {k: gap_closed(c[k], none[k], conditions["bayes"][k]) for k in none}
            for name, c in conditions.items()
            if name != "none"
        },
        "baselines": {"longer": _longer(trainer, own, clusters, seed)},
        "tests": comparisons(found, clusters, seed=seed),
        "users": users,
        "pairs": len(clusters),
        "prompts": len({t.prompt for p in own for t in p.targets}),
        "distinct_summaries": len(set(summary[:users])),
        "truncated": float(np.mean([n >= trainer.reader.limits["summary_tokens"] for n in length["summary"]])),
        "leak_rate": float(np.mean([leaks(z, p.signals) > 0 for z, p in zip(summary[:users], own, strict=True)])),
        "f1": {name: _f1(said[name][:users], truth) for name in ("summary", "warm_in_joint", "best_summary")},
        "rows": {n: [round(float(v), 4) for v in found[n].right] for n in ("summary", "warm_summary", "bayes")},
        "worth_rows": {n: [round(float(v), 4) for v in worths[n]] for n in ("summary", "warm_summary")},
    }
    after = _listed(part, own, summary, length["summary"], {n: found[n] for n in CONDITIONS})
    return table, after, _listed(part, own, warm, length["warm_summary"], {"summary": found["warm_summary"]})


def _listed(
    part: str, own: Sequence[Person], texts: Sequence[str], tokens: Sequence[float], found: Mapping[str, Outcome]
) -> Listing:
    rows = [(i, k, p) for i, p in enumerate(own) for k in range(len(p.targets))]
    margins = [
        {name: short_margins(float(o.own[n]), float(o.other[n])) for name, o in found.items()}
        for n in range(len(rows))
    ]
    return [
        {"row": f"{part}:{i}:{k}", "cluster": p.id, "persona": part, "profile": False, "status": "draft",
         "tokens": tokens[i], "text": texts[i], "margins": m}
        for (i, k, p), m in zip(rows, margins, strict=True)
    ]  # fmt: skip


def _predicted(own: Sequence[Person], posteriors: Sequence[world.Values]) -> Outcome:
    law = world.bayes()
    certain = [law.predict(q, t) - 0.5 for p, q in zip(own, posteriors, strict=True) for t in p.targets]
    sure = np.array(certain).round(9)
    return Outcome(sure, -sure, np.zeros(len(sure)))


def _read(trainer: Joint, both: Sequence[Person], roles: Roles) -> Outcome:
    """People's targets behind their own signals, and behind those of the second half, who are their opposites."""
    users, read = len(both) // 2, trainer.reader.tokenizer
    own, bare = both[:users], _behind(trainer, both[:users], [None] * users, roles, "reference")
    ours, theirs = (
        (_behind(trainer, own, [p.signals for p in both[k : k + users]], roles, "generate") - bare).double().numpy()
        for k in (0, users)
    )
    tokens = [len(read.encode(prompts.raw_system(p.signals, read))) for p in own for _ in p.targets]
    return Outcome(ours, theirs, np.array(tokens, np.float64))


@torch.no_grad()
def _behind(
    trainer: Joint, people: Sequence[Person], told: Sequence[Sequence[Signal] | None], roles: Roles, role: str
) -> torch.Tensor:
    """log π(y⁺|x,s) − log π(y⁻|x,s) of everybody's targets behind the signals told of them, or none, by a role of
    those, [people × targets]."""
    tokenizer = trainer.reader.tokenizer
    asked = [(signals, t) for p, signals in zip(people, told, strict=True) for t in p.targets]
    contexts = [prompts.generate_ids(tokenizer, t.prompt, signals=signals) for signals, t in asked]
    replies = [(prompts.reply_ids(tokenizer, t.chosen), prompts.reply_ids(tokenizer, t.rejected)) for _, t in asked]
    with roles.playing(role) as model:
        likely = torch.cat([
            pair_logprobs(model, contexts[i : i + TOGETHER], replies[i : i + TOGETHER], TOGETHER)
            for i in range(0, len(asked), TOGETHER)
        ])
    return likely[:, 0] - likely[:, 1]


def _longer(trainer: Joint, own: Sequence[Person], clusters: Sequence[str], seed: int) -> dict[str, float | None]:
    """What who knows nobody has by the longer reply, in tokens."""
    encode = trainer.reader.tokenizer.encode
    right = longer([(len(encode(t.chosen)), len(encode(t.rejected))) for p in own for t in p.targets])
    return baseline(right, clusters, seed)


def _outcome(trainer: Joint, own: Sequence[Person], texts: Sequence[str], role: str = "generate") -> Outcome:
    users = len(own)
    ours, theirs = (margins(trainer, own, texts[k : k + users], role) for k in (0, users))
    return Outcome(ours, theirs, np.zeros(len(ours)))


def _worth(trainer: Joint, outcome: Outcome, length: Sequence[int]) -> Values:
    """Reward less costs (nats) of everybody's ended summary, ``length`` tokens and an end token, on each of their
    targets, [people × targets]."""
    j, each = trainer.recipe.joint, len(outcome.own) // len(length)
    tokens = torch.tensor([n + 1 for n in length for _ in range(each)])
    costs = objective.costs(
        tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.float64),
        budget=j.budget, length=j.length, truncation=j.truncation, leaking=j.leak,
    )  # fmt: skip
    reward = objective.reward(torch.from_numpy(outcome.own)[:, None], j.beta)
    found: Values = (reward - costs).numpy()
    return found


def _constant(trainer: Joint, people: Sequence[Person], texts: Sequence[str]) -> str:
    """Of the ten summaries written most often the one under which most targets of these people are told right: chosen
    on those that judge it, so at least as good as it would be elsewhere."""
    often = [text for text, _ in Counter(texts).most_common(10)]
    return max(often, key=lambda z: float((margins(trainer, people[:100], [z] * len(people[:100])) > 0).mean()))


def poles(summary: world.Summary) -> set[tuple[int, bool]]:
    """What a summary names, whatever the degree: attributes, and whether it is their first pole."""
    return {(a, degree > 0) for a, degree in summary}


def _f1(texts: Sequence[str], truth: Sequence[world.Type]) -> float:
    """Of the poles named against those wanted, over all people together."""
    right = named = wanted = 0
    for text, theta in zip(texts, truth, strict=True):
        a, b = poles(world.read(text)), poles(world.truth(theta))
        right, named, wanted = right + len(a & b), named + len(a), wanted + len(b)
    return 2 * right / (named + wanted) if named + wanted else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "dev"], default=PARTS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.users < 2:
        sys.exit("world_eval: an interval needs at least two users")
    try:
        trainer = open_trained(options.run)
        tables = [evaluate(trainer, part, options.users) for part in options.parts]
    except PopiError as e:
        sys.exit(f"world_eval: {e}")
    if options.json:
        print(json.dumps({"run": trainer.recipe.name, "step": trainer.step, "parts": tables}, indent=1))
    else:
        print("\n".join(map(text, tables)))


def text(table: dict[str, Any]) -> str:
    """A table for reading."""
    lines = [
        f"{table['part']}: {table['users']} people, {table['distinct_summaries']} different summaries; poles named, F1 "
        f"{table['f1']['summary']:.2f}; as long as may be {table['truncated']:.2f}, with words in a row of the signals "
        f"{table['leak_rate']:.2f}"
    ]
    for name, c in table["conditions"].items():
        gap = table["gap_closed"].get(name, {}).get("accuracy")
        closed = "" if gap is None else f"  gap {gap:.2f}"
        lines.append(
            f"  {name:17} {c['accuracy']:.3f} [{c['low']:.3f}, {c['high']:.3f}]  contrast {c['contrast']:.3f}  "
            f"{c['tokens']:.1f} tokens{closed}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    launch(main)
