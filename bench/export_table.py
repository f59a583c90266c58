"""popi-smol's base and generator in every format and engine: size, load, prefill, decode, memory, KL, task figures.

    python -m bench.export_table OUT.json --work DIR [--rows N] [--only KIND …] [--pairs N] [--longest N] [--runs N]
    python -m bench.export_table OUT.json --work DIR --timed     # speed and memory of all its rows anew, in one sitting

Against torch in float32 on the dequantized base, the generator's adapter active on both sides: kept, as GGUF or as ONNX
Runtime's. What a row of OUT.json has already is not measured again, so the table may be made in several sittings; its
pairs are where there were fewer than ``--pairs``, and its tokenizer where it has none. OUT.json is written whole or not
at all, OUT.md and OUT.png beside it anew each time. Speeds are of the machine as it was; ``--timed`` also writes down
how busy it was with other things before each row, and is to be run when it is not.

A row's tokenizer is compared with another program's: llama.cpp's with popi's, popi's own and the tokenizer.json beside
ONNX with llama.cpp's. Pairs are of the held-out corpus, short ones: no more than ``--longest`` tokens each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

import popi_edge
from bench.common import base
from popi_edge.cli.common import at_least, launch
from popi_edge.errors import PopiError
from popi_edge.files import whole_file
from popi_edge.models.bases import file_sha256
from popi_edge.models.bundle import DEFAULT
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_export import beside, fuzz, quantize, source, tasks, to_onnx, vocabulary
from popi_export.activations import collect
from popi_export.imatrix import calibration_text
from popi_export.measure import Settings, measure
from popi_export.native import NativeModel
from popi_export.runners import TorchRunner, open_runner
from popi_export.verify import Candidate, Report, Row, judge, restored, verify, windows, with_task
from popi_export.verify_report import markdown, plot
from popi_training import corpus
from popi_training.limits import KINDS, Limits

WEIGHED = ("Q4_K_M", "Q4_0", "IQ4_NL")
"""Kinds that are also made with an importance matrix."""
POPI = ("F32", "F16", "Q8_0", "Q4_1", "Q4_0")
ONNX = {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_1"}
BUSY = "other work ran on the machine meanwhile: speeds are lower than on a quiet one"
SIZE, COUNT = 128, 4
LIMITS = Limits(task=1.0)
"""The defaults, but for the task: 48 pairs still differ by chance, and so break no limit here."""
ROLE = "generate"


def adapter() -> Path:
    """popi-smol's generator as the package has it."""
    return Path(popi_edge.__file__).parent / "models" / DEFAULT / f"{ROLE}.gguf"


class Remembered:
    """The reference: torch, opened when something is asked that the folder does not hold yet."""

    name = "torch"

    def __init__(self, model: Path, lora: Path, folder: Path) -> None:
        self.model, self.lora, self.folder, self._runner = model, lora, folder, None
        self.of = file_sha256(model) + file_sha256(lora)

    def runner(self) -> Any:
        self._runner = self._runner or TorchRunner.gguf(self.model, self.lora)  # type: ignore[assignment]
        return self._runner

    def _place(self, what: str, asked: Any, end: str) -> Path:
        digest = hashlib.sha256(json.dumps([self.of, asked]).encode()).hexdigest()
        return self.folder / f"{what}-{digest[:16]}.{end}"

    def logits(self, ids: Sequence[int]) -> Any:
        path = self._place("logits", list(ids), "npy")
        if not path.exists():
            found = self.runner().logits(ids)
            with whole_file(path) as file:
                np.save(file, found)
        return np.load(path)

    def margins(self, pairs: Sequence[tasks.Item]) -> tasks.Margins:
        path = self._place("margins", [asdict(p) for p in pairs], "json")
        if not path.exists():
            found = json.dumps(asdict(tasks.margins(self.runner(), pairs)))
            with whole_file(path) as file:
                file.write(found.encode())
        return tasks.Margins(**{name: tuple(values) for name, values in json.loads(path.read_text()).items()})

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def candidates(model: Path, work: Path) -> Iterator[tuple[Candidate, Callable[[], None]]]:
    """Every file on every engine that runs it, and what makes the file where it is not there."""
    lora = adapter()
    made = {kind: model if kind == "Q4_1" else work / f"model-{kind}.gguf" for kind in quantize.KINDS}

    def quantized(kind: str) -> None:
        if not made[kind].exists():
            quantize.quantize(model, made[kind], kind)

    def graph(path: Path, onnx: str) -> None:
        quantized(ONNX[onnx])
        if not path.exists():
            to_onnx.export(made[ONNX[onnx]], work, onnx, adapters={ROLE: lora})  # type: ignore[arg-type]
        if not (work / vocabulary.TOKENIZER).exists():
            data = beside.files(source.read(model), Gguf(model))[vocabulary.TOKENIZER]
            (work / vocabulary.TOKENIZER).write_bytes(data)

    def weighed(path: Path, kind: str) -> None:
        quantized("F16")
        if not path.exists():
            matrix = collect(made["F16"], calibration_text(0), tokens=4_096)
            quantize.quantize(made["F16"], path, kind, imatrix=matrix)

    for kind in quantize.KINDS:
        for engine in ("llama.cpp", "popi-llama_cpp", *(("popi-onnx",) if kind in POPI else ())):
            yield Candidate(kind, engine, made[kind], ROLE, lora), partial(quantized, kind)
    for onnx in ONNX:
        path = work / f"model-{onnx}.onnx"
        yield (
            Candidate(onnx, "onnxruntime", path, ROLE, work / f"{ROLE}-{onnx}.onnx_adapter",
                      (path.with_name(path.name + ".data"),), work / vocabulary.TOKENIZER),
            partial(graph, path, onnx),
        )  # fmt: skip
    for kind in WEIGHED:
        path = work / f"model-{kind}-imatrix.gguf"
        yield Candidate(kind, "llama.cpp", path, ROLE, lora), partial(weighed, path, kind)


