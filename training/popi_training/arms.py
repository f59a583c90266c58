"""The schedules against each other in the controlled world: one warm start a seed, every arm from there, same budget.

    python -m popi_training.arms RECIPE --out DIR [--seeds 1 2] [--users 400] [--arms ...] [--json]

Equal budget is equal rewarded summaries, equal DPO pairs and the same course of rates over a role's own moves:
``alternating`` and ``sequential`` move one role a step and get twice the steps of the joint phase (those that move the
generator draw summaries of their own for it), ``frozen`` and ``shuffled_rewards`` (the control: rewards in another
order within each group) learn no DPO pairs at all. A folder holds every arm as a run of its own; the same command goes
on where it stopped. Two arms differ, in accuracy or in ``worth`` (``popi_training.world_eval``), only where both agree:
a paired t-test over the seeds' means (Holm over all of one metric) and a bootstrap over people.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge import config
from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.files import whole_file
from popi_training import recipe as recipes
from popi_training import train, world_eval
from popi_training.evaluate.metrics import difference, gap_closed
from popi_training.joint import Joint
from popi_training.runfolder import CHECKPOINT

ARMS: Mapping[str, tuple[str, int, bool]] = {
    "frozen": ("frozen", 1, False),
    "sequential": ("sequential", 2, False),
    "alternating": ("alternating", 2, False),
    "simultaneous": ("simultaneous", 1, False),
    "shuffled_rewards": ("frozen", 1, True),
}
"""Arm → schedule, steps as a multiple of the recipe's joint phase, whether rewards are shuffled."""


def of_arm(recipe: recipes.Recipe, arm: str, seed: int) -> recipes.Recipe:
    """The recipe of an arm, told from the others by its text, which a run remembers."""
    schedule, times, shuffled = ARMS[arm]
    warm = recipe.joint.warm
    steps = warm + times * (recipe.train.steps - warm)
    text = recipe.text
    for key, value in (("seed", seed), ("steps", steps), ("schedule", f'"{schedule}"')):
        text = _set(text, key, value)
    if shuffled:
        text = text.replace("[joint]", "[joint]\nshuffled_rewards = true", 1)
    return recipes.parse(text, f"the arm {arm} of {recipe.name}")


def _set(text: str, key: str, value: object) -> str:
    lines = text.splitlines()
    found = [i for i, line in enumerate(lines) if line.partition("=")[0].strip() == key]
    if len(found) != 1:
        raise ConfigError(f"the recipe must set {key} exactly once to be run in arms")
    lines[found[0]] = f"{key} = {value}"
    return "\n".join(lines) + "\n"


def run_arm(recipe: recipes.Recipe, arm: str, seed: int, out: Path, warm: Path) -> Joint:
    """Train an arm to its end in ``out`` from the warm start in ``warm``, or go on with it. Its rates are its own: the
    warm start may be another recipe's."""
    own = of_arm(recipe, arm, seed)
    trainer = train.open_run(own, Path(f"{own.name}.toml"), config.load())
    assert isinstance(trainer, Joint)
    if not (out / CHECKPOINT).exists():
        state = train.read_checkpoint(warm / CHECKPOINT)
        trainer.roles.load(state["adapters"])
        rates = [group["base_lr"] for group in trainer.optimizer.param_groups]
        trainer.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
            group["base_lr"] = rate
        trainer.step = state["step"]
        out.mkdir(parents=True, exist_ok=True)
        trainer.save(out)
    train.run(trainer, out, until=own.train.steps, minutes=None, tell=_tell(arm, seed))
    return trainer


def warm_start(recipe: recipes.Recipe, seed: int, out: Path) -> None:
    """The warm start that a seed's arms share: the recipe up to its joint phase."""
    own = of_arm(recipe, "simultaneous", seed)
    trainer = train.open_run(own, Path(f"{own.name}.toml"), config.load())
    train.run(trainer, out, until=own.joint.warm, minutes=None, tell=_tell("warm start", seed))


def _tell(what: str, seed: int) -> train.Tell:
    def tell(step: int, last: int, line: Mapping[str, Any]) -> None:
        if step % 50 == 0 or step == last:
            print(f"seed {seed}, {what}: step {step} of {last}, loss {line['loss']:.3f}", file=sys.stderr, flush=True)

    return tell


def measured(
    recipe: recipes.Recipe, out: Path, seeds: Sequence[int], arms: Sequence[str], users: int
) -> dict[str, Any]:
    """Tables of every seed and arm, written one by one beside the runs; what is there already is not made again."""
    found: dict[str, Any] = {}
    for seed in seeds:
        folder = out / f"seed-{seed}"
        warm_start(recipe, seed, folder / "warm")
        for arm in arms:
            done = folder / arm / f"table-{users}.json"
            if not done.exists():
                trainer = run_arm(recipe, arm, seed, folder / arm, folder / "warm")
                tables = [world_eval.evaluate(trainer, part, users) for part in world_eval.PARTS]
                with whole_file(done) as file:
                    file.write(json.dumps(tables).encode())
            found[f"{seed}/{arm}"] = _tables(done)
    return found


def _tables(path: Path) -> list[dict[str, Any]]:
    """An arm's tables, one a part. Raises ConfigError for a file that is damaged or that an older program wrote."""
    try:
        tables: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
        if len(tables) == len(world_eval.PARTS) and all("worth_rows" in table for table in tables):
            return tables
    except (ValueError, TypeError):
        pass
    raise ConfigError(f"{path}: damaged or of an older program; without it it is made again")


