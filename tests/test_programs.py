"""The programs ``python -m popi_training.…``: their help, and words that they cannot do anything with."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from popi_training import corpus_page, splits

SMALL = ("bagofwords", "blind", "corpus", "corpus_page", "evaluate.gather", "splits")


def left(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """What a program with these words leaves Python with."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"popi_training.{name}").main()
    return end.value.code


@pytest.mark.parametrize("name", SMALL)
def test_help_and_an_unknown_word_do_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(splits, "FILE", tmp_path / "splits.json")
    monkeypatch.setattr(corpus_page, "PAGE", tmp_path / "page.md")
    assert left(name, ["--help"], monkeypatch) == 0
    assert capsys.readouterr().out.startswith("usage: ")
    assert left(name, ["--hepl"], monkeypatch) == 2
    assert not list(tmp_path.iterdir())
