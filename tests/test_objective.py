"""The objective's functions against plain Python and finite differences, and the policy gradient against the exact one,
by enumeration."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from popi_edge.guard import spec
from popi_edge.guard.folding import normal, plain, small
from popi_edge.signals import Signal, Statement
from popi_training import objective as o
from popi_training.people import leaks

floats = st.floats(-30, 30, allow_nan=False)
table = st.lists(st.lists(floats, min_size=3, max_size=3), min_size=2, max_size=5)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def close(got: Any, want: Any, **how: float) -> None:
    assert torch.as_tensor(got).tolist() == pytest.approx(want, **({"rel": 1e-9, "abs": 1e-9} | how))


@given(table, st.floats(0.01, 2))
def test_margin_loss_and_reward_are_those_of_a_plain_loop(rows: list[list[float]], beta: float) -> None:
    m = torch.tensor(rows, dtype=torch.float64)
    assert torch.allclose(o.margin(m + 5, m - 1, 2 * m, m), 6 - m)
    close(o.dpo_loss(m, beta), -sum(log_sigmoid(beta * x) for row in rows for x in row) / (3 * len(rows)))
    turned = [0.8 * log_sigmoid(beta * x) + 0.2 * log_sigmoid(-beta * x) for row in rows for x in row]
    close(o.dpo_loss(m, beta, 0.2), -sum(turned) / len(turned))
    close(o.reward(m, beta), [sum(log_sigmoid(beta * x) for x in row) / 3 / beta for row in rows])


@given(st.lists(st.tuples(st.floats(-300, 0), st.integers(1, 90)), min_size=1, max_size=6))
def test_the_anchor_is_the_mean_nats_a_token_of_the_chosen_replies(replies: list[tuple[float, int]]) -> None:
    chosen, tokens = (torch.tensor(column) for column in zip(*replies, strict=True))
    close(o.anchor(chosen.double(), tokens), sum(-p / n for p, n in replies) / len(replies), rel=1e-5)


@given(st.lists(floats, min_size=2, max_size=8))
def test_an_advantage_is_the_reward_less_the_others_mean(rewards: list[float]) -> None:
    got = o.advantages(torch.tensor(rewards, dtype=torch.float64))
    rest = [sum(rewards[:i] + rewards[i + 1 :]) / (len(rewards) - 1) for i in range(len(rewards))]
    close(got, [r - b for r, b in zip(rewards, rest, strict=True)], abs=1e-8)


def test_a_group_of_one_has_no_baseline() -> None:
    with pytest.raises(ValueError, match="at least two"):
        o.advantages(torch.tensor([1.0]))


@given(st.lists(st.tuples(st.integers(1, 90), st.booleans(), st.floats(0, 5)), min_size=1, max_size=6))
def test_costs_are_those_of_a_plain_loop(samples: list[tuple[int, bool, float]]) -> None:
    tokens, finished, leak = (list(column) for column in zip(*samples, strict=True))
    given_ = torch.tensor(tokens), torch.tensor(finished), torch.tensor(leak, dtype=torch.float64)
    got = o.costs(*given_, budget=40, length=0.1, truncation=2.0, leaking=0.5)
    close(got, [0.1 * max(0, n - 40) + (0 if end else 2.0) + 0.5 * x for n, end, x in samples])


class Tiny:
    """A policy over three tokens and summaries of two, with a free logit for every place and prefix."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.first = torch.randn(3, dtype=torch.float64, requires_grad=True)
        self.second = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
        self.all = list(itertools.product(range(3), repeat=2))

    def logprobs(self, z: tuple[int, int]) -> torch.Tensor:
        return torch.stack([self.first.log_softmax(0)[z[0]], self.second[z[0]].log_softmax(0)[z[1]]])

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [self.first, self.second])])


@pytest.mark.parametrize("size", [2, 3])
def test_the_policy_gradient_is_the_exact_gradient_of_the_loss_in_expectation(size: int) -> None:
    """Over all groups of summaries, weighted by how likely each is: ∇L/β, as r = log σ(β m)/β is the reward."""
    policy, beta = Tiny(1), 0.3
    margins = torch.randn(9, 4, dtype=torch.float64) * 3
    chances = torch.stack([policy.logprobs(z).sum().exp() for z in policy.all])
    losses = torch.stack([o.dpo_loss(m, beta) for m in margins])
    exact = policy.gradient((chances * losses).sum()) / beta
    rewards, mask = o.reward(margins, beta), torch.ones(size, 2, dtype=torch.bool)
    total, likely = torch.zeros_like(exact), chances.tolist()
    for group in itertools.product(range(9), repeat=size):
        now = torch.stack([policy.logprobs(policy.all[i]) for i in group])
        loss = o.policy_loss(now, now.detach(), mask, o.advantages(rewards[list(group)]), clip=0.2)
        total += math.prod(likely[i] for i in group) * policy.gradient(loss)
    assert torch.allclose(total, exact, rtol=1e-9, atol=1e-12) and exact.abs().max() > 1e-3


