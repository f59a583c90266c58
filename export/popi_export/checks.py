"""The stage that compares everything an export wrote with its source, and what it leaves in the bundle.

``full``: every string, task figures where the project's held-out corpus is here, speed and memory; ``quick``: fewer
strings and texts, neither tasks nor speed. The reference is torch on the source's own weights in float32.
"""

from __future__ import annotations

import importlib.util
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.engines import onnx_blocks
from popi_edge.errors import ConfigError, EngineError, ModelError
from popi_edge.models.gguf import Gguf
from popi_edge.models.tokenizer import Tokenizer
from popi_export import fuzz, tasks, verify_report, vocabulary
from popi_export.fuzz import Encode
from popi_export.imatrix import calibration_text
from popi_export.measure import Settings
from popi_export.plan import kind_of
from popi_export.runners import LlamaRunner, Runner, TorchRunner
from popi_export.source import Source
from popi_export.tasks import Task
from popi_export.to_gguf import write_lora
from popi_export.verify import Candidate, Report, restored, verify, windows
from popi_training.limits import Limits

TABLE, LINES, PLOT = "table.json", "table.md", "plot.png"
MAX_TEXT = 100_000
"""Characters of text that are looked at: far more than the windows take."""
SEED = 1
"""Another part of the project's text than an importance matrix is made from."""


@dataclass(frozen=True)
class Thorough:
    """How much is compared: fuzzed strings, texts of ``window`` tokens, pairs of a task (0: none), speed or not."""

    strings: int
    windows: int
    window: int
    pairs: int
    speed: bool


HOW = {"full": Thorough(fuzz.STRINGS, 4, 128, 24, True), "quick": Thorough(600, 2, 64, 0, False)}


@dataclass(frozen=True)
class Written:
    """What there is to compare: GGUF and ONNX models by quantization (an ONNX model with its weights), adapters by
    role (GGUF, and by ONNX quantization), ``plain`` the float32 GGUF, the tokenizer.json beside ONNX models."""

    plain: Path
    gguf: Mapping[str, Path]
    onnx: Mapping[str, tuple[Path, ...]]
    adapters: Mapping[str, Path]
    onnx_adapters: Mapping[tuple[str, str], Path]
    tokenizer: Path | None


def candidates(written: Written, runtime: bool) -> list[Candidate]:
    """Every model on every engine that reads it, bare and with each adapter; ``runtime``: popi's tokenizer knows it."""
    found = []
    roles = ["", *written.adapters]
    for kind, path in written.gguf.items():
        types = {t.type for t in Gguf(path).tensors.values()}
        engines = ["llama.cpp", *(["popi-onnx"] if runtime and types <= set(onnx_blocks.READ) else [])]
        found += [Candidate(kind, e, path, role, written.adapters.get(role)) for e in engines for role in roles]
    for kind, (path, *data) in written.onnx.items():
        found += [
            Candidate(kind, "onnxruntime", path, role, written.onnx_adapters.get((role, kind)), tuple(data),
                      written.tokenizer)
            for role in roles
        ]  # fmt: skip
    return found


def ready() -> None:
    """Raises EngineError naming what comparing needs and is not installed."""
    for module, extra in (("torch", "training,export"), ("llama_cpp", "llama")):
        if importlib.util.find_spec(module) is None:
            raise EngineError(f"comparing needs {module}: pip install 'popi-edge[{extra}]' (or --verify off)")


def compare(
    source: Source, written: Written, *, merge: str | None, roles: Mapping[str, str], how: Thorough, limits: Limits,
    tell: Callable[[str], Any],
) -> Report:  # fmt: skip
    """The report. Raises EngineError where torch is not installed, ModelError, ConfigError."""
    ready()
    plain = Gguf(written.plain)
    try:
        runtime: Tokenizer | None = Tokenizer(plain)
    except ModelError:  # a kind of tokenizer that popi itself does not run
        runtime = None

    def torch(role: str) -> Runner:
        return _torch(source, roles[role] if role else merge)

    longest = min(source.config.context, 512)
    with closing(LlamaRunner(written.plain, context=max(512, how.window))) as native:
        texts = windows(native.model.tokenize(text()), size=min(how.window, longest), count=how.windows)
        own = _own(source, native)
        return verify(
            candidates(written, runtime is not None), torch, texts,
            tokenizer=own, special=fuzz.controls(plain), clean=fuzz.cleaner(plain), strings=how.strings,
            task=_task(runtime, how.pairs, longest), limits=limits, speed=Settings() if how.speed else None,
            advance=lambda what: tell(f"comparing {what}"),
        )  # fmt: skip


