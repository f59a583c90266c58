"""The benches of the engines: both sides are measured in the same way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bench import engine
from bench.common import child

SLOW = """
import sys, time
time.sleep(1)
sys.path.remove({folder!r})
del sys.modules["llama_cpp"]
import llama_cpp
"""


@pytest.mark.parametrize("code", [engine.OURS, engine.PEER], ids=["ours", "peer"])
def test_the_load_time_has_the_imports_on_both_sides(code: str, tiny: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text(SLOW.format(folder=str(tmp_path)))
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    found = child(code, str(tiny[0]), "llama_cpp", ",".join(str(100 + i) for i in range(80)), PYTHONPATH=paths)
    assert found["load_s"] > 1 and found["wall_s"] > found["load_s"] and found["prefill"] > 0
