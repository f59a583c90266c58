"""Packed equals plain, and a rollout what is scored, on tiny models of every architecture; largest differences stated.

Log-probabilities 2e-4 nats, gradients 1e-3 of the largest, in float32. Prompts are longer than Gemma's window.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popi_training import tree_attention
from popi_training.loss import pair_logprobs, token_logprobs
from popi_training.pack import Sample, pack
from popi_training.rollout import rollout
from popi_training.warm import Reader

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8, "initializer_range": 0.3,
}  # fmt: skip
PROMPT = tuple(np.random.default_rng(0).integers(3, 200, 40).tolist())
SAMPLES = [Sample(PROMPT, (5, 9, 7, 2)), Sample(PROMPT, (5, 8, 2)), Sample(PROMPT[:30], (4, 4, 4, 4, 4, 2))]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "gemma3"])
def model(request: pytest.FixtureRequest, tiny: tuple[Path, Any]) -> Any:
    import transformers as hf

    torch.manual_seed(3)
    words = int(tiny[1].config.vocab_size)
    match request.param:
        case "llama":
            return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=words, **SHAPE)).eval()
        case "qwen2":
            return hf.Qwen2ForCausalLM(hf.Qwen2Config(vocab_size=words, **SHAPE)).eval()
        case "qwen3":
            return hf.Qwen3ForCausalLM(hf.Qwen3Config(vocab_size=words, **SHAPE)).eval()
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    own = {"sliding_window": 12, "layer_types": kinds, "query_pre_attn_scalar": 8}
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(vocab_size=words, **SHAPE, **own)).eval()


@pytest.fixture(params=["dense", "blocks"], autouse=True)
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both ways to attend: by one dense mask, as sequences so short do, and block by block; yields the calls of the
    latter."""
    calls: list[int] = []
    if request.param == "blocks":
        monkeypatch.setattr(tree_attention, "LEAST", 1)
        monkeypatch.setattr(tree_attention, "BLOCK", 8)
        of = tree_attention.Blocks.of
        monkeypatch.setattr(tree_attention.Blocks, "of", lambda *a: calls.append(1) or of(*a))
    yield calls
    assert bool(calls) == (request.param == "blocks")


def alone(model: Any, s: Sample) -> torch.Tensor:
    """log p of every completion token by the model's own mask, [tokens]."""
    ids = [*s.prompt, *s.completion]
    rows = torch.log_softmax(model(torch.tensor([ids])).logits[0, len(s.prompt) - 1 : -1], -1)
    return rows[range(len(s.completion)), list(s.completion)]


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_packed_log_probabilities_and_gradients_are_those_of_each_sequence_alone(model: Any) -> None:
    (packed,) = token_logprobs(model, [pack(SAMPLES)])
    plain = torch.cat([alone(model, s) for s in SAMPLES])
    assert (packed - plain).abs().max() < 2e-4
    weights = torch.linspace(0.5, 2, len(plain))
    want, got = gradient(model, (plain * weights).sum()), gradient(model, (packed * weights).sum())
    assert want.abs().max() > 0.1 and (want - got).abs().max() < 1e-3 * want.abs().max()


@torch.no_grad()
def test_pairs_in_one_sequence_are_those_alone(model: Any) -> None:
    pairs = [((5, 6, 2), (5, 7, 7, 2)), ((9, 2), (8, 8, 2))]
    got = pair_logprobs(model, [PROMPT, PROMPT[:33]], pairs, together=2)
    for row, context, pair in zip(got, (PROMPT, PROMPT[:33]), pairs, strict=True):
        for value, reply in zip(row, pair, strict=True):
            assert float(value) == pytest.approx(float(alone(model, Sample(context, reply)).sum()), abs=2e-4)


def test_a_block_looks_at_what_its_own_tokens_see_and_at_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "BLOCK", 8)
    packed = pack([Sample(tuple(range(20)), (30 + k, 40, 41, 42, 43, 44, 45, 46, 47)) for k in range(3)])
    sees = torch.from_numpy(packed.mask)
    bars = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
    blocks = tree_attention.Blocks()
    found = blocks.of(bars)
    assert len(found) == 6
    for rows, (columns, part) in zip(sees.split(8), found, strict=True):
        looked = torch.zeros(len(sees), dtype=torch.bool)
        looked[columns] = True
        assert torch.equal(looked, rows.any(0))
        assert torch.equal(part[0, 0] == 0, rows[:, looked])
    assert any(isinstance(columns, torch.Tensor) for columns, _ in found)
    assert blocks.of(bars) is blocks.of(bars)


@torch.no_grad()
def test_a_rollout_draws_with_the_log_probabilities_that_scoring_gives(model: Any, tiny: tuple[Path, Any]) -> None:
    reader = Reader.of(tiny[0])
    prompts = [PROMPT, PROMPT[5:22]]
    for prompt, group in zip(prompts, rollout(model, reader, prompts, group=2, temperature=1.0, seeds=(1, 2)),
                             strict=True):  # fmt: skip
        scored = token_logprobs(model, [pack([d.sample(prompt) for d in group])])[0]
        drawn = torch.tensor([p for d in group for p in d.logprobs])
        assert (scored - drawn).abs().max() < 2e-4
