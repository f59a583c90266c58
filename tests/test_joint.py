"""The joint step against plain computations: its gradients, who moves under which schedule, and going on exactly."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popi_edge import config, prompts
from popi_edge.errors import ConfigError
from popi_edge.signals import Statement
from popi_training import checking, joint, joint_run, parity, targets, train, warm
from popi_training import recipe as recipes
from popi_training.base import lora_parameters
from popi_training.groups import Group, lengths
from popi_training.joint import Joint
from popi_training.people import Person, Target
from popi_training.rollout import Draw
from popi_training.team import Team
from tests import tiny as make
from tests import tiny_training as small
from tests.test_objective import COPIED, plain_leak
from tests.test_train import edited as edit
from tests.test_train import figures, settled
from tests.test_transfer import tiny_base

pytestmark = pytest.mark.usefixtures("torch_as_before")
TABLE = """
[joint]
schedule = "{schedule}"
group = 3
pairs = 1
dpo_pairs = 1
beta = 0.5
kl = 0.5
empty = 0.3
budget = 4
lr_generate = 0.01
"""
STEPS = 6


@pytest.fixture(scope="module")
def folder(tiny: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a joint recipe on the tiny base."""
    made = tmp_path_factory.mktemp("joint")
    small.corpus(made / "corpus")
    path = small.recipe(made, tiny[0], steps=STEPS, every=2)
    edit(path, 'name = "small"', 'name = "small"\nmethod = "joint"\nrole = "both"')
    edit(path, "mirrored = 0.5", "mirrored = 1.0")
    path.write_text(path.read_text() + TABLE.format(schedule="simultaneous"))
    return made


def opened(folder: Path, schedule: str = "simultaneous", *changes: tuple[str, str]) -> Joint:
    """A trainer of the recipe, with adapters that are not zero, so that both matter."""
    path = folder / "changed.toml"
    path.write_text((folder / "recipe.toml").read_text().replace("simultaneous", schedule))
    for old, new in changes:
        edit(path, old, new)
    trainer = train.open_run(recipes.read(path), path, config.load())
    assert isinstance(trainer, Joint)
    return trainer


def shaken(trainer: Joint) -> Joint:
    """The same with adapters drawn at random, and begun from there."""
    rng = np.random.default_rng(5)
    state = trainer.roles.state()
    trainer.roles.load({r: {n: rng.normal(0, 0.1, a.shape).astype(np.float32) for n, a in s.items()}
                        for r, s in state.items()})  # fmt: skip
    return trainer


def arrays(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        ("simultaneous", "both", "both"), ("frozen", "infer", "infer"), ("alternating", "infer", "generate"),
        ("sequential", "infer", "generate"), ("sft", "both", "both"),
    ],
)  # fmt: skip
def test_a_schedule_moves_its_roles_and_nothing_else(folder: Path, schedule: str, first: str, last: str) -> None:
    trainer = opened(folder, schedule)
    for step, moved in ((0, first), (STEPS - 1, last)):
        trainer = shaken(opened(folder, schedule))
        trainer.step = step
        before = arrays(trainer.roles.model)  # type: ignore[attr-defined]
        trainer.train_step(trainer.make(step))
        changed = {n for n, p in arrays(trainer.roles.model).items() if not torch.equal(p, before[n])}  # type: ignore[attr-defined]
        want = ("infer", "generate") if moved == "both" else (moved,)
        assert changed == {n for n in before for role in want if f".lora_A.{role}." in n or f".lora_B.{role}." in n}


def plain(trainer: Joint, role: str, context: list[int], reply: list[int]) -> torch.Tensor:
    """log p of every reply token, one sequence, no packing: [tokens, vocabulary]."""
    with trainer.roles.playing(role) as model:
        logits = model(torch.tensor([[*context, *reply]])).logits[0]
    return torch.log_softmax(logits, -1)[len(context) - 1 : -1]


def reply(trainer: Joint, role: str, z: str, prompt: str, text: str) -> torch.Tensor:
    """log p of each of a reply's tokens."""
    ids = prompts.reply_ids(trainer.reader.tokenizer, text)
    context = prompts.generate_ids(trainer.reader.tokenizer, prompt, summary=z or None)
    return plain(trainer, role, context, ids)[range(len(ids)), ids]


