"""Every format and engine of an export of the base: size, load, prefill, decode, memory, KL, perplexity, task figures.

    python -m bench.export_table OUT.json --work DIR [--rows N] [--pairs N] [--runs N]

Against torch in float32 on the dequantized base. A row that OUT.json has already is not measured again, so the table
may be made in several sittings; OUT.md and OUT.png beside it are written anew each time. Speeds are of the machine as
it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import base
from popi_edge.errors import PopiError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_export import fuzz, quantize, tasks, to_onnx
from popi_export.activations import collect
from popi_export.imatrix import calibration_text
from popi_export.measure import Settings, Speed
from popi_export.parity import Parity
from popi_export.runners import TorchRunner
from popi_export.verify import Candidate, Report, Row, judge, verify, windows
from popi_export.verify_report import markdown, plot
from popi_training import corpus
from popi_training.limits import Limits

WEIGHED = ("Q4_K_M", "Q4_0", "IQ4_NL")
"""Kinds that are also made with an importance matrix."""
POPI = ("F32", "F16", "Q8_0", "Q4_1", "Q4_0")
ONNX = {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_1"}
SIZE, COUNT = 128, 4
LIMITS = Limits(task=1.0)
"""The defaults, but for the task: a few pairs say little, and so break no limit here."""


class Remembered:
    """The reference: torch, opened when something is asked that the folder does not hold yet."""

    name = "torch"

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder, self._runner = model, folder, None

    def runner(self) -> Any:
        self._runner = self._runner or TorchRunner.gguf(self.model)  # type: ignore[assignment]
        return self._runner

    def logits(self, ids: Sequence[int]) -> Any:
        path = self.folder / f"logits-{hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]}.npy"
        if not path.exists():
            np.save(path, self.runner().logits(ids))
        return np.load(path)

    def figures(self, pairs: Sequence[tasks.Item]) -> Mapping[str, float]:
        key = hashlib.sha256(json.dumps([asdict(p) for p in pairs]).encode()).hexdigest()[:16]
        path = self.folder / f"task-{key}.json"
        if not path.exists():
            path.write_text(json.dumps(tasks.figures(self.runner(), pairs)))
        found: dict[str, float] = json.loads(path.read_text())
        return found

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def candidates(model: Path, work: Path) -> Iterator[Candidate]:
    """Every file on every engine that runs it; a file is made when its turn comes."""
    made = {}
    for kind in quantize.KINDS:
        made[kind] = work / f"model-{kind}.gguf"
        if kind == "Q4_1":
            made[kind] = model  # its blocks as they are
        elif not made[kind].exists():
            quantize.quantize(model, made[kind], kind)
        yield Candidate(kind, "llama.cpp", made[kind])
        if kind in POPI:
            yield Candidate(kind, "popi-onnx", made[kind])
    for onnx, kind in ONNX.items():
        path = work / f"model-{onnx}.onnx"
        if not path.exists():
            to_onnx.export(made[kind], work, onnx)  # type: ignore[arg-type]
        yield Candidate(onnx, "onnxruntime", path, beside=(path.with_name(path.name + ".data"),))
    for kind in WEIGHED:
        path = work / f"model-{kind}-imatrix.gguf"
        if not path.exists():
            matrix = collect(made["F16"], calibration_text(0), tokens=4_096)
            quantize.quantize(made["F16"], path, kind, imatrix=matrix)
        yield Candidate(kind, "llama.cpp", path)


def restored(value: dict[str, Any], c: Candidate) -> Row:
    """A row from its JSON, judged anew."""
    speed, split = value["speed"], value["tokenizer"]
    figures = Parity(**{k: value[k] for k in Parity.__dataclass_fields__})
    row = Row(c, figures, value["size"], fuzz.Differences(**split) if split else None,
              Speed(**speed) if speed else None, value["task"], value["task_before"], value["types"],
              value["fallback"] or "")  # fmt: skip
    return replace(row, failures=tuple(f"{c.name}: {line}" for line in judge(row, LIMITS, False)))


def table(model: Path, out: Path, work: Path, rows: int, pairs: int, runs: int) -> Report:
    """Add at most ``rows`` rows to what ``out`` has, and write it."""
    gguf = Gguf(model)
    tokenizer = Tokenizer(gguf)
    text = "\n\n".join(r for p in corpus.load(heldout=True).pairs for r in p.replies.values())
    texts = windows(tokenizer.encode(text[: 16 * SIZE * COUNT]), size=SIZE, count=COUNT)
    chosen = tasks.items(tokenizer, pairs, 0, longest=400) if pairs else []
    have = json.loads(out.read_text())["rows"] if out.exists() else []
    found: list[Row] = []
    reference = Remembered(model, work)
    for c in candidates(model, work):
        old = [r for r in have if (r["file"], r["engine"]) == (c.model.name, c.engine)]
        if old:
            found.append(restored(old[0], c))
            continue
        if rows <= 0:
            continue
        rows -= 1
        print(c.name, file=sys.stderr)

        def task(runner: Any) -> Mapping[str, float]:
            return runner.figures(chosen) if isinstance(runner, Remembered) else tasks.figures(runner, chosen)

        report = verify(
            [c], lambda role: reference, texts, limits=LIMITS, task=task if chosen else None,
            tokenizer=fuzz.of_runtime(gguf) if c.model.suffix == ".gguf" else None, special=fuzz.controls(gguf),
            speed=Settings(tokens=512, decode=48, runs=runs),
        )  # fmt: skip
        found += report.rows
        write(Report("torch in float32 on the dequantized base", tuple(found), LIMITS), out, runs, pairs)
    return Report("torch in float32 on the dequantized base", tuple(found), LIMITS)


def write(report: Report, out: Path, runs: int, pairs: int) -> None:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    about = {"machine": machine, "threads": 1, "runs": runs, "pairs": pairs,
             "note": "other work ran on the machine meanwhile: speeds are lower than on a quiet one"}  # fmt: skip
    out.write_text(json.dumps(about | report.json(), indent=1) + "\n")
    said = f"{machine}; one thread, median of {runs}; {about['note']}."
    out.with_suffix(".md").write_text(markdown(report) + f"\n{said}\n")
    plot(report, out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=99)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        report = table(base(), options.out, options.work, options.rows, options.pairs, options.runs)
        write(report, options.out, options.runs, options.pairs)
    except (PopiError, OSError) as e:
        sys.exit(f"export_table: {e}")
    print(markdown(report))


if __name__ == "__main__":
    main()
