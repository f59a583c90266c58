"""Is what was written still the model? Every file against a reference, figure by figure, and a verdict.

For each candidate: strings that its tokenizer splits in another way, largest logit difference, greedy agreement, mean
KL and perplexity on given texts (``parity``), task figures before and after (``tasks``), size, and speed and memory in
a process of its own (``measure``). A limit that is broken is one line; so is a figure that could not be had.

One model is in memory at a time; the reference's logits wait in a temporary file. Not covered: texts other than those
given, and other machines' speed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge.errors import ConfigError, EngineError
from popi_edge.models.gguf import Gguf
from popi_export import fuzz, quantize
from popi_export.fuzz import Differences, Encode
from popi_export.measure import Settings, Speed, measure
from popi_export.parity import Logits, Parity, Tally
from popi_export.runners import LlamaRunner, Runner, open_runner
from popi_export.tasks import Margins, Task
from popi_training.limits import Limits

Texts = Sequence[Sequence[int]]
WINDOW, WINDOWS = 128, 4
"""Tokens of a text and texts, where nobody says."""


@dataclass(frozen=True)
class Candidate:
    """A written model on an engine. ``kind`` is its quantization; ``role`` and ``adapter`` name the adapter that is
    active, if any; ``beside`` are files that it needs; ``tokenizer`` is its tokenizer.json where none is inside."""

    kind: str
    engine: str
    model: Path
    role: str = ""
    adapter: Path | None = None
    beside: tuple[Path, ...] = ()
    tokenizer: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.model.name}{f' with {self.role}' if self.role else ''} on {self.engine}"

    @property
    def size(self) -> int:
        """Bytes of the model's own files, without the adapter."""
        return sum(p.stat().st_size for p in (self.model, *self.beside))


@dataclass(frozen=True)
class Row:
    """What was found of a candidate; ``types`` and ``fallback`` are of a GGUF's tensors, ``before`` are the reference's
    task figures, ``pairs`` how alike both judge each pair and the figures' intervals, ``failures`` the limits that it
    breaks, a line each."""

    candidate: Candidate
    parity: Parity
    size: int
    tokenizer: Differences | None = None
    speed: Speed | None = None
    task: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    pairs: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, int] = field(default_factory=dict)
    fallback: str = ""
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Every row, and the lines of what broke a limit. ``reference`` says what was compared with."""

    reference: str
    rows: tuple[Row, ...]
    limits: Limits

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(line for row in self.rows for line in row.failures)

    @property
    def ok(self) -> bool:
        return not self.failures

    def json(self) -> dict[str, Any]:
        """The report as plain values, for ``json.dumps``."""
        rows = [
            {
                "file": r.candidate.model.name, "kind": r.candidate.kind, "engine": r.candidate.engine,
                "adapter": r.candidate.role or None, "size": r.size, **asdict(r.parity),
                "tokenizer": asdict(r.tokenizer) if r.tokenizer else None,
                "speed": asdict(r.speed) if r.speed else None, "task": dict(r.task), "task_before": dict(r.before),
                "pairs": dict(r.pairs),
                "types": dict(r.types), "fallback": r.fallback or None, "failures": list(r.failures),
            }
            for r in self.rows
        ]  # fmt: skip
        return {"reference": self.reference, "ok": self.ok, "failures": list(self.failures),
                "limits": asdict(self.limits), "rows": rows}  # fmt: skip


def verify(
    candidates: Sequence[Candidate],
    reference: Callable[[str], Runner],
    texts: Texts,
    *,
    tokenizer: Encode | None = None,
    special: Sequence[str] = (),
    clean: Callable[[str], str] = str,
    strings: int = fuzz.STRINGS,
    seed: int = 0,
    task: Task | None = None,
    limits: Limits | None = None,
    speed: Settings | None = None,
    threads: int = 1,
    advance: Callable[[str], Any] = lambda what: None,
) -> Report:
    """Compare every candidate with ``reference(role)`` on ``texts`` (token ids); ``tokenizer`` is the source's own,
    with the names ``special`` of its control tokens (None: not compared); ``clean`` takes out of a string what cannot
    be compared, where no GGUF of the candidate's says it; ``speed`` None: nothing is timed.

    Raises ConfigError (no candidates, no texts), ModelError, EngineError where one cannot run at all.
    """
    if not candidates or not texts or any(len(t) < 2 for t in texts):
        raise ConfigError("nothing to verify: candidates and texts of at least two tokens are needed")
    limits = limits or Limits()
    fuzzed = fuzz.strings(strings, seed, special or fuzz.CHATML) if tokenizer is not None else []
    rows, names = dict[Candidate, Row](), []
    for role in dict.fromkeys(c.role for c in candidates):
        with tempfile.TemporaryDirectory(prefix="popi-verify-", ignore_cleanup_errors=True) as folder:
            advance(f"reference{f' with {role}' if role else ''}")
            with closing(reference(role)) as runner:
                names.append(runner.name)
                wanted = list(_kept(runner, texts, Path(folder)))
                before = task(runner) if task is not None else None
            for c in (c for c in candidates if c.role == role):
                advance(c.name)
                rows[c] = _row(c, texts, wanted, before, tokenizer, fuzzed, task, threads, clean)
    found = []
    for c in candidates:
        row = rows[c]
        if speed is not None:
            advance(f"{c.name}: speed")
            width = wanted[0].shape[1]
            timed = measure(c.engine, c.model, c.adapter, vocabulary=width, context=_context(c), how=speed)
            row = replace(row, speed=timed)
        broken = judge(row, limits, tokenizer is not None)
        found.append(replace(row, failures=tuple(f"{c.name}: {line}" for line in broken)))
    return Report(f"{', '.join(dict.fromkeys(names))} in float32", tuple(found), limits)


def _kept(runner: Runner, texts: Texts, folder: Path) -> Iterator[Logits]:
    """Each text's logits, in a file that is mapped."""
    for i, ids in enumerate(texts):
        path = folder / f"{i}.npy"
        np.save(path, runner.logits(ids))
        yield np.load(path, mmap_mode="r")