class Table:
    """What rows are measured against, and how."""

    def __init__(self, model: Path, work: Path, pairs: int, longest: int, runs: int) -> None:
        self.gguf, self.runs = Gguf(model), runs
        tokenizer = Tokenizer(self.gguf)
        text = "\n\n".join(r for p in corpus.load(heldout=True).pairs for r in p.replies.values())
        self.texts = windows(tokenizer.encode(text[: 16 * SIZE * COUNT]), size=SIZE, count=COUNT)
        self.pairs = tasks.items(tokenizer, pairs, 0, longest=longest) if pairs else []
        self.reference, self.counted = Remembered(model, adapter(), work), len(self.pairs)

    @property
    def settings(self) -> Settings:
        return Settings(tokens=512, decode=48, runs=self.runs)

    @cached_property
    def native(self) -> NativeModel:
        return NativeModel(self.gguf.path)

    def encode(self, c: Candidate) -> fuzz.Encode:
        """How another program than the candidate's tokenizes."""
        if c.engine == "llama.cpp":
            return fuzz.of_runtime(self.gguf)
        return lambda text, special: self.native.tokenize(text, special=special)

    def task(self, runner: Any) -> tasks.Margins:
        return runner.margins(self.pairs) if isinstance(runner, Remembered) else tasks.margins(runner, self.pairs)

    def _asked(self, role: str) -> Any:
        """The reference, which has of a ``Runner`` what ``verify`` asks of one."""
        return self.reference

    def measured(self, c: Candidate) -> Row:
        """A whole row."""
        return verify(
            [c], self._asked, self.texts, limits=LIMITS, task=self.task if self.pairs else None,
            tokenizer=self.encode(c), special=fuzz.controls(self.gguf), clean=fuzz.cleaner(self.gguf),
            speed=self.settings,
        ).rows[0]  # fmt: skip

    def timed(self, row: Row) -> Row:
        """The row with its speed and memory measured anew."""
        c = row.candidate
        width = len(self.gguf.fields["tokenizer.ggml.tokens"])
        found = measure(c.engine, c.model, c.adapter, vocabulary=width, context=2_048, how=self.settings)
        return replace(row, speed=found)

    def lacks(self, row: Row) -> bool:
        return row.tokenizer is None or row.pairs.get("pairs", 0) < len(self.pairs)

    def completed(self, row: Row) -> Row:
        """The row with what it lacks; its speed and its logits stay as they were measured."""
        c = row.candidate
        if self.pairs:
            with closing(open_runner(c.engine, c.model, c.adapter, exact=True)) as runner:
                row = with_task(row, self.task(runner), self.reference.margins(self.pairs))
        if row.tokenizer is None and c.tokenizer is not None:
            strings = fuzz.strings(fuzz.STRINGS, 0, fuzz.controls(self.gguf))
            found = fuzz.differences(strings, self.encode(c), fuzz.of_json(c.tokenizer), fuzz.cleaner(self.gguf))
            row = replace(row, tokenizer=found)
        return replace(row, failures=tuple(f"{c.name}: {line}" for line in judge(row, LIMITS, True)))


