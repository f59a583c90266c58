"""The corpus checker names the file, the line and the rule; what is committed passes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from popi_edge.errors import ConfigError
from popi_training import corpus

REPLY = "This is a reply of some fifteen words or more, written so that the checker has nothing to say."


def dimension(**changes: Any) -> dict[str, Any]:
    def pole(id: str, word: str) -> dict[str, Any]:
        verbs = ("Prefers", "Likes", "Wants", "Enjoys", "Needs", "Loves")
        summary = [f"{verb} {word} answers." for verb in verbs]
        return {"id": id, "summary": summary} | {v: [f"{v} {i}" for i in range(6)] for v in corpus.VOICES[1:]}

    poles = [pole("short", "short"), pole("long", "long")]
    return {"type": "dimension", "id": "size", "about": "how long", "poles": poles} | changes


PROMPT = {"type": "prompt", "id": "p1", "text": "Why?"}
PAIR = {"type": "pair", "id": "a", "dimension": "size", "prompt": "p1", "replies": {"short": REPLY, "long": REPLY}}


FACT = {"type": "fact", "voice": "post", "set": "train", "text": "Pram for sale."}
REACTION = {"type": "reaction", "kind": "pleased", "set": "held", "text": "Just right."}


def write(folder: Path, *rows: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / "form.jsonl").write_text(text)
    return folder


def test_a_good_file_is_read_whole(tmp_path: Path) -> None:
    made = corpus.load(write(tmp_path, dimension(), PROMPT, PAIR))
    assert list(made.dimensions) == ["size"] and made.dimensions["size"].family == "form"
    assert [p.replies["short"] for p in made.pairs] == [REPLY]
    assert corpus.unbalanced(made) == []


def with_pole(**changes: Any) -> dict[str, Any]:
    """The dimension with something else in its first pole."""
    row = dimension()
    row["poles"][0] |= changes
    return row


BAD_SUMMARY = dimension()
BAD_SUMMARY["poles"][0]["summary"][0] = "Prefers Wroclaw."


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (["{"], "line 1: not JSON"),
        (["[" * 100_000], "line 1: not JSON"),
        (["[]"], "line 1: not an object"),
        ([with_pole(statement=[*"abcde", "\udc00"])], "line 1: not valid Unicode"),
        ([dimension(), PROMPT | {"text": "\udc00"}], "line 2: not valid Unicode"),
        ([BAD_SUMMARY], "line 1: the summary 'Prefers Wroclaw.' breaks word"),
        ([dimension(poles=[])], "needs two poles"),
        ([dimension(poles=3)], "line 1: a dimension needs two poles"),
        ([dimension(poles=["short", "long"])], "line 1: a pole needs an id"),
        ([dimension(poles=2 * dimension()["poles"])], "line 1: a dimension needs two poles"),
        ([dimension(poles=[*dimension()["poles"], dimension()["poles"][0] | {"id": "third"}])], "needs two poles"),
        ([with_pole(statement=["a", "b"])], "line 1: short.statement has 2 different texts; at least 6"),
        ([with_pole(post="a")], "line 1: short.post must be a list of texts"),
        ([with_pole(profile=["a", "b", "c", "d", "e", "  "])], "line 1: short.profile must be a list of texts"),
        ([dimension(), PROMPT, PROMPT], "line 3: id 'p1' is missing or taken"),
        ([PROMPT | {"text": " "}], "line 1: text is missing"),
        ([PROMPT, PROMPT | {"id": "p2"}], "line 2: another prompt has the same text"),
        ([PROMPT | {"id": ["p1"]}], "line 1: id .* is missing or taken"),
        ([dimension(), PAIR], "line 2: its dimension or prompt"),
        ([dimension(), PROMPT, PAIR | {"dimension": ["size"]}], "line 3: its dimension or prompt"),
        ([dimension(), PROMPT, PAIR | {"replies": [REPLY, REPLY]}], "line 3: replies must name"),
        ([dimension(), PROMPT, PAIR | {"replies": {"short": REPLY, "other": REPLY}}], "line 3: replies must name"),
        ([dimension(), PROMPT, PAIR | {"replies": {"short": "Too few.", "long": REPLY}}], "short reply has 2 words"),
        ([dimension(), PROMPT, PAIR | {"replies": {"short": None, "long": REPLY}}], "line 3: the short reply"),
        ([{"type": "pear", "id": "x"}], "unknown type 'pear'"),
        ([{"type": ["pair"], "id": "x"}], "line 1: unknown type"),
        ([FACT | {"voice": "summary"}], "line 1: a fact is of a set"),
        ([FACT, FACT | {"set": "test"}], "line 2: a fact is of a set"),
        ([FACT | {"text": ""}], "line 1: text is missing"),
        ([REACTION | {"kind": "bored"}], "line 1: a reaction is of a set .* pleased, displeased"),
        ([REACTION | {"kind": ["pleased"]}], "line 1: a reaction is of a set"),
    ],
)
def test_a_broken_line_is_named(rows: list[Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why) as error:
        corpus.load(write(tmp_path, *rows))
    assert str(error.value).startswith(f"{tmp_path / 'form.jsonl'}, line ")  # the held-out part has the same names


def test_a_line_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "form.jsonl").write_bytes(json.dumps(PROMPT).encode() + b'\n{"type": "caf\xe9"}\n')
    with pytest.raises(ConfigError, match=r"form\.jsonl, line 2: not JSON"):
        corpus.load(tmp_path)


def test_a_folder_with_the_name_of_a_file_is_one_line(tmp_path: Path) -> None:
    (write(tmp_path, dimension()) / "y.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*y\.jsonl: Is a directory"):
        corpus.load(tmp_path)


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    row = json.dumps(PROMPT | {"text": "Why\u2028not?"}, ensure_ascii=False)
    (tmp_path / "form.jsonl").write_bytes(row.encode() + b"\r\n")
    assert corpus.load(tmp_path).prompts == {"p1": "Why\u2028not?"}


def test_facts_and_reactions_are_kept_by_set_and_kind(tmp_path: Path) -> None:
    made = corpus.load(write(tmp_path, FACT, FACT | {"text": "Lost: one glove."}, FACT | {"set": "held"}, REACTION))
    assert made.facts == {
        "train": {"post": ["Pram for sale.", "Lost: one glove."]},
        "held": {"post": ["Pram for sale."]},
    }
    assert made.reactions == {"held": {"pleased": ["Just right."]}}


def test_the_held_out_part_is_read_on_its_own(tmp_path: Path) -> None:
    write(tmp_path, dimension(), PROMPT, PAIR)
    held = dimension()
    for pole in held["poles"]:
        pole |= {voice: pole[voice][: corpus.HELDOUT_PHRASINGS] for voice in corpus.VOICES}
    write(tmp_path / corpus.HELDOUT, held, PROMPT | {"id": "h1"}, PAIR | {"prompt": "h1"})
    assert list(corpus.load(tmp_path).prompts) == ["p1"]
    assert list(corpus.load(tmp_path, heldout=True).prompts) == ["h1"]
    with pytest.raises(ConfigError, match="5 different texts; at least 6"):
        corpus.load(tmp_path / corpus.HELDOUT)


def test_the_wide_part_adds_to_the_whole_and_may_name_its_dimensions(tmp_path: Path) -> None:
    write(tmp_path, dimension(), PROMPT, PAIR)
    replies = {"short": "word " * 6, "long": "word " * 180}
    write(tmp_path / corpus.WIDE, PAIR | {"id": "w1", "replies": replies})
    assert [p.id for p in corpus.load(tmp_path).pairs] == [PAIR["id"]]
    assert [p.id for p in corpus.load(tmp_path, wide=True).pairs] == [PAIR["id"], "w1"]
    write(tmp_path, dimension(), PROMPT, PAIR | {"replies": replies})
    with pytest.raises(ConfigError, match=r"form\.jsonl, line 3: the short reply has 6 words; 15 to 90"):
        corpus.load(tmp_path, wide=True)


def test_the_wide_part_must_be_there_where_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, dimension(), PROMPT, PAIR)
    with pytest.raises(ConfigError, match="wide: no corpus"):
        corpus.load(tmp_path, wide=True)


@pytest.mark.parametrize("heldout", [False, True])
def test_a_missing_folder_is_named(heldout: bool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*: no corpus"):
        corpus.load(tmp_path / "nowhere", heldout=heldout)


def test_poles_of_unequal_length_are_seen(tmp_path: Path) -> None:
    pair = PAIR | {"replies": {"short": REPLY, "long": REPLY * 2}}
    assert corpus.unbalanced(corpus.load(write(tmp_path, dimension(), PROMPT, pair))) == ["size"]


def test_the_committed_corpus_keeps_its_rules() -> None:
    for made in (corpus.load(), corpus.load(wide=True)):
        assert corpus.unbalanced(made) == []
        assert {p.dimension for p in made.pairs} == set(made.dimensions)
