"""Two listings of the same rows: differences by hand, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from popi_edge.errors import ConfigError
from popi_training import compare


def listing(path: Path, margins: dict[str, list[list[float]]], rows: int = 4) -> Path:
    lines = [
        {"row": f"set:{i // 2}:{'one' if i % 2 else 'other'}", "profile": False, "cluster": f"c{i // 2}",
         "margins": {k: v[i] for k, v in margins.items()}}
        for i in range(rows)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    return path


Margins = dict[str, list[list[float]]]
BEFORE: Margins = {"summary": [[1, 2], [1, 0], [-1, 0], [0, 0]], "oracle_summary": [[1, 0], [1, 0], [1, 0], [1, 2]]}
AFTER: Margins = {"summary": [[3, 2], [1, 0], [-1, -2], [1, 0]]}


def test_differences_are_those_counted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before, after = listing(tmp_path / "a", BEFORE), listing(tmp_path / "b", AFTER)
    differences = compare.compare(compare.read(before), compare.read(after))["differences"]
    found = {(d["before"], d["metric"]): d for d in differences}
    assert set(found) == {("summary", "accuracy"), ("summary", "contrast"), ("oracle_summary", "accuracy"),
                          ("oracle_summary", "contrast")}  # fmt: skip
    assert found["summary", "accuracy"]["difference"] == pytest.approx((0 + 0 + 0 + 0.5) / 4)
    assert found["summary", "contrast"]["difference"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert found["summary", "contrast"]["clear"] and found["oracle_summary", "contrast"]["difference"] == 0.25
    monkeypatch.setattr(sys, "argv", ["compare", str(before), str(after)])
    compare.main()
    line = "summary after,          summary before, contrast 0.375 -> 1.000  +0.625 [+0.500, +0.750] *"
    assert line in capsys.readouterr().out


def test_other_rows_and_other_files_are_refused(tmp_path: Path) -> None:
    before, after = listing(tmp_path / "a", BEFORE), listing(tmp_path / "b", AFTER, rows=3)
    assert compare.compare(compare.read(before), compare.read(after))["rows"] == 3
    with pytest.raises(ConfigError, match="1 are in the second alone, 'set:1:one'"):
        compare.compare(compare.read(after), compare.read(before))
    (tmp_path / "c").write_text('{"row": 1}\n')
    with pytest.raises(ConfigError, match="line 1: not a line of a listing"):
        compare.read(tmp_path / "c")
    with pytest.raises(ConfigError, match="cannot read"):
        compare.read(tmp_path / "nowhere")


def test_where_choices_were_made_they_are_the_accuracy(tmp_path: Path) -> None:
    """Two rows in which the position was followed (½ each), one of them with log-probabilities."""
    line = {"row": "a", "margins": {"summary": [0.5, 0.5]}, "right": {"summary": 0.5}}
    other = {"row": "b", "margins": {"summary": [3.0, -1.0]}, "right": {"summary": 0.5}}
    (tmp_path / "a").write_text(json.dumps(line) + "\n" + json.dumps(other) + "\n")
    found = compare.read(tmp_path / "a")
    accuracy, contrast = compare.compare(found, found)["differences"]
    assert accuracy["was"] == accuracy["now"] == 0.5 and contrast["was"] == 0.75


@pytest.mark.parametrize("both", ["null", "[null, 1]", "[1]", "[1, 2, 3]", '["a", 1]', "{}", "[NaN, 1]", "[1e999, 1]"])
def test_margins_that_are_no_numbers_are_refused(tmp_path: Path, both: str) -> None:
    (tmp_path / "a").write_text(f'{{"row": "a", "margins": {{"summary": {both}}}}}\n')
    with pytest.raises(ConfigError, match="line 1: the margins of 'summary' are not two numbers"):
        compare.read(tmp_path / "a")


def test_a_row_that_comes_twice_and_shares_that_are_none_are_refused(tmp_path: Path) -> None:
    line = {"row": "a", "margins": {"summary": [1, 2]}}
    (tmp_path / "a").write_text(2 * (json.dumps(line) + "\n"))
    with pytest.raises(ConfigError, match="line 2: row 'a' comes twice"):
        compare.read(tmp_path / "a")
    odd: list[Any] = [[], {"summary": 2}, {"summary": "x"}]
    for right in odd:
        (tmp_path / "a").write_text(json.dumps(line | {"right": right}) + "\n")
        with pytest.raises(ConfigError, match="line 1: right must be an object of shares"):
            compare.read(tmp_path / "a")
