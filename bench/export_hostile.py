"""Hostile and tampered inputs: is each refused by a typed error, fast, in little memory, before a native reader?

Half of ``--count`` are hashed bundles (of ``bench.bundles``' two forms), tampered with in every way that it knows; the
others are bare files and folders, changed in every way of ``bench._hostile`` and given to what a user would give them
to: ``popi export`` (as far as its float32 GGUF), both of popi's engines, ``popi bundle verify``. Refused means: a
PopiError of one line, and none of the libraries' own readers was called: each raises in this process, and is counted.
Time is the processor's, the fastest of ``--runs`` tries, less the hashing (the clock's stands beside it: other programs
share the machine); memory is what Python and numpy took at once, in a try of its own (pages of a mapped file are the
file's). Good files must get as far as a native reader, else the counting shows
nothing. Not covered: what a library would do with these files.
"""

from __future__ import annotations

import importlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import bundles as tampered
from bench._hostile import FILES, Files
from bench._hostile_folders import FOLDERS
from bench._tamper import Material
from bench._tamper_whole import WHOLE
from bench._tamper_zip import WAYS
from bench.common import options, show
from popi_edge.cli.common import at_least, launch
from popi_edge.config import Settings
from popi_edge.errors import PopiError
from popi_edge.models import bundle as bundles
from popi_edge.models import precheck

LIMIT_MS, LIMIT_MB = 100.0, 50.0
HOSTILE = {way.__name__: way for way in (*FILES, *FOLDERS)}
NATIVE = (
    ("onnxruntime", "InferenceSession"), ("onnxruntime", "LoraAdapter"), ("onnxruntime", "AdapterFormat"),
    ("llama_cpp", "llama_model_load_from_file"), ("llama_cpp", "llama_adapter_lora_init"),
    ("llama_cpp", "llama_model_quantize"), ("safetensors", "safe_open"), ("safetensors.torch", "load_file"),
    ("safetensors.numpy", "load_file"), ("torch", "load"), ("torch.jit", "load"), ("tokenizers.Tokenizer", "from_file"),
    ("tokenizers.Tokenizer", "from_str"), ("tokenizers.Tokenizer", "from_buffer"), ("gguf", "GGUFReader"),
    ("onnx", "load"), ("onnx", "load_model"), ("pickle", "load"), ("pickle", "loads"),
    ("transformers.AutoModelForCausalLM", "from_pretrained"), ("transformers.AutoTokenizer", "from_pretrained"),
)  # fmt: skip
"""Where the libraries begin to read a file of somebody's."""


class Reached(BaseException):
    """A native reader was called."""


