"""A paraphrase is a summary that a person could get, says as often no, keeps the sides of a comparison, and shares few
words with its original."""

from __future__ import annotations

import functools
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from popi_edge.guard import spec
from popi_edge.vocabulary import Lexicon
from popi_training import corpus
from popi_training.paraphrase import ENOUGH, changed, content, main, negations, paraphrase, table

WARM = Path(__file__).resolve().parent.parent / "docs" / "measured" / "warm_prompts.jsonl"
OPPOSITES = """
formal casual, short long, brief lengthy, warm cold, friendly distant, vivid plain, funny serious, cheap expensive,
safe risky, new old, modern traditional, alone together, facts feelings, expert beginner, lists paragraphs, loud quiet,
lively calm, gentle harsh, blunt polite, praise criticism, strengths flaws, certain uncertain, bold cautious, simple
technical, general specific, question answer, story facts, teacher student, jokes facts, first last, fast slow,
bulleted running, like dislike, quick slow, easy hard, literal metaphorical, abstract concrete, more less, all none
"""


@functools.cache
def warm_texts() -> Sequence[str]:
    return [json.loads(line)["text"] for line in WARM.read_text("utf-8").splitlines()]


@functools.cache
def texts() -> Sequence[str]:
    """Every summary phrasing of the corpus and its held-out part, and what a trained model wrote."""
    poles = [
        pole
        for made in (corpus.load(), corpus.load(heldout=True))
        for dimension in made.dimensions.values()
        for pole in dimension.poles.values()
    ]
    return [t for pole in poles for t in pole.phrasings["summary"]] + sorted(set(warm_texts()))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_person_could_get_every_paraphrase(seed: int) -> None:
    lexicon = Lexicon.load()
    assert len(texts()) > 700
    for text in texts():
        after = paraphrase(text, seed)
        for word in after.split():
            assert word.strip(".,;:!?").casefold() in lexicon.words, (text, after)
        if lexicon.accepts(text):
            assert lexicon.accepts(after), (text, after)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_paraphrase_says_no_as_often_as_its_original(seed: int) -> None:
    assert negations("No jokes, please; leave the puns out and never tease.") == 3
    assert negations("Wants it without jargon rather than loose, and doesn't skip steps.") == 4
    assert negations("Leaves room for notes, as nobody else does.") == 1
    for text in texts():
        assert negations(paraphrase(text, seed)) == negations(text), (text, paraphrase(text, seed))


@pytest.mark.parametrize("seed", [0, 1])
def test_two_words_in_five_change_and_mostly_more(seed: int) -> None:
    for some in (warm_texts(), texts()):
        shares = [changed(t, paraphrase(t, seed)) for t in some if content(t)]
        assert statistics.mean(shares) >= ENOUGH
        assert sum(s >= ENOUGH for s in shares) / len(shares) >= 0.95


@pytest.mark.parametrize("seed", [0, 1])
def test_no_more_changes_than_was_asked_for(seed: int) -> None:
    lexicon, shares, more = Lexicon.load(), [], []
    for text in filter(content, texts()):
        whole, some = paraphrase(text, seed), paraphrase(text, seed, ENOUGH)
        shares.append(changed(text, some))
        more.append(changed(text, whole))
        assert shares[-1] >= min(ENOUGH, more[-1]), (text, some)
        assert negations(some) == negations(text), (text, some)
        assert all(w.strip(".,;:!?").casefold() in lexicon.words for w in some.split()), (text, some)
        if more[-1] <= ENOUGH:
            assert paraphrase(text, seed, 1.0) == whole  # nothing can be left as it was
    assert statistics.mean(shares) < 0.55 < 0.8 < statistics.mean(more)


@pytest.mark.parametrize("seed", range(6))
def test_both_words_of_a_comparison_change_or_neither_does(seed: int) -> None:
    for share in (0.1, 0.3, 0.6):
        text = paraphrase("Prefers zebras to a xylophone, likes lists.", seed, share)
        assert ("Prefers" in text) == (" to a xylophone" in text), text


