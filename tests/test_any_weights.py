"""The mask holds for any weights: logits that Hypothesis draws, and a model trained to copy its prompt, which it does
without the mask. ``test_vocabulary`` has the automaton, ``test_masked_sampling`` random adapters on the real base."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popi_edge.engines.base import BaseEngine, Floats, Lane, open_engine
from popi_edge.errors import ConfigError, EngineError
from popi_edge.guard.lexicon import outside
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_edge.summarize import Decoding, spoken, write
from popi_edge.vocabulary import ClosedVocabulary, Lexicon
from popi_training.micro import TEMPLATE, vocabulary
from tests import tiny as make

LEXICON = Lexicon.load(["Rust", "C++"])
TEMPERATURES = (0.0, 1e-6, 0.7, 1.0, 5.0, 1e9)
LIMIT = 48


class Drawn(BaseEngine):
    """An engine whose logits are drawn: noise of a drawn size, and some tokens that it wants above all."""

    def __init__(self, tokenizer: Tokenizer, context: int = 1024) -> None:
        super().__init__({})
        self.tokenizer, self.context_length = tokenizer, context
        self.seed, self.scale, self.wanted, self.pull = 0, 1.0, [0], 0.0

    def _open_lane(self, lane: Lane) -> None:
        pass

    def _truncate(self, lane: Lane, length: int) -> None:
        pass

    def _eval(self, lane: Lane, ids: Sequence[int], last: int) -> Floats:
        rng = np.random.default_rng([self.seed, len(lane.tokens), *ids[-4:]])
        logits = (rng.normal(size=(last, len(self.tokenizer))) * self.scale).astype(np.float32)
        logits[:, self.wanted] += np.float32(self.pull)
        return logits


@pytest.fixture(scope="module")
def drawn(tiny: tuple[Path, Any]) -> Drawn:
    return Drawn(Tokenizer(Gguf(tiny[0])))


@pytest.fixture(scope="module")
def mask(drawn: Drawn) -> ClosedVocabulary:
    return ClosedVocabulary(LEXICON, drawn.tokenizer.token_bytes, drawn.tokenizer.eos_ids, max_tokens=LIMIT)


def holds(text: str) -> None:
    """Every rule of decoded text, as the lexicon's checker and as the guard sees it."""
    assert LEXICON.explain(text) == []
    assert outside(text, LEXICON, form=True) == outside(text, LEXICON, form=False) == []


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_logits_at_every_temperature_and_limit(
    drawn: Drawn, mask: ClosedVocabulary, data: st.DataObject
) -> None:
    drawn.seed = data.draw(st.integers(0, 2**32))
    drawn.scale = data.draw(st.sampled_from([0.0, 1.0, 30.0, 1e30]))
    drawn.wanted = data.draw(st.lists(st.integers(0, len(drawn.tokenizer) - 1), min_size=1, max_size=40))
    drawn.pull = data.draw(st.sampled_from([0.0, 50.0, 1e37, -1e37]))
    limit = data.draw(st.integers(int(mask._far[1]), LIMIT))
    by_context = data.draw(st.booleans())  # the room may also end because the context does
    prompt = [1] * (drawn.context_length - limit if by_context else 5)
    done = drawn.generate(
        prompt, max_tokens=LIMIT if by_context else limit, constraint=mask, seed=data.draw(st.integers(0, 99)),
        temperature=data.draw(st.sampled_from(TEMPERATURES)),
    )  # fmt: skip
    assert 0 < len(done.ids) <= limit
    holds(done.text)
    said = spoken(done.text)
    assert said == "" or LEXICON.explain(said) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), limit=st.integers(30, LIMIT), sentences=st.sampled_from([None, 1, 2]))
def test_with_an_opening_and_a_number_of_sentences(
    drawn: Drawn, mask: ClosedVocabulary, seed: int, limit: int, sentences: int | None
) -> None:
    drawn.seed, drawn.scale, drawn.pull = seed, 3.0, 0.0
    text, tokens = write(drawn, [1, 2], limit, mask, None, Decoding("The person", sentences))
    assert text.startswith("The person") and tokens <= limit
    holds(text)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_give_no_numbers_are_one_clear_line(
    drawn: Drawn, mask: ClosedVocabulary, bad: float, temperature: float
) -> None:
    drawn.scale, drawn.wanted, drawn.pull = 1.0, list(range(len(drawn.tokenizer))), bad
    with pytest.raises(EngineError, match="its weights are broken"):
        drawn.generate([1], max_tokens=9, constraint=mask, temperature=temperature)


def test_a_context_with_too_little_room_writes_nothing(drawn: Drawn, mask: ClosedVocabulary) -> None:
    with pytest.raises(ConfigError, match="too few to end a sentence"):
        drawn.generate([1] * (drawn.context_length - 1), max_tokens=LIMIT, constraint=mask)


# a model that copies ----------------------------------------------------------------------------------------
LENGTH = 24
"""Tokens of a secret; what the model learns is to say again the token of so many places before."""
START_ID, STEPS = 1, 250


@pytest.fixture(scope="module")
def copying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of one layer, trained in seconds on random tokens to write its prompt again, whatever that is."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from popi_export.to_gguf import write_llama

    tokens, merges, types = vocabulary(make.TEXT, 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=96, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for n in range(STEPS):
        secret = torch.randint(3, len(tokens), (64, LENGTH))
        ids = torch.cat([secret, torch.full((64, 1), START_ID), secret, torch.full((64, 1), 2)], 1)
        labels = ids.clone()
        labels[:, : LENGTH + 1] = -100
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - n / STEPS)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("copying") / "copy.gguf"
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    write_llama(path, weights, config, tokens=tokens, merges=merges, types=types, eos=2, chat_template=TEMPLATE,
                half=False)  # fmt: skip
    return path


def secrets(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Prompts of LENGTH tokens that training never saw: a sentence with a key, a name and a number."""
    rng, out = random.Random(3), []
    while len(out) < count:
        key = "".join(rng.choices(string.ascii_letters + string.digits, k=10))
        text = f"Ann Miller, {key}, born {rng.randrange(1900, 2020)} in Paris, takes pills for her heart."
        out.append(tokenizer.encode(text)[:LENGTH])
    return out


@pytest.mark.parametrize("name", ["onnx", "llama_cpp"])
def test_a_model_that_copies_its_prompt_copies_nothing_under_the_mask(name: str, copying: Path) -> None:
    engine = open_engine(name, copying, adapters={}, threads=1)
    t = engine.tokenizer
    mask = ClosedVocabulary(LEXICON, t.token_bytes, t.eos_ids, max_tokens=LIMIT)
    copied = 0
    for secret in secrets(t, 20):
        prompt = [*secret, START_ID]
        copied += list(engine.generate(prompt, max_tokens=LENGTH).ids) == secret
        key = t.decode(secret).split(", ")[1]
        for temperature in (0.0, 1.0):
            for limit in (9, LENGTH, LIMIT):
                text = engine.generate(prompt, max_tokens=limit, constraint=mask, temperature=temperature).text
                holds(text)
                assert not {key, "Ann", "Miller", "Paris"} & set(text.replace(".", " ").split())
                assert not any(c.isdigit() for c in text)
    assert copied >= 18  # the positive control
    engine.close()
