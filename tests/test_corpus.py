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


def write(folder: Path, *rows: Any) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / "form.jsonl").write_text(text)
    return folder


def test_a_good_file_is_read_whole(tmp_path: Path) -> None:
    made = corpus.load(write(tmp_path, dimension(), PROMPT, PAIR))
    assert list(made.dimensions) == ["size"] and made.dimensions["size"].family == "form"
    assert [p.replies["short"] for p in made.pairs] == [REPLY]
    assert corpus.unbalanced(made) == []


BAD_SUMMARY = dimension()
BAD_SUMMARY["poles"][0]["summary"][0] = "Prefers Wroclaw."


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (["{"], "line 1: not JSON"),
        (["[]"], "line 1: not an object"),
        ([BAD_SUMMARY], "line 1: the summary 'Prefers Wroclaw.' breaks word"),
        ([dimension(poles=[])], "needs two poles"),
        ([dimension(), PROMPT, PROMPT], "line 3: id 'p1' is missing or taken"),
        ([dimension(), PAIR], "line 2: its dimension or prompt"),
        ([dimension(), PROMPT, PAIR | {"replies": {"short": REPLY, "other": REPLY}}], "line 3: replies must name"),
        ([dimension(), PROMPT, PAIR | {"replies": {"short": "Too few.", "long": REPLY}}], "short reply has 2 words"),
        ([{"type": "pear", "id": "x"}], "unknown type 'pear'"),
    ],
)
def test_a_broken_line_is_named(rows: list[Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        corpus.load(write(tmp_path, *rows))


def test_poles_of_unequal_length_are_seen(tmp_path: Path) -> None:
    pair = PAIR | {"replies": {"short": REPLY, "long": REPLY * 2}}
    assert corpus.unbalanced(corpus.load(write(tmp_path, dimension(), PROMPT, pair))) == ["size"]


def test_the_committed_corpus_keeps_its_rules() -> None:
    made = corpus.load()
    assert corpus.unbalanced(made) == []
    assert {p.dimension for p in made.pairs} == set(made.dimensions)
