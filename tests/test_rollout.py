"""What is drawn is what the packed computation scores, is allowed everywhere, and comes as often as it should."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from popi_training import rollout as module
from popi_training.loss import token_logprobs
from popi_training.pack import pack
from popi_training.rollout import rollout
from popi_training.warm import Reader

PROMPTS = [tuple(range(5, 30)), tuple(range(40, 47)), (3,)]


@pytest.fixture(scope="module")
def reader(tiny: tuple[Path, Any]) -> Reader:
    return Reader.of(tiny[0])


@torch.no_grad()
def test_what_was_drawn_has_the_log_probabilities_that_scoring_gives(tiny: tuple[Path, Any], reader: Reader) -> None:
    """Prompts of three lengths, so that padding matters; one forward over the packed group instead of many steps."""
    for prompt, group in zip(PROMPTS, rollout(tiny[1], reader, PROMPTS, group=3, temperature=1.0, seeds=(1, 2, 3)),
                             strict=True):  # fmt: skip
        scored = token_logprobs(tiny[1], [pack([d.sample(prompt) for d in group])])[0]
        drawn = torch.tensor([p for d in group for p in d.logprobs])
        assert (scored - drawn).abs().max() < 1e-4
        for d in group:
            assert len(d.ids) == len(d.allowed) == len(d.logprobs) <= reader.limits["summary_tokens"] + d.finished
            assert all(i in a for i, a in zip(d.ids, d.allowed, strict=True))
            assert d.finished == (d.ids[-1] in reader.tokenizer.eos_ids)
            text = reader.tokenizer.decode([i for i in d.ids if i not in reader.tokenizer.eos_ids])
            if d.finished:
                assert reader.completion(text)[0][-1] == reader.tokenizer.eos  # it can be written


def test_one_seed_draws_the_same_and_padding_changes_nothing(tiny: tuple[Path, Any], reader: Reader) -> None:
    once = rollout(tiny[1], reader, PROMPTS, group=2, temperature=0.8, seeds=(4, 5, 6))
    again = rollout(tiny[1], reader, PROMPTS, group=2, temperature=0.8, seeds=(4, 5, 6))
    other = rollout(tiny[1], reader, PROMPTS, group=2, temperature=0.8, seeds=(7, 8, 9))
    ids = [[[d.ids for d in group] for group in made] for made in (once, again, other)]
    assert ids[0] == ids[1] != ids[2]
    greedy = [rollout(tiny[1], reader, some, group=2, temperature=0.0) for some in (PROMPTS, PROMPTS[1:])]
    assert [g[0].ids for g in greedy[0][1:]] == [g[0].ids for g in greedy[1]]
    assert all(g[0].ids == g[1].ids for g in greedy[0])


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits, seen = torch.tensor([0.0, 1.0, -1.0, 2.5]), Counter[int]()
    for k in range(4000):
        place, logprob = module._pick(logits, 0.7, (k + 0.5) / 4000)
        seen[place] += 1
        assert logprob == pytest.approx(float((logits.double() / 0.7).log_softmax(0)[place]))
    for place, share in enumerate((logits / 0.7).softmax(0).tolist()):
        assert math.isclose(seen[place] / 4000, share, abs_tol=1e-3)
    assert module._pick(logits, 0.7, 1 - 1e-16)[0] == 3 and module._pick(logits, 0.7, 0.0)[0] == 0


@pytest.mark.parametrize(("prompts", "group"), [([], 2), (PROMPTS, 0)])
def test_nothing_to_draw_is_an_error(tiny: tuple[Path, Any], reader: Reader, prompts: Any, group: int) -> None:
    with pytest.raises(ValueError, match="a rollout needs"):
        rollout(tiny[1], reader, prompts, group=group, temperature=1.0)
