"""The parity figures against sums written out, one number after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi_edge.errors import EngineError
from popi_export import parity

ROWS = st.integers(2, 150)


def drawn(n: int, v: int, seed: int) -> tuple[Any, Any, list[int]]:
    rng = np.random.default_rng(seed)
    a = rng.normal(0, 3, (n, v)).astype(np.float32)
    b = (a + rng.normal(0, 1, (n, v))).astype(np.float32)
    return a, b, [int(i) for i in rng.integers(0, v, n)]


def softmax(row: Any) -> list[float]:
    top = max(float(x) for x in row)
    each = [math.exp(float(x) - top) for x in row]
    return [x / math.fsum(each) for x in each]


@given(n=ROWS, v=st.integers(2, 9), seed=st.integers(0, 999))
def test_the_figures_are_the_sums_written_out(n: int, v: int, seed: int) -> None:
    a, b, ids = drawn(n, v, seed)
    p, q = [softmax(r) for r in a], [softmax(r) for r in b]
    kl = math.fsum(x * (math.log(x) - math.log(y)) for r, s in zip(p, q, strict=True)
                   for x, y in zip(r, s, strict=True) if x) / n  # fmt: skip
    alike = sum(max(range(v), key=lambda i: r[i]) == max(range(v), key=lambda i: s[i])
                for r, s in zip(a, b, strict=True)) / n  # fmt: skip
    own = math.fsum(-math.log(q[i][ids[i + 1]]) for i in range(n - 1))
    assert parity.mean_kl(a, b) == pytest.approx(kl, rel=1e-9, abs=1e-12)
    assert parity.greedy_agreement(a, b) == alike
    assert parity.logit_difference(a, b) == pytest.approx(max(abs(float(x)) for x in (a - b).ravel()))
    assert parity.surprise(b, ids) == pytest.approx(own, rel=1e-9)
    assert parity.perplexity(b, ids) == pytest.approx(math.exp(own / (n - 1)), rel=1e-9)


def test_a_tally_weighs_positions_not_texts() -> None:
    parts = [drawn(n, 7, n) for n in (3, 90, 11)]
    tally = parity.Tally()
    for a, b, ids in parts:
        tally.add(a, b, ids)
    found = tally.parity()
    a, b = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    assert found.kl == pytest.approx(parity.mean_kl(a, b)) and found.positions == 104
    assert found.agreement == pytest.approx(parity.greedy_agreement(a, b))
    assert found.logits == parity.logit_difference(a, b)
    assert found.perplexity == pytest.approx(math.exp(sum(parity.surprise(p[1], p[2]) for p in parts) / 101))
    assert found.reference_perplexity == pytest.approx(math.exp(sum(parity.surprise(p[0], p[2]) for p in parts) / 101))


def test_equal_models_differ_in_nothing_and_a_shift_of_all_logits_is_no_other_model() -> None:
    a, _, ids = drawn(40, 12, 1)
    tally = parity.Tally()
    tally.add(a, a, ids)
    same = tally.parity()
    assert (same.logits, same.kl, same.agreement) == (0, 0, 1) and same.perplexity == same.reference_perplexity
    assert parity.mean_kl(a, a + np.float32(5)) == pytest.approx(0, abs=1e-9)
    huge = a * np.float32(1e30)  # nothing overflows
    assert parity.mean_kl(huge, huge) == 0


def test_what_cannot_be_compared_is_refused() -> None:
    a, b, ids = drawn(5, 4, 0)
    for x, y in ((a, b[:4]), (a, b[:, :3]), (a[:0], b[:0])):
        with pytest.raises(EngineError, match="cannot be compared"):
            parity.logit_difference(x, y)
    with pytest.raises(EngineError, match="5 rows of logits for 4 tokens"):
        parity.surprise(a, ids[:4])
    b[2, 1] = np.nan
    with pytest.raises(EngineError, match="no numbers"):
        parity.Tally().add(a, b, ids)
    with pytest.raises(EngineError, match="no text"):
        parity.Tally().parity()
