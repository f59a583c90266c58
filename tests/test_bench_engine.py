"""The benches of the engines: both sides are measured in the same way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bench import engine, mask_speed
from bench.common import child
from popi_edge.engines import open_engine

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


def test_with_the_mask_and_without_begin_in_turn(tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, int]] = []

    def decode(engine: Any, prompt: Any, constraint: Any, seed: int) -> tuple[float, int]:
        asked.append((constraint is not None, seed))
        return 0.1, 20

    monkeypatch.setattr(mask_speed, "decode", decode)
    running = open_engine("onnx", tiny[0], threads=1)
    found = mask_speed.measure(running, 3)
    running.close()
    assert asked[2:] == [(True, 1), (False, 1), (False, 2), (True, 2), (True, 3), (False, 3)]  # behind two to warm up
    assert found["summaries"] == {"with": 3, "without": 3} and found["cost"] == 0
