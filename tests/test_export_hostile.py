"""Hostile files are refused by popi itself: every way once, with the libraries' own readers watched."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import export_hostile as bench
from bench._hostile import Files, make
from popi_edge.config import Settings


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make(tmp_path_factory.mktemp("good"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "home").mkdir(mode=0o700)
    return Settings(tmp_path / "home")


def test_every_way_is_refused_and_no_native_reader_reached(files: Files, settings: Settings, tmp_path: Path) -> None:
    """Two of each; good files get as far as a reader first."""
    rows = bench.bare(2 * len(bench.HOSTILE), 5, files, tmp_path, settings, runs=1)
    assert {r["way"] for r in rows} == set(bench.HOSTILE)
    assert [r for r in rows if not r["refused"] or r["reached"]] == []
    assert max(r["mb"] for r in rows) < bench.LIMIT_MB


def test_the_benchmark_can_fail(
    files: Files, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good file is not refused, and the reader that it reaches is told."""
    monkeypatch.setitem(bench.HOSTILE, "gguf_misfit", lambda r, m, at: m.gguf)
    with bench.Traps() as traps:
        row = bench.one("gguf_misfit", "0", files, tmp_path, settings, traps, 1)
    assert not row["refused"] and row["reached"] == [
        "llama_cpp.llama_model_load_from_file", "onnxruntime.InferenceSession"
    ]  # fmt: skip
    import onnxruntime
    import torch

    assert onnxruntime.InferenceSession.__name__ == "InferenceSession" and torch.load.__name__ == "load"
