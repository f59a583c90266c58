"""Models shared out among processes (FSDP2): the curve of one process, whole checkpoints, and the shipped settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.commands import launch
from accelerate.utils.launch import prepare_multi_gpu_env

from popi_edge import config
from popi_training import folder as folders
from popi_training import recipe as recipes
from popi_training import train
from tests import tiny_training as small
from tests.test_folder import folder as tiny_folder
from tests.test_joint import TABLE
from tests.test_train import edited, figures

pytestmark = pytest.mark.usefixtures("torch_as_before")
SETTINGS = Path(__file__).parents[1] / "training" / "accelerate"


def environment(name: str) -> dict[str, str]:
    """What ``accelerate launch --config_file`` would set for its processes, as accelerate itself reads the file."""
    words = ["--config_file", str(SETTINGS / name), "train.py"]
    told, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    made: dict[str, str] = prepare_multi_gpu_env(told)
    kept = {k: v for k, v in made.items() if k.startswith(("FSDP_", "ACCELERATE_"))}
    return kept | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}


def launched(settings: str, *words: object) -> subprocess.CompletedProcess[str]:
    """``popi train`` in two processes (gloo) under the settings of a file."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "popi_edge"]
    words = (*start, "train", *words)
    return subprocess.run([*map(str, words)], env=os.environ | environment(settings), capture_output=True, text=True)


@pytest.fixture(scope="module", params=["adapters", "models"])
def recipe(request: pytest.FixtureRequest, tiny: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of adapters on a GGUF base, and of two whole models."""
    place = tmp_path_factory.mktemp(request.param)
    small.corpus(place / "corpus")
    path = small.recipe(place, tiny[0], steps=4, every=2)
    if request.param == "models":
        tiny_folder(place / "base", "qwen3")
        values = {"base": "base", "sha256": folders.folder_sha256(place / "base"), "corpus": "corpus"}
        path.write_text(small.RECIPE.format(**values, steps=4, lr=0.01, every=2))
        edited(path, "[lora]", "[lora]\nfull = true")
    edited(path, 'name = "small"', 'name = "small"\nmethod = "joint"\nrole = "both"')
    edited(path, "mirrored = 0.5", "mirrored = 1.0")
    edited(path, "batch = 3", "batch = 4")
    path.write_text(path.read_text() + TABLE.format(schedule="simultaneous"))
    return path


def flat(folder: Path) -> np.ndarray:
    adapters = train.read_checkpoint(folder / train.CHECKPOINT)["adapters"]
    return np.concatenate([adapters[r][n].ravel() for r in sorted(adapters) for n in sorted(adapters[r])])


@pytest.mark.parametrize("settings", ["fsdp2.yaml", "zero3.yaml"])
def test_shared_out_models_give_the_curve_of_one_process_and_go_on_in_one(
    recipe: Path, tmp_path: Path, settings: str
) -> None:
    for until, out in ((4, "one"), (2, "two")):
        if out == "two":
            done = launched(settings, recipe, "--out", tmp_path / out, "--until", until)
            assert done.returncode == 0, done.stderr
        opened = train.open_run(recipes.read(recipe), recipe, config.load())
        train.run(opened, tmp_path / out, until=4, minutes=None, tell=lambda *_: None)
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert [m["step"] for m in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        assert {k: pytest.approx(v, rel=5e-3, abs=5e-4) for k, v in a.items()} == b
    a, b = flat(tmp_path / "one"), flat(tmp_path / "two")
    assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)