class Traps:
    """Every reader of NATIVE raises, and is counted, while this is open."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Traps:
        for place, name in NATIVE:
            owner = _owner(place)
            self.before.append((owner, name, owner.__dict__.get(name)))
            setattr(owner, name, self._trap(f"{place}.{name}"))
        return self

    def _trap(self, name: str) -> Callable[..., Any]:
        def trap(*_: Any, **__: Any) -> Any:
            self.reached.append(name)
            raise Reached(name)

        return trap

    def __exit__(self, *_: object) -> None:
        for owner, name, value in self.before:
            setattr(owner, name, value)


def _owner(place: str) -> Any:
    try:
        return importlib.import_module(place)
    except ImportError:
        module, _, name = place.rpartition(".")
        return getattr(importlib.import_module(module), name)


# what a user would do with a file ----------------------------------------------------------------------------------
def exported(path: Path, settings: Settings, base: Path | None = None) -> None:
    """``popi export``, as far as the float32 GGUF: every byte of the weights is read then."""
    from popi_export import pipeline, source
    from popi_export.to_gguf import write_model

    found = source.read(path, settings, base=base)
    pipeline.check_template(found)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "x.gguf", found, "F32", merge=next(iter(found.adapters), None))


def opened(path: Path, settings: Settings, engine: str) -> None:
    """popi with this model."""
    from popi_edge import prompts

    found = bundles.open_bundle(path, settings).engine(engine, threads=1)
    prompts.chat_ids(found.tokenizer, [("system", "a"), ("user", "b")])


def with_adapter(path: Path, model: Path, engine: str) -> None:
    from popi_edge.engines.base import open_engine

    open_engine(engine, model, adapters={"x": path}, threads=1)


def uses(way: str, path: Path, files: Files, settings: Settings) -> list[Callable[[], None]]:
    """What is tried with a file; each must be refused."""
    kind = way.split("_")[0]
    if kind in ("onnx", "graph"):
        return [lambda: void(precheck.any_file(path))]
    if kind == "lora":
        return [lambda: with_adapter(path, files.gguf, "llama_cpp")]
    tries = [lambda: exported(path, settings, files.hf if kind == "peft" else None)]
    if kind == "gguf":
        tries += [lambda engine=engine: opened(path, settings, engine) for engine in ("onnx", "llama_cpp")]  # type: ignore[misc]
    return tries


def void(_: object) -> None:
    return None


def refusal(attempt: Callable[[], None]) -> str | None:
    """The one line that refuses it; None where it is not refused. Anything but a PopiError is said, and counts so."""
    try:
        attempt()
    except PopiError as e:
        return str(e) if "\n" not in str(e) else None
    except Reached:
        return None
    return None


def one(way: str, seed: str, files: Files, work: Path, settings: Settings, traps: Traps, runs: int) -> dict[str, Any]:
    """A hostile file, what each use of it says, the slowest use's time and the largest memory."""
    at = work / "case"
    at.mkdir()
    path = HOSTILE[way](random.Random(seed), files, at)
    said, times, clock, peaks = [], [], [], []
    traps.reached.clear()
    for attempt in uses(way, path, files, settings):
        tries = []
        for _ in range(runs):
            start, cpu = time.perf_counter(), time.process_time()
            said.append(refusal(attempt))
            tries.append((1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - start)))
        times.append(min(t for t, _ in tries))
        clock.append(min(t for _, t in tries))
        peaks.append(peak(lambda attempt=attempt: refusal(attempt)))  # type: ignore[misc]
    shutil.rmtree(at)
    reached = sorted(set(traps.reached))
    ok = all(why is not None for why in said) and not reached
    row = {"way": way, "seed": seed, "refused": ok, "why": said[0], "reached": reached}
    return row | {"ms": max(times), "clock_ms": max(clock), "mb": max(peaks)}


def peak(call: Callable[[], object]) -> float:
    """The most that Python and numpy held at once beyond what they had, in MB."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def bare(count: int, seed: int, files: Files, work: Path, settings: Settings, runs: int) -> list[dict[str, Any]]:
    """``count`` hostile files, every way in turn; good ones must reach a native reader before and after."""
    ways = list(HOSTILE)
    random.Random(seed).shuffle(ways)
    with Traps() as traps:
        control(files, settings, traps)
        rows = [one(ways[i % len(ways)], f"{seed}-{i}", files, work, settings, traps, runs) for i in range(count)]
        control(files, settings, traps)
    return rows


def control(files: Files, settings: Settings, traps: Traps) -> None:
    """Good files pass every check of ours: exported whole, opened as far as the library. Raises RuntimeError else."""
    exported(files.hf, settings)
    exported(files.peft, settings, files.hf)
    exported(files.gguf, settings)
    for path in (files.onnx, files.graph):
        precheck.any_file(path)
    for attempt in (lambda: opened(files.gguf, settings, "onnx"), lambda: opened(files.gguf, settings, "llama_cpp"),
                    lambda: with_adapter(files.lora, files.gguf, "llama_cpp"),
                    lambda: exported(files.run, settings)):  # fmt: skip
        traps.reached.clear()
        try:
            attempt()
        except Reached:
            continue
        except PopiError as e:
            raise RuntimeError(f"a good file was refused: {e}") from None
        raise RuntimeError("a good file did not reach a native reader: the traps are of no use")


class Metered:
    """``bench.bundles``' way to open, its memory taken in every other call."""

    def __init__(self, opens: Callable[[Path, Settings], str | None]) -> None:
        self.opens, self.calls, self.peaks = opens, 0, list[float]()

    def __call__(self, path: Path, settings: Settings) -> str | None:
        self.calls += 1
        if self.calls % 2:
            said: list[str | None] = []
            self.peaks.append(peak(lambda: said.append(self.opens(path, settings))))
            return said[0]
        return self.opens(path, settings)


