"""Agreement with the blind readers is computed from what they said, and only from what they said of these replies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from popi_edge.errors import ConfigError
from popi_training import blind
from popi_training.corpus import FOLDER, Corpus, Pair

PARTS = {part: blind.read_part(part) for part in blind.GUESSES}


def perfect(corpus: Corpus) -> dict[str, list[str]]:
    return {i.id: [i.answer if i.kind == "choice" else f"{i.dimension}:{i.answer}"] for i in blind.items(corpus)}


def rewritten(corpus: Corpus, pair: Pair) -> Corpus:
    """The corpus with another text in both replies of one pair."""
    new = dataclasses.replace(pair, replies={pole: text + " Indeed." for pole, text in pair.replies.items()})
    return dataclasses.replace(corpus, pairs=[new if p is pair else p for p in corpus.pairs])


@pytest.mark.parametrize("part", PARTS, ids=["training", "held out", "wide"])
def test_committed_guesses_agree_in_every_dimension_and_none_is_unread(part: str) -> None:
    corpus, guesses = PARTS[part], blind.read_guesses(FOLDER / blind.GUESSES[part])
    choice = blind.agreement(corpus, guesses, "choice")
    assert set(choice) == set(corpus.dimensions)
    for name, (asked, right, _) in choice.items():
        assert asked == sum(p.dimension == name for p in corpus.pairs), f"{name}: some replies are unread"
        assert right >= blind.AGREEMENT * asked, name


def test_the_open_question_is_answered_for_ten_pairs_of_every_dimension() -> None:
    corpus, guesses = PARTS[""], blind.read_guesses(FOLDER / blind.GUESSES[""])
    for name, (asked, first, three) in blind.agreement(corpus, guesses, "open").items():
        assert asked == blind.OPEN_PAIRS, name
        assert blind.AGREEMENT * asked <= first <= three, name


def test_a_changed_guess_lowers_the_agreement_of_its_dimension_alone() -> None:
    corpus = PARTS["--heldout"]
    guesses = perfect(corpus)
    item = next(i for i in blind.items(corpus) if i.kind == "choice")
    before = blind.agreement(corpus, guesses, "choice")
    guesses[item.id] = [next(p for p in item.poles if p != item.answer)]
    after = blind.agreement(corpus, guesses, "choice")
    asked, right, three = before[item.dimension]
    assert right == asked
    assert after == before | {item.dimension: (asked, right - 1, three - 1)}
    assert [i.id for i in blind.missed(corpus, guesses)] == [item.id]


def test_a_rewritten_reply_is_unread_until_it_is_guessed_anew() -> None:
    corpus = PARTS["--heldout"]
    pair = corpus.pairs[0]
    new = rewritten(corpus, pair)
    asked, right, _ = blind.agreement(new, perfect(corpus), "choice")[pair.dimension]
    assert (asked, right) == (9, 9)
    assert blind.agreement(new, perfect(new), "choice")[pair.dimension][0] == 10


def test_an_open_answer_must_name_the_dimension_and_counts_among_three() -> None:
    corpus = PARTS["--heldout"]
    item = next(i for i in blind.items(corpus) if i.kind == "open")
    answer = f"{item.dimension}:{item.answer}"

    def counted(*guess: str) -> tuple[int, int, int]:
        return blind.agreement(corpus, {item.id: list(guess)}, "open")[item.dimension]

    assert counted(item.answer) == (1, 0, 0)
    assert counted(answer, "a:b") == (1, 1, 1)
    assert counted("a:b", "c:d", answer) == (1, 0, 1)
    assert counted("a:b", "c:d", "e:f", answer) == (1, 0, 0)


def test_one_reply_of_every_pair_is_shown_and_the_open_question_shows_the_other() -> None:
    corpus = PARTS[""]
    asked = blind.items(corpus)
    assert len({i.id for i in asked}) == len(asked)
    texts = {kind: {i.text for i in asked if i.kind == kind} for kind in ("choice", "open")}
    assert len(texts["choice"]) == len(corpus.pairs) and not texts["choice"] & texts["open"]
    for pair in corpus.pairs:
        assert len(texts["choice"] & set(pair.replies.values())) == 1


def test_neither_the_order_of_the_poles_nor_the_order_of_questions_tells_the_answer() -> None:
    asked = [i for i in blind.items(PARTS[""]) if i.kind == "choice"]
    assert 0.45 < sum(i.poles[0] == i.answer for i in asked) / len(asked) < 0.55
    assert 0.45 < sum(min(i.poles) == i.answer for i in asked) / len(asked) < 0.55
    assert [i.dimension for i in asked] != sorted(i.dimension for i in asked)


def test_the_sheets_hold_the_reply_and_nothing_that_tells_its_pole(tmp_path: Path) -> None:
    corpus = PARTS["--heldout"]
    blind.sheets(corpus, tmp_path, parts=2)
    rows = {
        p.stem: [json.loads(line) for line in p.read_text("utf-8").split("\n")[:-1]] for p in tmp_path.glob("*.jsonl")
    }
    assert sorted(rows) == ["choice-1", "choice-2", "open-1"]
    assert {frozenset(r) for r in rows["choice-1"]} == {frozenset({"id", "dimension", "poles", "reply"})}
    assert {frozenset(r) for r in rows["open-1"]} == {frozenset({"id", "reply"})}
    assert len(rows["choice-1"]) + len(rows["choice-2"]) == len(corpus.pairs)
    prompts = set(corpus.prompts.values())
    assert not prompts & {r["reply"] for part in rows.values() for r in part}
    listed = (tmp_path / "dimensions.txt").read_text("utf-8").splitlines()
    assert [line.split(":")[0] for line in listed] == list(corpus.dimensions)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "guesses.jsonl, line 2: not JSON"),
        ('{"id": "b"}', "guesses.jsonl, line 2: a guess needs"),
        ('{"id": 3, "guess": ["short"]}', "guesses.jsonl, line 2: a guess needs"),
        ('{"id": "b", "guess": []}', "guesses.jsonl, line 2: a guess needs"),
        ('{"id": "b", "guess": "short"}', "guesses.jsonl, line 2: a guess needs"),
        ('{"id": "a", "guess": ["long"]}', "guesses.jsonl, line 2: a is guessed twice"),
    ],
)
def test_a_broken_guess_is_named(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "guesses.jsonl"
    path.write_text('{"id": "a", "guess": ["short"]}\n' + text + "\n")
    with pytest.raises(ConfigError, match=why):
        blind.read_guesses(path)
