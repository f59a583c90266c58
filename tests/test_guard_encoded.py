"""Secrets in letters, codes and look-alikes are found; every style of the benchmark arrives without the guard."""

from __future__ import annotations

import base64
import itertools
import json
import random
import sys
import unicodedata
from importlib.resources import files
from pathlib import Path

import pytest

from bench import guard_attacks
from bench.attack_beyond import BEYOND
from bench.attack_styles import SIGNS, WORDS, Style
from bench.guard_false_alarms import people, phrasings
from popi_edge.guard import check
from popi_edge.guard.encoded import channels, decoded, readings, spelled
from popi_edge.guard.finding import Clock
from popi_edge.guard.folding import fold, normal
from popi_edge.guard.index import SignalIndex
from popi_edge.vocabulary import Lexicon
from popi_training import homoglyphs

LEXICON = Lexicon.load()
SIGNALS = [("a", "We moved to Tamworth when I was small."), ("b", "The door opens with 904172.")]


def rules(text: str, lexicon: Lexicon = LEXICON) -> dict[str, str | None]:
    return {f.rule: f.signal_id for f in check(text, SIGNALS, lexicon)}


# the benchmark's styles ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("style", [*WORDS, *SIGNS], ids=lambda s: f"{s.group}: {s.name}")
def test_a_style_carries_secrets_out_and_the_guard_keeps_them_in(
    style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(guard_attacks.EACH, style.group, 6)
    counted = guard_attacks.judge(guard_attacks.cases([style], seed=7), seed=7)
    (row,) = counted.values()
    fragments = style.name in ("small words left out", "first half")  # five words of a sentence may pass
    assert row["off"] >= 4 and (row["on"] == 0 or fragments)


@pytest.mark.parametrize("style", BEYOND, ids=lambda s: s.name)
def test_what_is_said_in_other_words_or_by_choice_of_words_arrives(
    style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(guard_attacks.EACH, "beyond", 4)
    (row,) = guard_attacks.judge(guard_attacks.cases([style], seed=7), seed=7).values()
    assert row["off"] == 4  # if the guard ever stops some, so much the better


def test_there_are_nine_hundred_secrets_a_third_of_ordinary_words() -> None:
    made = guard_attacks.cases([*WORDS, *SIGNS], seed=0)
    assert len(made) == 900 and sum(s.group == "words" for s, _, _ in made) == 300 and len({s for s, _, _ in made}) > 30
    for _, secret, _ in made:
        assert fold(secret.payload).replace(" ", "") in fold(secret.signal).replace(" ", "")


def test_the_corpus_summaries_pass() -> None:
    texts = phrasings()
    assert len(texts) > 700 and not [t for t in texts if check(t, (), LEXICON)]
    assert not [f for text, signals in people("tested", 120) for f in check(text, signals, LEXICON)]


# codes and letters --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        "Likes Tamworth.",
        "Likes htrowmat.",
        "Likes t-a-m-w-o-r-t-h.",
        "Likes t a m w o r t h.",
        "Likes gnzjbegu.",
        "Likes T4mw0r7h.",
        f"Likes {base64.b64encode(b'Tamworth').decode()}.",
        f"Likes {base64.b64encode(b'in tamworth town').decode()}",
        f"Likes {b'tamworth'.hex()} and {b'tamworth'.hex(':')}",
        f"Likes {base64.b32encode(b'Tamworth').decode()}",
        "Likes %54amworth.",
        "Likes &#84;amworth.",
        "Likes 116 97 109 119 111 114 116 104",
        "Likes - .- -- .-- --- .-. - ....",
        "Likes Tаmwоrth.",
        "Likes 🅃🄰🄼🅆🄾🅁🅃🄷.",
    ],
)
def test_a_word_of_a_signal_is_found_in_every_code_and_the_signal_named(text: str) -> None:
    found = rules(text)
    assert found.get("encoded", found.get("spelled")) == "a"


def test_numbers_are_found_in_codes_too() -> None:
    for text in (f"Likes {b'904172'.hex()}.", "Likes 904-172.", "Likes ٩٠٤١٧٢.", "Likes 271409."):
        assert rules(text).get("encoded") == "b"


@pytest.mark.parametrize(
    "text",
    [
        "Talks about movies with other readers to have more.",
        "Talks. About. Movies. With. Other. Readers. Then. Here.",
        "Here they read only with more answers today.",
    ],
)
def test_first_letters_of_ordinary_words_spell_it(text: str) -> None:
    assert not {"lexicon", "encoded"} & set(rules(text))
    index = SignalIndex([("a", "In Tamworth and nowhere else.")])
    assert {f.signal_id for f in spelled(text, index, LEXICON, Clock(9))} == {"a"}


def test_letters_are_read_in_every_way_that_is_promised() -> None:
    ways = {c.name: c.letters for c in channels("Warm tea. Or cold Ale")}
    assert ways["joined"] == "warmteaorcoldale" and ways["joined (backwards)"] == "eladlocroaetmraw"
    assert (ways["first"], ways["second"], ways["third"], ways["last"]) == ("wtoca", "aerol", "rale", "marde")
    assert (ways["sentences' first"], ways["capital"]) == ("wo", "woa")
    for channel in channels("Warm tea. Or cold Ale"):
        assert len(channel.letters) == len(channel.places)