@pytest.mark.parametrize("share", ["0", "1.5", "nan", "much"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: str) -> None:
    done = run(str(tmp_path / "in.jsonl"), "--share", share)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith(f"{share} is no share: above 0 and at most 1")


def test_changed_is_the_share_of_content_words_lost() -> None:
    assert changed("Prefers short answers.", "Prefers short answers.") == 0
    assert changed("Prefers short answers.", "Likes brief replies.") == 1
    assert changed("Prefers short answers.", "Answers that are short.") == pytest.approx(1 / 3)
    assert changed("Likes an answer, and answers again.", "One answer.") == pytest.approx(2 / 3)  # a multiset
    assert changed("Stories told, and explained.", "Telling a story is to explain.") == 0  # another form is the same
    assert changed("Colours favoured.", "Favors color.") == 0
    assert changed("Likes plans.", "Would like a plan.") == 0  # even where the form is a function word
    assert changed("It is what it is.", "Something else.") == 0  # no content at all


def test_changed_is_what_a_plain_count_gives() -> None:
    rng = random.Random(5)
    words = ["lists", "tone", "humour", "depth", "jargon", "the", "of", "and"]  # no two are forms of one word
    for _ in range(200):
        before, after = ([rng.choice(words) for _ in range(rng.randint(1, 9))] for _ in range(2))
        left, kept, total = list(after), 0, 0
        for word in before:
            if word in spec()["function_words"]:
                continue
            total += 1
            if word in left:
                left.remove(word)
                kept += 1
        expected = 1 - kept / total if total else 0
        assert changed(" ".join(before), " ".join(after)) == pytest.approx(expected), (before, after)


@pytest.mark.parametrize("seed", range(6))
def test_the_sides_of_a_comparison_stay(seed: int) -> None:
    """Words that the table does not know stand for the sides."""
    over = {"favours": "over", "choose": "over", "ranks": "above", "pick": "ahead of"}
    words = paraphrase("Prefers zebras to a xylophone.", seed).rstrip(".").lower()
    verb, _, rest = words.partition(" zebras ")
    assert rest == f"{over[verb.split()[-1]]} a xylophone", words
    assert paraphrase("Favours zebras over xylophones.", seed).partition("zebras")[2] in (
        " to xylophones.", " before xylophones.", " above xylophones.")  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_a_to_that_compares_nothing_stays(seed: int) -> None:
    for text in ("Prefers zebras that lead to xylophones.", "Prefers zebras from here to there."):
        assert " to " in paraphrase(text, seed) and " over " not in paraphrase(text, seed)
    assert paraphrase("Prefers to visit zebras.", seed).endswith(" visit zebras.")


def test_no_entry_turns_a_word_into_its_opposite() -> None:
    opposites = {frozenset(pair.split()) for pair in " ".join(OPPOSITES.split()).split(", ")}
    assert all(len(pair) == 2 for pair in opposites)
    for key, options in table().synonyms.items():
        for option in options:
            for one in set(key) - set(option.split()):
                assert not any({one, other} in opposites for other in set(option.split()) - set(key)), (key, option)


def test_every_entry_keeps_to_the_lexicon_and_to_its_negations() -> None:
    inside = Lexicon.load().inside
    for key, options in (*table().synonyms.items(), *table().openings.items()):
        for option in options:
            assert all(word.strip(".,;:!?") in inside for word in option.split()), (key, option)
            assert negations(option) == negations(" ".join(key)), (key, option)


def test_the_same_seed_gives_the_same_words() -> None:
    text = "Prefers short answers with a few jokes. Likes plain words."
    assert paraphrase(text, 3) == paraphrase(text, 3)
    assert len({paraphrase(text, seed) for seed in range(8)}) > 3


def test_what_is_not_known_and_the_form_stay() -> None:
    assert paraphrase("") == ""
    assert paraphrase("Zebras? Zebras; xylophones: Zorro!") == "Zebras? Zebras; xylophones: Zorro!"
    assert paraphrase("Wants an example.").startswith(("Would", "Needs")) and " a case." in paraphrase(
        "Wants an example.")  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "popi_training.paraphrase", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_rewrites_a_field_and_reports(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"row": 1, "text": "Prefers short answers."}\n{"row": 2, "text": ""}\n')
    done = run(str(source), "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["row"] for r in rows] == [1, 2] and rows[0]["text"] == paraphrase("Prefers short answers.")
    assert done.stderr.startswith("1 texts, changed: mean 1.000, least 1.000") and not done.stdout
    assert run(str(source)).stdout == out.read_text()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"text": "Good."}\n{"row": 2}\n', "in.jsonl, line 2: text is missing"),
        ('{"text": "Good."}\nno\n', "in.jsonl, line 2: not JSON"),
        ('{"text": ""}\n', "in.jsonl: no text to rewrite"),
    ],
)
def test_bad_lines_are_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, says: str
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines)
    monkeypatch.setattr(sys, "argv", ["paraphrase", str(source), "--out", str(out)])
    with pytest.raises(SystemExit, match=f"paraphrase: {tmp_path}/{says}") as refused:
        main()
    assert "\n" not in str(refused.value) and not out.exists()
