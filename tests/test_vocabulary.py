"""What is decoded under the closed vocabulary is made of its words, in its form, and always comes to an end."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popi_edge.errors import ConfigError
from popi_edge.vocabulary import ClosedVocabulary, Lexicon, at_start, own_words

WORDS = (
    "a",
    "I",
    "I'm",
    "an",
    "and",
    "answer",
    "answers",
    "clear",
    "don't",
    "mary-like",
    "rose",
    "rosemary",
    "short",
    "step",
    "step-by-step",
    "the",
    "well",
)
OWN = ("Rust", "Thai", "iPhone", "café", "Éclair", "C++", "web3", "übung", "日本")
BYTES: list[bytes | None] = [bytes([b]) for b in range(256)]
PIECES = [
    b" the",
    b" rose",
    b"mary",
    b"rose",
    b"Ros",
    b"emary.",
    b" an",
    b"swer",
    b"s. ",
    b"s. T",
    b", ",
    b". A",
    b".. ",
    b"  ",
    b" I",
    b"I'm sh",
    b"ort a",
    b"\xc3\xa9",
    b"\xc3",
    b"af\xc3",
    b"Rus",
    b"t; t",
    b"12",
    b" Mary",
    b"step-by",
    b"-step",
    b"he",
    b"!",
    b" well",
    b".The",
    b"p",
    b"",
    b"ar",
    b"cle",
    b"ear: ",
    b"?",
    b"on't",
    b" C++",
    b"a b",
]


def vocabularies() -> dict[str, tuple[list[bytes | None], list[int]]]:
    full = [*BYTES, *PIECES, None, None]
    shuffled: list[bytes | None] = [*PIECES, None, *BYTES]
    random.Random(5).shuffle(shuffled)
    few: list[bytes | None] = [t for t in full if t not in (b"q", b"I", b"-", b"w", b"!", b"?", b"\xc3")]
    long: list[bytes | None] = [
        None,
        b"The",
        b" rose",
        b" short",
        b" answer",
        b"s are clear",
        b"s",
        b".",
        b" and",
        b", ",
    ]
    no_mark: list[bytes | None] = [None, b"Ro", b"se", b"mary", b" the", b" ro", b"se.", b"se. ", b"A", b" c", b"lear!"]
    return {
        "bytes": ([*BYTES, None], [256]),
        "bytes and pieces": (full, [len(full) - 2, len(full) - 1]),
        "shuffled": (shuffled, [shuffled.index(None)]),
        "single bytes missing": (few, [len(few) - 1]),
        "no letter alone": (long, [0]),
        "no sentence mark alone": (no_mark, [0]),
    }


LEXICON = Lexicon(WORDS, OWN)
MASKS = {name: ClosedVocabulary(LEXICON, tokens, ends, 24) for name, (tokens, ends) in vocabularies().items()}
names = pytest.mark.parametrize("name", MASKS)


def decode(name: str, seed: int, room: int, scale: float) -> tuple[str, int]:
    """Sample as an engine would, under random logits; the text, and how many tokens it took."""
    mask, (tokens, ends) = MASKS[name], vocabularies()[name]
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=len(tokens)) * scale
    state, out = mask.start(), []
    for left in range(room, 0, -1):
        allowed = mask.allowed(state, left)
        assert len(allowed) and (np.diff(allowed) > 0).all()
        token = int(allowed[np.argmax(logits[allowed] + rng.gumbel(size=len(allowed)))])
        if token in ends:
            break
        out.append(token)
        state = mask.advance(state, token)
    text = b"".join(tokens[t] or b"" for t in out)
    return text.decode("utf-8"), len(out)


@names
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), room=st.integers(4, 24), scale=st.sampled_from([0.0, 2.0, 6.0]))
def test_whatever_the_weights_want_the_text_keeps_every_rule_and_ends(
    name: str, seed: int, room: int, scale: float
) -> None:
    text, tokens = decode(name, seed, room, scale)
    assert LEXICON.explain(text) == []
    assert 0 < tokens <= room


def test_ten_thousand_tokens_break_no_rule() -> None:
    total = 0
    for name, seed in itertools.product(MASKS, range(130)):
        text, tokens = decode(name, seed, 24, (0.0, 1.0, 3.0)[seed % 3])
        assert LEXICON.accepts(text), text
        total += tokens
    assert total >= 10_000


@names
def test_a_text_ends_however_few_tokens_are_left(name: str) -> None:
    least = int(MASKS[name]._far[1])
    for room, seed in itertools.product(range(least, least + 4), range(30)):
        text, _ = decode(name, seed, room, 1.0)
        assert LEXICON.accepts(text), text


def test_fewer_tokens_than_any_sentence_needs_is_one_clear_line() -> None:
    mask = MASKS["bytes"]
    with pytest.raises(ConfigError, match="1 tokens are too few"):
        mask.allowed(mask.start(), 1)
    with pytest.raises(ConfigError, match="no sentence can be written"):
        ClosedVocabulary(LEXICON, [b"x", b"y", None], [2])
    with pytest.raises(ConfigError, match="no sentence can be written"):
        ClosedVocabulary(LEXICON, BYTES, [])


def reaches(mask: ClosedVocabulary, tokens: list[int], end: int) -> bool:
    """Whether these tokens, then the end token, are allowed one after the other."""
    state = mask.start()
    for i, token in enumerate(tokens):
        left = max(len(tokens) - i, 2 if not i else 1)  # no sentence has one byte
        if token not in mask.allowed(state, left):
            return False
        state = mask.advance(state, token)
    return end in mask.allowed(state)


def test_what_the_checker_accepts_is_exactly_what_can_be_written_byte_by_byte() -> None:
    small = Lexicon(("a", "ab", "I", "b-a"), ("Ba",))
    mask = ClosedVocabulary(small, [*BYTES, None], [256], 5)
    accepted = 0
    for length in range(6):
        for letters in itertools.product("abABI -.,", repeat=length):
            text = "".join(letters)
            fits = small.accepts(text)
            assert reaches(mask, list(text.encode()), 256) == fits, text
            accepted += fits
    assert accepted > 20


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_accepted_text_can_be_written_in_every_way_the_tokens_can_spell_it(data: st.DataObject) -> None:
    sentences = []
    for _ in range(data.draw(st.integers(1, 2))):
        words = data.draw(st.lists(st.sampled_from(sorted(LEXICON.inside)), min_size=1, max_size=3))
        seams = [data.draw(st.sampled_from([" ", ", ", "; ", ": "])) for _ in words[1:]]
        body = "".join(w + s for w, s in zip([at_start(words[0]), *words[1:]], [*seams, ""], strict=True))
        sentences.append(body + data.draw(st.sampled_from(".!?")))
    text = " ".join(sentences)
    assert LEXICON.accepts(text), LEXICON.explain(text)
    tokens, ends = vocabularies()["bytes and pieces"]
    rest, ids = text.encode(), []
    while rest:
        fitting = [i for i, t in enumerate(tokens) if t and rest.startswith(t)]
        ids.append(data.draw(st.sampled_from(fitting)))
        rest = rest[len(tokens[ids[-1]] or b"") :]
    mask = ClosedVocabulary(LEXICON, tokens, ends, 200)
    state = mask.start()
    for token in ids:
        assert token in mask.allowed(state)
        state = mask.advance(state, token)
    assert set(ends) <= set(mask.allowed(state).tolist())


def test_words_do_not_join_but_a_longer_word_goes_through_a_shorter_one() -> None:
    lexicon = Lexicon(("rose", "mary", "rosewood"))
    mask = ClosedVocabulary(lexicon, [*BYTES, b"mary", b"wood", None], [258])
    state = mask.start()
    for byte in b"Rose":
        state = mask.advance(state, byte)
    allowed = mask.allowed(state)
    assert 256 not in allowed and 257 in allowed and ord("m") not in allowed and ord(" ") in allowed
    assert not lexicon.accepts("Rosemary.") and lexicon.accepts("Rosewood.") and lexicon.accepts("Rose mary.")


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("", ["empty"]),
        ("Short answers", ["end"]),
        ("short answers.", ["capital"]),
        ("Short Answers.", ["capital"]),
        ("Short  answers.", ["space"]),
        (" Short answers.", ["space"]),
        ("Short answers. ", ["end", "space"]),
        ("Short\nanswers.", ["space"]),
        ("Short\u00a0answers.", ["space"]),
        ("Short answers..", ["punctuation"]),
        ("Short answers,. The.", ["punctuation"]),
        ("Short , clear.", ["punctuation"]),
        ("Short,clear.", ["punctuation"]),
        ("Short answers.The rose.", ["punctuation"]),
        ("Short answers. the rose.", ["capital"]),
        ("Short; Clear.", ["capital"]),
        ("Short answers,", ["end"]),
        ("Short pages.", ["word"]),
        ("Short (clear).", ["word"]),
        ("Short 5.", ["word"]),
        ("Sh\u200bort answers.", ["word"]),
        ("i don't.", ["capital"]),
    ],
)
def test_the_checker_names_every_broken_rule(text: str, rules: list[str]) -> None:
    assert [p.rule for p in LEXICON.explain(text)] == rules
    for problem in LEXICON.explain(text):
        assert problem.text == text[problem.start : problem.end]


def test_a_persons_own_words_keep_their_capitals_everywhere() -> None:
    lexicon = Lexicon(("in", "code", "rusty", "eye"), own_words(["Rust", "Thai food", "iPhone", "eBay", "vegan-ish"]))
    good = (
        "Rust in code.",
        "Code in Rust.",
        "Thai food.",
        "iPhone code.",
        "In eBay, Rust.",
        "eBay eye.",
        "Vegan-ish code.",
        "Rusty eye.",
        "Food in code.",
    )
    bad = ("Code in rust.", "EBay.", "IPhone.", "RUST.", "Code in Vegan-ish.", "Code in Food.")
    mask = ClosedVocabulary(lexicon, [*BYTES, None], [256], 60)
    for text in good:
        assert lexicon.accepts(text) and reaches(mask, list(text.encode()), 256), text
    for text in bad:
        assert not lexicon.accepts(text) and not reaches(mask, list(text.encode()), 256), text
    assert "RUST" in lexicon and "food" in lexicon and "thai food" not in lexicon


@pytest.mark.parametrize(
    "entry", ["", "  ", "two. words", "<|im_end|>", "a\u200bb", "-dash", "x" * 61, "node.js", "a,b"]
)
def test_what_cannot_be_an_own_word_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match="own word"):
        Lexicon.load([entry])


def test_too_many_own_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="the limit is 500"):
        own_words(f"w{i}" for i in range(501))


def test_a_token_that_may_not_follow_is_refused() -> None:
    mask = MASKS["bytes"]
    for token in (ord(" "), ord("r"), 256):
        with pytest.raises(ConfigError, match="may not follow"):
            mask.advance(mask.start(), token)


def test_the_same_state_gives_the_same_ids_whatever_was_asked_before() -> None:
    mask = MASKS["bytes and pieces"]
    first = mask.allowed(mask.start()).copy()
    for left in (2, 3, 24):
        mask.allowed(mask.start(), left)
    assert (mask.allowed(mask.start()) == first).all()
    with pytest.raises(ValueError, match="read-only"):
        mask.allowed(mask.start())[0] = 1


def test_what_follows_a_whole_word_is_what_its_bytes_alone_give() -> None:
    """What all words share is worked out once; here every state's tokens are walked byte by byte instead."""
    rng = random.Random(0)
    alphabet = [bytes([b]) for b in range(256)]
    words = rng.sample(sorted(Lexicon.load().inside), 1_500)
    pieces = [(" " * rng.randint(0, 1) + w[: rng.randint(1, 9)]).encode() for w in words]
    tokens = [*alphabet, *dict.fromkeys(p for p in pieces if len(p) > 1), b".", b", ", b". The", b"s,"]
    mask = ClosedVocabulary(Lexicon.load(), tokens, [len(tokens)])
    states = rng.sample(range(1, len(mask._automaton.table)), 300)
    ends = 0
    for state in [*states, *range(1, 5)]:
        expected = {}
        for i, text in enumerate(tokens):
            at = state
            for byte in text:
                at = int(mask._automaton.table[at, mask._automaton.column[byte]])
            if at:
                expected[i] = at
        ids, nexts = mask._step(state)
        assert dict(zip(ids.tolist(), nexts.tolist(), strict=True)) == expected and sorted(ids.tolist()) == ids.tolist()
        ends += mask._automaton.table[state, mask._automaton.column[32]] == 2
    assert ends > 20