def ratio(trainer: Joint, role: str, z: str, t: Target) -> torch.Tensor:
    return reply(trainer, role, z, t.prompt, t.chosen).sum() - reply(trainer, role, z, t.prompt, t.rejected).sum()


def gradients(trainer: Joint, role: str) -> list[torch.Tensor]:
    return [p.grad.clone() for p in trainer.roles.parameters(role)]


@pytest.mark.parametrize("anchor", [0.0, 3.0])
def test_the_step_of_the_generator_is_dpo_under_the_drawn_summaries_and_the_anchor(folder: Path, anchor: float) -> None:
    trainer = shaken(opened(folder, "simultaneous", ("[joint]", f"[joint]\nanchor = {anchor}")))
    groups = trainer.draw(trainer.make(0))
    line = trainer.move_generate(groups)
    got = gradients(trainer, "generate")
    assert all(p.grad is None for p in trainer.roles.parameters("infer"))
    asked = []
    for g in groups:
        dice = random.Random(f"empty:{trainer.recipe.seed}:0:{g.person.id}")
        rest = g.person.targets[1:]  # three summaries, as many other pairs as there are, in turn
        asked += [("" if dice.random() < 0.3 else z, rest[k % len(rest)]) for k, z in enumerate(g.texts)]
    assert len({z == "" for z, _ in asked}) == 2
    trainer.optimizer.zero_grad()
    margins = [ratio(trainer, "generate", z, t) - ratio(trainer, "reference", "", t).detach() for z, t in asked]
    loss = torch.stack([torch.log1p(torch.exp(-0.5 * m)) for m in margins]).mean()
    nats = torch.stack([-reply(trainer, "generate", z, t.prompt, t.chosen).mean() for z, t in asked]).mean()
    (loss + anchor * nats).backward()
    assert line["dpo_loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert line["reply_nats"] == pytest.approx(float(nats.detach()), rel=1e-4)
    for a, b in zip(got, gradients(trainer, "generate"), strict=True):
        assert b.abs().max() > 0 and (a - b).abs().max() < 2e-3 * b.abs().max()


def behind(trainer: Joint, role: str, prompt: tuple[int, ...], d: Draw) -> torch.Tensor:
    """log p of what was allowed at every token of a summary behind a prompt, the mask by hand: [tokens, vocabulary]."""
    bars = torch.full((len(d.ids), trainer.roles.model.config.vocab_size), -torch.inf)  # type: ignore[attr-defined]
    for i, allowed in enumerate(d.allowed):
        bars[i, allowed] = 0.0
    return torch.log_softmax(plain(trainer, role, list(prompt), list(d.ids)) + bars, -1)


@pytest.mark.parametrize("identity", [0.0, 0.7])
def test_the_step_of_inference_is_the_policy_gradient_and_the_kl(folder: Path, identity: float) -> None:
    """Written out again: one sequence a summary, the mask by hand, the advantage as a difference of means."""
    trainer = shaken(opened(folder, "simultaneous", ("[joint]", f"[joint]\nidentity = {identity}\nalike = 2")))
    groups = trainer.draw(trainer.make(0))
    assert {len(g.person.alike) for g in groups} == {2 if identity else 0}
    first = groups[0]  # one of whose summaries says what they said
    first.person = replace(first.person, signals=(*first.person.signals, Statement(text=f"I keep a {COPIED}.")))
    first.texts[0] = f"Likes a {COPIED}."
    line = trainer.move_infer(groups)
    got = gradients(trainer, "infer")
    assert all(p.grad is None for p in trainer.roles.parameters("generate"))
    trainer.optimizer.zero_grad()
    total, kls, told, leaking = torch.zeros(()), [], [], []
    for g in groups:
        t = g.person.targets[0]
        others = [trainer.reader.prompt(signals) for signals in g.person.alike]
        worth = []
        for z, d in zip(g.texts, g.draws, strict=True):
            m = float(ratio(trainer, "generate", z, t).detach() - ratio(trainer, "reference", "", t).detach())
            leaking.append(plain_leak(z, g.person.signals))
            cost = 0.05 * max(0, len(d.ids) - 4) + 2.0 * (not d.finished) + 2.0 * leaking[-1]
            after = [behind(trainer, "infer", p, d)[range(len(d.ids)), d.ids] for p in (g.prompt, *others)]
            own, *theirs = [float(logprobs.sum().detach()) for logprobs in after]
            told.append(max(0.0, own - np.log(np.mean(np.exp(theirs)))) if others else 0.0)
            worth.append(-np.log1p(np.exp(-0.5 * m)) / 0.5 - cost - identity * told[-1])
        for k, d in enumerate(g.draws):
            now = behind(trainer, "infer", g.prompt, d)
            with torch.no_grad():
                was = behind(trainer, "start", g.prompt, d)
            kl = sum((now[i, a].exp() * (now[i, a] - was[i, a])).sum() for i, a in enumerate(d.allowed))
            advantage = worth[k] - np.mean([w for i, w in enumerate(worth) if i != k])
            total = total + (0.5 * kl - advantage * now[range(len(d.ids)), d.ids].sum()) / (3 * len(groups))
            kls.append(float(torch.as_tensor(kl).detach()))
    total.backward()
    assert line["kl"] == pytest.approx(np.mean(kls), rel=1e-3) and line["kl"] > 1e-4
    assert line["leak"] == pytest.approx(np.mean(leaking)) and 0 < line["leak"] < 1
    assert line.get("identity", 0.0) == pytest.approx(np.mean(told), rel=1e-3)
    assert bool(identity) == (np.mean(told) > 1e-3) and (not identity or "identity" in line)
    for a, b in zip(got, gradients(trainer, "infer"), strict=True):
        assert b.abs().max() > 0 and (a - b).abs().max() < 5e-3 * b.abs().max()


@pytest.mark.parametrize("schedule", ["frozen", "alternating", "sequential", "simultaneous"])
def test_the_rate_of_a_role_falls_over_its_own_moves(folder: Path, schedule: str) -> None:
    trainer, seen = opened(folder, schedule, ("warmup = 2", "warmup = 1")), dict[str, list[float]]()
    for step in range(STEPS):
        trainer.step = step
        trainer.set_rates()
        for group in trainer.optimizer.param_groups:
            if group["role"] in trainer.moving(step):
                seen.setdefault(group["role"], []).append(group["lr"] / group["base_lr"])
    decay = trainer.recipe.train.decay
    for rates in seen.values():
        n = len(rates)
        assert rates == pytest.approx([min(1.0, (n - k) / max(1.0, decay * n)) for k in range(n)])


WARM = ("[joint]", "[joint]\nwarm = 2\nlr_warm = 0.01")


@pytest.mark.parametrize(
    ("schedule", "changes"), [("simultaneous", ()), ("alternating", ()), ("simultaneous", (WARM,))]
)
def test_a_run_that_was_stopped_anywhere_goes_on_with_the_same_numbers(
    folder: Path, schedule: str, changes: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    def go_on(out: Path, until: int) -> None:
        train.run(opened(folder, schedule, *changes), out, until=until, minutes=None, tell=lambda *_: None)

    go_on(tmp_path / "whole", STEPS)
    at = random.randrange(1, STEPS)
    go_on(tmp_path / "cut", at)
    go_on(tmp_path / "cut", STEPS)
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole"), at
    a, b = (train.read_checkpoint(tmp_path / f / train.CHECKPOINT)["adapters"] for f in ("whole", "cut"))
    assert all(np.array_equal(a[r][n], b[r][n]) for r in a for n in a[r])
    last = figures(tmp_path / "whole")[-1]
    assert {"dev_loss", "dev_accuracy", "dev_contrast", "dev_tokens", "dev_distinct"} <= set(last)


def test_patience_ends_a_run_and_the_best_checkpoint_stays(folder: Path, tmp_path: Path) -> None:
    trainer = opened(folder, "simultaneous", ("dev_every = 4", "dev_every = 1\npatience = 2"))
    looks = iter([1.0, 0.5, 0.7, 0.6, 0.1, 0.1])
    trainer.develop = lambda: {"dev_loss": next(looks)}  # type: ignore[method-assign]
    assert train.run(trainer, tmp_path / "run", until=STEPS, minutes=None, tell=lambda *_: None)
    assert train.read_checkpoint(tmp_path / "run" / train.CHECKPOINT)["step"] == 4
    assert train.read_checkpoint(tmp_path / "run" / train.BEST)["step"] == 2


@pytest.mark.parametrize(
    ("schedule", "warm", "last"), [("simultaneous", 3, 4), ("sequential", 0, 4), ("sequential", 2, 5), ("frozen", 0, 2)]
)
def test_patience_ends_no_run_before_all_that_is_trained_has_begun_to_move(
    folder: Path, tmp_path: Path, schedule: str, warm: int, last: int
) -> None:
    changes = ("[joint]", f"[joint]\nwarm = {warm}"), ("dev_every = 4", "dev_every = 1\npatience = 1")
    trainer, looks = opened(folder, schedule, *changes), itertools.count()
    trainer.develop = lambda: {"dev_loss": 1.0 + next(looks)}  # type: ignore[method-assign]
    train.run(trainer, tmp_path / "run", until=STEPS, minutes=None, tell=lambda *_: None)
    assert trainer.step == last


def test_what_was_seen_before_the_warm_start_ended_is_no_measure_of_what_comes_after(
    folder: Path, tmp_path: Path
) -> None:
    trainer = opened(folder, "simultaneous", WARM, ("dev_every = 4", "dev_every = 1\npatience = 3"))
    looks = iter([0.1, 0.9, 0.8, 0.85, 0.7, 0.6])
    trainer.develop = lambda: {"dev_loss": next(looks)}  # type: ignore[method-assign]
    train.run(trainer, tmp_path / "run", until=STEPS, minutes=None, tell=lambda *_: None)
    assert (trainer.step, trainer.best) == (STEPS, (0.6, STEPS))


@pytest.mark.parametrize("mask", [True, False])
def test_only_without_the_mask_is_a_summary_cut_off(folder: Path, mask: bool) -> None:
    """Under it whatever is as long as may be stands at an end, and nothing but the end token may follow."""
    trainer = shaken(opened(folder, "simultaneous", ("[joint]", f"[joint]\nmask = {str(mask).lower()}")))
    most, ends = trainer.reader.limits["summary_tokens"], trainer.reader.tokenizer.eos_ids
    long = 0
    for step in range(4):
        for group in trainer.draw(trainer.make(step)):
            for d, text in zip(group.draws, group.texts, strict=True):
                assert d.finished == (d.ids[-1] in ends) and len(d.ids) <= most + d.finished
                if mask:
                    assert d.finished and text[-1] in ".!?"
                    long += len(d.ids) == most + 1
                else:
                    long += not d.finished
    assert long > 2


@torch.no_grad()
def test_the_look_at_development_knows_ties_and_follows_the_mask(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ("pairs = 1\n", "pairs = 3\n"), ("[joint]", "[joint]\nmask = false")
    trainer = shaken(opened(folder, "simultaneous", *changes))
    asked = []
    draw = joint.rollout
    monkeypatch.setattr(joint, "rollout", lambda *a, **k: asked.append(k["mask"]) or draw(*a, **k))
    trainer.said = lambda _: "Likes short replies."  # type: ignore[method-assign]
    assert trainer.develop()["dev_contrast"] == 0.5 and asked and not any(asked)


def test_a_generator_as_it_began_is_right_on_half_without_a_summary(folder: Path) -> None:
    trainer = opened(folder, "simultaneous", ("empty = 0.3", "empty = 1.0"))
    assert trainer.move_generate(trainer.draw(trainer.make(0)))["dpo_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("schedule", "pairs", "most"),
    [("simultaneous", "3", "3"), ("simultaneous", "2", ""), ("sft", "3", ""), ("frozen", "3", ""),
     ("simultaneous", "3\nshared_pairs = true", "")],
)  # fmt: skip
def test_more_pairs_than_people_have_are_refused_before_training(
    folder: Path, schedule: str, pairs: str, most: str
) -> None:
    path = folder / "many.toml"
    text = (folder / "recipe.toml").read_text().replace("simultaneous", schedule)
    path.write_text(text.replace("\npairs = 1", f"\npairs = {pairs}"))
    if not most:
        assert checking.checked(recipes.read(path), path, config.load())["tokens"]
        return
    with pytest.raises(ConfigError, match=r"many\.toml: joint\.pairs is 3 and some to learn from; .* 3 pairs at most"):
        checking.checked(recipes.read(path), path, config.load())


def test_targets_are_the_persons_own_and_the_couples_the_other_way_round(folder: Path) -> None:
    recipe = recipes.read(folder / "recipe.toml")
    data, reader = warm.load(recipe, folder / "recipe.toml"), opened(folder).reader
    said = {text for d in data.corpus.dimensions.values() for p in d.poles.values() for text in p.phrasings["summary"]}
    replies = {p.replies[k]: (p.dimension, k) for p in data.corpus.pairs for k in p.replies}
    for step in range(8):
        one, other, *_ = targets.batch(recipe, data, reader, step)
        assert [(t.prompt, t.chosen, t.rejected) for t in one.targets] == [
            (t.prompt, t.rejected, t.chosen) for t in other.targets
        ]
        assert one.oracle in said and other.oracle in said and one.oracle != other.oracle
        assert len(one.targets) == len({t.prompt for t in one.targets}) >= 2
        for t in one.targets:
            assert t.prompt not in {text for s in one.signals for text in s.texts()}
            assert replies[t.chosen][0] == replies[t.rejected][0] and t.prompt != data.corpus.prompts["form-3"]
    for index in range(3):
        dev = targets.dev_couple(recipe, data, index)
        assert {t.prompt for p in dev for t in p.targets} == {data.corpus.prompts["form-3"]}
        one, other = ([(t.chosen, t.rejected) for t in p.targets] for p in dev)
        assert one == [pair[::-1] for pair in other]


def test_somebody_whose_signals_took_every_prompt_is_one_line(folder: Path) -> None:
    trainer = opened(folder, "frozen")
    one, *others = trainer.make(0)
    with pytest.raises(ConfigError, match=re.escape(f"step 0: {one.id} has no pair to be rewarded on")):
        trainer.train_step([replace(one, targets=()), *others])


def test_shuffled_rewards_are_the_groups_own_in_another_order(folder: Path) -> None:
    trainer = opened(folder, "frozen", ("[joint]", "[joint]\nshuffled_rewards = true"))
    seen = set()
    for step in range(12):
        trainer.step = step
        groups = trainer.draw(trainer.make(0))
        (worth, *_) = trainer._shuffled(groups, [{"worth": torch.tensor([0.0, 1.0, 2.0])}] * len(groups))
        assert sorted(worth.tolist()) == [0, 1, 2]
        seen.add(tuple(worth.tolist()))
    assert len(seen) > 2


@pytest.mark.parametrize("schedule", ["simultaneous", "sft"])
def test_two_processes_give_the_curve_of_one(folder: Path, tmp_path: Path, schedule: str) -> None:
    """gloo on the CPU; the batch is shared out, the gradients are summed. Three people cannot be shared between two."""
    trainer = opened(folder, schedule, ("batch = 3", "batch = 4"))
    train.run(trainer, tmp_path / "one", until=3, minutes=None, tell=lambda *_: None)
    done = small.launched(folder / "changed.toml", "--out", tmp_path / "two", "--until", 3, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 3  # said once
    one, two = settled(tmp_path / "one"), settled(tmp_path / "two")
    assert [m["step"] for m in two] == [1, 2, 3]
    for a, b in zip(one, two, strict=True):
        assert {k: pytest.approx(v, rel=2e-3, abs=2e-4) for k, v in a.items()} == b
    a, b = (train.read_checkpoint(tmp_path / f / train.CHECKPOINT)["adapters"] for f in ("one", "two"))
    flat = [np.concatenate([x[r][n].ravel() for r in sorted(x) for n in sorted(x[r])]) for x in (a, b)]
    assert np.linalg.norm(flat[0] - flat[1]) < 0.02 * np.linalg.norm(flat[0])  # Adam turns a rounding into a step
    edit(folder / "changed.toml", "batch = 4", "batch = 3")
    done = small.launched(folder / "changed.toml", "--out", tmp_path / "odd", "--until", 1)
    assert done.returncode and "train.batch 3 cannot be shared out evenly among 2 processes" in done.stderr


def test_the_share_of_summaries_that_differ_is_of_all_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def somebody(*texts: str) -> Group:
        return Group(Person("", (), ()), (1,), [Draw((2,), (), (0.0,), True) for _ in texts], list(texts))

    team, theirs = Team(), ["Warm.", "Brief."]
    monkeypatch.setattr(team, "gather", lambda items: [*items, *theirs])
    assert lengths([somebody("Warm.", "Calm.")], team)["distinct"] == 3 / 4


def test_a_process_has_its_gpu_before_anything_is_put_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: done.append(cpu))
    monkeypatch.setattr(joint_run, "open_run", lambda *_: done.append("opened"))
    train.open_run(recipes.read(folder / "recipe.toml"), folder / "recipe.toml", config.load(), "cuda")
    assert done == [False, "opened"]


@pytest.mark.parametrize(("processes", "place"), [("1", "meta"), ("2", "cpu")])
def test_only_what_is_shared_out_waits_on_the_processor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, processes: str, place: str
) -> None:
    """``accelerate launch`` asks for sharding also where it starts one process."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", processes)
    path = folder / "recipe.toml"
    recipe = recipes.read(path)
    roles = joint_run.find_base(recipe, path, config.load()).roles(recipe, "meta")
    assert {p.device.type for p in roles.parameters("infer")} == {place}


def test_the_mean_of_figures_goes_over_nccl_which_knows_no_tensor_of_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: torch.Tensor) -> None:
        raise RuntimeError("No backend type associated with device type cpu")

    def both(found: list[Any], own: list[Any]) -> None:
        found[:] = [own, [[3, 0.5]]]

    monkeypatch.setattr(torch.distributed, "all_reduce", refuse)
    monkeypatch.setattr(torch.distributed, "all_gather_object", both)
    team = Team()
    team.size = 2
    assert team.mean({"tokens": 1, "loss": 0.25}) == {"tokens": 2, "loss": 0.375}


def test_a_process_whose_people_teach_the_generator_nothing_lets_the_others(folder: Path, tmp_path: Path) -> None:
    """At step 0 the first of two people has a pair that rewards, and no other."""
    trainer = opened(
        folder, "simultaneous", ("batch = 3", "batch = 2"), ("mirrored = 1.0", "mirrored = 0.0"),
        ("signals = [1.0]", "signals = [0.0, 0.5, 0.5]"), ("statement = 1.0", "comparison = 0.7, statement = 0.3"),
    )  # fmt: skip
    assert [[len(p.targets) for p in trainer.make(step)] for step in range(2)] == [[1, 2], [2, 3]]
    train.run(trainer, tmp_path / "one", until=2, minutes=None, tell=lambda *_: None)
    done = small.launched(folder / "changed.toml", "--out", tmp_path / "two", "--until", 2)
    assert done.returncode == 0, done.stderr
    for a, b in zip(settled(tmp_path / "one"), settled(tmp_path / "two"), strict=True):
        assert {k: pytest.approx(v, rel=2e-3, abs=2e-4) for k, v in a.items()} == b


def test_both_roles_can_be_begun_from_and_are_kept_as_they_began(folder: Path) -> None:
    trainer = opened(folder)
    roles: Any = trainer.roles
    shaken(trainer)
    roles.begin("infer")
    roles.begin("generate")
    kept = {n: p.clone() for n, p in lora_parameters(roles.model, "start").items()}
    target = trainer.make(0)[0].targets[0]
    before = [float(trainer.ratios(r, [("", target)]).detach()) for r in ("generate", "reference")]
    trainer.train_step(trainer.make(0))
    after = [float(trainer.ratios(r, [("", target)]).detach()) for r in ("generate", "reference")]
    assert before[0] == before[1] == after[1] != after[0]
    assert all(torch.equal(p, kept[n]) for n, p in lora_parameters(roles.model, "start").items())


def _listing(path: Path) -> dict[str, tuple[str, dict[str, list[float]]]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["row"]: (row["text"], row["margins"]) for row in rows}


def test_one_command_leaves_bundle_table_summaries_and_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "tiny.gguf"
    make.llama(base, context=4096)
    tiny_base(base, monkeypatch)
    monkeypatch.setenv("POPI_THREADS", "1")
    path = tmp_path / "finished.toml"
    text = (folder / "recipe.toml").read_text().replace(f"steps = {STEPS}", "steps = 2")
    text = re.sub(r'^(name|sha256) = .*\n', "", text.replace('corpus = "corpus"', ""), flags=re.M)
    path.write_text('name = "small"\n' + text.replace("[base]", '[base]\nname = "tiny"'))
    words = ("train", path, "--out", tmp_path / "run", "--finish", 4, "--json")
    code, out, err = small.popi(monkeypatch, capsys, *words)
    assert code == 0, err
    found = json.loads(out)
    table = json.loads(Path(found["table"]).read_text())
    assert table["conditions"]["summary"]["tokens"] > 0 and table["limit"] == 4 and "summary" in err
    told = json.loads((Path(found["bundle"]) / "manifest.json").read_text())["training"]
    metrics = train.read_metrics(tmp_path / "run" / train.METRICS)
    assert told["seed"] == recipes.read(path).seed and told["seconds"] == round(sum(m["seconds"] for m in metrics))
    words_of_git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(words_of_git, capture_output=True, text=True)
    assert told["commit"].rstrip("+") == (head.stdout.strip() or "not known")
    page = Path(found["report"]).read_text("utf-8")
    assert page.count("<svg") + page.count("<img") and "oracle" in page
    assert "No summaries from before" not in page and "there is no summaries.jsonl" not in page
    listed = _listing(tmp_path / "run" / "eval" / "finish" / "summaries.jsonl")
    assert _listing(tmp_path / "run" / "before.jsonl").keys() == listed.keys() and len(listed) == 4
    on = path.read_text().replace("[lora]", f'[lora]\nstart = "{found["bundle"]}/infer.gguf"', 1)
    on = on.replace("[lora]", f'[lora]\nstart_generate = "{found["bundle"]}/generate.gguf"', 1)
    (tmp_path / "on.toml").write_text(on.replace('name = "small"', 'name = "on"'))
    code, _, err = small.popi(
        monkeypatch, capsys, "train", tmp_path / "on.toml", "--out", tmp_path / "on", "--finish", 4
    )
    assert code == 0, err
    files = {p.name for p in (tmp_path / "on" / "bundle").iterdir()}
    assert files == {"generate.gguf", "infer.gguf", "manifest.json"}
    for row, (text, m) in _listing(tmp_path / "on" / "before.jsonl").items():  # it began as what the first run ended as
        assert text == listed[row][0] and m["summary"] == pytest.approx(listed[row][1]["summary"], abs=1e-3)
    again = small.popi(monkeypatch, capsys, *words)
    assert again[0] == 0 and json.loads(again[1])["step"] == 2


def test_the_progress_of_a_step_says_how_often_who_moves_is_right(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "told.toml"
    path.write_text((folder / "recipe.toml").read_text().replace("simultaneous", "alternating"))
    for until, shown, other in ((1, "accuracy", "dpo_accuracy"), (2, "dpo_accuracy", "accuracy")):  # φ, then θ
        code, _, err = small.popi(monkeypatch, capsys, "train", path, "--out", tmp_path / "run", "--until", until)
        assert code == 0 and re.search(rf"^training: 100%, .*[( ]{shown} [01]", err, re.M), err
        assert f" {other} " not in err


def test_the_parity_of_one_adapter_refuses_a_joint_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # where its corpus is
    monkeypatch.setattr("sys.argv", ["parity", str(folder), "popi-smol", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit, match="is no warm start"):
        parity.main()
