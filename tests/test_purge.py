"""Random lives with ``kill -9`` in between: what was deleted is nowhere, and the search for it finds what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.purge_sequences import ENCODINGS, Findings, scan


def run(*words: str) -> tuple[int, dict[str, Any]]:
    """In a process of its own: the test's threads and forks do not go together."""
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join([str(root), *filter(None, sys.path)])
    command = [sys.executable, "-m", "tests.purge_sequences", "--json", *words]
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_nothing_of_what_was_deleted_is_left_whatever_came_before_and_however_it_was_cut_off() -> None:
    code, found = run("--sequences", "20", "--seed", "1")  # the 1,000: python -m tests.purge_sequences
    assert (code, found["left"], found["wrong"]) == (0, [], [])
    assert set(found["steps"]) == {"record", "import", "refresh", "approve", "edit", "ask", "delete", "purge"}
    assert sum(found["kills"].values()) > 20 and found["scans"] > 80 and found["texts_gone"] > 100
    assert {"delete", "purge"} & set(found["kills"])
    assert found["sent"] == found["sent_and_erased"] > 10 and found["refused"]["ask"] > 3  # answered, and failed


def test_without_the_measures_the_same_search_finds_what_was_deleted() -> None:
    code, found = run("--sequences", "6", "--seed", "1", "--without", "secure_delete", "--without", "scrub")
    assert code == 1 and found["finds"] > 0 and found["wrong"] == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_search_sees_a_text_in_each_encoding_wherever_it_stands(encoding: str) -> None:
    found = Findings()
    scan({"a": b"\0" * 4095 + "zebra".encode(encoding) + b"\xff"}, {"zebra"}, found, "here")
    assert any(f"in {encoding}" in line for line in found.left)
    found = Findings()
    scan({"a": b"zebr a"}, {"zebra"}, found, "here")
    assert (found.left, found.scans) == ([], 1)
