"""A packed batch computes what every sequence alone computes, and its loss what a plain loop computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popi_edge.errors import ConfigError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_training import base, loss, objective
from popi_training.loss import contrast, pair_logprobs, supervised, token_logprobs
from popi_training.pack import Packed, Sample, pack
from popi_training.warm import Reader

ids = st.integers(0, 3)
"""Few values, so that sequences often begin alike."""
samples = st.lists(
    st.builds(
        Sample,
        st.lists(ids, min_size=1, max_size=6).map(tuple),
        st.lists(ids, min_size=1, max_size=6).map(tuple),
        weight=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=8,
)


def alone(model: Any, sample: Sample) -> torch.Tensor:
    """Logits [completion, vocabulary] that predict a sample's completion, from this sequence and no other."""
    sequence = torch.tensor([[*sample.prompt, *sample.completion[:-1]]])
    out: torch.Tensor = model(sequence, use_cache=False).logits[0, len(sample.prompt) - 1 :]
    return out


def together(model: Any, packed: Packed) -> torch.Tensor:
    """Logits [nodes, vocabulary] of the packed sequence, by its positions and mask alone."""
    mask = torch.from_numpy(packed.mask)[None, None]
    out: torch.Tensor = model(
        input_ids=torch.from_numpy(packed.ids)[None],
        position_ids=torch.from_numpy(packed.positions)[None],
        attention_mask=torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min),
        use_cache=False,
    ).logits[0]
    return out


@given(samples)
def test_every_token_sees_its_own_sequence_and_nothing_else(made: list[Sample]) -> None:
    packed = pack(made)
    prefixes = {
        (*s.prompt, *s.completion)[:n] for s in made for n in range(1, len(s.prompt) + len(s.completion))
    }  # fmt: skip
    seen = [tuple(packed.ids[row]) for row in packed.mask]
    assert sorted(seen) == sorted(prefixes)  # each shared prefix once, and only once
    assert [len(s) - 1 for s in seen] == packed.positions.tolist()
    start = 0
    for sample, size, weight in zip(made, packed.sizes, packed.weights, strict=True):
        whole = (*sample.prompt, *sample.completion)
        for i in range(size):
            assert seen[packed.at[start + i]] == whole[: len(sample.prompt) + i]
            assert packed.label[start + i] == sample.completion[i]
        assert weight == sample.weight
        start += size
    assert start == len(packed.at) == len(packed.label) == len(packed.allowed)


@settings(max_examples=20, deadline=None)
@given(samples)
@torch.no_grad()
def test_packed_logits_are_those_of_each_sequence_alone(tiny: tuple[Path, Any], made: list[Sample]) -> None:
    model, packed, start = tiny[1], pack(made), 0
    logits = together(model, packed)
    for sample in made:
        want = alone(model, sample)
        got = logits[torch.from_numpy(packed.at[start : start + len(want)])]
        assert (want - got).abs().max() < 1e-4 * want.abs().max()
        start += len(want)


PROMPT = tuple(range(40, 80))
LONG = [
    Sample(PROMPT, (5, 6, 7, 8), weight=1.0),
    Sample(PROMPT, (5, 6, 9), weight=0.5),
    Sample(PROMPT, (5,), weight=0.25),
    Sample(PROMPT[:25], (5, 6, 7, 8), weight=2.0),
    Sample((99, *PROMPT), (5, 6, 7, 8), weight=0.0),
]


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, trained))


def test_packed_gradients_of_the_adapter_are_those_of_each_sequence_alone(tiny: tuple[Path, Any]) -> None:
    model = base.with_lora(base.dequantized(tiny[0]), 4, 8.0, seed=1)
    state = base.lora_state(model)
    rng = np.random.default_rng(2)
    base.load_lora(model, {n: rng.normal(0, 0.2, a.shape).astype(np.float32) for n, a in state.items()})
    plain = torch.zeros(())
    for s in LONG:
        chosen = torch.log_softmax(alone(model, s), -1)[range(len(s.completion)), list(s.completion)]
        plain = plain - s.weight * chosen.mean() / sum(s.weight for s in LONG)
    packed, _ = supervised(model, [pack(LONG)])[0]
    assert (plain - packed).detach().abs() < 1e-5
    for want, got in zip(gradients(model, plain), gradients(model, packed), strict=True):
        assert want.abs().max() > 0 and (want - got).abs().max() < 1e-4 * want.abs().max()


@torch.no_grad()
def test_sequences_that_go_through_together_get_what_each_gets_alone(tiny: tuple[Path, Any]) -> None:
    packs = [pack(LONG[:3]), pack(LONG), pack([Sample((3,), (1, 2), (np.array([1, 5]), None))])]
    for (cost, means), packed in zip(supervised(tiny[1], packs), packs, strict=True):
        parts = token_logprobs(tiny[1], [packed])[0].split(packed.sizes)
        weighted = sum(w * float(p.mean()) for w, p in zip(packed.weights, parts, strict=True))
        assert [float(m) for m in means] == pytest.approx([float(p.mean()) for p in parts], abs=1e-5)
        assert float(cost) == pytest.approx(-weighted / sum(packed.weights), abs=1e-5)
    for got, packed in zip(token_logprobs(tiny[1], packs), packs, strict=True):
        alone = token_logprobs(tiny[1], [packed])[0]
        assert got.shape == (sum(packed.sizes),) and (got - alone).abs().max() < 1e-5


