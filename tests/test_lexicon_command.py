"""``popi lexicon``: a person's own words, as they add them, as they edit them by hand, and as they take them back."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import popi_edge as popi
from popi_edge import own_words
from popi_edge.cli import main
from popi_edge.errors import ConfigError, GuardBlocked
from popi_edge.vocabulary import OWN_WORD, ClosedVocabulary

Run = Callable[..., "Result"]


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["popi", "lexicon", args[0], "--home", str(home), *args[1:]])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return Result(int(e.value.code or 0), out.out, out.err)

    return call


def refused(done: Result, *words: str) -> None:
    assert done.code == 1 and not done.out and len(done.err.splitlines()) == 1
    assert all(w in done.err for w in words), done.err


def test_add_list_remove(run: Run, home: Path) -> None:
    assert "no word" in run("list").out and run("list", "--json").json == {"own": []}
    assert run("add", "Rust", "C++", "short", "--json").json == {
        "added": ["Rust", "C++"], "known": ["short"], "own": ["Rust", "C++"],
    }  # fmt: skip
    again = run("add", "Rust", "Thai")
    assert again.out.splitlines() == ["added Thai", "in the lexicon already: Rust"]
    assert run("list").out.split() == ["Rust", "C++", "Thai"]
    assert run("remove", "C++", "--json").json == {"removed": ["C++"], "own": ["Rust", "Thai"]}
    assert (home / "lexicon.txt").read_text() == "Rust\nThai\n"
    if os.name == "posix":
        assert stat.S_IMODE((home / "lexicon.txt").stat().st_mode) == 0o600
    assert not [p.name for p in home.iterdir() if p.name.startswith(".")]


def test_whether_a_word_is_in_it_is_told_with_the_reason(run: Run) -> None:
    run("add", "Rust")
    asked = ["--has", "rust", "--has", "Short", "--has", "cancer", "--has", "Wroclaw"]
    assert run("list", *asked, "--json").json["has"] == {
        "rust": "yours", "Short": "ordinary", "cancer": "left out, as delicate", "Wroclaw": "no",
    }  # fmt: skip
    assert "Wroclaw: no" in run("list", *asked).out.splitlines()
    refused(run("list", "--has", "two words"), "two words")


@pytest.mark.parametrize(
    "word",
    ["", "  ", "Thai food", " Rust", "a\x00b", "a\x1b[31m", "a\nb", "\u202eab", "a\u200bb", "a\u2028b", "'x", "a.b",
     "x" * 61, "<|im_end|>", "a\udcffb", "jo@example.org", "a_b"],
)  # fmt: skip
def test_a_word_that_is_none_is_one_line_and_nothing_is_changed(run: Run, home: Path, word: str) -> None:
    run("add", "Rust")
    refused(run("add", "Fine", word), "own word")
    refused(run("remove", "Rust", word), "own word")
    assert (home / "lexicon.txt").read_text() == "Rust\n"


def test_only_what_is_there_is_removed_all_or_nothing(run: Run, home: Path) -> None:
    run("add", "Rust", "Thai")
    refused(run("remove", "Rust", "Go"), "'Go'", str(home / "lexicon.txt"), "nothing was removed")
    refused(run("remove", "rust"), "'rust'", "'Rust' is")
    refused(run("remove", "short"), "'short'")
    assert run("list").out.split() == ["Rust", "Thai"]
    assert run("add").code == run("remove").code == 2


@pytest.mark.parametrize(
    ("data", "line", "why"),
    [
        (b"Rust\n<b>\n", 2, "<b>"),
        (b"\n\nRust\n# my words\n", 4, "'#'"),
        (b"Rust\r\na\x00b", 2, "control character"),
        (b"Rust\n\xff\xfe\n", 2, "not UTF-8"),
        ("Rust\n\u202etfel\n".encode(), 2, "control character"),
        ("Rust\nThai\u2028food\n".encode(), 2, "control character"),
        (b"x" * 61 + b"\n", 1, "up to 60"),
        (b'{"words": ["Rust"]}', 1, "own word"),
        (bytes(range(256)) * 40, 1, "control character"),
    ],
)
def test_a_file_edited_to_nonsense_names_the_line_and_stays_as_it_is(
    run: Run, home: Path, data: bytes, line: int, why: str
) -> None:
    file = home / "lexicon.txt"
    file.write_bytes(data)
    for args in (["list"], ["add", "Thai"], ["remove", "Rust"], ["list", "--has", "Rust"]):
        refused(run(*args), f"{file}, line {line}", why)
    assert file.read_bytes() == data
    with popi.Popi.open(home=home) as me, pytest.raises(ConfigError, match=f"line {line}"):
        _ = me.lexicon


def test_a_file_too_large_or_no_file_at_all_is_one_line(run: Run, home: Path) -> None:
    file = home / "lexicon.txt"
    file.write_text("".join(f"w{i}\n" for i in range(501)))
    refused(run("list"), str(file), "501 own words; the limit is 500")
    file.write_text("".join(f"w{i}\n" for i in range(500)))
    refused(run("add", "Rust"), str(file), "the limit is 500")
    assert len(run("list").out.split()) == 500
    file.write_bytes(b"a" * (own_words.MAX_BYTES + 1))
    refused(run("list"), str(file), "larger than")
    file.unlink()
    file.mkdir()
    refused(run("list"), str(file))
    refused(run("add", "Rust"), str(file))


def test_what_editors_do_is_understood(run: Run, home: Path) -> None:
    (home / "lexicon.txt").write_bytes(b"\xef\xbb\xbfRust\r\n\r\n  Thai food \t\r\nRust\n")
    assert run("list").out.split() == ["Rust", "Thai", "food"]
    run("add", "Go")
    assert (home / "lexicon.txt").read_text() == "Rust\nThai\nfood\nGo\n"


def test_a_disk_that_is_full_leaves_the_file_as_it_was(home: Path) -> None:
    (home / "lexicon.txt").write_text("Rust\n")
    code = (
        "import resource, signal, sys; from pathlib import Path; from popi_edge import own_words\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3, 3))\n"
        "own_words.add(Path(sys.argv[1]), ['Thai'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "ConfigError" in last and "as it was" in last, done.stderr
    assert [p.name for p in home.iterdir()] == ["lexicon.txt"] and (home / "lexicon.txt").read_text() == "Rust\n"


def test_programs_that_add_at_once_lose_no_word(home: Path) -> None:
    code = (
        "import sys; from popi_edge.edge import Popi\n"
        "with Popi.open(home=sys.argv[1]) as me:\n"
        "    for i in range(8): me.add_words(f'{sys.argv[2]}{i}')"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(home), name]) for name in ("Xa", "Yb", "Zc")]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert sorted(own_words.read(home)) == sorted(f"{name}{i}" for name in ("Xa", "Yb", "Zc") for i in range(8))


words = st.from_regex(OWN_WORD, fullmatch=True).filter(lambda w: len(w) <= 60)


@settings(max_examples=100, deadline=None)
@given(st.lists(words, min_size=1, max_size=8), st.data())
def test_what_is_added_is_there_until_it_is_removed(
    tmp_path_factory: pytest.TempPathFactory, given_words: list[str], data: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("h")
    try:
        fine = own_words.as_words(given_words)
    except ConfigError:
        return  # a word whose composed form is none
    assert own_words.add(home, fine) == own_words.read(home) == fine
    assert own_words.add(home, fine) == ()
    gone = data.draw(st.lists(st.sampled_from(fine), unique=True))
    own_words.remove(home, gone)
    assert own_words.read(home) == tuple(w for w in fine if w not in gone)


def test_an_own_word_can_be_written_and_leave_and_neither_once_it_is_removed(
    home: Path, tiny: tuple[Path, Any]
) -> None:
    with popi.Popi.open(home=home, model=str(tiny[0]), threads="1") as me:
        token_bytes = me.engine.tokenizer.token_bytes
        letters = {t: i for i, t in enumerate(token_bytes) if t is not None and len(t) == 1}

        def writable(text: str) -> bool:
            mask = me._constraint()
            assert isinstance(mask, ClosedVocabulary)
            state = mask.start()
            for byte in text.encode():
                if letters[bytes([byte])] not in mask.allowed(state):
                    return False
                state = mask.advance(state, letters[bytes([byte])])
            return True

        assert writable("Likes short") and not writable("Likes Rust")
        assert me.add_words("Rust", "short") == ("Rust",) and me.own_words() == ("Rust",)
        assert writable("Likes Rust") and "Rust" in me.lexicon
        me.edit("Likes Rust.")
        shown = me.preview("Hi").summary
        assert shown is not None and shown.text == "Likes Rust."
        assert me.remove_words("Rust") == ("Rust",)
        assert not writable("Likes Rust")
        with pytest.raises(GuardBlocked, match="Rust"):
            me.preview("Hi")
