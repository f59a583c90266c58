"""The joint objective as pure functions, tensors in and tensors out (DESIGN, the objective; POPI, arXiv 2510.17881).

A user's signals s, a summary z ~ π_φ(·|s), held-out pairs (x, y⁺, y⁻) of the same user; log-probabilities are sums over
tokens, the end token included:

    m_θ(z) = log π_θ(y⁺|x,z) − log π_θ(y⁻|x,z) − [log π_ref(y⁺|x) − log π_ref(y⁻|x)]
    L(φ,θ) = −E[log σ(β m_θ(z))]

θ gets L's own gradient (``dpo_loss``). φ gets the policy gradient of the reward ``log σ(β m)/β`` (``reward``) through
``policy_loss`` with leave-one-out ``advantages``; β cancels up to a constant factor, so φ descends L/β.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """m_θ (nats) from log-probabilities of two replies, with the summary and (π_ref) without it: [...] each → [...].

    DESIGN, the objective. β m is the difference of DPO's implicit rewards of y⁺ and y⁻ (arXiv 2305.18290, eq. 5;
    log Z cancels)."""
    return chosen - rejected - (ref_chosen - ref_rejected)


def wins(margins: Tensor, others: Tensor | float = 0.0) -> Tensor:
    """1 where a margin is above the other, ½ where they tie, 0 below: [...], [...] or a number → [...] (DESIGN, the
    objective: the accuracy of sign(m); Evaluation: contrast)."""
    return torch.where(margins == others, 0.5, (margins > others).float())


def dpo_loss(margins: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """−log σ(β m), the mean over all margins: [...] → [] (DPO, arXiv 2305.18290, eq. 7, with the summary in π_θ alone;
    L of DESIGN, the objective).

    ``smoothing`` ε: as if a share ε of the pairs were the wrong way round, −(1−ε) log σ(β m) − ε log σ(−β m), so that
    no margin need grow beyond log((1−ε)/ε)/β (Mitchell's conservative DPO)."""
    return -((1 - smoothing) * logsigmoid(beta * margins) + smoothing * logsigmoid(-beta * margins)).mean()


def anchor(chosen: Tensor, tokens: Tensor) -> Tensor:
    """−log π_θ(y⁺|x,z) a token, the mean over all pairs: [n], [n] → [] (nats). Added to DPO, which asks only that y⁺ be
    likelier than y⁻ and may make both unlikely, it keeps θ writing (arXiv 2404.19733, eq. 1)."""
    return -(chosen / tokens).mean()


def reward(margins: Tensor, beta: float) -> Tensor:
    """r(z) = log σ(β m)/β of each summary: [G, K] → [G] (nats), the mean over its K pairs (DESIGN, the objective). At
    most 0; for small β m about m/2, less log 2/β."""
    return logsigmoid(beta * margins).mean(-1) / beta


def costs(
    tokens: Tensor, finished: Tensor, leak: Tensor, *, budget: int, length: float, truncation: float, leaking: float
) -> Tensor:
    """What is taken off a summary's reward: [G] each → [G] (nats): ``length`` a token over the ``budget``,
    ``truncation`` where it did not end (``finished`` is bool), ``leaking`` times its leak (DESIGN, the objective: the
    explicit costs, and r − λ·leak under "Leak-aware reward")."""
    over = (tokens - budget).clamp(min=0).to(leak.dtype)
    return length * over + truncation * (~finished).to(leak.dtype) + leaking * leak


def advantages(rewards: Tensor) -> Tensor:
    """Each reward less the mean of the others of its group, [..., G] → [..., G]; not divided by their deviation.

    (Leave-one-out: RLOO, arXiv 2402.14740; DESIGN, the objective. The baseline does not depend on the sample, so no
    bias comes in.) Raises ValueError for a group of one.
    """
    size = rewards.shape[-1]
    if size < 2:
        raise ValueError("a group needs at least two samples: the others are each one's baseline")
    return (rewards - rewards.mean(-1, keepdim=True)) * (size / (size - 1))


def policy_loss(logprobs: Tensor, sampled: Tensor, mask: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """Minus the advantage-weighted log-probability of the samples, importance-corrected and clipped (PPO, arXiv
    1707.06347, eq. 7); its gradient is the policy gradient.

    ``logprobs`` and ``sampled`` [G, T]: of each token now, and as it was drawn (no gradient); ``mask`` [G, T]: true at
    a sample's own tokens; ``advantage`` [G]. A token counts the same whatever the length of its sample: the sum over
    tokens, the mean over samples. On the first pass over fresh samples the ratio is 1 and nothing is clipped.
    """
    ratio = torch.exp(torch.where(mask, logprobs - sampled.detach(), 0.0))
    weight = advantage.detach()[:, None]
    gain = torch.minimum(ratio * weight, ratio.clamp(1 - clip, 1 + clip) * weight)
    return -torch.where(mask, gain, 0.0).sum(1).mean()


def kl(logits: Tensor, ref_logits: Tensor, allowed: Tensor) -> Tensor:
    """KL(π ‖ π_ref) at each place, exact over the ids allowed there: [T, V], [T, V], [T, V] bool → [T] (nats).

    Both are renormalised to what the closed vocabulary allowed (DESIGN, Closed vocabulary; the KL to the warm start is
    that of the objective there). A place where one id is allowed has none.
    """
    log_p = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    log_q = ref_logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    apart = torch.where(allowed, log_p - log_q, 0.0)
    return (log_p.exp() * apart).sum(-1)


def identity_leak(own: Tensor, others: Tensor) -> Tensor:
    """How much more a summary says of whose it is than of what they like: [G], [G, N] → [G] (nats).

    log π_φ(z|s) less the log of its mean probability behind the signals of N other users with the same preferences:
    0 where the summary would come from any of them (DESIGN, the objective: "Leak-aware reward"). Not bounded below, as
    a summary may fit others better.
    """
    return own - (torch.logsumexp(others, -1) - torch.log(torch.tensor(float(others.shape[-1]))))
