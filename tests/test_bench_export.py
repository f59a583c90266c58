"""The benches of the export: what both sides wrote is really compared, and a table goes on where it was cut off."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import export, export_table
from popi_edge.models.gguf import Gguf
from popi_export import source, to_onnx
from popi_export.fuzz import Differences
from popi_export.measure import Speed
from popi_export.parity import Parity
from popi_export.quantize import KINDS, quantize
from popi_export.tasks import Item
from popi_export.to_gguf import write_model
from popi_export.verify import Candidate, Report, Row, restored
from tests import tiny as make
from tests import tiny_hf


def test_files_of_the_same_tensors_are_told_from_others(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    quantize(tiny[0], tmp_path / "a.gguf", "Q8_0")
    quantize(tiny[0], tmp_path / "b.gguf", "Q8_0")
    quantize(tiny[0], tmp_path / "c.gguf", "F16")
    make.llama(tmp_path / "d.gguf", layers=2)
    same = export.same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert same == {"same_names": True, "other_bits": 0, "largest_difference": 0.0}
    other = export.same_tensors(tmp_path / "a.gguf", tmp_path / "c.gguf")
    assert other["other_bits"] == sum(len(t.shape) == 2 for t in Gguf(tiny[0]).tensors.values())
    assert 0 < other["largest_difference"] < 0.1
    assert export.same_tensors(tmp_path / "a.gguf", tmp_path / "d.gguf") == {"same_names": False}
    files = [to_onnx.export(tiny[0], tmp_path / n, "fp32")[0] for n in ("x", "y")]
    make.llama(tmp_path / "e.gguf", seed=4)
    files.append(to_onnx.export(tmp_path / "e.gguf", tmp_path / "z", "fp32")[0])
    assert export.same_logits(*files[:2])["largest_logit_difference"] == 0
    assert export.same_logits(*files[1:])["largest_logit_difference"] > 0.1


def test_our_side_does_the_whole_job(tmp_path: Path) -> None:
    folder = tiny_hf.folder(tmp_path / "hf", "qwen2")
    found = export.timed([sys.executable, "-c", export.OURS_GGUF, folder, tmp_path / "ours.gguf", "Q8_0"])
    assert found["rc"] == 0 and found["wall_s"] > 0 and found["cpu_s"] > 0 and found["peak_rss_mb"] > 20
    write_model(tmp_path / "f16.gguf", source.read(folder), "F16")
    quantize(tmp_path / "f16.gguf", tmp_path / "wanted.gguf", "Q8_0")
    assert export.same_tensors(tmp_path / "ours.gguf", tmp_path / "wanted.gguf")["other_bits"] == 0
    with pytest.raises(SystemExit, match=r"(?s)failed: .*no such file"):
        export.timed([sys.executable, "-c", export.OURS_GGUF, tmp_path / "none", tmp_path / "o.gguf", "F16"])


def test_a_row_comes_back_from_its_json(tmp_path: Path) -> None:
    c = Candidate("Q8_0", "llama.cpp", tmp_path / "m.gguf")
    speed = Speed(1, 2, 3, 4, 5, 6, 7, 8)
    row = Row(c, Parity(0.1, 0.9, 0.01, 11.0, 10.0, 512), 1_000, Differences(3_300, 0, "", 7), speed,
              {"accuracy": 0.5}, {"accuracy": 0.6}, {"pairs": 6}, {"Q8_0": 3}, "fell back")  # fmt: skip
    for one in (row, Row(c, row.parity, 5)):
        value = json.loads(json.dumps(Report("torch", (one,), export_table.LIMITS).json()))["rows"][0]
        found = restored(value, c, export_table.LIMITS, tokenizers=False)
        assert replace(found, failures=()) == one
        assert found.failures == (  # judged anew: not as the file had it
            f"{c.name}: perplexity relative to the reference's 1.1 is over 1.02",
            f"{c.name}: greedy agreement 0.9000 is under 0.93",
        )


def test_the_table_has_every_format_on_every_engine_with_the_generator_that_ships(tmp_path: Path) -> None:
    found = [c for c, _ in export_table.candidates(tmp_path / "base.gguf", tmp_path)]
    assert len({(c.model, c.engine) for c in found}) == len(found)
    for kind in KINDS:
        engines = {c.engine for c in found if c.kind == kind and "imatrix" not in c.model.name}
        assert engines - {"popi-onnx"} == {"llama.cpp", "popi-llama_cpp"}
    assert {c.kind for c in found if c.engine == "onnxruntime"} == set(to_onnx.KINDS)
    assert {c.kind for c in found if c.engine == "popi-onnx"} == set(export_table.POPI)
    for c in found:
        assert c.role == "generate" and c.adapter is not None
        onnx = c.engine == "onnxruntime"
        assert c.adapter == (tmp_path / f"generate-{c.kind}.onnx_adapter" if onnx else export_table.adapter())
    assert export_table.adapter().is_file()


def test_a_reference_is_not_asked_twice_and_not_taken_for_another_s(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from what a killed run has left; another adapter's figures are others."""
    loras = [tmp_path / f"{i}.gguf" for i in range(2)]
    for i, path in enumerate(loras):
        make.adapter(path, tiny[1].config, seed=i, rank=2)
    pairs = [Item((3, 4), (5,), (6, 7), (8, 9, 10), (11, 12), "p")]
    first = export_table.Remembered(tiny[0], loras[0], tmp_path)
    logits, margins = first.logits([3, 4, 5]), first.margins(pairs)
    first.close()
    again = export_table.Remembered(tiny[0], loras[0], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(export_table.Remembered, "runner", lambda self: pytest.fail("it was opened again"))
        assert (again.logits([3, 4, 5]) == logits).all() and again.margins(pairs) == margins
    other = export_table.Remembered(tiny[0], loras[1], tmp_path)
    assert (other.logits([3, 4, 5]) != logits).any() and other.margins(pairs) != margins
    other.close()


def test_speeds_are_measured_anew_and_nothing_else_of_a_table(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    model, out = tmp_path / "model-F16.gguf", tmp_path / "table.json"
    quantize(tiny[0], model, "F16")
    adapter = tmp_path / "generate.gguf"
    make.adapter(adapter, tiny[1].config, seed=0, rank=2)
    old = Speed(1, 2, 3, 4, 5, 6, 7, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_table, "adapter", lambda: adapter)
        how = export_table.Table.__new__(export_table.Table)
        how.gguf, how.runs, how.counted = Gguf(tiny[0]), 1, 0
        row = Row(next(c for c, _ in export_table.candidates(tiny[0], tmp_path) if c.model == model),
                  Parity(0.0, 1.0, 0.0, 10.0, 10.0, 512), 1_000, Differences(3_300, 0, "", 7), old)  # fmt: skip
        whole = Report("torch", (row,), export_table.LIMITS)
        export_table.write(whole, out, how, export_table.BUSY)
        before = json.loads(out.read_text())
        export_table.timed(tiny[0], out, tmp_path, how)
    after = json.loads(out.read_text())
    speed = after["rows"][0].pop("speed")
    assert before["rows"][0].pop("speed")["prefill"] == 2 and speed["prefill"] > 2 and speed["rss_mb"] > 20
    assert before.pop("note") == export_table.BUSY and "of the cores" in after.pop("note")
    assert after == before


@pytest.mark.parametrize("peer", ["onxx", "", "gguf;onnx"])
def test_a_peer_that_there_is_not_is_wrong_usage(
    peer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export.subprocess, "run", lambda *_, **__: pytest.fail("it was begun"))
    monkeypatch.setattr(sys, "argv", ["export", "--peer", peer])
    with pytest.raises(SystemExit) as refused:
        export.main()
    assert refused.value.code == 2 and "it names gguf, onnx or both" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["nothing", "a folder", "a text"])
def test_a_python_that_is_no_program_is_wrong_usage(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "python"
    if what == "a folder":
        path.mkdir()
    elif what == "a text":
        path.write_text("print(1)")
    monkeypatch.setattr(export.subprocess, "run", lambda *_, **__: pytest.fail("it was begun"))
    monkeypatch.setattr(sys, "argv", ["export", "--python", str(path)])
    with pytest.raises(SystemExit) as refused:
        export.main()
    assert refused.value.code == 2 and f"--python: {path} is no program" in capsys.readouterr().err
