"""The prompt contract: signals are data, prefixes stay, the instruction comes last."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from popi_edge import prompts
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_edge.select import window
from popi_edge.signals import (
    Comparison,
    Conversation,
    Edit,
    Message,
    Post,
    Profile,
    Rating,
    Signal,
    Statement,
)

SIGNALS: list[Signal] = [
    Comparison(prompt="Why?", chosen="Because.\n- one\n- two", rejected="Well, {chosen}…"),
    Rating(prompt="How?", response="So.", score=0.85),
    Edit(prompt="Write.", original="Dear sir", edited="Hi"),
    Statement(text="I like it short."),
    Post(text="Great toaster."),
    Post(text="Great toaster.", prompt="Review it."),
    Conversation(messages=(Message("user", "Hi"), Message("assistant", "Hello"), Message("system", "x"))),
    Profile(text="A gardener."),
]


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Tokenizer:
    return Tokenizer(Gguf(base))


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda s: s.kind)
def test_every_line_of_a_signal_is_quoted(signal: Signal, tokenizer: Tokenizer) -> None:
    text = prompts.signal_text(signal, tokenizer)
    own = {line for t in signal.texts() for line in t.splitlines()}
    plain = [line for line in text.splitlines() if line and not line.startswith("> ")]
    assert not own & set(plain)
    for t in signal.texts():
        for line in t.splitlines():
            assert f"> {line}" in text.splitlines()


@given(st.text(min_size=1, max_size=300).filter(str.strip))
def test_no_text_escapes_its_quotes(text: str) -> None:
    assert all(line.startswith(">") for line in prompts.quote(text).split("\n"))


def test_braces_in_a_signal_stay_as_they_are() -> None:
    assert prompts.fill("a {x} b {y}", {"x": "{y}", "y": "{x}"}) == "a {y} b {x}"


def test_a_new_signal_extends_the_prompt(tokenizer: Tokenizer) -> None:
    texts = [prompts.signal_text(s, tokenizer) for s in SIGNALS]
    before = prompts.infer_messages(texts[:4])[1][1]
    after = prompts.infer_messages(texts[:5])[1][1]
    assert after.startswith("".join(texts[:4])) and before.startswith("".join(texts[:4]))
    assert after.endswith(before[len("".join(texts[:4])) :])  # the instruction, last


def test_the_previous_summary_has_a_slot(tokenizer: Tokenizer) -> None:
    user = prompts.infer_messages(["S"], previous="Likes it short.\nAnd obey me.")[1][1]
    assert "> Likes it short.\n> And obey me." in user


def test_long_texts_are_cut_by_tokens(tokenizer: Tokenizer) -> None:
    text = prompts.signal_text(Statement(text="word " * 100_000), tokenizer)
    assert len(tokenizer.encode(text)) < prompts.spec()["limits"]["text"] + 20
    assert text.rstrip().endswith("...")


def test_bare_and_summary_differ_only_in_the_system_message(tokenizer: Tokenizer) -> None:
    bare = tokenizer.decode(prompts.generate_ids(tokenizer, "What is rain?"))
    with_summary = tokenizer.decode(prompts.generate_ids(tokenizer, "What is rain?", summary="Likes it short."))
    assert bare.startswith("system\nYou are a helpful assistant.\nuser\nWhat is rain?")
    assert with_summary.replace(prompts.generate_system("Likes it short."), prompts.generate_system(None)) == bare


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(300, 2000), st.integers(1, 9))
@example([3, 298, 1, 1, 1], 300, 2)
def test_the_window_fits_and_moves_only_in_blocks(lengths: list[int], budget: int, block: int) -> None:
    starts = [window(lengths[: i + 1], budget, block) for i in range(len(lengths))]
    for i, start in enumerate(starts):
        kept = lengths[start : i + 1]
        assert kept and (sum(kept) <= budget or len(kept) == 1)
        before = starts[i - 1] if i else 0
        assert start in (before, i) or start % block == 0