ALLOWED = torch.tensor([[True, True, False, True], [False, True, False, False], [True] * 4])
DIFFERENTIABLE: dict[str, tuple[Callable[..., torch.Tensor], list[tuple[int, ...]]]] = {
    "margin": (o.margin, [(2, 3)] * 4),
    "dpo_loss": (lambda m: o.dpo_loss(m, 0.1), [(7,)]),
    "dpo_loss, smoothing": (lambda m: o.dpo_loss(m, 0.7, 0.2), [(7,)]),
    "anchor": (lambda chosen: o.anchor(chosen, torch.tensor([1, 4, 90])), [(3,)]),
    "reward": (lambda m: o.reward(m, 0.3), [(2, 3)]),
    "advantages": (o.advantages, [(2, 4)]),
    "kl": (lambda p, q: o.kl(p, q, ALLOWED), [(3, 4), (3, 4)]),
    "identity_leak": (o.identity_leak, [(3,), (3, 2)]),
}
"""What is differentiated, and the shapes of what it is differentiated by."""


@pytest.mark.parametrize("name", list(DIFFERENTIABLE))
def test_a_gradient_is_that_of_finite_differences(name: str) -> None:
    function, shapes = DIFFERENTIABLE[name]
    rng = torch.Generator().manual_seed(2)
    given_ = [2 * torch.randn(s, dtype=torch.float64, generator=rng) for s in shapes]
    assert torch.autograd.gradcheck(function, tuple(x.requires_grad_() for x in given_))


@given(st.randoms(use_true_random=False), st.floats(0.05, 0.5))
def test_the_clipped_loss_is_that_of_a_plain_loop(rng: Any, clip: float) -> None:
    sizes = [rng.randint(1, 4) for _ in range(3)]
    now = torch.tensor([[rng.uniform(-3, 0) for _ in range(4)] for _ in sizes], dtype=torch.float64)
    then = now + torch.tensor([[rng.uniform(-1, 1) for _ in range(4)] for _ in sizes], dtype=torch.float64)
    mask = torch.tensor([[t < n for t in range(4)] for n in sizes])
    advantage = torch.tensor([rng.uniform(-2, 2) for _ in sizes], dtype=torch.float64)
    want = 0.0
    for g, n in enumerate(sizes):
        for t in range(n):
            ratio, a = math.exp(float(now[g, t] - then[g, t])), float(advantage[g])
            want -= min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
    then = torch.where(mask, then, torch.nan)  # what stands beside a sample's own tokens does not matter
    close(o.policy_loss(now, then, mask, advantage, clip=clip), want / 3)


@given(st.randoms(use_true_random=False))
def test_kl_is_that_over_the_allowed_ids(rng: Any) -> None:
    logits, ref = (torch.tensor([[rng.uniform(-5, 5) for _ in range(6)] for _ in range(3)]) for _ in range(2))
    logits = logits.double().requires_grad_()
    allowed = torch.tensor([[rng.random() < 0.6 for _ in range(6)] for _ in range(3)])
    allowed[:, 0] = True
    want = []
    for row, other, may in zip(logits.tolist(), ref.tolist(), allowed.tolist(), strict=True):
        ids = [i for i in range(6) if may[i]]
        p, q = ([math.exp(x[i]) / sum(math.exp(x[j]) for j in ids) for i in ids] for x in (row, other))
        want.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    got = o.kl(logits, ref.double(), allowed)
    close(got, want, abs=1e-6)
    [gradient] = torch.autograd.grad(got.sum(), [logits])
    assert torch.isfinite(gradient).all() and not gradient[~allowed].any()


