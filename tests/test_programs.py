"""The programs ``python -m popi_training.…``: their help, and words that they cannot do anything with."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from popi_edge.cli import common
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


@pytest.mark.parametrize("below", [1, 2])
@pytest.mark.parametrize(
    ("name", "words", "option", "least"),
    [
        ("behaviour", ["out"], "--rows", 1), ("follow", ["out"], "--pairs", 1), ("readings", ["out"], "--users", 1),
        ("parity", ["run", "popi-smol", "out"], "--users", 1), ("show", ["file"], "--users", 1),
        ("replies", [], "--replies", 1), ("world_leak", ["run"], "--couples", 2), ("world_ceiling", [], "--users", 2),
    ],
)  # fmt: skip
def test_too_small_a_number_is_wrong_usage_before_anything_is_written(
    name: str, words: list[str], option: str, least: int, below: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for word in words:
        (tmp_path / word).write_text("old")
    assert left(name, [*words, option, str(least - below)], monkeypatch) == 2
    assert f"argument {option}: must be at least {least}, not {least - below}\n" in capsys.readouterr().err
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(words, "old")


@pytest.mark.parametrize("text", ["", "3", "{}", '{"a":', "[]"])
def test_a_file_in_which_nobody_is_found_is_not_shown_as_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "people.json").write_text(text)
    said = left("show", [str(tmp_path / "people.json")], monkeypatch)
    assert said == f"show: {tmp_path / 'people.json'}: nobody with a signal in it"


def test_a_list_without_a_look_alike_does_not_replace_the_table_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.json").write_text("{}")
    (tmp_path / "out.json").write_text("old")
    words = ["--confusables", str(tmp_path / "in.json"), "--out", str(tmp_path / "out.json")]
    assert "there is no character in it" in str(left("homoglyphs", words, monkeypatch))
    assert (tmp_path / "out.json").read_text() == "old"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["popi_training.corpus", "popi_training.compare --help", "bench.engine --help"])
def test_nobody_who_reads_on_is_no_traceback(words: str, unbuffered: str) -> None:
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": unbuffered}
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", *words.split()]
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) in {(1, b""), (0, b"")}


def test_a_program_ends_with_what_it_returns() -> None:
    for code in (None, 0, 3):
        with pytest.raises(SystemExit) as end:
            common.launch(lambda code=code: code)
        assert end.value.code == code
