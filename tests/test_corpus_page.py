"""The page says what the corpus holds, the same each time; the bag of words is fair: it never sees what it is asked."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from popi_edge.errors import ConfigError
from popi_training import bagofwords, corpus_page
from popi_training.corpus import Corpus, Dimension, Pair, Pole


@pytest.fixture(scope="module")
def sources() -> corpus_page.Sources:
    return corpus_page.read()


@pytest.fixture(scope="module")
def page(sources: corpus_page.Sources) -> str:
    return corpus_page.page(sources)


def test_the_committed_page_is_what_the_command_writes(page: str) -> None:
    assert corpus_page.PAGE.read_text("utf-8") == page, "run python -m popi_training.corpus_page"


def test_each_dimension_has_its_row_its_poles_and_three_pairs_of_different_prompts(
    page: str, sources: corpus_page.Sources
) -> None:
    train = sources.corpora[0]
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(train.dimensions)
    for name, dimension in train.dimensions.items():
        assert page.count(f"| [{name}](#{name}) |") == 1
        for pole in dimension.poles.values():
            assert f"- **{pole.id}**: “{pole.phrasings['summary'][0]}”" in sections[name]
        shown = corpus_page.examples(train, name)
        assert len({p.prompt for p in shown}) == 3
        for pair in shown:
            assert f"**{train.prompts[pair.prompt]}**" in sections[name]
            assert all(corpus_page.cell(text) in sections[name] for text in pair.replies.values())


def test_the_page_marks_what_is_held_out_and_what_the_base_cannot_follow(
    page: str, sources: corpus_page.Sources
) -> None:
    rows = {r[0]: r[-1] for r in re.findall(r"^\| \[(\w+)\].*\| ([^|]*) \|$", page, re.MULTILINE)}
    assert {d for d, mark in rows.items() if "held out" in mark} == sources.split.dimensions
    assert {d for d, m in rows.items() if "not follow" in m} == {
        d for d in sources.corpora[0].dimensions if not sources.follow[d]["follows"]
    }


def test_the_page_says_that_the_readers_are_no_people(page: str) -> None:
    text = " ".join(page.split())
    assert "upper bound" in text and "the same kind of model as the writers" in text
    assert "No person has been asked yet" in text


def test_held_out_prompts_and_replies_are_not_on_the_page(page: str, sources: corpus_page.Sources) -> None:
    held = sources.corpora[1]
    assert not [t for t in held.prompts.values() if t in page]
    assert not [t for p in held.pairs for t in p.replies.values() if corpus_page.cell(t) in page]


def test_a_reply_cannot_break_out_of_its_table() -> None:
    assert corpus_page.cell("a | b\n\n- `c` <td>\n") == r"a \| b<br><br>- \`c\` \<td>"


def test_a_changed_guess_changes_the_page(page: str, sources: corpus_page.Sources) -> None:
    guesses = dict(sources.guesses[0])
    first = next(iter(guesses))
    guesses[first] = ["nothing"]
    changed = corpus_page.page(dataclasses.replace(sources, guesses=(guesses, *sources.guesses[1:])))
    assert changed != page


def corpus_of(*replies: tuple[str, str]) -> Corpus:
    """One dimension, a prompt for each pair of replies (short, long)."""
    poles = {p: Pole(p, {}) for p in ("long", "short")}
    pairs = [Pair(f"a{i}", "size", f"p{i}", {"short": s, "long": t}) for i, (s, t) in enumerate(replies)]
    return Corpus({"size": Dimension("size", "form", "", poles)}, {p.prompt: "Why?" for p in pairs}, pairs)


def test_words_that_all_prompts_share_give_a_pole_away() -> None:
    result = bagofwords.measure(corpus_of(*[(f"brief x{'abcdef'[i]}", f"ample y{'abcdef'[i]}") for i in range(6)]))[
        "size"
    ]
    assert result.full.right == result.equal.right == 1
    assert (result.full.low, result.full.high) == (1, 1) and result.held is None


def test_words_of_one_prompt_alone_say_nothing_since_no_prompt_is_learned_and_asked() -> None:
    result = bagofwords.measure(corpus_of(*[(f"b{'abcdef'[i]}", f"l{'abcdef'[i]}") for i in range(6)]))["size"]
    assert result.full.right == 0.5


def test_length_alone_is_seen_by_the_full_bag_and_not_by_the_equal_one() -> None:
    result = bagofwords.measure(corpus_of(*[("same " * 10, "same " * 40)] * 6))["size"]
    assert result.full.right == 1 and result.longer.right == 1
    assert result.equal.right == 0.5


def test_equal_bags_draw_the_same_each_time_and_from_the_longer_reply_alone() -> None:
    pair = Pair("a", "size", "p", {"short": "one two.", "long": "a b c d e f g h i j"})
    longer, shorter = bagofwords.equal_bags(pair)
    assert shorter == {"one", "two", "."} and len(longer) == 3
    assert bagofwords.equal_bags(pair) == [longer, shorter]


def test_tokens() -> None:
    said = bagofwords.tokens("Don’t! At 18:30,\nbring 2 🍲 ☀️ and snake_case")
    assert said == ["don't", "!", "at", "0", ":", "0", ",", "\n", "bring", "0", "☺", "☺", "and", "snake", "_", "case"]


def test_unknown_words_are_no_evidence() -> None:
    said = bagofwords.classify([{"a"}, {"b"}], [0, 1], [{"a"}, {"b"}, {"c"}, set()])
    assert np.sign(said).tolist() == [-1, 1, 0, 0]


def test_a_dimension_that_cannot_be_checked_is_named() -> None:
    with pytest.raises(ConfigError, match="size: this check needs two poles"):
        bagofwords.measure(corpus_of(("one", "two")))


def test_longer_is_the_share_of_the_pole_that_is_longer_more_often() -> None:
    pairs = corpus_of(("a", "a b"), ("a", "a b c"), ("a b", "a"), ("a", "a")).pairs
    assert bagofwords.longer(pairs).tolist() == [1, 1, 0, 0.5]
    flipped = corpus_of(("a b", "a"), ("a b c", "a"), ("a", "a b"), ("a", "a")).pairs
    assert bagofwords.longer(flipped).tolist() == [1, 1, 0, 0.5]


def test_a_damaged_source_is_one_clear_line_and_the_old_page_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, follow = tmp_path / "page.md", tmp_path / "follow.json"
    out.write_text("old")
    monkeypatch.setattr("sys.argv", ["corpus_page", str(out)])
    monkeypatch.setattr(corpus_page, "FOLLOW", follow)
    for text, why in (("{", "not what"), ('{"dimensions": {}}', "nothing about"), (None, "follow.json")):
        follow.write_text(text) if text else follow.unlink()
        with pytest.raises(SystemExit, match=f"^corpus_page: .*{why}"):
            corpus_page.main()
        assert out.read_text() == "old"


def test_the_command_writes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setattr("sys.argv", ["corpus_page", str(tmp_path / "docs" / "page.md")])
    corpus_page.main()
    assert (tmp_path / "docs" / "page.md").read_bytes() == page.encode("utf-8")
