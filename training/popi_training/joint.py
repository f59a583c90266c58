"""The joint method: summaries are drawn, rewarded by what they do for the generator, and both roles move.

A step, for every person of its batch: draw G summaries of their signals (``rollout``); score each on K held-out pairs
under the generator as it is; move φ by the policy gradient of the rewards less the costs, with a KL to its start; move
θ by DPO on other pairs of the same person under the same summaries. Which of the two moves is the schedule's:

    simultaneous   both, every step
    alternating    φ and θ in turn
    sequential     φ over the first half of the steps against θ as it began, then θ (as the authors released it)
    frozen         φ alone
    sft            no reward: φ learns the oracle's words, θ learns under them

Departures from the paper (arXiv 2510.17881), which is sequential: DESIGN, the objective. What a step draws follows from
the recipe and the step's number alone.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from popi_edge import prompts
from popi_edge.errors import ConfigError
from popi_edge.summarize import spoken
from popi_training import objective, warm
from popi_training.dense import DEPTH, Dense
from popi_training.groups import FILLER, Asked, Group, lengths
from popi_training.identity import identity
from popi_training.loss import learnt, pair_logprobs, scored
from popi_training.pack import pack
from popi_training.people import Person, Target, leaks
from popi_training.recipe import Recipe
from popi_training.roles import Roles
from popi_training.rollout import Draw, How, Rollouts, TransformersRollouts, rollout
from popi_training.train import Trainer

T = TypeVar("T")
TOGETHER = 4
"""Contexts with their replies in one packed sequence; the tree mask costs the square of its length."""
AT_ONCE = 8
"""Packed sequences that go through the model at once on another device than the CPU, which one would leave idle."""
TOKENS = 2048
"""Tokens of prompts that are imitated together, the shorter ones padded."""


class Joint(Trainer):
    """A run of both roles."""

    def __init__(
        self, recipe: Recipe, reader: warm.Reader, roles: Roles, make: Callable[[int], list[Person]],
        dev: Callable[[int], list[Person]], made: dict[str, str], device: str = "cpu",
    ) -> None:  # fmt: skip
        """``make``: step → its people; ``dev``: index → a couple of development people."""
        rates = {"infer": recipe.train.lr, "generate": recipe.joint.lr_generate}
        super().__init__(recipe, reader, roles, rates, made, device)
        if self.team.sharding and recipe.joint.warm:
            raise ConfigError("joint.warm keeps copies of whole models: warm up without sharding, and start from that")
        if self.team.sharding and recipe.train.dev_users % self.team.size:
            raise ConfigError(
                f"train.dev_users {recipe.train.dev_users} cannot be shared out evenly among {self.team.size} processes"
            )
        self.make, self.dev = make, dev
        self.couples: list[list[Person]] = []
        self._references: dict[Target, float] = {}
        self.at_once = 1 if device == "cpu" else AT_ONCE
        self.rollouts: Rollouts = TransformersRollouts(self.team.most)
        self.dense: Dense | None = None

    @property
    def chunk(self) -> int:
        """Contexts that are asked in one call of a model."""
        return TOGETHER * self.at_once

    def maker(self) -> Callable[[int], list[Person]]:
        return self.make

    def schedule(self) -> str:
        """What this step goes by: ``sft`` while warming up, then the recipe's schedule."""
        return "sft" if self.step < self.recipe.joint.warm else self.recipe.joint.schedule

    def set_rates(self) -> None:
        j = self.recipe.joint
        for group in self.optimizer.param_groups:
            if self.step < j.warm:
                up = min(1.0, (self.step + 1) / max(1, self.recipe.train.warmup))
                last = j.taught if group["role"] == "generate" else j.warm
                group["lr"] = j.lr_warm * up * (1 - 0.99 * min(1.0, self.step / last))
            else:
                moves = self.moves[group["role"]]
                group["lr"] = self.rate(bisect.bisect_left(moves, self.step), len(moves), group["base_lr"])

    @functools.cached_property
    def moves(self) -> dict[str, list[int]]:
        """Role → the steps after the warm start (from 0) at which it moves."""
        steps = range(self.recipe.joint.warm, self.recipe.train.steps)
        return {role: [s for s in steps if role in self.moving(s)] for role in ("infer", "generate")}

    @property
    def settled(self) -> int:
        return max((moves[0] for moves in self.moves.values() if moves), default=self.recipe.joint.warm)

    def moving(self, step: int) -> tuple[str, ...]:
        """The roles that move at a step (from 0)."""
        j = self.recipe.joint
        after, of = step - j.warm, self.recipe.train.steps - j.warm
        if after < 0:
            return ("infer", "generate") if step < j.taught else ("infer",)
        match j.schedule:
            case "frozen":
                return ("infer",)
            case "alternating":
                return ("infer",) if after % 2 == 0 else ("generate",)
            case "sequential":
                return ("infer",) if after < of // 2 else ("generate",)
        return ("infer", "generate")

    def train_step(self, batch: list[Person]) -> dict[str, Any]:
        """One step over its people; returns its line of metrics."""
        moving = self.moving(self.step)
        self.set_rates()
        lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cpu" and self.at_once > 1:
            self._references.clear()  # their last bits depend on what they went through with
        line: dict[str, Any] = {}
        batch = self.team.share(batch)
        if self.schedule() == "sft":
            groups = [self._told(person) for person in batch]
        else:
            groups = self.draw(batch)
            line |= lengths(groups, self.team)
        if "infer" in moving:
            line |= self.move_infer(groups)
        if "generate" in moving:
            line |= self.move_generate(groups)
        line = {"step": self.step + 1, **self.team.mean(line)}
        for role in moving:
            self.team.sum_gradients(self.roles.parameters(role))
            line[f"grad_norm_{role}"] = self.clipped(role, line["loss"])
        self.optimizer.step()
        self.step += 1
        if self.step == self.recipe.joint.warm:
            for role in ("infer", "generate"):
                self.roles.begin(role)
            self._references.clear()
            self.best = (math.inf, self.step)  # what was seen before is against another reference
        return line | {"lr": lr}

    # drawing ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def draw(self, people: Sequence[Person]) -> list[Group]:
        """G summaries of everybody, by what the seed, the step and the person alone determine."""
        j = self.recipe.joint
        seeds = [random.Random(f"draw:{self.recipe.seed}:{self.step}:{p.id}").getrandbits(62) for p in people]
        asked = [self.reader.prompt(person.signals) for person in people]
        drawn = self.rollouts.draw(self.roles, self.reader, asked, seeds, How(j.group, j.temperature, j.mask))
        return [
            Group(person, prompt, draws, [self.said(d) for d in draws])
            for person, prompt, draws in zip(people, asked, drawn, strict=True)
        ]

    def said(self, draw: Draw) -> str:
        """What the generator is given of a draw, as the device would give it."""
        return spoken(self.reader.tokenizer.decode(list(draw.ids[:-1] if draw.finished else draw.ids)).strip())

    def _told(self, person: Person) -> Group:
        """What φ is to imitate, and what θ learns under."""
        ids, allowed = self.reader.completion(person.oracle or str(prompts.spec()["silence"]))
        draw = Draw(ids, allowed, (0.0,) * len(ids), True)
        return Group(person, self.reader.prompt(person.signals), [draw], [person.heard or person.oracle])

    # scoring ------------------------------------------------------------------------------------------------
    def likelihoods(self, role: str, asked: Sequence[Asked]) -> Tensor:
        """log π(y⁺|x,z) and log π(y⁻|x,z) of everything asked, [n, 2] (nats)."""
        tokenizer = self.reader.tokenizer
        found = []
        with self.roles.playing(role) as model:
            for some in self._rounds(asked):
                contexts = [prompts.generate_ids(tokenizer, t.prompt, summary=z or None) for z, t in some]
                replies = [
                    (prompts.reply_ids(tokenizer, t.chosen), prompts.reply_ids(tokenizer, t.rejected)) for _, t in some
                ]
                found.append(pair_logprobs(model, contexts, replies, TOGETHER))
        return torch.cat(found)[: len(asked)] if found else torch.zeros((0, 2), device=self.device)

    def ratios(self, role: str, asked: Sequence[Asked]) -> Tensor:
        """log π(y⁺|x,z) − log π(y⁻|x,z) of everything asked, [n] (nats)."""
        both = self.likelihoods(role, asked)
        return both[:, 0] - both[:, 1]

    def _rounds(self, asked: Sequence[Asked]) -> list[Sequence[Asked]]:
        """What is asked in chunks, and as many fillers as make them as many as any process has that must call the
        models as often."""
        chunks = _cut(asked, self.chunk)
        return [*chunks, *[[("", FILLER)]] * (self.team.most(len(chunks)) - len(chunks))]

    @torch.no_grad()
    def references(self, wanted: Sequence[Target]) -> Tensor:
        """log π_ref(y⁺|x) − log π_ref(y⁻|x) of each pair, [n] (nats); what is known is not computed again, and one
        reply always stands before the other, so that a run that goes on gets the same numbers to the last bit."""
        new = [Target(t.prompt, *sorted((t.chosen, t.rejected))) for t in wanted if t not in self._references]
        new = list(dict.fromkeys(new))
        asked = [*new, *[FILLER] * (self.team.most(len(new)) - len(new))]
        for some in _cut(asked, self.at_once):
            for t, value in zip(some, self.ratios("reference", [("", t) for t in some]).tolist(), strict=True):
                self._references[t] = value
                self._references[Target(t.prompt, t.rejected, t.chosen)] = -value
        return torch.tensor([self._references[t] for t in wanted], device=self.device)

    def margins(self, asked: Sequence[Asked]) -> Tensor:
        """m_θ(z) of everything asked, [n] (nats)."""
        return self.ratios("generate", asked) - self.references([t for _, t in asked])

    @torch.no_grad()
    def rewards(self, groups: Sequence[Group]) -> list[dict[str, Tensor]]:
        """What each group's summaries earn, [G] each: ``reward`` (nats), ``accuracy``, ``leak``, and ``worth``, the
        reward less the costs. What several summaries of a person say alike is scored once. Raises ConfigError for
        somebody without pairs."""
        if bare := next((g.person.id for g in groups if not g.person.targets), ""):
            raise ConfigError(f"step {self.step}: {bare} has no pair to be rewarded on; their signals took all prompts")
        pairs = [group.person.targets[: self.recipe.joint.pairs] for group in groups]
        asked = [[(z, t) for z in g.texts for t in some] for g, some in zip(groups, pairs, strict=True)]
        once = list(dict.fromkeys(itertools.chain.from_iterable(asked)))
        at, found = {a: i for i, a in enumerate(once)}, self.margins(once)
        return [
            self._earned(g, found[[at[a] for a in some]].view(len(g.texts), -1))
            for g, some in zip(groups, asked, strict=True)
        ]

    def _earned(self, group: Group, found: Tensor) -> dict[str, Tensor]:
        """The same of one group, from its margins [G, K]."""
        j = self.recipe.joint
        leak = found.new_tensor([leaks(z, group.person.signals) for z in group.texts])
        cost = objective.costs(
            torch.tensor([len(d.ids) for d in group.draws], device=found.device),
            torch.tensor([d.finished for d in group.draws], device=found.device),
            leak, budget=j.budget, length=j.length, truncation=j.truncation, leaking=j.leak,
        )  # fmt: skip
        earned = objective.reward(found, j.beta)
        right = objective.wins(found).mean(1)
        own = group.identity.to(earned)
        return {"reward": earned, "accuracy": right, "leak": leak, "worth": earned - cost - j.identity * own}

    # moving -------------------------------------------------------------------------------------------------
    def move_infer(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Gradients of φ, ``at_once`` people at a time, and the figures of its step."""
        if self.schedule() == "sft":
            return self._imitate(groups)
        told = self._identities(groups) if self.recipe.joint.identity else {}
        earned = self.rewards(groups)
        for group, worth in zip(groups, self._shuffled(groups, earned), strict=True):
            group.weights = objective.advantages(worth)
        apart = [self._policy(some, len(groups) * self.team.size) for some in _cut(groups, self.at_once)]
        means = {k: float(torch.stack([e[k] for e in earned]).mean()) for k in ("reward", "accuracy", "leak")}
        return {"loss": -self.recipe.joint.beta * means["reward"], **means, **told, "kl": sum(apart) / len(groups)}

    def _identities(self, groups: Sequence[Group]) -> dict[str, float]:
        """What every summary says of whose it is, ``at_once`` people at a time; the mean (nats)."""
        for some in _cut(groups, self.at_once):
            behind = [[self.reader.prompt(s) for s in g.person.alike] or [g.prompt] for g in some]  # their own: 0
            with self.roles.playing("infer") as model:
                found = identity(model, [g.draws for g in some], behind, self.recipe.joint.temperature)
            for group, each in zip(some, found, strict=True):
                group.identity = each
        return {"identity": float(torch.cat([g.identity for g in groups]).mean())}

    def _policy(self, groups: Sequence[Group], people: int) -> float:
        """Backward of these groups' share of the policy loss and the KL; the sum of their mean KL a summary (nats)."""
        j, packs = self.recipe.joint, [pack([d.sample(g.prompt) for d in g.draws]) for g in groups]
        sizes = [n for packed in packs for n in packed.sizes]
        with torch.no_grad(), self.roles.playing("start") as model:
            before = scored(model, packs)
        with self.roles.playing("infer") as model:
            now = scored(model, packs)
            apart = now.kl(before, j.temperature)
            table = _padded(now.logprobs(j.temperature).split(sizes))
            mask = _padded([torch.ones(n, dtype=torch.bool, device=self.device) for n in sizes])
            drawn = _padded([table.new_tensor(d.logprobs) for g in groups for d in g.draws])
            weights = torch.cat([g.weights for g in groups])
            policy = objective.policy_loss(table, drawn, mask, weights, clip=j.ratio) * len(groups)
            kl = apart.sum() / j.group
            self.team.backward((policy + j.kl * kl) / people, model)
        return float(kl.detach())

    def _imitate(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Gradients of φ towards what was told."""
        total = 0.0
        alike = itertools.groupby(groups, key=lambda g: g.person.signals[:1])  # they go into one sequence
        families = [list(some) for _, some in alike]
        packed = [pack([d.sample(g.prompt) for g in some for d in g.draws]) for some in families]
        known = [max((g.person.known for g in some), key=len) for some in families]
        rest = sorted(zip(packed, known, strict=True), key=lambda both: len(both[0].ids))
        apart, dense = 0.0, self.dense if any(known) else None
        while rest:
            some = [rest.pop()]
            while rest and (len(some) + 1) * len(some[0][0].ids) <= TOKENS:
                some.append(rest.pop())
            packs = [p for p, _ in some]
            with self.roles.playing("infer") as model:
                found = scored(model, packs, DEPTH if dense else None)
                each = zip(packs, learnt(found, packs), strict=True)
                loss = torch.stack([mean * len(p.sizes) for p, (mean, _) in each]).sum() / len(groups)
                more = loss.new_zeros(())
                if dense and found.states is not None:
                    more = dense.loss(found.states, packs, [k for _, k in some]) * len(packs) / len(families)
                    apart += float(more.detach())
                self.team.backward((loss + (dense.weight if dense else 0.0) * more) / self.team.size, model)
            total += float(loss.detach())
        return {"loss": total} | ({"dense": apart} if dense else {})

    def move_generate(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Gradients of θ: DPO under the groups' summaries, some of them left empty, and the anchor; chunk by chunk."""
        asked = [pair for group in groups for pair in self._lessons(group)]
        j, size, whole = self.recipe.joint, self.team.size, sum(self.team.gather([len(asked)]))
        if not whole:
            raise ConfigError(f"step {self.step}: nobody has pairs enough for joint.pairs and some to learn from")
        total, right, plain = 0.0, 0.0, 0.0
        smoothing = j.smoothing if self.step < j.warm else 0.0
        for k, some in enumerate(self._rounds(asked)):
            share = len(some) / whole if k * self.chunk < len(asked) else 0.0
            reference = self.references([t for _, t in some])
            with self.roles.playing("generate") as model:
                likely = self.likelihoods("generate", some)
                found = likely[:, 0] - likely[:, 1] - reference
                loss = objective.dpo_loss(found, j.beta, smoothing) * share
                lengths = [len(prompts.reply_ids(self.reader.tokenizer, t.chosen)) for _, t in some]
                nats = objective.anchor(likely[:, 0], torch.tensor(lengths, device=likely.device)) * share
                self.team.backward(loss + j.anchor * nats, model)
            total += float(loss.detach()) * size  # what all processes sum up to is the mean of these
            plain += float(nats.detach()) * size
            right += float(objective.wins(found.round(decimals=3)).mean()) * share * size
        line = {"dpo_loss": total, "dpo_accuracy": right, "reply_nats": plain}
        return line if "infer" in self.moving(self.step) else line | {"loss": total + j.anchor * plain}

    def _lessons(self, group: Group) -> list[Asked]:
        """What θ learns from a person: each summary, or now and then none, with pairs that are not those that reward
        it, each summary with others as far as there are enough."""
        j, mine = self.recipe.joint, group.person.targets
        dice = random.Random(f"empty:{self.recipe.seed}:{self.step}:{group.person.id}")
        if self.schedule() == "sft":  # which rewards nothing: all pairs are there to learn from
            per, mine = j.pairs + j.dpo_pairs, mine
        elif j.shared_pairs:
            per, mine = j.pairs, mine[: j.pairs]
        else:
            per, mine = j.dpo_pairs, mine[j.pairs :]
        if not mine:
            return []
        pairs = [[mine[(k * per + i) % len(mine)] for i in range(min(per, len(mine)))] for k in range(len(group.texts))]
        return [
            ("" if dice.random() < j.empty else z, t) for z, some in zip(group.texts, pairs, strict=True) for t in some
        ]

    def _shuffled(self, groups: Sequence[Group], earned: list[dict[str, Tensor]]) -> list[Tensor]:
        """Everybody's worths, [G] each; for the control in another order within the group."""
        if not self.recipe.joint.shuffled_rewards:
            return [e["worth"] for e in earned]
        mixed = []
        for group, e in zip(groups, earned, strict=True):
            order = list(range(len(group.draws)))
            random.Random(f"mix:{self.recipe.seed}:{self.step}:{group.person.id}").shuffle(order)
            mixed.append(e["worth"][order])
        return mixed

    # looking ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def develop(self) -> dict[str, Any]:
        """On development couples, with the likeliest summaries: loss, accuracy, contrast (own summary against that of
        the opposite on the same pair), length in tokens, share of summaries that differ."""
        if not self.couples:
            self.couples = [self.dev(i) for i in range(self.recipe.train.dev_users)][self.team.rank :: self.team.size]
        losses, right, beats, tokens, said = list[float](), list[float](), list[float](), list[int](), list[str]()
        for couple in self.couples:
            with self.roles.playing("infer") as model:
                asked = [self.reader.prompt(p.signals) for p in couple]
                drawn = [
                    d
                    for (d,) in rollout(
                        model, self.reader, asked, group=1, temperature=0.0, mask=self.recipe.joint.mask,
                        most=self.team.most,
                    )
                ]  # fmt: skip
            texts = [self.said(d) for d in drawn]
            tokens += [len(d.ids) for d in drawn]
            said += texts
            for i, person in enumerate(couple):
                pairs = person.targets[: self.recipe.joint.pairs]
                once = list(dict.fromkeys((texts[i], texts[1 - i])))  # the same text ties, whatever it is scored beside
                each = self.margins([(z, t) for z in once for t in pairs]).view(len(once), len(pairs))
                found = each[[0, -1]]
                losses += (-torch.nn.functional.logsigmoid(self.recipe.joint.beta * found[0])).tolist()
                right += objective.wins(found[0]).tolist()
                beats += objective.wins(found[0], found[1]).tolist()
        named: dict[str, Sequence[float]] = {
            "dev_loss": losses, "dev_accuracy": right, "dev_contrast": beats, "dev_tokens": tokens,
        }  # fmt: skip
        every, texts = {k: self.team.gather(v) for k, v in named.items()}, self.team.gather(said)
        if not every["dev_loss"]:
            return {}
        return {k: sum(v) / len(v) for k, v in every.items()} | {"dev_distinct": len(set(texts)) / len(texts)}


def _cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Items in order, ``size`` at a time."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