def judged(table: Path, written: Written, limits: Limits) -> Report:
    """A report that was kept, by other limits: nothing is measured again."""
    value = json.loads(table.read_text("utf-8"))
    every = {(c.model.name, c.engine, c.role): c for c in candidates(written, True)}
    rows = [restored(r, every[r["file"], r["engine"], r["adapter"] or ""], limits, tokenizers=True)
            for r in value["rows"]]  # fmt: skip
    return Report(value["reference"], tuple(rows), limits)


def kept(
    source: Source, files: Mapping[str, Path], *, how: Thorough, limits: Limits, tell: Callable[[str], Any]
) -> Report:
    """The report on a run's adapters by role, on the base as the device has it and both of popi's engines: against
    torch on the dequantized base with the adapter as it was trained. Pairs are asked of the generator alone.

    Raises EngineError where something is not installed, ModelError, ConfigError.
    """
    ready()
    base = source.file
    assert base is not None
    tokenizer, longest, kind = Tokenizer(base), min(source.config.context, 512), kind_of(base)
    if kind in (None, "F32"):
        kind = "F16"  # as the adapters are
    texts = windows(tokenizer.encode(text()), size=min(how.window, longest), count=how.windows)
    reports = [
        verify(
            [Candidate(str(kind), engine, base.path, role, file) for engine in ("popi-onnx", "popi-llama_cpp")],
            lambda role: _torch(source, role), texts, limits=limits,
            task=_task(tokenizer, how.pairs, longest) if role == "generate" else None,
            advance=lambda what: tell(f"comparing {what}"),
        )
        for role, file in files.items()
    ]  # fmt: skip
    return Report(reports[0].reference, tuple(row for r in reports for row in r.rows), limits)


def _torch(source: Source, adapter: str | None) -> Runner:
    """The source in torch, with one of its adapters or none. Raises ModelError."""
    if source.folder is not None:
        return TorchRunner.folder(source.folder, source.path if adapter is not None else None)
    assert source.file is not None
    if adapter is None:
        return TorchRunner.gguf(source.file.path)
    with tempfile.TemporaryDirectory(prefix="popi-reference-", ignore_cleanup_errors=True) as folder:
        write_lora(Path(folder) / "adapter.gguf", source.adapters[adapter], source.config, half=False)
        return TorchRunner.gguf(source.file.path, Path(folder) / "adapter.gguf")


def text() -> str:
    """English text to compare on: of the project's corpus, else of the made-up people that ship with popi."""
    try:
        return calibration_text(SEED)[:MAX_TEXT]
    except ConfigError:
        from popi_edge.cli.demo import people

        return "\n\n".join(str(v) for p in people().values() for s in p["signals"] for v in s.values())


def _own(source: Source, native: LlamaRunner) -> Encode:
    """How the source itself tokenizes: its folder's tokenizer.json, or llama.cpp on its file."""
    if source.folder is None:
        return lambda text, special: native.model.tokenize(text, special=special)
    return fuzz.of_json(source.folder / vocabulary.TOKENIZER)


def _task(tokenizer: Tokenizer | None, pairs: int, longest: int) -> Task | None:
    """Pairs of the held-out corpus, where it is here, popi's tokenizer knows the model, and they fit its context."""
    if tokenizer is None or not pairs:
        return None
    try:
        chosen: Sequence[tasks.Item] = tasks.items(tokenizer, pairs, SEED, longest=longest)
    except (ConfigError, ModelError):
        return None
    return lambda runner: tasks.margins(runner, chosen)


TOLD = ("engine", "logits", "agreement", "kl", "perplexity", "reference_perplexity", "positions", "task", "task_before",
        "pairs")  # fmt: skip


def told(report: Report, how: str, *, tell: Callable[[str], Any]) -> dict[str, Any]:
    """A report on adapters for their manifest; ``tell`` gets a line for each. Raises ModelError where a limit does not
    hold."""
    for row in report.rows:
        p = row.parity
        tell(f"{row.candidate.name}: mean KL {p.kl:.2g}, greedy agreement {p.agreement:.3f}")
    if failures := report.failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise ModelError(f"a limit does not hold, so there is no bundle: {failures[0]}{more}")
    rows = [{"role": r["adapter"]} | {k: r[k] for k in TOLD if r[k] != {}} for r in report.json()["rows"]]
    return {"how": how, "reference": report.reference, "rows": rows}


def keep(report: Report, folder: Path) -> None:
    """The report as table.json, which ``judged`` reads. Raises OSError."""
    table = json.dumps(_finite(report.json()), ensure_ascii=False, indent=1, allow_nan=False)
    (folder / TABLE).write_text(table + "\n", "utf-8")


def write(report: Report, folder: Path) -> None:
    """The report as table.json, table.md and, where matplotlib is installed, plot.png. Raises OSError."""
    keep(report, folder)
    (folder / LINES).write_text(verify_report.markdown(report), "utf-8")
    verify_report.plot(report, folder / PLOT)


def _finite(value: Any) -> Any:
    """JSON has no NaN: a figure that is none becomes null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