def verdicts(
    found: Mapping[str, Any], seeds: Sequence[int], arms: Sequence[str], of: str = "rows"
) -> list[dict[str, Any]]:
    """Every pair of arms on every part: the mean difference over seeds in accuracy (``of`` "rows") or in worth (nats;
    "worth_rows"), the paired t-test's p with Holm's correction over all of them (None below two seeds), the bootstrap
    interval over people (pooled over seeds), and whether both agree that it is not zero."""
    out = []
    for k, part in enumerate(world_eval.PARTS):
        for a, b in itertools.combinations(arms, 2):
            rows = [[np.array(found[f"{s}/{arm}"][k][of]["summary"]) for s in seeds] for arm in (a, b)]
            means = np.array([x.mean() - y.mean() for x, y in zip(*rows, strict=True)])
            table = found[f"{seeds[0]}/{a}"][k]
            people = [str(i * table["users"] // table["pairs"]) for i in range(table["pairs"])] * len(seeds)
            p = t_test(means) if len(seeds) > 1 else None
            apart = np.concatenate(rows[0]) - np.concatenate(rows[1])
            out.append({"part": part, "a": a, "b": b, **difference(apart, people, seed=0), "p": p})
    ranked = sorted((v for v in out if v["p"] is not None), key=lambda v: v["p"])
    worst = 0.0
    for i, v in enumerate(ranked):
        worst = max(worst, min(1.0, (len(ranked) - i) * v["p"]))
        v["holm"] = worst
    for v in out:
        v["clear"] = v["clear"] and v["p"] is not None and v["holm"] < 0.05
    return out


def t_test(differences: np.ndarray) -> float:
    """Two-sided p of a paired t-test on n ≥ 2 differences, by numeric integration of Student's density."""
    n, spread = len(differences), float(np.std(differences, ddof=1))
    if spread == 0:
        return 1.0 if differences.mean() == 0 else 0.0
    t, free = abs(float(differences.mean())) / (spread / math.sqrt(n)), n - 1
    scale = math.exp(math.lgamma((free + 1) / 2) - math.lgamma(free / 2)) / math.sqrt(free * math.pi)
    angle = np.linspace(0, math.atan(t / math.sqrt(free)), 20_001)  # x = √free tan(angle) makes the range finite
    inside = np.trapezoid(scale * math.sqrt(free) * np.cos(angle) ** (free - 1), angle)
    return max(0.0, 1 - 2 * float(inside))


def summary(found: Mapping[str, Any], seeds: Sequence[int], arms: Sequence[str]) -> list[dict[str, Any]]:
    """For every part the conditions' means over the seeds, those of the warm start and the references once."""
    out = []
    for k, part in enumerate(world_eval.PARTS):
        first = arms[0]
        tables = [found[f"{s}/{first}"][k]["conditions"] for s in seeds]
        shared = [n for n in tables[0] if all(n in table for table in tables)]  # an older program's have fewer
        names = [n for n in shared if n not in ("summary", "warm_in_joint")]
        wanted = [(n, first, n) for n in names] + [(arm, arm, "summary") for arm in arms]
        wanted += [(f"warm_in_{arm}", arm, "warm_in_joint") for arm in arms]
        for name, arm, condition in wanted:
            tables = [found[f"{s}/{arm}"][k] for s in seeds]
            entry: dict[str, Any] = {"part": part, "condition": name}
            for metric in ("accuracy", "contrast", "tokens", "worth"):
                values = [t["conditions"][condition].get(metric) for t in tables]
                entry[metric] = None if None in values else float(np.mean(values))
            none = float(np.mean([t["conditions"]["none"]["accuracy"] for t in tables]))
            top = float(np.mean([t["conditions"]["bayes"]["accuracy"] for t in tables]))
            entry["gap_closed"] = gap_closed(entry["accuracy"], none, top)
            poles = [t["f1"].get(condition) for t in tables]
            entry["f1"] = None if None in poles else float(np.mean(poles))
            entry["seeds"] = [round(t["conditions"][condition]["accuracy"], 4) for t in tables]
            out.append(entry)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        for name, given in (("seeds", options.seeds), ("arms", options.arms)):
            if len(set(given)) < len(given):
                raise ConfigError(f"--{name}: one comes twice; it would be counted twice")
        if options.users < 2:
            raise ConfigError("an interval needs at least two users")
        recipe = recipes.read(options.recipe)
        if not recipe.data.world or not recipe.joint.warm:
            raise ConfigError(f"{options.recipe}: arms are run in the controlled world, from a warm start (joint.warm)")
        found = measured(recipe, options.out, options.seeds, options.arms, options.users)
    except (PopiError, OSError) as e:
        sys.exit(f"arms: {e}")
    result = {
        "recipe": train.recipe_hash(recipe), "seeds": options.seeds, "users": options.users,
        "table": summary(found, options.seeds, options.arms),
        "verdicts": verdicts(found, options.seeds, options.arms),
        "worth_verdicts": verdicts(found, options.seeds, options.arms, "worth_rows"),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for x in result["table"]:
        gap = "–" if x["gap_closed"] is None else f"{x['gap_closed']:.2f}"
        worth = "" if x["worth"] is None else f"worth {x['worth']:.3f}  "
        print(
            f"{x['part']:13} {x['condition']:24} {x['accuracy']:.3f}  contrast {x['contrast']:.3f}  "
            f"{x['tokens']:4.1f} tokens  {worth}gap {gap}  seeds {x['seeds']}"
        )
    for what, of in (("accuracy", "verdicts"), ("worth", "worth_verdicts")):
        for v in result[of]:
            apart = f"{v['difference']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]{' *' if v['clear'] else ''}"
            print(f"{v['part']:13} {v['a']} - {v['b']}, {what}: {apart}")


if __name__ == "__main__":
    launch(main)
