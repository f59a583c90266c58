"""What a benchmark cannot do anything with, a number or a file, is wrong usage before anything is measured."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import bench
from bench import privacy


@pytest.mark.parametrize("number", ["-1", "0", "many"])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        *((name, "--runs") for name in ("engine", "first_summary", "startup", "guard_speed", "mask_speed")),
        ("bundles", "--count"), ("export", "--layers"), ("export_hostile", "--count"), ("export_table", "--rows"),
        ("export_table", "--runs"), ("onnx_javascript", "--steps"), ("onnx_browser", "--steps"),
        ("privacy", "--users"), ("privacy", "--rows"),
    ],
)  # fmt: skip
def test_less_than_one_is_wrong_usage(
    name: str, option: str, number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, option, number])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"bench.{name}").main()
    why = "invalid whole number value: 'many'" if number == "many" else f"must be at least 1, not {number}"
    assert left.value.code == 2 and f"argument {option}: {why}" in capsys.readouterr().err


def test_a_section_that_could_not_be_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "privacy_pupa.json"
    kept.write_text('{"rows": 3}')
    words = ["--section", "pupa", "--pupa", str(tmp_path / "none.csv"), "--measured", str(tmp_path)]
    found = privacy.run(privacy.arguments(words))
    assert found["pupa"] == {"rows": 3} and kept.read_text() == '{"rows": 3}'
    assert capsys.readouterr().err.startswith("bench.privacy: pupa was not run: there is no none.csv here")


@pytest.mark.parametrize("name", ["onnx_javascript", "onnx_browser"])
def test_a_model_that_is_not_there_is_wrong_usage(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.onnx"
    monkeypatch.setattr(sys, "argv", [name, str(model)])
    for path in (model, tmp_path / "tokenizer.json"):
        with pytest.raises(SystemExit) as left:
            importlib.import_module(f"bench.{name}").main()
        assert left.value.code == 2 and f"there is no file {path}" in capsys.readouterr().err
        path.write_text("")


def test_every_program_is_in_the_list() -> None:
    folder = Path(next(iter(bench.__path__)))
    programs = [p for p in folder.glob("[!_]*.py") if "add_argument" in p.read_text() or "options(" in p.read_text()]
    assert [p.name for p in programs if p.name not in (bench.__doc__ or "") and p.name != "common.py"] == []