def _row(
    c: Candidate, texts: Texts, wanted: Sequence[Logits], before: Margins | None, tokenizer: Encode | None,
    fuzzed: Sequence[str], task: Task | None, threads: int, clean: Callable[[str], str],
) -> Row:  # fmt: skip
    tally, gguf = Tally(), Gguf(c.model) if c.model.suffix == ".gguf" else None
    with closing(open_runner(c.engine, c.model, c.adapter, threads=threads, exact=True)) as runner:
        for ids, logits in zip(texts, wanted, strict=True):
            found = runner.logits(ids)
            if found.shape[1] != logits.shape[1]:
                raise EngineError(f"{c.name}: {found.shape[1]} logits where the reference has {logits.shape[1]}")
            tally.add(np.asarray(logits), found, ids)
        judged = task(runner) if task is not None else None
        split = None
        if tokenizer is not None and (own := _tokenizer(c, runner, gguf)) is not None:
            split = fuzz.differences(fuzzed, tokenizer, own, fuzz.cleaner(gguf) if gguf is not None else clean)
    types = dict(quantize.types(gguf)) if gguf is not None else {}
    note = quantize.explain(gguf, c.kind) if gguf is not None and c.kind in quantize.KINDS else ""
    row = Row(c, tally.parity(), c.size, split, types=types, fallback=note)
    return with_task(row, judged, before) if judged is not None and before is not None else row


def with_task(row: Row, judged: Margins, before: Margins) -> Row:
    """The row with what its model and the reference make of the same pairs."""
    alike = judged.against(before) | judged.intervals
    return replace(row, task=judged.figures, before=before.figures, pairs=alike)


def _tokenizer(c: Candidate, runner: Runner, gguf: Gguf | None) -> Encode | None:
    """How the candidate's own engine tokenizes, or None where that cannot be told."""
    if isinstance(runner, LlamaRunner):
        return lambda text, special: runner.model.tokenize(text, special=special)
    if c.tokenizer is not None:
        return fuzz.of_json(c.tokenizer)
    return fuzz.of_runtime(gguf) if gguf is not None else None


def _context(c: Candidate) -> int:
    """Tokens that a model takes; of an ONNX file, which does not say, as many as are ever measured."""
    if c.model.suffix != ".gguf":
        return 2_048
    gguf = Gguf(c.model)
    return int(gguf.fields.get(f"{gguf.fields.get('general.architecture')}.context_length", 2_048))


def restored(value: Mapping[str, Any], c: Candidate, limits: Limits, *, tokenizers: bool) -> Row:
    """A row from what ``Report.json`` made of it (a figure that is none may be null there), judged anew."""
    speed, split = value["speed"], value["tokenizer"]
    figures = Parity(**{k: _number(value[k]) for k in Parity.__dataclass_fields__})
    task, before, pairs = ({k: _number(v) for k, v in value[key].items()} for key in ("task", "task_before", "pairs"))
    row = Row(c, figures, value["size"], Differences(**split) if split else None, Speed(**speed) if speed else None,
              task, before, pairs, value["types"], value["fallback"] or "")  # fmt: skip
    return replace(row, failures=tuple(f"{c.name}: {line}" for line in judge(row, limits, tokenizers)))


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def judge(row: Row, limits: Limits, tokenizers: bool) -> list[str]:
    """A line for every limit that a row breaks; with ``tokenizers`` also where they were not compared."""
    kind, p, out = row.candidate.kind, row.parity, []
    if row.tokenizer is None and tokenizers:
        out.append("its tokenizer could not be compared (no tokenizer.json)")
    elif row.tokenizer is not None and row.tokenizer.differing > limits.tokenizer:
        t = row.tokenizer
        out.append(f"{t.differing:,} of {t.strings:,} strings tokenize differently, at most {limits.tokenizer:,} may; "
                   f"first {t.first}")  # fmt: skip
    ratio = p.perplexity / p.reference_perplexity
    for what, value, most in (
        ("largest logit difference", p.logits, limits.logits.get(kind)),
        ("mean KL", p.kl, limits.kl.get(kind)),
        ("perplexity relative to the reference's", ratio, limits.perplexity.get(kind)),
    ):
        if most is not None and not value <= most:
            out.append(f"{what} {value:.6g} is over {most:g}")
    least = limits.agreement.get(kind)
    if least is not None and not p.agreement >= least:
        out.append(f"greedy agreement {p.agreement:.4f} is under {least:g}")
    for name, was in row.before.items():
        now = row.task.get(name)
        if now is None or not was - now <= limits.task:
            out.append(f"{name} fell from {was:.3f} to {now if now is not None else float('nan'):.3f}, "
                       f"by more than {limits.task:g}")  # fmt: skip
    return out


def windows(ids: Sequence[int], *, size: int = WINDOW, count: int = WINDOWS) -> list[list[int]]:
    """The first ``count`` windows of ``size`` ids, fewer where there are fewer; a rest of one id is left out."""
    cut = [list(ids[i : i + size]) for i in range(0, min(len(ids), size * count), size)]
    return [w for w in cut if len(w) > 1]
