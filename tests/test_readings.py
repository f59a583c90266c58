"""A verdict stands beside the very summary that was read, and the committed page has one for each of its thirty."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from popi_edge.errors import ConfigError
from popi_edge.signals import Comparison, Conversation, Edit, Message, Rating, Statement
from popi_training import readings
from popi_training.users import User, Want

DOCS = Path(__file__).parent.parent / "docs"
COMMON = {"id": "s", "at": "1970-01-01T00:00:00Z", "source": "corpus"}


def somebody(name: str) -> User:
    want = Want("length", "short")
    signals = (
        Comparison("Why?", "Rain | sun.", "Long " * 60, **COMMON),
        Rating("Why?", "Rain.", 0.9, **COMMON),
        Edit("Why?", "Rain, perhaps.", "Rain.", **COMMON),
        Conversation((Message("user", "Why?"), Message("assistant", "Rain.")), **COMMON),
        Statement("Be\n brief.", **COMMON),
    )
    return User(name, (want,), signals, ((want,),) * 5)


def test_a_verdict_counts_only_for_the_summary_that_was_read() -> None:
    said = [("a", "Keep it brief.", "draft"), ("b", "", "insufficient"), ("c", "X.", "draft")]
    made = [(somebody(name), text, status) for name, text, status in said]
    read = {"a": ["Keep it brief.", "right", "Well said."], "b": ["", "silent", ""], "c": ["Y.", "right", ""]}
    page = readings.page(made, read, "m 1", 7)
    assert "drawn by seed 7; m 1. 1 right, 1 silent, 1 not read." in page
    assert page.count("Verdict: right. Well said.") == 1 and page.count("Verdict: not read\n") == 1
    assert "Rain \\| sun. **over** Long" in page and "**9 of 10 for** Rain." in page
    assert "Rain, perhaps. **to** Rain." in page and "user: Why? / assistant: Rain." in page
    assert "- statement: Be brief." in page
    assert max(map(len, page.splitlines())) < 3 * readings.WIDTH


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"a": ["x", "good", ""]}', '{"a": ["x"]}', '{"a": 3}'])
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(ConfigError, match=r"v\.json"):
        readings.read_verdicts(tmp_path / "v.json")
    with pytest.raises(ConfigError, match="cannot read"):
        readings.read_verdicts(tmp_path / "nowhere.json")


def test_the_committed_page_has_the_committed_verdicts() -> None:
    verdicts = readings.read_verdicts(DOCS / "measured" / "verdicts.json")
    page = (DOCS / "summaries.md").read_text("utf-8")
    assert len(verdicts) == page.count("\n## ") == 30 and f"Verdict: {readings.UNREAD}" not in page
    said = re.findall(r"^Summary: (?:\*\*(.*)\*\*|\(silent\))$\n\n^Verdict: (\w+)", page, re.M)
    assert said == [(summary, verdict) for summary, verdict, _ in verdicts.values()]
