"""How far one model's next-token logits lie from another's: pure functions of arrays.

Logits are [n, V] of the same n positions of the same text under both models (teacher forced), P the reference.

    logit difference    max |a − b|                                   (in logits)
    greedy agreement    mean of 1[argmax a = argmax b]
    mean KL             mean over positions of Σ p (log p − log q)    (nats; 0 for equal models)
    perplexity          exp(− mean log p(next token))

Not covered: what a difference means for a task (``tasks``), and whether greedy texts stay alike once they part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import EngineError

Logits = NDArray[np.float32]
Wide = NDArray[np.float64]
ROWS = 64
"""Positions in float64 at once: a vocabulary of a quarter of a million takes 128 MB an array then."""


def log_softmax(logits: Logits) -> Wide:
    """[n, V] → log-probabilities [n, V] in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    out: Wide = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return out


def logit_difference(a: Logits, b: Logits) -> float:
    """The largest absolute difference; shapes [n, V]."""
    _same(a, b)
    return max(float(np.abs(a[i : i + ROWS] - b[i : i + ROWS]).max()) for i in range(0, len(a), ROWS))


def greedy_agreement(a: Logits, b: Logits) -> float:
    """The share of positions at which both would choose the same token (the first of equal ones)."""
    _same(a, b)
    return float((a.argmax(axis=-1) == b.argmax(axis=-1)).mean())


def mean_kl(p: Logits, q: Logits) -> float:
    """Mean KL(P‖Q) over positions, in nats, from logits [n, V] each; never below 0."""
    _same(p, q)
    total = 0.0
    for i in range(0, len(p), ROWS):
        a, b = log_softmax(p[i : i + ROWS]), log_softmax(q[i : i + ROWS])
        total += float((np.exp(a) * (a - b)).sum())
    return max(0.0, total / len(p))


def surprise(logits: Logits, ids: Sequence[int]) -> float:
    """− Σ log p(ids[i+1] | ids[..i]) in nats: logits [n, V] of the n ids of one text, n ≥ 2."""
    if len(logits) != len(ids) or len(ids) < 2:
        raise EngineError(f"{len(logits)} rows of logits for {len(ids)} tokens")
    total, targets = 0.0, np.asarray(ids[1:])
    for i in range(0, len(targets), ROWS):
        rows = log_softmax(logits[i : min(i + ROWS, len(targets))])
        total -= float(rows[np.arange(len(rows)), targets[i : i + ROWS]].sum())
    return total


def perplexity(logits: Logits, ids: Sequence[int]) -> float:
    """exp of the mean surprise a token; logits [n, V] of the n ids of one text."""
    return float(np.exp(surprise(logits, ids) / (len(ids) - 1)))


@dataclass(frozen=True)
class Parity:
    """The figures of a model against its reference over ``positions`` positions of several texts."""

    logits: float
    agreement: float
    kl: float
    perplexity: float
    reference_perplexity: float
    positions: int


class Tally:
    """Adds texts up to a ``Parity``: means over all positions, not over texts."""

    def __init__(self) -> None:
        self._largest = self._alike = self._kl = self._own = self._theirs = 0.0
        self._n = self._targets = 0

    def add(self, reference: Logits, found: Logits, ids: Sequence[int]) -> None:
        """One text's logits [n, V] under both. Raises EngineError for other shapes, or for what is no number."""
        if not np.isfinite(found).all():
            raise EngineError("the model gave logits that are no numbers")
        n = len(ids)
        self._largest = max(self._largest, logit_difference(reference, found))
        self._alike += greedy_agreement(reference, found) * n
        self._kl += mean_kl(reference, found) * n
        self._own += surprise(found, ids)
        self._theirs += surprise(reference, ids)
        self._n += n
        self._targets += n - 1

    def parity(self) -> Parity:
        """What was added. Raises EngineError where nothing was."""
        if not self._targets:
            raise EngineError("no text to compare on")
        return Parity(
            logits=self._largest,
            agreement=self._alike / self._n,
            kl=self._kl / self._n,
            perplexity=float(np.exp(self._own / self._targets)),
            reference_perplexity=float(np.exp(self._theirs / self._targets)),
            positions=self._n,
        )


def _same(a: Logits, b: Logits) -> None:
    if a.shape != b.shape or a.ndim != 2 or not len(a):
        raise EngineError(f"logits of the shapes {list(a.shape)} and {list(b.shape)} cannot be compared")
