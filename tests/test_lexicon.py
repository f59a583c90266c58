"""The shipped lexicon says much about taste and names nobody; its builder makes the same file from the same lists."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from popi_edge.vocabulary import Lexicon
from popi_training import lexicon as builder

SPEC = Path(str(files("popi_edge.spec").joinpath("lexicon.txt"))).parent
LEXICON = Lexicon.load()
SUMMARIES = """\
Prefers short, direct answers with concrete examples and no jargon.
Likes step-by-step instructions in plain words.
They enjoy a warm, friendly tone with a little humor.
Wants detailed explanations, with sources and caveats.
Prefers bullet points over long paragraphs.
Likes replies that get to the point: no greeting, no filler.
Enjoys playful jokes, vivid metaphors and witty remarks.
Dislikes flattery and long introductions; likes blunt honesty.
Writes for an expert: technical terms are welcome, basics are not.
Explain things simply, as to a curious beginner.
I like calm, thoughtful answers that show both sides.
Prefers formal language and complete sentences.
Casual tone, lots of emojis, and short sentences.
Would rather see code first, then a brief explanation.
Likes tables and headings when several options are compared.
Avoid sarcasm. Be gentle, patient and encouraging.
Prefers practical advice that can be used today.
Enjoys deep analysis with careful reasoning and clear evidence.
Wants honest uncertainty: say what is not known.
Likes stories with surprising endings and strong characters.
Prefers cooking ideas with fresh vegetables and mild spices.
Enjoys quiet films, old jazz and long walks in nature.
Keep it under a short paragraph, and end with a question.
Values clarity and precision more than warmth.
They prefer professional, polite replies without slang.
Likes analogies from everyday life when a topic is abstract.
Doesn't want moralizing or disclaimers.
Prefers a confident recommendation over a list of alternatives.
Likes to understand why, not only how.
Asks for creative, original ideas rather than the obvious ones.
Wants a summary at the top and details below.
Prefers gentle corrections with an explanation of each mistake.
Likes poetic, descriptive writing with vivid images.
Enjoys friendly debate, and likes to be challenged.
Prefers budget-friendly tips and simple tools.
Reads quickly: use short lines, bold key words and clear labels.
Likes numbered steps, but not too many.
Prefers neutral, factual answers. Leave opinions out.
Likes warm, empathetic support before any advice.
Wants up-to-date facts with links to sources.
Prefers concise replies that are easy to skim.
The person prefers responses that are concise, informative and well-organized.
This person likes replies to be friendly and conversational, with examples.
The user prefers clear and concise language that is easy to understand.
This person prefers a more personal and engaging style.
"""


def lines(name: str) -> list[str]:
    return [w for w in (SPEC / name).read_text("utf-8").splitlines() if not w.startswith("#")]


@pytest.mark.parametrize("summary", SUMMARIES.splitlines())
def test_a_varied_summary_can_be_written(summary: str) -> None:
    assert LEXICON.explain(summary) == []


def test_there_are_forty_of_them_and_they_differ() -> None:
    assert len(set(SUMMARIES.splitlines())) >= 40


def test_the_file_is_sorted_ordinary_words_and_says_where_they_come_from() -> None:
    words = lines("lexicon.txt")
    assert words == sorted(set(words)) and 3_000 <= len(words) <= 6_000
    assert all(re.fullmatch(r"[a-z]+(?:[-'][a-z]+)*|I(?:'[a-z]+)?", w) for w in words)
    header = [w for w in (SPEC / "lexicon.txt").read_text("utf-8").splitlines() if w.startswith("#")]
    assert "public domain" in "".join(header) and "CC0" in "".join(header)
    assert any("python -m popi_training.lexicon" in line for line in header)
    assert {w for w in words if len(w) == 1} == {"a", "I"}


def test_what_was_excluded_is_out() -> None:
    for section, excluded in builder.read_sections(SPEC / "lexicon_excluded.txt").items():
        assert [w for w in excluded if w in LEXICON] == [], section
    assert [w for w in lines("lexicon_sensitive.txt") if w in LEXICON] == []


OUT = """
mark rose grant bill will may march august monday sunday smith baker paris london china turkey apple amazon google one
two hundred second third mr dr uk us police god church muslim gay black cancer pregnant diabetes murder prison president
republican vote nazi salary divorce wife mary john 5 1990
"""


@pytest.mark.parametrize("word", OUT.split())
def test_names_numbers_and_delicate_words_cannot_be_written(word: str) -> None:
    assert word not in LEXICON
    assert not LEXICON.accepts(f"Likes {word}.") and not LEXICON.accepts(f"Likes {word.capitalize()}.")


def test_a_person_may_switch_the_sensitive_words_on_but_never_the_names() -> None:
    wide = Lexicon.load(sensitive=True)
    assert "prayer" in wide and "diabetes" in wide and "votes" in wide
    assert "mark" not in wide and "paris" not in wide and len(wide) > len(LEXICON)


# the shipped file is made again --------------------------------------------------------------------------------
ROOT = SPEC.parent.parent


def test_one_command_in_a_clone_makes_the_shipped_files_again_byte_for_byte(tmp_path: Path) -> None:
    spec = tmp_path / "popi_edge" / "spec"
    spec.mkdir(parents=True)
    for name in ("lexicon_added.txt", "lexicon_excluded.txt"):
        shutil.copy(SPEC / name, spec)
    shutil.copytree(ROOT / "training" / "lexicon", tmp_path / "training" / "lexicon")
    path = os.pathsep.join((str(ROOT), str(ROOT / "training")))
    command = [sys.executable, "-S", "-m", "popi_training.lexicon"]  # -S: nothing that was installed
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("lexicon.txt", "lexicon_sensitive.txt"):
        assert (spec / name).read_bytes() == (SPEC / name).read_bytes(), name


def test_the_public_lists_are_the_very_files_that_their_readme_names() -> None:
    folder = ROOT / "training" / "lexicon"
    said = (folder / "README.md").read_text("utf-8")
    files = [p for p in folder.rglob("*") if p.suffix in (".txt", ".json")]
    assert len(files) == 1 + len((*builder.PLAIN, *builder.VERBS, builder.PASTS, *builder.THINGS))
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in said, file.name
    assert "public domain" in said and "CC0" in said


# the builder ------------------------------------------------------------------------------------------------
CORE = "able act agree brave bravely April China china clear cook dog God god happy may plan quick quickly step use"
COMMON = ["able", "act", "china", "god", "plan", "Dog", "may"]
ADDED = """# ours
[words]
I to-the-point
[verbs]
go use
[nouns]
story
[adjectives]
quick
[short adjectives]
big
[no plural]
able
"""
EXPECTED = """I able act acted acting acts big bigger biggest brave bravely go goes going happy plan planned planning
plans quick quickly stories story to-the-point use used uses using went"""


def sources(folder: Path) -> list[str]:
    """Small files of the same shape as the real ones."""
    lists = {name: {"description": "Some words", "words": []} for name in (*builder.PLAIN, *builder.THINGS)}
    lists["words/common"] = {"description": "ignored dog", "commonWords": COMMON}
    lists["humans/descriptions"] = {"descriptions": ["brave", "happy", "well-meant"]}
    listed: dict[str, object] = {**lists, "words/infinitive_verbs": ["act", "plan", "agree"]}
    listed["words/verbs"] = {"verbs": [{"present": "go", "past": "went"}]}
    (folder / "words.txt").write_text(CORE.replace(" ", "\n"))
    (folder / "lists.json").write_text(json.dumps(listed))
    (folder / "lexicon_added.txt").write_text(ADDED)
    (folder / "lexicon_excluded.txt").write_text("[names]\nmay\n[sensitive: religion]\ngod pray\n")
    return [f"--{k}={folder / v}" for k, v in (("words", "words.txt"), ("lists", "lists.json"), ("out", "lexicon.txt"))]


def made(folder: Path, name: str = "lexicon.txt") -> list[str]:
    return [w for w in (folder / name).read_text().splitlines() if not w.startswith("#")]


def test_it_is_made_of_the_lists_their_inflections_and_our_own_less_what_is_excluded(tmp_path: Path) -> None:
    arguments = sources(tmp_path)
    assert builder.main(arguments) == 0
    assert made(tmp_path) == sorted(EXPECTED.split())
    assert made(tmp_path, "lexicon_sensitive.txt") == ["god", "pray"]
    before = (tmp_path / "lexicon.txt").read_bytes()
    assert builder.main(arguments) == 0
    assert (tmp_path / "lexicon.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("word", "plural", "past", "progressive"),
    [
        ("like", "likes", "liked", "liking"),
        ("try", "tries", "tried", "trying"),
        ("play", "plays", "played", "playing"),
        ("stop", "stops", "stopped", "stopping"),
        ("quiz", "quizzes", "quizzed", "quizzing"),
        ("prefer", "prefers", "preferred", "preferring"),
        ("offer", "offers", "offered", "offering"),
        ("relax", "relaxes", "relaxed", "relaxing"),
        ("teach", "teaches", "teached", "teaching"),
        ("tie", "ties", "tied", "tying"),
        ("agree", "agrees", "agreed", "agreeing"),
        ("show", "shows", "showed", "showing"),
    ],
)
def test_inflections_follow_the_spelling_rules(word: str, plural: str, past: str, progressive: str) -> None:
    assert (builder.plural(word), builder.past(word), builder.progressive(word)) == (plural, past, progressive)


def test_adjectives_too() -> None:
    assert builder.compared("big") == ("bigger", "biggest")
    assert builder.compared("witty") == ("wittier", "wittiest")
    assert builder.compared("simple") == ("simpler", "simplest")
    assert [builder.adverb(w) for w in ("happy", "simple", "basic", "full", "sole", "clear")] == [
        "happily",
        "simply",
        "basically",
        "fully",
        "solely",
        "clearly",
    ]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("words.txt", None, "No such file"),
        ("words.txt", "", "is it the right file"),
        ("lists.json", "{", "not JSON: line 1"),
        ("lists.json", "[]", "lacks the list 'words/common'"),
        ("lexicon_added.txt", "stray\n", "line 1: words before the first [section]"),
        ("lexicon_added.txt", "[words]\nb3ta\n", "line 2: 'b3ta' is not a word"),
        ("lexicon_added.txt", "[irregular]\ngo\n", "[irregular]: 'go' has no past"),
        ("lexicon_excluded.txt", None, "No such file"),
    ],
)
def test_a_source_that_is_wrong_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, message: str
) -> None:
    arguments = sources(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    assert builder.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and file in error
    assert not (tmp_path / "lexicon.txt").exists() and not (tmp_path / "lexicon_sensitive.txt").exists()


def test_a_folder_of_lists_is_read_like_the_one_file_and_a_missing_or_broken_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = sources(tmp_path)
    folder = tmp_path / "lists"
    for name, value in json.loads((tmp_path / "lists.json").read_text()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(value))
    assert builder.main([*arguments, f"--lists={folder}"]) == 0
    assert made(tmp_path) == sorted(EXPECTED.split())
    (folder / "words" / "common.json").write_text("[")
    assert builder.main([*arguments, f"--lists={folder}"]) == 1
    assert "common.json: not JSON: line 1" in capsys.readouterr().err
    (folder / "words" / "common.json").unlink()
    assert builder.main([*arguments, f"--lists={folder}"]) == 1
    assert "common.json: No such file" in capsys.readouterr().err


def test_private_units_are_measured_by_what_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = sources(tmp_path)
    (tmp_path / "units.csv").write_text('query,pii_units\n"x","Able||jordan act||Plan 9||quick act"\n')
    assert builder.main([*arguments, f"--units={tmp_path / 'units.csv'}"]) == 0
    assert "50.00% of 4 private units" in capsys.readouterr().out
    (tmp_path / "units.csv").write_text("query\nx\n")
    assert builder.main([*arguments, f"--units={tmp_path / 'units.csv'}"]) == 1
