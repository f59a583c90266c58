"""The objective's functions against plain Python, and the policy gradient against the exact one, by enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from popi_training import objective as o

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


def test_the_gradient_of_dpo_is_that_of_finite_differences() -> None:
    m = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: o.dpo_loss(x, 0.1), (m,))


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


def test_identity_leak_is_nothing_where_any_other_user_would_say_the_same() -> None:
    close(o.identity_leak(torch.tensor([-3.0]), torch.tensor([[-3.0, -3.0]])), [0.0], abs=1e-6)
    got = o.identity_leak(torch.tensor([-1.0]), torch.tensor([[-4.0, -6.0]]))
    close(got, [-1 - math.log((math.exp(-4) + math.exp(-6)) / 2)], abs=1e-6)
