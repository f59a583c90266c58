"""Each probe counts what it says, and every probe in the table tells its dimension, also on replies written apart."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import pytest

from popi_edge.errors import ConfigError
from popi_training import corpus, markers, probes
from popi_training.probes import ACCURATE, DIMENSIONS, accuracy, score, win_rate

SYLLABLES = """
make makes asked cheese the yes through eye queue tea guide aged / table boxes started being people language special
nation question every answer quiet lovely useful settled water something dishes little circles patient / radio actual
quality idea beautiful created area period / temperature evaluate recommended / refrigerator
"""


def test_syllables_by_hand() -> None:
    for expected, group in enumerate(SYLLABLES.split("/"), 1):
        assert {w: markers.syllables(w) for w in group.split()} == dict.fromkeys(group.split(), expected)


def test_the_grade_is_flesch_and_kincaids() -> None:
    """Two sentences of 4 and 5 words, 13 syllables: o-pen the win-dow soon / then the air be-comes cool."""
    text = "Open the window soon. Then the air becomes cool."
    assert sum(map(markers.syllables, markers.words(text))) == 12
    assert markers.grade(text) == pytest.approx(max(0, 0.39 * 9 / 2 + 11.8 * 12 / 9 - 15.59))
    hard = "Subsequently, refrigeration necessitates considerable electrical expenditure."
    assert markers.grade(hard) == 18 and markers.grade("Go.") == 0 and markers.grade("") == 0


def test_the_grade_of_longer_texts_is_what_another_count_gives() -> None:
    pairs = corpus.load().pairs[:60]
    for text in (t for p in pairs for t in p.replies.values()):
        found = re.findall(r"[A-Za-zÀ-ÿ]+(?:['’][A-Za-zÀ-ÿ]+)*", text)
        score = 0.39 * len(found) / markers.sentences(text) + 11.8 * sum(map(markers.syllables, found)) / len(found)
        assert markers.grade(text) == pytest.approx(min(18, max(0, score - 15.59)), abs=0.5)


@pytest.mark.parametrize(
    ("probe", "text", "expected"),
    [
        (markers.length, "One two  three\nfour.", 4),
        (markers.length, "", 0),
        (markers.sentences, "One. Two! Is 3.5 three? \"Four.\" Five", 5),
        (markers.sentences, "", 1),
        (markers.items, "Bring:\n- a lamp\n* a rope\n1. water\n2) bread\n\n• salt\n-5 degrees\nnot - this", 5),
        (markers.headings, "# Lamp\n**Rope**\nYou need:\ntext: and more\nA line.", 3),
        (markers.emoji, "Sun 🌞 and rain ⛈️, a family 👩‍👧 :-) at 10:30 (see 3:)", 5),
        (markers.emoji, "Costs 5 € – about £4, or 100 % © 2020.", 0),
        (markers.questions, "Why? How so?! Because. Which one?", 3),
        (markers.exclamation, "GREAT! So good! We sat in an OK cafe.", 100 * 3 / 9),
        (markers.figures, "Take 250 g and 3.5 l at 10:30.", 100 * 3 / 5),
        (markers.contractions, "It's late, don't go, we'll see Ann's cat", 100 * 4 / 8),
        (markers.first_person, "I think we should ask my sister.", 100 * 3 / 7),
        (markers.hedges, "Perhaps it might rain, as far as we know.", 100 * 3 / 9),
        (markers.politeness, "Could you please wait?", 100 * 2 / 4),
        (markers.examples, "Some fruit, for example pears, such as these.", 100 * 2 / 8),
        (markers.rare, "The refrigerant and the semidiurnal tide", 100 * 2 / 6),
        (markers.rare, "The explanations were wonderfully interesting", 0),
        (markers.similes, "", 0),
        (markers.verdict_last, "Yes, take it.", 0),
    ],
)  # fmt: skip
def test_a_probe_counts_what_it_says(probe: markers.Probe, text: str, expected: float) -> None:
    assert probe(text) == pytest.approx(expected)


def test_markers_are_whole_words_of_any_case_and_longer_ones_win() -> None:
    assert markers.warmth("Clover and glovers.") == 0 and markers.warmth("LOVELY") == 100
    assert markers.reasons("So") == 100 and markers.reasons("also sofa") == 0
    assert markers.hedges("I’d guess") == markers.hedges("I'd guess") == 50  # one phrase, not "guess" too


def test_where_the_verdict_stands() -> None:
    first = "Take the train. It is quiet, it runs at night, and you can sleep in it."
    last = "It is quiet. It runs at night, and you can sleep in it. So take the train."
    assert markers.verdict_last(last) > markers.verdict_last(first)


def test_every_dimension_of_the_table_is_told_on_training_and_held_out_pairs() -> None:
    train, apart = corpus.load(), corpus.load(heldout=True)
    table = probes.measure(train, apart)
    assert table["without"] == ["humour"] and len(table["dimensions"]) == 27
    for name, row in table["dimensions"].items():
        assert set(train.dimensions[name].poles) == {DIMENSIONS[name].more, DIMENSIONS[name].less}, name
        assert row["training"]["pairs"] == 40 and row["heldout"]["pairs"] == 10, name
        assert row["training"]["right"] >= ACCURATE and row["heldout"]["right"] >= ACCURATE, (name, row)


def test_accuracy_is_what_a_loop_counts() -> None:
    pairs, expected = corpus.load().pairs, []
    for pair in pairs:
        if pair.dimension == "structure":
            a, b = markers.structure(pair.replies["list"]), markers.structure(pair.replies["prose"])
            expected.append(1.0 if a > b else 0.5 if a == b else 0.0)
    found = accuracy(pairs, "structure")
    assert found["right"] == pytest.approx(sum(expected) / len(expected)) and found["pairs"] == len(expected)


def test_the_last_bit_of_a_sum_of_rates_does_not_decide_a_tie() -> None:
    """Three hedges less two certainties among thirty words, and one hedge among thirty."""

    def text(hedges: int, certainties: int) -> str:
        return " ".join(["perhaps"] * hedges + ["certainly"] * certainties + ["stone"] * (30 - hedges - certainties))

    for pair in ((text(3, 2), text(1, 0)), (text(1, 0), text(3, 2))):
        assert win_rate([pair], "hedging", "cautious") == win_rate([pair], "hedging", "confident") == 0.5
    replies = {"cautious": text(3, 2), "confident": text(1, 0)}
    assert accuracy([corpus.Pair("p", "hedging", "q", replies)], "hedging")["right"] == 0.5


def test_win_rate_counts_ties_half_and_turns_with_the_pole() -> None:
    short, middle, long = "One.", "One two.", "One two three."
    for a, b in itertools.product((short, middle, long), repeat=2):
        expected = 1.0 if len(a) > len(b) else 0.5 if a == b else 0.0
        assert win_rate([(a, b)], "length", "long") == expected
        assert win_rate([(a, b)], "length", "short") == 1 - expected
    assert win_rate([(long, short), (short, long), (short, short), (long, short)], "length", "long") == 0.625
    assert score(long, "length", "long") == 3 and score(long, "length", "short") == -3


@pytest.mark.parametrize(
    ("pairs", "dimension", "pole", "says"),
    [
        ([("a", "b")], "humour", "funny", "no probe tells 'humour'"),
        ([("a", "b")], "length", "tall", "the poles long and short, not 'tall'"),
        ([], "length", "long", "needs a pair"),
    ],
)
def test_what_cannot_be_told_is_refused(pairs: list[tuple[str, str]], dimension: str, pole: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        win_rate(pairs, dimension, pole)


def test_the_command_prints_the_table() -> None:
    done = subprocess.run([sys.executable, "-m", "popi_training.probes", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert table["dimensions"]["emoji"]["training"]["right"] == 1 and table["without"] == ["humour"]
    text = subprocess.run([sys.executable, "-m", "popi_training.probes"], capture_output=True, text=True).stdout
    assert text.splitlines()[-1] == "no probe: humour" and len(text.splitlines()) == 29
