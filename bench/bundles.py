"""Tampered bundles: is each refused before anything of it is loaded, and how long does the slowest refusal take?

Material: the shipped bundle and another, signed by a key made for the run, and two of whole tiny models. Every way of
``bench._tamper`` and ``bench._tamper_whole`` in turn, by fixed seeds, as many of each form. Refused means:
``open_bundle`` raises ModelError with one line, no engine's library was imported, and where the signature is at fault
no file but the manifest and the signature was opened. The time is that of ``open_bundle``, less what it spends hashing
files, the fastest of ``--runs`` tries of each (other programs share the machine); the slowest of the first tries and
the processor time, hashing included, stand beside it. Not covered: files that change between the check and their use.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from bench._tamper import UNREAD, Material, Way, clear, copy
from bench._tamper_whole import WHOLE
from bench._tamper_zip import WAYS, zipped
from bench.common import base, options, show
from popi_edge.cli.common import at_least, launch
from popi_edge.config import Settings
from popi_edge.errors import ModelError
from popi_edge.models import archive, signing
from popi_edge.models import bundle as bundles
from popi_edge.models.bases import BASES, stored
from popi_edge.models.signing import SIGNATURE

LIMIT_MS = 100.0
WEIGHTS = (".gguf", ".onnx", ".data", ".onnx_adapter")
ENGINES = ("onnxruntime", "llama_cpp", "tokenizers")
OTHER = Path(__file__).parent.parent / "training" / "adapters" / "joint-90"


@dataclass
class Watch:
    """What ``open_bundle`` opened and how long it hashed; an audit hook cannot be taken off, so it is switched."""

    on: bool = False
    opened: set[str] = field(default_factory=set)
    hashing_s: float = 0.0

    def __post_init__(self) -> None:
        sys.addaudithook(self._event)
        self._timers = [
            mock.patch.object(module, name, self._timed(getattr(module, name)))
            for module, name in ((bundles, "file_sha256"), (archive, "member_sha256"))
        ]
        for timer in self._timers:
            timer.start()

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event == "open" and isinstance(arguments[0], (str, bytes)):
            self.opened.add(os.path.basename(os.fsdecode(arguments[0])))  # noqa: PTH119

    def _timed(self, digest: Callable[..., str]) -> Callable[..., str]:
        def timed(*arguments: Any) -> str:
            start = time.perf_counter()
            try:
                return digest(*arguments)
            finally:
                self.hashing_s += time.perf_counter() - start

        return timed

    def close(self) -> None:
        """Stop watching."""
        self.on = False
        for timer in self._timers:
            timer.stop()


def signed(source: Path, target: Path, private: Any) -> None:
    """A copy of a bundle, signed."""
    shutil.copytree(source, target)
    (target / SIGNATURE).unlink(missing_ok=True)
    bundles.write_signature(bundles.verified(target), private)


def material(folder: Path, first: Path, second: Path) -> tuple[Material, str]:
    """Sign copies of two bundles by a new key; returns them and the public key."""
    private = []
    for name in ("ours", "foreign"):
        signing.new_key(folder / name)
        private.append(signing.read_private(folder / name))
    signed(first, folder / "good.popi", private[0])
    signed(second, folder / "other.popi", private[0])
    found = Material(folder / "good.popi", folder / "other.popi", *private)
    return found, signing.read_public(str(folder / "ours.pub"))


def opens(path: Path, settings: Settings) -> str | None:
    """None where the bundle opens, else the one line that refuses it."""
    try:
        bundles.open_bundle(path, settings)
    except ModelError as e:
        return str(e)
    return None


def control(m: Material, work: Path, settings: Settings) -> None:
    """The untouched bundle must open: as a copy, as a zip, without a signature where none is required."""
    at = work / "control.popi"
    copy(m.folder, at)
    plain = replace(settings, trusted_keys=())
    for path, how in ((at, settings), (at, plain), (zipped(at), settings), (zipped(at), plain)):
        if (why := opens(path, how)) is not None:
            raise RuntimeError(f"the untouched bundle does not open: {why}")
    (at / SIGNATURE).unlink()
    if (why := opens(at, plain)) is not None:
        raise RuntimeError(f"the untouched bundle does not open: {why}")
    clear(at)


def one(
    way: tuple[str, Way], seed: str, m: Material, work: Path, settings: Settings, watch: Watch, *, tries: int
) -> dict[str, Any]:
    """Tamper in one way and try to open what comes out, several times to time it."""
    name, tamper = way
    at = work / "case.popi"
    copy(m.folder, at)
    path = tamper(random.Random(seed), m, at) or at
    if name.startswith("bare_"):
        settings = replace(settings, trusted_keys=())
    before, watch.opened, said, times = set(sys.modules), set(), [], []
    for _ in range(tries):
        watch.on, watch.hashing_s = True, 0.0
        start, cpu = time.perf_counter(), time.process_time()
        try:
            said.append(opens(path, settings))
        finally:
            wall, used, watch.on = time.perf_counter() - start, time.process_time() - cpu, False
        times.append((1000 * (wall - watch.hashing_s), 1000 * wall, 1000 * used))
    clear(at)
    loaded = [engine for engine in ENGINES if engine in sys.modules.keys() - before]
    read = sorted(file for file in watch.opened if file.endswith(WEIGHTS))
    clean = all(why is not None and "\n" not in why for why in said)
    ok = clean and not loaded and not (read and name in UNREAD)
    beyond, whole, used = (min(column) for column in zip(*times, strict=True))
    return {
        "way": name, "refused": ok, "why": said[0], "loaded": loaded, "opened": read, "beyond_hashing_ms": beyond,
        "ms": whole, "cpu_ms": used, "first_ms": times[0][0],
    }  # fmt: skip


def run(
    count: int, seed: int, m: Material, work: Path, settings: Settings, *, tries: int = 1,
    table: Mapping[str, Way] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """``count`` tampered bundles, every way of ``table`` (default: for adapters on a base) in turn; the untouched one
    must open before and after."""
    ways = list((WAYS if table is None else table).items())
    random.Random(seed).shuffle(ways)
    control(m, work, settings)
    watch = Watch()
    try:
        rows = [
            one(ways[i % len(ways)], f"{seed}-{i}", m, work, settings, watch, tries=tries) for i in range(count)
        ]
    finally:
        watch.close()
    control(m, work, settings)
    return rows


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--count", type=at_least(1), default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        (home / "models").mkdir()
        stored(BASES["smollm2-135m"], home / "models").symlink_to(base())
        m, key = material(Path(folder), bundles.shipped(), OTHER)
        place = Path(folder) / "work"
        place.mkdir()
        settings = Settings(home, trusted_keys=(key,))
        half = args.count // 2
        rows = run(args.count - half, args.seed, m, place, settings, tries=args.runs)
        both = [Path(folder) / f"whole{i}" for i in (1, 2)]
        made = [sys.executable, "-m", "bench._tamper_whole", *map(str, both)]
        subprocess.run(made, check=True)  # apart: it loads the libraries that must not be loaded here
        (Path(folder) / "keys").mkdir()
        m, key = material(Path(folder) / "keys", *both)
        settings = Settings(home, trusted_keys=(key,))
        more = run(half, args.seed, m, place, settings, tries=args.runs, table=WHOLE)
        rows += [row | {"way": f"whole:{row['way']}"} for row in more]
    bad = [r for r in rows if not r["refused"]]
    slowest = max(rows, key=lambda r: r["beyond_hashing_ms"])
    ours = {
        "tampered": len(rows),
        "ways": len({r["way"] for r in rows}),
        "refused": len(rows) - len(bad),
        "not_refused": bad,
        "slowest_beyond_hashing_ms": round(slowest["beyond_hashing_ms"], 1),
        "slowest_way": slowest["way"],
        "slowest_first_try_ms": round(max(r["first_ms"] for r in rows), 1),
        "slowest_with_hashing_ms": round(max(r["ms"] for r in rows), 1),
        "slowest_cpu_ms": round(max(r["cpu_ms"] for r in rows), 1),
        "by_way": dict(sorted(Counter(r["way"] for r in rows).items())),
    }
    ratio = round(LIMIT_MS / slowest["beyond_hashing_ms"], 2)
    show(args, {"ours": ours, "peer": {"limit_ms": LIMIT_MS}, "ratio": ratio})
    return 1 if bad else 0


if __name__ == "__main__":
    launch(main)
