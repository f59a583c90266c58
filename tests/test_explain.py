"""Which signals a sentence rests on: the figures are torch's own, the search keeps within its budget."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import popi_edge as popi
from popi_edge import prompts
from popi_edge.cli.explain import as_text
from popi_edge.errors import StoreError
from popi_edge.explain import Explanation, _owners, _search, explain
from popi_edge.summarize import SENTENCE_END
from popi_edge.vocabulary import ClosedVocabulary, Lexicon

SIGNALS = [
    popi.Statement(text="I like short answers."),
    popi.Comparison(prompt="Why?", chosen="It rained.", rejected="Let us see."),
    popi.Post(text="Walk, rest, and eat."),
]
TEXT = "Prefers words. Likes a step. Eat."


@pytest.fixture
def me(tiny: tuple[Path, Any], tmp_path: Path) -> Iterator[popi.Popi]:
    with popi.Popi.open(home=tmp_path / "home", model=str(tiny[0]), threads="1") as me:
        me.record(*SIGNALS)
        yield me


def keep(me: popi.Popi, text: str, signals: Sequence[popi.Signal]) -> None:
    ids = [s.id for s in signals]
    me.store.add_summary(text=text, tokens=1, status="draft", model="m", contract=1, signal_ids=ids)


def by_torch(model: Any, me: popi.Popi, signals: Sequence[popi.Signal], text: str, masked: bool) -> list[float]:
    """log p of each sentence, every token by a run of its own and the mask by asking it for each token of the table."""
    tokenizer = me.engine.tokenizer
    texts = [prompts.signal_text(s, tokenizer) for s in signals]
    prompt, ids = prompts.chat_ids(tokenizer, prompts.infer_messages(texts)), tokenizer.encode(text)
    mask = ClosedVocabulary(Lexicon.load(), tokenizer.token_bytes, tokenizer.eos_ids, max_tokens=48)
    state, sums, said = mask.start(), [0.0] * len(SENTENCE_END.split(text)), ""
    for i, token in enumerate(ids):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids[:i]]])).logits[0, -1].double()
        if masked:
            closed = torch.ones(len(logits), dtype=torch.bool)
            closed[torch.tensor(mask.allowed(state, 48 - i))] = False
            logits[closed] = -math.inf
            state = mask.advance(state, token)
        said += tokenizer.decode([token])
        sentence = len(SENTENCE_END.split(said)) - 1
        sums[sentence] += float(torch.log_softmax(logits, 0)[token])
    return sums


@pytest.mark.parametrize("masked", [True, False])
def test_the_figures_are_those_of_torch_on_the_same_weights(
    me: popi.Popi, tiny: tuple[Path, Any], masked: bool
) -> None:
    text = TEXT if masked else "Prefers words. Likes C++, a step."
    keep(me, text, SIGNALS)
    row, found = me.explain()
    assert row.version == 1 and found.masked is masked and found.calls == 2 + len(SIGNALS)
    assert [s.text for s in found.sentences] == SENTENCE_END.split(text)
    whole, none = (by_torch(tiny[1], me, part, text, masked) for part in (SIGNALS, []))
    without = [by_torch(tiny[1], me, [s for s in SIGNALS if s is not out], text, masked) for out in SIGNALS]
    for i, sentence in enumerate(found.sentences):
        assert math.isclose(sentence.logprob, whole[i], abs_tol=0.02)
        assert math.isclose(sentence.total, whole[i] - none[i], abs_tol=0.02)
        want = {(s.id,): whole[i] - w[i] for s, w in zip(SIGNALS, without, strict=True)}
        assert {x.signal_ids for x in sentence.support} == set(want)
        assert all(math.isclose(x.nats, want[x.signal_ids], abs_tol=0.02) for x in sentence.support)
        assert [x.nats for x in sentence.support] == sorted((x.nats for x in sentence.support), reverse=True)
    assert max(abs(x.nats) for s in found.sentences for x in s.support) > 0.5, "this model would tell nothing apart"


def test_an_opening_is_not_the_models_word(me: popi.Popi) -> None:
    plain = explain(me.engine, SIGNALS, TEXT)
    opened = explain(me.engine, SIGNALS, TEXT, opening="Prefers words.")
    assert opened.sentences[0].logprob == 0.0 and {x.nats for x in opened.sentences[0].support} == {0.0}
    after = [[s.logprob for s in found.sentences[1:]] for found in (plain, opened)]
    assert after[0] == pytest.approx(after[1], abs=1e-3) and len(after[0]) == 2
    assert explain(me.engine, SIGNALS, TEXT, opening="Says").sentences[0].logprob == plain.sentences[0].logprob


def test_many_signals_stay_within_the_calls_and_every_run_is_reported(me: popi.Popi) -> None:
    signals = [popi.Statement(text=f"We walk {i} miles") for i in range(12)]
    runs: list[int] = []
    for calls in (4, 5, 6, 9, 13, 14, 50):
        runs.clear()
        found = explain(me.engine, signals, "Eat.", calls=calls, each=lambda: runs.append(1))
        assert len(runs) == found.calls <= calls
        (sentence,) = found.sentences
        ids = [i for x in sorted(sentence.support, key=lambda x: x.signal_ids[0]) for i in x.signal_ids]
        assert ids == [s.id for s in signals], "every signal is in one group, and groups are neighbours"
    assert all(len(x.signal_ids) == 1 for x in sentence.support)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 90), st.integers(2, 40), st.data())
def test_the_search_keeps_its_budget_and_finds_a_needle(count: int, budget: int, data: st.DataObject) -> None:
    needle = data.draw(st.integers(0, max(count - 1, 0)))
    asked: list[tuple[int, int]] = []

    def costs(span: tuple[int, int]) -> list[float]:
        asked.append(span)
        return [0.0, -5.0 if span[0] <= needle < span[1] else 0.001 * (span[1] - span[0])]

    found = _search(count, budget, costs)
    assert len(asked) == len(set(asked)) <= budget
    assert [i for span in sorted(found) for i in range(*span)] == list(range(count))
    if count and budget >= 2 * math.ceil(math.log2(count)) + 4:
        assert (needle, needle + 1) in found, "halving the costliest group leads to it"


def test_two_that_say_the_same_hide_each_other_but_not_from_the_total() -> None:
    found = _search(3, 10, lambda span: [9.0 if span == (0, 2) else 0.0])  # only both together would be missed
    assert found == {(0, 1): [0.0], (1, 2): [0.0], (2, 3): [0.0]}


def test_a_token_belongs_to_the_sentence_it_ends_in() -> None:
    rng = random.Random(0)
    for text in (TEXT, "Über alles. Ja!  Nein? Doch.", "One", ""):
        data = text.encode()
        cuts = sorted(rng.sample(range(1, max(len(data), 1)), max(0, len(data) // 3)))
        tokens = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        spaces = [m.start() for m in SENTENCE_END.finditer(text)]
        end, want = 0, []
        for token in tokens:
            end += len(token)
            characters = len(data[:end].decode(errors="ignore"))
            cut_inside = len(data[:end].decode(errors="replace")) != characters
            want.append(sum(s < characters + cut_inside for s in spaces))
        assert _owners(text, tokens) == want


def test_what_cannot_be_explained_is_said(me: popi.Popi) -> None:
    with pytest.raises(StoreError, match="no summary yet"):
        me.explain()
    me.store.add_summary(text="", tokens=0, status="insufficient", model="m", contract=1, signal_ids=[])
    with pytest.raises(StoreError, match="is insufficient"):
        me.explain()
    keep(me, "Likes tea.", [])
    with pytest.raises(StoreError, match="not made from signals"):
        me.explain()
    keep(me, "Likes tea.", SIGNALS)
    me.store.delete([SIGNALS[0].id])
    with pytest.raises(StoreError, match="is stale"):
        me.explain()


def test_it_reads_as_sentences_with_their_signals(me: popi.Popi) -> None:
    keep(me, TEXT, SIGNALS)
    row, found = me.explain()
    told = as_text(row, found, {s.id: s for s in SIGNALS}, "another-model")
    assert all(s in told for s in SENTENCE_END.split(TEXT))
    best = max((x for s in found.sentences for x in s.support), key=lambda x: x.nats)
    assert f"{best.nats:+7.1f}  {best.signal_ids[0]}" in told
    assert "the model was run 5 times, under the closed vocabulary" in told
    assert "written by m, scored by another-model" in told
    assert isinstance(found, Explanation)