def by_candidate(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Rows of a table's file by what they are of: file, engine, adapter."""
    return {(r["file"], r["engine"], r["adapter"]): r for r in rows}


def table(model: Path, out: Path, work: Path, rows: int, only: Sequence[str], how: Table) -> Report:
    """Measure at most ``rows`` rows, of the kinds ``only`` where there are any, that ``out`` does not have, or not
    whole; it is written after each."""
    before = json.loads(out.read_text()) if out.exists() else {"rows": []}
    have = by_candidate(before["rows"])
    how.runs = min(how.runs, before.get("runs", how.runs))  # as the rows have that are there
    note = before.get("note", BUSY)
    every = list(candidates(model, work))
    done = {c: restored(have[key], c, LIMITS, tokenizers=False) for c, _ in every
            if (key := (c.model.name, c.engine, c.role)) in have}  # fmt: skip

    def report() -> Report:
        found = tuple(done[c] for c, _ in every if c in done)
        return Report("torch in float32 on the dequantized base with popi-smol's generator", found, LIMITS)

    for c, make in every:
        if rows > 0 and (not only or c.kind in only) and (c not in done or how.lacks(done[c])):
            rows -= 1
            print(c.name, file=sys.stderr)
            make()
            note = note if c in done else BUSY
            done[c] = how.completed(done[c]) if c in done else how.measured(c)
            write(report(), out, how, note)
    write(report(), out, how, note)
    return report()


def timed(model: Path, out: Path, work: Path, how: Table) -> Report:
    """Measure speed and memory of all rows of ``out`` anew, one after another; it is written once, at the end.

    Raises EngineError where a row's file is not in ``work`` any more."""
    before = json.loads(out.read_text())
    how.runs, how.counted = before["runs"], before["pairs"]
    have = by_candidate(before["rows"])
    rows, most = [], 0.0
    for c, _ in candidates(model, work):
        if (key := (c.model.name, c.engine, c.role)) in have:
            most = max(most, busy())
            rows.append(how.timed(restored(have[key], c, LIMITS, tokenizers=False)))
            print(c.name, rows[-1].speed, file=sys.stderr)
    report = Report(before["reference"], tuple(rows), LIMITS)
    write(report, out, how, f"speeds of one sitting; before each row other processes kept {most:.0%} of the cores "
                            "busy at most")  # fmt: skip
    return report


def busy(seconds: float = 0.5) -> float:
    """How much of the machine's processor time others take just now; 0 where the system does not say."""
    def read() -> tuple[int, int]:
        fields = [int(n) for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    try:
        all_, idle = read()
        time.sleep(seconds)
        all_later, idle_later = read()
    except (OSError, ValueError, IndexError):
        return 0.0
    return 1 - (idle_later - idle) / max(1, all_later - all_)


def write(report: Report, out: Path, how: Table, note: str) -> None:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    about = {"machine": machine, "threads": 1, "runs": how.runs, "pairs": how.counted, "note": note}
    with whole_file(out) as file:
        file.write(json.dumps(about | report.json(), indent=1).encode() + b"\n")
    said = f"{machine}; one thread, median of {how.runs}; {note}."
    out.with_suffix(".md").write_text(markdown(report) + f"\n{said}\n")
    plot(report, out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=at_least(1), default=99)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=[], metavar="KIND")
    parser.add_argument("--pairs", type=at_least(0), default=48)
    parser.add_argument("--longest", type=at_least(1), default=200, help="tokens of a pair's prompt and longer reply")
    parser.add_argument("--runs", type=at_least(1), default=3)
    parser.add_argument("--timed", action="store_true", help="measure speed and memory of the rows there are anew")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        how = Table(base(), options.work, 0 if options.timed else options.pairs, options.longest, options.runs)
        if options.timed:
            report = timed(base(), options.out, options.work, how)
        else:
            report = table(base(), options.out, options.work, options.rows, options.only, how)
    except (PopiError, OSError) as e:
        sys.exit(f"export_table: {e}")
    print(markdown(report))


if __name__ == "__main__":
    launch(main)
