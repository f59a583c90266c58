"""The public API is what it is; importing it is light; the layers keep apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import popi_edge
from popi_edge import errors

ROOT = Path(__file__).parent.parent


def test_the_public_names() -> None:
    assert sorted(popi_edge.__all__) == [
        "Answer", "Comparison", "Conversation", "Edit", "Message", "Popi", "PopiError", "Post", "PreferenceSummary",
        "Preview", "Profile", "Rating", "Signal", "Statement",
    ]  # fmt: skip
    assert all(getattr(popi_edge, name) is not None for name in popi_edge.__all__)


def test_the_exception_tree_in_its_docstring_is_the_real_one() -> None:
    real = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)}
    drawn = {line.lstrip("├└─ ").split()[0] for line in (errors.__doc__ or "").splitlines()[2:] if line.strip()}
    assert real == drawn
    assert all(issubclass(getattr(errors, n), errors.PopiError) for n in real)


def test_importing_loads_nothing_heavy() -> None:
    heavy = ["torch", "onnxruntime", "llama_cpp", "transformers", "numpy", "tokenizers", "httpx2", "sqlite_utils"]
    code = f"import popi_edge, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_the_runtime_imports_neither_torch_nor_the_server_side() -> None:
    for path in (ROOT / "popi_edge").rglob("*.py"):
        roots = {n.split(".")[0] for n in imports(path)}
        assert not roots & {"torch", "transformers", "popi_training", "popi_export"}, path


def test_only_generators_and_pull_may_open_a_socket() -> None:
    network = {"socket", "httpx", "httpx2", "httpcore2", "requests", "aiohttp", "openai", "http", "urllib"}
    for path in (ROOT / "popi_edge").rglob("*.py"):
        where = path.relative_to(ROOT).as_posix()
        if not where.startswith(("popi_edge/generators/", "popi_edge/server/")) and where != "popi_edge/models/pull.py":
            found = {n for n in imports(path) if n.split(".")[0] in network and not n.startswith("urllib.parse")}
            assert not found, f"{where} imports {found}"


def test_generators_know_the_seal_and_not_the_store() -> None:
    for path in (ROOT / "popi_edge" / "generators").glob("*.py"):
        assert "popi_edge.store" not in imports(path), path