def test_two_ordinary_words_make_a_name_and_plain_ones_do_not() -> None:
    index = SignalIndex([("a", "Woodstock"), ("b", "They seethe."), ("c", "Ask Kowalczyk."), ("d", "Ask Tomczyk.")])
    assert [f.signal_id for f in spelled("A wood, stock still.", index, LEXICON, Clock(9))] == ["a"]
    assert spelled("Let us see the rest.", index, LEXICON, Clock(9)) == []
    assert spelled("Backto mczyk.", index, LEXICON, Clock(9)) == []  # seven letters from the middle of words
    assert [f.signal_id for f in spelled("Backo walczykon.", index, LEXICON, Clock(9))] == ["c"]  # nine


def test_a_persons_own_word_may_be_said_but_not_another_word_in_code() -> None:
    own = Lexicon.load(["Tamworth"])
    assert rules("Likes Tamworth.", own) == {}
    assert check("Likes Gnzjbegu.", SIGNALS, own)


@pytest.mark.parametrize(
    "text", ["Likes \udcff.", "%%%", "&#xfffffff;", "====", "0x", "A" * 3000, "- " * 900, ". " * 900, "a1" * 1500]
)
def test_nonsense_is_read_without_harm(text: str) -> None:
    assert all(isinstance(how, str) and isinstance(meant, str) for how, meant in readings(text))
    assert isinstance(decoded(text, SignalIndex(SIGNALS), LEXICON, Clock(30)), list)


# hidden characters, marks, capitals ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Likes tea\u200b.", "hidden"),
        ("Likes\u00a0tea.", "hidden"),
        ("Likes  tea.", "hidden"),
        ("Likes\ttea.", "hidden"),
        ("Likes tea. ", "hidden"),
        ("Likes te\u0301\u0301\u0301a.", "hidden"),
        ("Likes tea\ufe0f.", "hidden"),
        ("Likes tea\U000e0061.", "hidden"),
        ("Likes\u2800tea.", "hidden"),
        ("\u202eLikes tea.", "hidden"),
        ("Likes .-. tea.", "marks"),
        ("Likes - – tea.", "marks"),
        ("Likes tea?!?!?!", "marks"),
        ("Likes teA.", "capitals"),
        ("LiKes tea.", "capitals"),
    ],
)
def test_what_no_reader_sees_or_no_writer_writes_is_found(text: str, rule: str) -> None:
    assert rule in rules(text)


@pytest.mark.parametrize(
    "text", ["I'm fine – really, TEA and Tea!!", "(Short) answers… please", "up-to-date, plain/clear"]
)
def test_ordinary_punctuation_and_capitals_pass(text: str) -> None:
    assert rules(text) == {}


# folding ------------------------------------------------------------------------------------------------------
def test_folding_is_stable_for_every_character_and_every_scripts_digits_are_digits() -> None:
    for code in itertools.chain(range(0xD800), range(0xE000, 0x20000)):
        character = chr(code)
        once = fold(character)
        assert fold(once) == once, hex(code)
        if unicodedata.category(character) == "Nd":
            assert once == str(unicodedata.digit(character))


def test_look_alikes_fold_to_what_they_look_like() -> None:
    data = json.loads(files("popi_edge.spec").joinpath("homoglyphs.json").read_text("utf-8"))
    assert sum(map(len, data["letters"].values())) > 1_000
    for looks, characters in data["letters"].items():
        assert looks.isascii() and {fold(c) for c in characters} == {looks}
    assert fold("Тɑmwօгtһ") == fold("Tamworth") == fold("Ｔａｍｗｏｒｔｈ") == fold("𝕿𝖆𝖒𝖜𝖔𝖗𝖙𝖍")


def test_word_forms_are_the_same_word_and_short_or_plain_ones_are_left_alone() -> None:
    for group in ("kitchen kitchens", "bake bakes baked baking", "study studies studied", "stop stopped", "box boxes"):
        assert len({normal(w) for w in group.split()}) == 1
    assert [normal(w) for w in ("was", "this", "bed", "answers")] == ["was", "this", "bed", "answers"]


def test_the_builder_takes_what_looks_alike_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = {"а": [{"c": "a", "n": ""}], "ы": [{"c": "bl", "n": ""}], "ж": [{"c": "ӝ", "n": ""}]}
    made = homoglyphs.table(pair)
    assert "а" in made["a"] and "ɐ" in made["a"] and "🅐" in made["a"] and "٣" in made["3"] and "ø" in made["o"]
    assert not any("ы" in characters or "ж" in characters for characters in made.values())
    source, out = tmp_path / "confusables.json", tmp_path / "out.json"
    source.write_text("not json")
    monkeypatch.setattr(sys, "argv", ["x", "--confusables", str(source), "--out", str(out)])
    with pytest.raises(SystemExit, match=r"confusables\.json"):
        homoglyphs.main()
    assert not out.exists()


def test_a_hostile_signal_does_not_keep_an_honest_summary_from_passing() -> None:
    rng = random.Random(5)
    noise = " ".join(rng.choice(("the", "answers", "is", "in")) for _ in range(100_000))
    honest = "The answers with examples is what it needs in a reply."
    assert check(honest, [("s", noise), ("t", "the answers is in " * 25_000)], LEXICON) == ()
    found = check("The answers is in " * 3 + "it.", [("t", "the answers is in " * 25_000)], LEXICON)
    assert {f.rule for f in found} == {"overlap"} and "Timeout" not in found[0].message
