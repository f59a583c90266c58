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