def test_kl_and_identity_leak_are_those_of_whole_summaries_by_enumeration() -> None:
    """Over all nine of them: Σ π log π/π′, and with the mean of two others in the place of π′."""
    policy, *others = (Tiny(seed) for seed in (1, 2, 3))
    logs = [[float(p.logprobs(z).sum().detach()) for z in p.all] for p in (policy, *others)]
    here = [math.exp(x) for x in logs[0]]
    assert sum(here) == pytest.approx(1)
    everything = torch.ones(3, 3, dtype=torch.bool)
    at_first = o.kl(policy.first[None], others[0].first[None], everything[:1])
    behind = o.kl(policy.second, others[0].second, everything)
    apart = sum(p * (x - y) for p, x, y in zip(here, logs[0], logs[1], strict=True))
    close((at_first + (policy.first.softmax(0) * behind).sum()).detach(), [apart])
    leak = o.identity_leak(torch.tensor(logs[0]).double(), torch.tensor(logs[1:]).double().T)
    mixed = [math.log((math.exp(x) + math.exp(y)) / 2) for x, y in zip(*logs[1:], strict=True)]
    close(leak, [x - y for x, y in zip(logs[0], mixed, strict=True)], abs=1e-6)
    assert sum(p * x for p, x in zip(here, leak.tolist(), strict=True)) > 0  # a KL as well


@given(st.lists(st.lists(st.floats(-200, 0), min_size=4, max_size=4), min_size=1, max_size=5))
def test_identity_leak_is_that_of_a_plain_loop(rows: list[list[float]]) -> None:
    """However unlikely: the mean of probabilities that are no more than 0 by themselves."""
    table = torch.tensor(rows, dtype=torch.float64)
    want = []
    for own, *theirs in rows:
        top = max(theirs)
        want.append(own - top - math.log(sum(math.exp(x - top) for x in theirs) / 3))
    close(o.identity_leak(table[:, 0], table[:, 1:]), want, abs=1e-6)


def test_identity_leak_is_nothing_where_any_other_user_would_say_the_same() -> None:
    close(o.identity_leak(torch.tensor([-3.0]), torch.tensor([[-3.0, -3.0]])), [0.0], abs=1e-6)
    got = o.identity_leak(torch.tensor([-1.0]), torch.tensor([[-4.0, -6.0]]))
    close(got, [-1 - math.log((math.exp(-4) + math.exp(-6)) / 2)], abs=1e-6)


# leaks ------------------------------------------------------------------------------------------------------
def plain_leak(text: str, signals: Sequence[Signal]) -> float:
    """``leaks`` by the definition that ``popi_edge.guard.overlap`` begins with, every row and run tried: of a text of
    plain letters, short enough to be looked at in one piece, and signals whose rows are not longer than it."""
    mine = re.findall(r"[a-z0-9]+(?:'[a-z0-9]+)*", text.lower())
    caught: set[int] = set()
    for other in (t for s in signals for t in s.texts()):
        theirs = [normal(w) for w in re.findall(r"[a-z0-9]+(?:'[a-z0-9]+)*", other.lower())]
        for places in plain_shared(mine, theirs):
            caught |= set(range(places[0], places[-1] + 1))
    return len(caught) / len(mine) if mine else 0.0


def plain_shared(words: list[str], theirs: list[str]) -> Iterator[tuple[int, ...]]:
    """Places in a text's words that are one signal's: its stretches in order or not, copies, and a crowd."""
    limits, tastes, mine = spec()["overlap"], spec()["taste_words"], [normal(w) for w in words]
    anywhere = [1 if w in plain() else 1 + limits["telling"] for w in mine]
    copied = list(anywhere)
    for i, word in enumerate(words):
        if word in spec()["person_words"] and not set(words[i + 1 : i + 3]) & set(tastes):
            copied[i] = 1 + limits["person"]
    telling = {w for w in mine if w not in plain()}
    for start, word in enumerate(theirs):
        crowd = telling & set(theirs[start : start + spec()["scattered"]["window"]])
        if word in telling and len(crowd) >= spec()["scattered"]["words"]:
            yield tuple(sorted(mine.index(w) for w in crowd))
            break
    rows: list[list[int]] = []
    for place in (i for i, w in enumerate(theirs) if w in mine):
        if rows and all(w in small() for w in theirs[rows[-1][-1] + 1 : place]):
            rows[-1].append(place)
        else:
            rows.append([place])
    for row in rows:
        pieces: list[list[int]] = []
        for place in row:
            if pieces and place == pieces[-1][-1] + 1:
                pieces[-1].append(place)
            else:
                pieces.append([place])
        said = theirs[max(0, row[0] - limits["before"]) : row[-1] + 1]
        whole = pieces if {normal(w) for w in tastes} & set(said) else [row]
        for places, weights, gap in [*((p, copied, 0) for p in whole), *((p, anywhere, limits["gap"]) for p in pieces)]:
            stretch = [theirs[p] for p in places]
            enough = limits["score"] - limits["missing"] * (places[-1] - places[0] + 1 > len(places))
            found = plain_run(mine, weights, stretch, gap)
            first = tuple(sorted({mine.index(w) for w in stretch}))
            for some in (found, first) if gap else (found,):
                if len(some) >= limits["words"] and sum(weights[p] for p in some) >= enough:
                    yield some
                    break


