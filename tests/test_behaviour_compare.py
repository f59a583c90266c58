"""What two listings of the same people say of their wants, counted by hand and by the committed listings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from popi_training import behaviour_compare as comparing

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
RIGHT = "Enjoys seeing emoji throughout the answer."
WRONG = "Answers should sound like research, with measured claims and honest limits."


def line(user: str, text: str, *wants: str, part: str = "a") -> str:
    return json.dumps({"set": part, "user": user, "wants": wants, "status": "draft", "summary": text}) + "\n"


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["behaviour_compare", *map(str, words)])
    comparing.main()


@pytest.fixture
def both(tmp_path: Path) -> list[Path]:
    emoji, scholar, silent = "emoji:with_emoji", "persona:scholar", line("u4", "", part="silent")
    before = line("u1", WRONG, emoji) + line("u2", RIGHT, emoji, scholar) + line("u3", WRONG, scholar, part="b")
    after = line("u2", f"{WRONG} {RIGHT}", emoji, scholar) + line("u1", RIGHT, emoji)
    after += line("u3", "", scholar, part="b")
    for name, text in (("before", before + silent), ("after", after + silent)):
        (tmp_path / f"{name}.jsonl").write_text(text)
    return [tmp_path / "before.jsonl", tmp_path / "after.jsonl"]


def test_named_and_made_up_poles_are_counted_person_by_person(
    both: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, *both, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["people"] == 3
    assert (found["named"]["before"], found["named"]["after"]) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert (found["others"]["before"], found["others"]["after"]) == (pytest.approx(1 / 3), 0)
    run(monkeypatch, *both, "--sets", "b")
    assert "wants named, a person: 1.00 -> 0.00, -1.00 (no interval)" in capsys.readouterr().out
    run(monkeypatch, *both, "--sets", "a", "b")
    assert "0.50 -> 0.67, +0.17 (-1.00 to +1.00)" in capsys.readouterr().out


KINDS = ["kind-statement", "kind-post", "kind-profile", "kind-conversation", "kind-rating"]


@pytest.mark.parametrize(("after", "sets", "people", "said", "page", "written"), [
    ("known", KINDS, 120, "0.81 -> 0.89, +0.08 (+0.03 to +0.14)", "experiments", "0.81 → 0.89 (+0.03 to +0.14)"),
    ("eighth", KINDS, 120, "0.81 -> 0.89, +0.08 (+0.03 to +0.14)", "evaluation", "0.81 → 0.89 (+0.03 to +0.14)"),
    ("eighth", ["mixed"], 96, "0.67 -> 0.78, +0.10 (+0.06 to +0.16)", "evaluation",
     "+0.10 named a person (+0.06 to +0.16)"),
])  # fmt: skip
def test_the_committed_listings_say_what_is_written_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: str, sets: list[str], people: int,
    said: str, page: str, written: str,
) -> None:  # fmt: skip
    listings = [MEASURED / f"{name}_behaviour.jsonl" for name in ("fifth", after)]
    run(monkeypatch, *listings, "--sets", *sets)
    out = capsys.readouterr().out
    assert f"{people} people" in out and said in out
    assert written in " ".join((MEASURED.parent / f"{page}.md").read_text("utf-8").split())


@pytest.mark.parametrize(("text", "words", "said"), [
    ("{}\n", [], "line 1: not a line of popi_training.behaviour"),
    (line("u1", RIGHT, "emoji"), [], "line 1: not a line of popi_training.behaviour"),
    (line("u1", RIGHT, "emoji:with_emoji"), [], "the two listings are of different people"),
    (None, ["--sets", "c"], "there is no set 'c'; there are a, b, silent"),
    (None, ["--sets", "silent"], "nobody in these sets wants anything"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(
    both: list[Path], monkeypatch: pytest.MonkeyPatch, text: str | None, words: list[str], said: str
) -> None:
    if text is not None:
        both[1].write_text(text)
    with pytest.raises(SystemExit, match=f"^behaviour_compare: .*{said}"):
        run(monkeypatch, *both, *words)
