"""The guard lets through a sentence about taste and nothing that came from somewhere."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popi_edge.guard import Finding, Verdict, check, genuine, spec, verdict
from popi_edge.guard.folding import WORD, fold
from popi_edge.guard.overlap import common_runs
from popi_edge.vocabulary import Lexicon

LEXICON = Lexicon.load()
GOOD = "Prefers short, direct answers with concrete examples and no jargon."
SEED = "kitchen bottle cup honest tea breakfast window habit luck mountain chocolate garden"


def rules(text: str, *signals: str, lexicon: Lexicon = LEXICON, form: bool = False) -> list[str]:
    found = check(text, [(f"s{i}", s) for i, s in enumerate(signals)], lexicon, form=form)
    for f in found:
        assert f.excerpt == text[f.start : f.end] and f.message and "\n" not in f.message
    return [f.rule for f in found]


def test_a_sentence_about_taste_passes_beside_ordinary_signals() -> None:
    signals = ("How do I keep basil alive?", "Water it. Prefers light.", "I live at 5 Elm Road, mail ann@example.org")
    assert rules(GOOD, *signals) == []
    assert rules(GOOD, *signals, form=True) == []
    assert check("", [("a", "b")], LEXICON) == ()


# lexicon ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("Likes Rust and pie.", ["Rust"]),
        ("Ask Rosemary, from Elmhurst.", ["Rosemary", "Elmhurst"]),
        ("Likes p\u0430sta.", ["p\u0430sta"]),
        ("Likes pas\u200bta.", ["pas\u200bta"]),
        ("Likes pie 🥧 daily.", ["🥧"]),
        ("Spell it j-o-y.", ["j", "o", "y"]),
        ("Write to ann@home.", ["ann@home"]),
        ("See example.org now.", ["example.org"]),
        ("Likes 寿司.", ["寿司"]),
    ],
)
def test_words_outside_the_lexicon_are_found_where_they_stand(text: str, outside: list[str]) -> None:
    found = [f.excerpt for f in check(text, [], LEXICON) if f.rule == "lexicon"]
    assert found == outside


@pytest.mark.parametrize(
    "text",
    [
        "short answers, no jargon",
        "Short/long: both fine!!",
        '"Plain" words (and examples) – please…',
        "The user’s favourite is PLAIN",
        "Don’t lecture; be warm/kind",
    ],
)
def test_a_persons_own_edit_may_be_punctuated_freely(text: str) -> None:
    assert rules(text) == []


def test_the_form_of_decoded_summaries_is_checked_when_asked_for() -> None:
    assert rules("short answers, no jargon") == []
    assert rules("short answers, no jargon", form=True) == ["form", "form"]
    assert "lexicon" in rules("Likes Rust.", form=True)


def test_what_the_person_added_passes_also_with_digits_in_it() -> None:
    lexicon = Lexicon.load(["Rust", "web3", "C++"])
    assert rules("Likes Rust, web3 and C++.", lexicon=lexicon) == []
    assert sorted(rules("Likes Rust and web4.", lexicon=lexicon)) == ["lexicon", "number"]


# numbers and addresses --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        "Call 5.",
        "Room ٤٢",
        "½ as long",
        "x² please",
        "\uff11\uff12 words",
        "five five five",
        "Nine-one-one!",
        "six and seven",
    ],
)
def test_numbers_are_found_in_digits_of_any_script_and_in_words(text: str) -> None:
    assert "number" in rules(text)


def test_one_number_word_is_the_lexicons_business_alone() -> None:
    assert rules("Use two sentences.", lexicon=Lexicon.load(["two"])) == []
    assert rules("Use two four six.", lexicon=Lexicon.load(["two", "four", "six"])) == ["number"]


@pytest.mark.parametrize(
    "text",
    [
        "ann@example.org",
        "Write to ann@home, please",
        "ann\uff20example.org",
        "ann at example dot org",
        "ann (at) example [dot] org",
    ],
)
def test_mail_addresses_are_found_also_when_disguised(text: str) -> None:
    assert "email" in rules(text)


def test_at_alone_is_no_address() -> None:
    assert rules("Put a summary at the top.") == []


# overlap ----------------------------------------------------------------------------------------------------
def test_a_seed_phrase_of_ordinary_words_is_found_and_its_signal_named() -> None:
    text = f"{SEED.capitalize()}."
    assert LEXICON.accepts(text)
    (found,) = check(text, [("x", "nothing here"), ("y", f"my wallet: {SEED} keep it")], LEXICON)
    assert (found.rule, found.signal_id) == ("overlap", "y")
    assert (found.start, found.end) == (0, len(SEED))


def test_half_a_seed_phrase_in_the_middle_of_a_summary_is_found() -> None:
    part = " ".join(SEED.split()[3:9])
    assert rules(f"Likes short answers: {part}.", SEED) == ["overlap"]


@pytest.mark.parametrize(
    "disguise",
    [
        str.upper,
        lambda s: s.replace(" ", "\n\t  "),
        lambda s: s.replace(" ", ", "),
        lambda s: s.replace("i", "ｉ").replace("o", "ó"),
        lambda s: s.replace("e", "e\u200b"),
        lambda s: s.replace(" ", "-"),
    ],
)
def test_case_space_and_look_alike_forms_hide_no_overlap(disguise: object) -> None:
    assert callable(disguise)
    assert "overlap" in rules(SEED, disguise(SEED))
    assert "overlap" in rules(disguise(SEED), SEED)


def test_what_a_person_says_about_replies_may_be_said_back_but_not_at_any_length() -> None:
    said = "I like short and direct answers with some examples."
    assert rules("Likes short and direct answers with some examples.", said) == []
    assert rules("Written in a way that is easy to understand.", "write it in a way that is easy to understand") == []
    long = "I like short and direct answers with some examples and no long introductions"
    assert rules(f"Says: {long}.", long) == ["overlap"]


def test_four_telling_words_block_and_three_pass_and_the_limits_are_the_specs() -> None:
    assert spec()["overlap"] == {
        "words": 4, "gap": 8, "telling": 2, "score": 12, "window": 60, "person": 5, "missing": 1, "before": 3
    }  # fmt: skip
    words = SEED.split()[4:]
    assert rules(" ".join(words[:3]), SEED) == []
    assert rules(" ".join(words[:4]), SEED) == ["overlap"]


@pytest.mark.parametrize("size", range(4, 13))
@pytest.mark.parametrize("telling", range(5))
def test_a_run_blocks_by_its_length_and_its_telling_words(size: int, telling: int) -> None:
    plain = "because every other person would rather have this than that with more"
    text = " ".join([*SEED.split()[4 : 4 + telling], *plain.split()][:size])
    assert len(set(text.split())) == size
    wanted = size + 2 * telling >= 12
    assert bool(rules(text, f"so {text} then")) is wanted


def test_of_two_runs_at_one_place_the_longer_is_reported_once() -> None:
    words = SEED.split()
    found = check(SEED, [("short", " ".join(words[:6])), ("long", SEED), ("late", " ".join(words[4:]))], LEXICON)
    assert [(f.signal_id, f.excerpt) for f in found] == [("long", SEED)]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), letters=st.integers(2, 5), least=st.integers(1, 4))
def test_common_runs_are_those_of_the_plain_definition(seed: int, letters: int, least: int) -> None:
    rng = random.Random(seed)
    a, b = ([rng.choice("abcde"[:letters]) for _ in range(rng.randrange(12))] for _ in range(2))
    plain = set()
    for i in range(len(a)):
        for j in range(len(b)):
            n = 0
            while i + n < len(a) and j + n < len(b) and a[i + n] == b[j + n]:
                n += 1
            if n >= least and not (i and j and a[i - 1] == b[j - 1]):
                plain.add((i, n))
    assert set(common_runs(a, b, least)) == plain


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_folding_is_stable_and_any_text_gets_an_answer(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    assert all(isinstance(f, Finding) for f in check(text, [("s", text)], LEXICON))
    assert all(isinstance(f, Finding) for f in check(text, [("s", text)], LEXICON, form=True))
    assert isinstance(WORD.findall(fold(text)), list)


# fails closed -----------------------------------------------------------------------------------------------
def broken() -> Iterator[tuple[str, str]]:
    yield "a", "fine"
    raise OSError("the database went away")


def test_a_rule_that_cannot_decide_blocks() -> None:
    (found,) = check(GOOD, broken(), LEXICON)
    assert found.rule == "overlap" and "OSError" in found.message and "nothing may leave" in found.message
    assert not verdict(GOOD, broken(), LEXICON).ok
    assert not verdict(GOOD, [("a", None)], LEXICON).ok  # type: ignore[list-item]
    assert not verdict(GOOD, [], None).ok  # type: ignore[arg-type]
    assert not verdict(None, [], LEXICON).ok  # type: ignore[arg-type]


def test_only_the_guards_own_verdict_is_genuine() -> None:
    good, bad = verdict(GOOD, [], LEXICON), verdict("Call 5.", [], LEXICON)
    assert genuine(good) and good.ok and genuine(bad) and not bad.ok
    object.__setattr__(bad, "ok", True)
    forged = object.__new__(Verdict)
    assert not any(map(genuine, (bad, forged, Verdict(True, (), GOOD), None, "ok")))
