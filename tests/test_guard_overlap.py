"""What a text shares with a signal is found in whatever order and between whatever fillers, by the plain definition."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popi_edge.guard import check, spec
from popi_edge.guard.finding import Clock
from popi_edge.guard.folding import WORD, fold, normal
from popi_edge.guard.folding import words as folded
from popi_edge.guard.index import SignalIndex
from popi_edge.guard.overlap import Hits, heaviest, overlaps, scattered, stretches, weigh
from popi_edge.vocabulary import Lexicon

LEXICON = Lexicon.load()
SEED = "kitchen bottle cup bread tea breakfast window habit luck mountain chocolate garden"
HEART = "my heart was made wrong and my mother had the same"
LONG = Clock(1_000)


def found(text: str, *signals: str) -> list[str]:
    return [f.excerpt for f in overlaps(text, [(f"s{i}", s) for i, s in enumerate(signals)], spec())]


@pytest.mark.parametrize("secret", [SEED, HEART])
@pytest.mark.parametrize(
    "carry",
    [
        lambda w: " and ".join(w),
        lambda w: " really quite ".join(w),
        lambda w: " ".join(reversed(w)),
        lambda w: " ".join(sorted(w)),
        lambda w: ". ".join(x.capitalize() for x in w),
        lambda w: " ".join(x + "s" for x in w) if "heart" not in w else " ".join(w),
        lambda w: " ".join(w[::2] + w[1::2]),
    ],
)
def test_fillers_order_and_word_forms_hide_nothing(secret: str, carry: object) -> None:
    assert callable(carry)
    assert found(f"Likes short answers. {carry(secret.split())}.", f"By the way, {secret}")


def test_half_a_seed_phrase_taken_from_all_over_it_is_found() -> None:
    words = SEED.split()
    assert found(" and ".join(words[1::2]), SEED) and found(" with ".join(reversed(words[::2])), SEED)
    assert not found(" and ".join(words[::3]), SEED)


def test_the_same_words_from_different_signals_are_nobodys_secret() -> None:
    words = SEED.split()
    assert not found(SEED, *(f"I like my {w} very much" for w in words))


def test_fillers_beyond_the_gap_end_a_run_and_a_long_text_is_looked_at_in_pieces() -> None:
    words = SEED.split()[:4]
    filler = " ".join(["so"] * 30)
    assert found(f" {filler} ".join(words[:2]) + " x " * 90 + " ".join(words[2:]), SEED) == []
    assert found("x " * 500 + " ".join(words) + " x" * 500, SEED) == [" ".join(words)]


@pytest.mark.parametrize(
    ("said", "summary"),
    [
        ("I like strong tea in the evening.", "Likes strong tea."),
        ("Please use plain words, my English is poor.", "Needs plain words."),
        ("I want to understand why something works, not only how.", "Wants to understand why something works."),
        ("Short lines and clear headings help me a lot.", "Short lines and clear headings help this person."),
    ],
)
def test_a_preference_may_be_said_back(said: str, summary: str) -> None:
    assert found(summary, said) == []


@pytest.mark.parametrize(
    ("signal", "copy"),
    [
        ("Between us: my garden is dead and I only stand there in the dark.", "My garden is dead and I."),
        ("She left us in the spring and the boy does not speak.", "She left us in the spring."),
        ("The bread was for the children of my uncle and his second wife.", "Bread, children, uncle, his second wife."),
    ],
)
def test_a_piece_of_what_somebody_tells_is_a_copy_also_without_its_small_words(signal: str, copy: str) -> None:
    assert found(f"Prefers short answers. {copy}", signal)
    spread = " so nice ".join(copy.rstrip(".").split())
    assert not found(f"Prefers short answers. {spread}.", signal), "only a copy counts as strictly"


def test_a_taste_may_be_said_in_the_first_person_and_without_its_small_words() -> None:
    said = "I like my tea with the milk of a garden cow."
    assert not found("Likes tea with milk, garden cow.", said)
    assert found("Likes tea with milk, garden cow.", said.replace("like", "drink"))
    assert not found("I like my answers short.", "I like my answers short and my garden green.")
    assert found("I sold my answers.", "I sold my answers short and my garden green.") == []
    assert found("I sold my garden.", "Last year I sold my garden.") == ["I sold my garden"]


# against the plain definition -------------------------------------------------------------------------------
def plain_heaviest(mine: list[int], weights: list[int], stretch: list[int], gap: int) -> int:
    """The best score of any chain of places, by trying them all."""
    best = 0
    for start in range(len(stretch)):
        chains = [((p,), weights[p]) for p, n in enumerate(mine) if n == stretch[start]]
        for number in stretch[start + 1 :]:
            best = max([best, *(s for _, s in chains)])
            chains = [
                ((*c, p), s + weights[p])
                for c, s in chains
                for p, n in enumerate(mine)
                if n == number and c[-1] < p <= c[-1] + gap + 1
            ]
        best = max([best, *(s for _, s in chains)])
    return best


@settings(max_examples=300, deadline=None)
@given(
    mine=st.lists(st.integers(1, 4), max_size=7),
    stretch=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    gap=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_the_heaviest_run_is_that_of_the_plain_definition(
    mine: list[int], stretch: list[int], gap: int, seed: int
) -> None:
    by_number = {n: random.Random(seed + n).choice((1, 3)) for n in range(1, 5)}
    weights = [by_number[n] for n in mine]
    places, score = heaviest(mine, weights, stretch, gap, LONG)
    assert score == plain_heaviest(mine, weights, stretch, gap) == sum(weights[p] for p in places)
    assert all(0 < b - a <= gap + 1 for a, b in itertools.pairwise(places))


WORDS = ("tea", "cup", "garden", "short", "the", "of", "like", "i")
"""Three telling words, one about replies, two small ones, one that is small and says a taste, and a person."""


def plain_weights(mine: list[str]) -> tuple[list[int], list[int]]:
    """What each word counts anywhere and in a copy, with the figures below."""
    anywhere = [3 if w in ("tea", "cup", "garden") else 1 for w in mine]
    copied = [4 if w == "i" and "like" not in mine[i + 1 : i + 3] else anywhere[i] for i, w in enumerate(mine)]
    return anywhere, copied


def plain_found(mine: list[str], text: list[str]) -> bool:
    """Whether any row of a text's words is heavy enough: in order, each counted once, or as a copy; by trying all."""
    anywhere, copied = plain_weights(mine)
    weight = dict(zip(mine, anywhere, strict=True))
    runs = [(a, b) for a in range(len(mine)) for b in range(a + 2, len(mine) + 1)]
    for a, b in itertools.combinations(range(len(text) + 1), 2):
        row = text[a:b]
        if set(row) <= set(mine):
            if len(set(row)) >= 2 and sum(weight[n] for n in set(row)) >= 6:
                return True
            for places in itertools.combinations(range(len(mine)), len(row)):
                if len(row) >= 2 and [mine[p] for p in places] == row and sum(weight[n] for n in row) >= 6:
                    return True
        # the longest row around that may lack small words, to know whether it is of taste
        def goes(w: str) -> bool:
            return w in mine or w in ("the", "of", "like", "i")

        if not all(map(goes, row)) or row[0] not in mine or row[-1] not in mine:
            continue
        first, last = a, b
        while first and goes(text[first - 1]):
            first -= 1
        while last < len(text) and goes(text[last]):
            last += 1
        there = [p for p in range(first, last) if text[p] in mine]
        of_taste = "like" in text[max(0, there[0] - 3) : there[-1] + 1]
        if of_taste and not set(row) <= set(mine):
            continue
        lacking = not of_taste and there[-1] - there[0] + 1 > len(there)
        copy = [w for w in row if w in mine]
        if any(mine[x:y] == copy and sum(copied[x:y]) >= 6 - lacking for x, y in runs):
            return True
    return False


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_rows_copies_and_crowds_are_those_of_the_plain_definition(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.lists(st.sampled_from(WORDS), max_size=9), min_size=1, max_size=3))
    mine = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=7))
    index = SignalIndex((str(i), " ".join(t)) for i, t in enumerate(texts))
    numbers = [index.number(w) for w in mine]
    limits = {"words": 2, "score": 6, "gap": 8, "telling": 2, "person": 3, "missing": 1, "before": 3}
    anywhere, copied = weigh(folded(" ".join(mine)), {**spec(), "overlap": limits})
    assert (anywhere, copied) == plain_weights(mine)
    hits = Hits.of(numbers, index)
    got = {s.signal_id for s in stretches(numbers, anywhere, copied, index, hits, limits, LONG)}
    assert got == {str(i) for i, t in enumerate(texts) if plain_found(mine, t)}
    crowd = {"words": 2, "window": 3}
    close = list(scattered(numbers, anywhere, index, hits, crowd, LONG))
    telling = {w for w in mine if w in ("tea", "cup", "garden")}
    by_hand = [
        str(i) for i, t in enumerate(texts)
        if any(len(telling & set(t[a : a + 3])) >= 2 for a in range(len(t)))
    ]  # fmt: skip
    assert sorted(c.signal_id for c in close) == by_hand


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["tea", "cup", "cups", "is", "7", "Tea"]), max_size=6), max_size=5), st.data())
def test_words_are_located_in_the_first_signal_that_has_them(texts: list[list[str]], data: st.DataObject) -> None:
    index = SignalIndex((str(i), " ".join(t)) for i, t in enumerate(texts))
    wanted = data.draw(st.lists(st.sampled_from(["tea", "cup", "is", "7", "nowhere"]), min_size=1, max_size=3))
    norm = [[normal(w) for w in WORD.findall(fold(" ".join(t)))] for t in texts]
    target = [normal(w) for w in wanted]
    by_hand = [
        str(i) for i, t in enumerate(norm) if any(t[a : a + len(target)] == target for a in range(len(t)))
    ]  # fmt: skip
    assert index.locate(wanted) == (by_hand[0] if by_hand else None)


def test_an_index_that_was_added_to_is_the_one_made_at_once() -> None:
    texts = [(str(i), f"{SEED} {i} {HEART}") for i in range(5)]
    grown = SignalIndex()
    for signal_id, text in texts:
        assert len(grown.row) == 0 or grown.row[-1] == 0
        grown.add(signal_id, text)
    assert grown.row.tolist() == SignalIndex(texts).row.tolist() and len(grown) == 5


def test_every_finding_names_the_signal_it_comes_from() -> None:
    signals = [("a", "I live in Wroclaw."), ("b", f"wallet: {SEED}"), ("c", "Call me at 601 234 567, code 9041.")]
    text = f"Wroclaw, {SEED}, 601234567 or 9041."
    by_rule = {(f.rule, f.excerpt): f.signal_id for f in check(text, signals, LEXICON)}
    assert by_rule[("lexicon", "Wroclaw")] == "a" and by_rule[("overlap", SEED)] == "b"
    assert by_rule[("number", "601234567")] == by_rule[("number", "9041")] == "c"
