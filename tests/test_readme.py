"""Every line of the README's quick start runs, in an empty folder; its Python block too; every command is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from popi_edge.cli import COMMANDS

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def block(mark: str, language: str) -> str:
    found = re.search(rf"<!-- {mark}.*?-->\n```{language}\n(.*?)```", README, re.S)
    assert found, f"the README has no block marked {mark!r}"
    return found[1]


@pytest.fixture
def environment(tmp_path: Path, base: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("POPI_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"POPI_HOME": str(tmp_path / "home"), "PATH": path}


def test_every_line_of_the_quick_start(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    lines = block("quick start", "sh").splitlines()
    assert len(lines) > 10
    for line in lines:
        done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip() or "purge" in line or "import" in line, line
        assert "Traceback" not in done.stderr


def test_the_python_block(tmp_path: Path, environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-m", "popi_edge", "model", "pull"], env=environment, check=True,
                   capture_output=True)  # fmt: skip
    done = subprocess.run([sys.executable, "-c", block("python", "python")], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3


def test_every_command_group_is_in_the_readme() -> None:
    for name in COMMANDS:
        assert f"popi {name}" in README, f"popi {name} is undocumented"
