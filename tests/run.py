"""The test command: ``python3 tests/run.py`` sets up everything in ``.cache/venv`` and runs lint, types and tests.

Needs Python 3.11+ and, for llama-cpp-python (source only), a C++ compiler; the wheel it builds is kept in the user's
cache folder and used again. More arguments go to pytest (``-n 0``: in this process).
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".cache" / "venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "popi-edge" / "wheels"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)


def run(*command: str | Path, **environment: str) -> None:
    print("+", *(str(c) for c in command), flush=True)
    done = subprocess.run([str(c) for c in command], cwd=ROOT, env=os.environ | environment)
    if done.returncode:
        sys.exit(done.returncode)


def llama_wheel(pip: list[str | Path]) -> Path:
    """The wheel of llama-cpp-python for this Python and machine, built once (portable code, no -march=native)."""
    version = PINS["llama-cpp-python"]
    folder = CACHE / f"{sysconfig.get_platform()}-cp{sys.version_info[0]}{sys.version_info[1]}-{version}"
    if not list(folder.glob("*.whl")):
        part = folder.with_suffix(".part")
        run(*pip, "wheel", "-q", "--no-deps", f"llama-cpp-python=={version}", "-w", part,
            CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF")  # fmt: skip
        part.rename(folder)
    return next(folder.glob("*.whl"))


def main() -> None:
    python = BIN / "python"
    if not python.exists():
        venv.create(VENV, with_pip=True)
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
    extras = f"{ROOT}[dev,llama,training,export]"
    run(*pip, "install", "-q", "-c", ROOT / "constraints.txt", llama_wheel(pip), "-e", extras)
    run(python, "-m", "ruff", "check", ".")
    for platform in ("linux", "win32", "darwin"):
        run(python, "-m", "mypy", "--platform", platform)
    workers = min(os.cpu_count() or 1, 4)
    run(python, "-m", "pytest", "-n", str(workers), "--dist", "worksteal", *sys.argv[1:])


if __name__ == "__main__":
    main()