def test_pairs_of_replies_get_the_log_probabilities_and_gradients_of_each_alone(tiny: tuple[Path, Any]) -> None:
    model = base.with_lora(base.dequantized(tiny[0]), 4, 8.0, seed=3)
    contexts = [PROMPT, PROMPT[:20], PROMPT[3:]]
    pairs = [((5, 6, 7), (5, 6, 8, 9)), ((1,), (2, 3)), ((9, 9), (9,))]
    got = pair_logprobs(model, contexts, pairs)
    want = []
    for context, pair in zip(contexts, pairs, strict=True):
        for reply in pair:
            rows = torch.log_softmax(alone(model, Sample(tuple(context), reply)), -1)
            want.append(rows[range(len(reply)), list(reply)].sum())
    assert (got.flatten() - torch.stack(want)).abs().max() < 1e-4
    for a, b in zip(gradients(model, got[:, 0].sum()), gradients(model, sum(want[::2], torch.zeros(()))), strict=True):
        assert (a - b).abs().max() < 1e-4 * max(1.0, float(b.abs().max()))


@given(st.integers(2, 5), st.randoms(use_true_random=False))
def test_contrast_is_that_of_a_plain_loop(users: int, rng: Any) -> None:
    of = [[i, -1, *(j for j in range(users) if j != i and rng.random() < 0.8)] for i in range(users)]
    means = [torch.tensor([rng.uniform(-3, 0) for _ in whose]) for whose in of]
    told = []
    for j in range(users):
        column = {i: 8.0 * float(means[i][whose.index(j)]) for i, whose in enumerate(of) if j in whose}
        if len(column) > 1:
            told.append(math.log(sum(map(math.exp, column.values()))) - column[j])
    got = float(contrast(means, of, 8.0))
    assert got == pytest.approx(sum(told) / len(told) if told else 0.0, abs=1e-4)


@torch.no_grad()
def test_log_probabilities_are_over_the_ids_that_the_closed_vocabulary_allowed(tiny: tuple[Path, Any]) -> None:
    path, model = tiny
    reader = Reader(Tokenizer(Gguf(path)), 1024)
    texts = ["Prefers short replies.", "Prefers warm words, and long replies.", "Nothing is clear yet."]
    made = [reader.sample(PROMPT, text) for text in texts]
    got = token_logprobs(model, [pack(made)])[0].tolist()
    want = []
    for sample in made:
        state = reader.vocabulary.start()
        for i, (row, token) in enumerate(zip(alone(model, sample), sample.completion, strict=True)):
            allowed = reader.vocabulary.allowed(state, reader.limits["summary_tokens"] - i).tolist()
            assert token in allowed and len(allowed) < len(row)
            want.append(float(row[token]) - math.log(sum(math.exp(float(row[j])) for j in allowed)))
            if token != reader.tokenizer.eos:
                state = reader.vocabulary.advance(state, token)
    assert np.abs(np.array(want) - np.array(got)).max() < 1e-4
    assert max(got) <= 1e-6 and min(got) < -0.1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("barred", [True, False])
def test_log_probabilities_and_kl_in_portions_are_those_of_plain_tensors(
    monkeypatch: pytest.MonkeyPatch, barred: bool, temperature: float
) -> None:
    """Eleven tokens at seven places in portions of four; values and gradients as autograd finds them."""
    monkeypatch.setattr(loss, "PORTION", 4)
    dice = torch.Generator().manual_seed(1)
    logits, before = (torch.randn(7, 13, generator=dice, dtype=torch.float64).mul(3).requires_grad_() for _ in "ab")
    back = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 6])
    masks = torch.rand(3, 13, generator=dice) < 0.6 if barred else torch.ones(1, 13, dtype=torch.bool)
    row = torch.randint(len(masks), (11,), generator=dice)
    label = torch.stack([m.nonzero()[int(m.sum()) // 2, 0] for m in masks])[row]
    now, then = (loss.Scored(x, back, label, row, masks, [11]) for x in (logits, before))
    rows = [(x[back] / temperature).masked_fill(~masks[row], -torch.inf) for x in (logits, before)]
    chosen = rows[0].log_softmax(1)[range(11), label]
    for got, want in (
        (now.logprobs(temperature), chosen),
        (now.kl(then, temperature), objective.kl(*(x[back] / temperature for x in (logits, before)), masks[row])),
    ):
        assert torch.allclose(got, want, atol=1e-12)
        weights = torch.linspace(-1, 2, 11, dtype=torch.float64)
        a, b = (torch.autograd.grad((x * weights).sum(), logits, retain_graph=True)[0] for x in (got, want))
        assert a.abs().max() > 0.01 and torch.allclose(a, b, atol=1e-12)
    assert now.open is not barred and bool((now.kl(now, temperature) == 0).all())


def test_a_summary_that_could_not_be_written_is_not_learnt(tiny: tuple[Path, Any]) -> None:
    reader = Reader(Tokenizer(Gguf(tiny[0])), 1024)
    for text in ("Prefers Wroclaw.", "Prefers short replies", "prefers short replies."):
        with pytest.raises(ConfigError, match="cannot be written under the closed vocabulary"):
            reader.completion(text)


@pytest.mark.parametrize("made", [[], [Sample((), (1,))], [Sample((1,), ())]])
def test_nothing_to_pack_is_refused(made: list[Sample]) -> None:
    with pytest.raises(ValueError, match="a sample needs a prompt and a completion"):
        pack(made)