def plain_run(mine: list[str], weights: list[int], stretch: list[str], gap: int) -> tuple[int, ...]:
    """The heaviest places that hold consecutive words of a stretch, rising by at most ``gap`` + 1; of equally heavy
    ones, that which ends first in the stretch, then the one whose last places come first."""
    runs: list[tuple[int, list[int], tuple[int, ...]]] = []
    for start in range(len(stretch)):
        some: list[tuple[int, ...]] = [(p,) for p, w in enumerate(mine) if w == stretch[start]]
        for end in range(start, len(stretch)):
            runs += [(-end, [-p for p in reversed(run)], run) for run in some]
            after = stretch[end + 1 : end + 2]
            some = [(*r, p) for r in some for p, w in enumerate(mine) if [w] == after and 0 < p - r[-1] <= gap + 1]
    return max(runs, key=lambda run: (sum(weights[p] for p in run[2]), *run[:2]))[2]


COPIED = "harbor violet ladder cactus"
CROWD = "violet stone ladder river cactus window piano kitchen ocean bread lantern"
"""Six words that the texts have, no two of them side by side."""


@pytest.mark.parametrize(
    ("text", "said", "share"),
    [
        (f"Their {COPIED} was old.", [f"I keep a {COPIED} at home."], 4 / 7),
        ("The harbor and violet and ladder and cactus.", [f"I keep a {COPIED}."], 7 / 8),  # what stands between too
        ("Cactus, ladders, violets, harbor.", [f"I keep a {COPIED}."], 1.0),  # in any order and form
        (f"The {COPIED}.", ["I keep a harbor violet.", "I keep a ladder cactus."], 0.0),  # each too little of it
        ("Their harbor violet ladder.", [f"I keep a {COPIED}."], 0.0),
        ("Likes short and direct answers with examples.", ["I like short and direct answers with examples."], 0.0),
        ("Keeps ocean, lantern, piano, violet, ladder and cactus.", [CROWD], 7 / 8),
        ("Keeps ocean, lantern, piano, violet, ladder.", [CROWD], 0.0),
        ("I sold my garden.", ["Last year I sold my garden."], 1.0),
        ("Likes warm replies.", [], 0.0),
        ("", [f"I keep a {COPIED}."], 0.0),
    ],
)
def test_the_leak_is_the_share_of_the_words_that_are_the_signals(text: str, said: list[str], share: float) -> None:
    signals = [Statement(text=t) for t in said]
    assert leaks(text, signals) == plain_leak(text, signals) == pytest.approx(share)


def test_the_leak_is_that_of_the_plain_definition_on_texts_pieced_together_from_signals() -> None:
    telling = [*COPIED.split(), "ladders", "piano", "ocean", "lantern"]
    words = [*telling, "short", "answers", "the", "of", "and", "i", "my", "like"]
    shares = []
    for seed in range(600):
        rng = random.Random(seed)
        said = [rng.choices(words, k=rng.randint(1, 10)) for _ in range(rng.randint(1, 3))]
        crowd = [w for some in rng.sample(telling, 7) for w in (some, *["stone"] * rng.randint(0, 1))]
        mine: list[str] = []
        while len(mine) < 10:
            some, at = rng.choice(said), rng.randrange(10)
            mine += rng.choice([some[at : at + 5], some[::-1][:3], rng.choices(words, k=2)])
        signals = [Statement(text=" ".join(s)) for s in [*said, crowd]]
        shares.append(leaks(" ".join(mine), signals))
        assert shares[-1] == pytest.approx(plain_leak(" ".join(mine), signals)), (mine, said)
    assert all(sum(some) > 50 for some in ([x == 0 for x in shares], [0 < x < 1 for x in shares]))
    assert 1.0 in shares
