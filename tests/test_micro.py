"""The tiny sibling of popi-micro learns its world in seconds, through the real contract, loss, export and engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from popi_edge import prompts
from popi_edge.engines.base import Engine
from popi_edge.engines.llama_cpp import LlamaCppEngine
from popi_edge.engines.onnx import OnnxEngine
from popi_edge.explain import explain
from popi_edge.summarize import infer
from popi_edge.vocabulary import ClosedVocabulary, Lexicon
from popi_training import micro

PEOPLE = [micro.person(f"test-{i}") for i in range(60)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("micro") / "micro.gguf"
    losses = micro.train(path, steps=120)
    assert losses[0] > 5 and losses[-1] < 0.3  # nats a token; a model that knows the form alone stays near 0.6
    return path


def summaries(engine: Engine, people: list[micro.Person]) -> list[str]:
    tokenizer, lexicon = engine.tokenizer, Lexicon.load()
    limit = prompts.spec()["limits"]["summary_tokens"]
    mask = ClosedVocabulary(lexicon, tokenizer.token_bytes, tokenizer.eos_ids, max_tokens=limit)
    return [infer(engine, p.signals, constraint=mask, lexicon=lexicon).text for p in people]


def test_new_people_get_the_summary_that_names_what_they_like(trained: Path) -> None:
    engine = OnnxEngine(trained, adapters={})
    said = summaries(engine, PEOPLE)
    right = sum(a == p.summary for a, p in zip(said, PEOPLE, strict=True))
    assert right >= 0.85 * len(PEOPLE)  # guessing among the one-word summaries: 1 in 8
    other = LlamaCppEngine(trained, adapters={})
    assert summaries(other, PEOPLE[:20]) == said[:20]
    engine.close()
    other.close()


def test_leaving_a_signal_out_shows_which_word_it_stands_for(trained: Path) -> None:
    engine = OnnxEngine(trained, adapters={})
    t = engine.tokenizer
    mask = ClosedVocabulary(Lexicon.load(), t.token_bytes, t.eos_ids, max_tokens=48)
    right = doubled = 0
    two = [p for p in PEOPLE if len(p.words) == 2][:15]
    for p in two:  # each word is said by one signal, and the summary says both: without either it is unlikely
        [sentence] = explain(engine, p.signals, p.summary, constraint=mask).sentences
        right += all(s.nats > 2 for s in sentence.support) and len(sentence.support) == 2
    one = [p for p in PEOPLE if len(p.words) == 1][:15]
    for p in one:  # two signals say the same word: either may go, both may not
        [sentence] = explain(engine, p.signals, p.summary, constraint=mask).sentences
        doubled += sentence.total > 2 and sum(s.nats for s in sentence.support) < sentence.total
    assert right >= 0.8 * len(two) and doubled >= 0.7 * len(one), (right, doubled)
    engine.close()


def test_training_again_gives_the_same_numbers(tmp_path: Path) -> None:
    first = micro.train(tmp_path / "a.gguf", steps=3)
    assert first == micro.train(tmp_path / "b.gguf", steps=3)
    assert first != micro.train(tmp_path / "c.gguf", steps=3, seed=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_person_is_the_same_by_name() -> None:
    assert micro.person("x") == micro.person("x") != micro.person("y")
    assert {len(p.words) for p in PEOPLE} == {1, 2}