def hashed(count: int, seed: int, folder: Path, runs: int) -> tuple[list[dict[str, Any]], list[float], list[str]]:
    """``count`` tampered bundles of both forms: rows of ``bench.bundles``, memory in MB, native readers reached."""
    tampered.opens, real = Metered(tampered.opens), tampered.opens
    rows = []
    try:
        with Traps() as traps:
            for number, (form, table) in enumerate((("adapters", WAYS), ("whole", WHOLE))):
                place = folder / f"bundles-{form}"
                m, key, home = _material(place, form)
                (place / "work").mkdir()
                settings = Settings(home, trusted_keys=(key,))
                n = count // 2 if number else count - count // 2
                found = tampered.run(n, seed, m, place / "work", settings, tries=2 * runs, table=table)
                rows += [row | {"way": f"{form}:{row['way']}", "clock_ms": row["beyond_hashing_ms"]} for row in found]
            return rows, tampered.opens.peaks, sorted(set(traps.reached))
    finally:
        tampered.opens = real


def _material(folder: Path, form: str) -> tuple[Material, str, Path]:
    from bench.common import link_base

    folder.mkdir()
    home = folder / "home"
    home.mkdir(mode=0o700)
    if form == "adapters":
        link_base(home / "models")
        return *tampered.material(folder, bundles.shipped(), tampered.OTHER), home
    both = [folder / f"whole{i}" for i in (1, 2)]
    subprocess.run([sys.executable, "-m", "bench._tamper_whole", *map(str, both)], check=True)
    return *tampered.material(folder, *both), home


def good(folder: Path) -> Files:
    """The good files, written by a process of its own."""
    subprocess.run([sys.executable, "-m", "bench._hostile", str(folder)], check=True)
    return Files.of(folder)


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--count", type=at_least(1), default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work").mkdir()
        files = good(folder)
        half = args.count // 2
        bundled, peaks, reached = hashed(args.count - half, args.seed, folder, args.runs)
        home = folder / "home"
        home.mkdir(mode=0o700)
        rows = bare(half, args.seed, files, folder / "work", Settings(home), args.runs)
    bad = [r for r in (*bundled, *rows) if not r["refused"]]
    times = [(r["beyond_hashing_ms"], r["way"]) for r in bundled] + [(r["ms"], r["way"]) for r in rows]
    memory = max([(m, "a bundle") for m in peaks] + [(r["mb"], r["way"]) for r in rows])
    ours = {
        "hostile": len(bundled) + len(rows), "bundles": len(bundled), "bare": len(rows),
        "ways": len({r["way"] for r in (*bundled, *rows)}), "refused": len(bundled) + len(rows) - len(bad),
        "not_refused": bad, "native_readers_watched": len(NATIVE),
        "native_readers_reached": sorted({*reached, *(n for r in rows for n in r["reached"])}),
        "slowest_ms": round(max(times)[0], 1), "slowest_way": max(times)[1],
        "over_100_ms": sorted({w for t, w in times if t > LIMIT_MS}),
        "slowest_by_the_clock_ms": round(max(r.get("clock_ms", 0.0) for r in (*bundled, *rows)), 1),
        "most_memory_mb": round(memory[0], 1), "most_memory_way": memory[1],
        "by_way": dict(sorted(Counter(r["way"] for r in (*bundled, *rows)).items())),
    }  # fmt: skip
    ratio = round(min(LIMIT_MS / max(times)[0], LIMIT_MB / memory[0]), 2)
    show(args, {"ours": ours, "peer": {"limit_ms": LIMIT_MS, "limit_mb": LIMIT_MB}, "ratio": ratio})
    return 1 if bad or ours["native_readers_reached"] else 0


if __name__ == "__main__":
    launch(main)
