"""Models shared out among processes (FSDP2, DeepSpeed): the curve of one process, whole checkpoints, and the shipped
settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate.commands import launch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from accelerate import DeepSpeedPlugin
from popi_edge import config
from popi_edge.errors import ConfigError
from popi_training import folder as folders
from popi_training import recipe as recipes
from popi_training import shards, train
from tests import tiny_training as small
from tests.test_folder import folder as tiny_folder
from tests.test_joint import TABLE
from tests.test_train import edited, settled

pytestmark = pytest.mark.usefixtures("torch_as_before")
SETTINGS = Path(__file__).parents[1] / "training" / "accelerate"
RATE = 0.001
THREE = SETTINGS.parent / "recipes" / "popi-3b-zero3.toml"


def environment(name: str) -> dict[str, str]:
    """What ``accelerate launch --config_file`` would set for its processes, as accelerate itself reads the file."""
    words = ["--config_file", str(SETTINGS / name), "train.py"]
    told, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    made: dict[str, str]
    if told.use_deepspeed:
        told.deepspeed_fields_from_accelerate_config = "zero_stage"  # as accelerate launch itself adds it
        _, made = prepare_deepspeed_cmd_env(told)
    else:
        made = prepare_multi_gpu_env(told)
    return {k: v for k, v in made.items() if k.startswith(("FSDP_", "ACCELERATE_"))}


@pytest.fixture(scope="module", params=["adapters", "models"])
def recipe(request: pytest.FixtureRequest, tiny: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of adapters on a GGUF base, and of two whole models; at a rate at which four steps do not blow up what rounding
    gives Adam to begin with."""
    place = tmp_path_factory.mktemp(request.param)
    small.corpus(place / "corpus")
    path = small.recipe(place, tiny[0], steps=4, every=2, lr=RATE)
    if request.param == "models":
        tiny_folder(place / "base", "qwen3")
        values = {"base": "base", "sha256": folders.folder_sha256(place / "base"), "corpus": "corpus"}
        path.write_text(small.RECIPE.format(**values, steps=4, lr=RATE, every=2))
        edited(path, "[lora]", "[lora]\nfull = true")
    edited(path, 'name = "small"', 'name = "small"\nmethod = "joint"\nrole = "both"')
    edited(path, "mirrored = 0.5", "mirrored = 1.0")
    edited(path, "batch = 3", "batch = 4")
    path.write_text(path.read_text() + TABLE.format(schedule="simultaneous"))
    edited(path, "lr_generate = 0.01", f"lr_generate = {RATE}")
    return path


def flat(folder: Path) -> np.ndarray:
    adapters = train.read_checkpoint(folder / train.CHECKPOINT)["adapters"]
    return np.concatenate([adapters[r][n].ravel() for r in sorted(adapters) for n in sorted(adapters[r])])


@pytest.mark.parametrize("settings", ["ddp.yaml", "fsdp2.yaml", "zero3.yaml", "deepspeed.yaml"])
def test_two_processes_go_on_as_one_would_under_every_settings_and_one_goes_on_from_them(
    recipe: Path, tmp_path: Path, settings: str
) -> None:
    def alone(out: str, until: int) -> None:
        opened = train.open_run(recipes.read(recipe), recipe, config.load())
        train.run(opened, tmp_path / out, until=until, minutes=None, tell=lambda *_: None)

    alone("one", 4)
    alone("two", 1)
    done = small.launched(recipe, "--out", tmp_path / "two", "--until", 3, **environment(settings))
    if settings == "deepspeed.yaml" and "full = true" not in recipe.read_text():
        assert done.returncode and "popi: DeepSpeed moves whole models by AdamW" in done.stderr
        assert len(settled(tmp_path / "two")) == 1
        return
    assert done.returncode == 0, done.stderr
    alone("two", 4)
    one, two = settled(tmp_path / "one"), settled(tmp_path / "two")
    assert [m["step"] for m in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        assert {k: pytest.approx(v, rel=5e-3, abs=5e-4) for k, v in a.items()} == b
    a, b = flat(tmp_path / "one"), flat(tmp_path / "two")
    assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)


@pytest.mark.parametrize("settings", sorted(p.name for p in SETTINGS.glob("*.yaml")))
def test_the_shipped_settings_are_what_accelerate_takes(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment(settings)
    assert (told.get("ACCELERATE_USE_FSDP"), told.get("FSDP_RESHARD_AFTER_FORWARD")) == {
        "ddp.yaml": (None, None), "fsdp2.yaml": ("true", "false"), "zero3.yaml": ("true", "true"),
        "deepspeed.yaml": (None, None),
    }[settings]  # fmt: skip
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    assert shards.wanted() == {"ddp.yaml": "", "deepspeed.yaml": "deepspeed"}.get(settings, "fsdp")
    if settings == "deepspeed.yaml":
        zero = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
        assert zero["stage"] == 3
        assert {zero[f"offload_{what}"]["device"] for what in ("param", "optimizer")} == {"none"}


def test_what_cannot_be_shared_out_is_refused(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value, line in (
        ("dev_users", "3", "train.dev_users 3 cannot be shared out evenly among 2 processes"),
        ("[joint]", "[joint]\nwarm = 1", "joint.warm keeps copies of whole models"),
    ):
        changed = recipe.with_name("changed.toml")
        text = recipe.read_text()
        (old,) = [x for x in text.splitlines() if x.split(" =")[0] == key]
        changed.write_text(text.replace(old, value if key == "[joint]" else f"{key} = {value}"))
        done = small.launched(changed, "--out", tmp_path / "run", "--until", 1, **environment("zero3.yaml"))
        assert done.returncode and line in done.stderr and not (tmp_path / "run").exists()
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="fsdp_version must be 2"):
        shards.Fsdp2("cpu", 1.0)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2", "zero_stage must be 3"),
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "half.json", "mixed_precision must be 'no'"),
        ("", "0.19.3", "DeepSpeed 0.19.3 is too old"),
        ("", "", r"pip install 'popi-edge\[deepspeed\]'"),
    ],
)
def test_a_deepspeed_that_would_train_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, value: str, line: str
) -> None:
    """With a stand-in for DeepSpeed: to import the real one here would change the whole process."""
    Path(tmp_path / "half.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}))
    monkeypatch.chdir(tmp_path)
    for name, told in environment("deepspeed.yaml").items():
        monkeypatch.setenv(name, told)
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "")
    names = {"__version__": value, "DeepSpeedEngine": SimpleNamespace(managed_gradient_accumulation=None)}
    names["ops"] = SimpleNamespace(__compatible_ops__={})
    if key:
        monkeypatch.setenv(key, value)
    else:
        names["DeepSpeedEngine"] = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(**names) if key or value else None)
    with pytest.raises(ConfigError, match=line):
        shards.made("cpu", 1.0)


def test_the_3b_recipe_is_checked_without_its_base_and_makes_two_steps_on_a_tiny_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(path: Path) -> Any:
        code, out, _ = small.popi(monkeypatch, capsys, "train", path, "--check", "--json")
        assert code == 0
        return json.loads(out)

    found = check(THREE)
    assert found["base"]["here"] is False and found["joint"]["summaries"] == 500 * 64 * 8
    import torch
    import transformers as hf

    words = tiny_folder(tmp_path / "bases" / "tiny", "llama")
    torch.manual_seed(1)
    rope = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 512}  # fmt: skip
    shape = json.loads((words / "config.json").read_text()) | {"rope_scaling": rope, "tie_word_embeddings": True}
    shape |= {"max_position_embeddings": 8192}
    hf.LlamaForCausalLM(hf.LlamaConfig(**shape)).save_pretrained(words)
    path = tmp_path / "recipe.toml"
    path.write_text(THREE.read_text().replace("../../bases/Llama-3.2-3B-Instruct", "bases/tiny"))
    small_ones = {"batch = 64": 2, "dev_every = 50": 2, "dev_users = 32": 2, "group = 8": 3, "most = 16": 3}
    for old, new in small_ones.items():
        edited(path, old, f"{old.split(' =')[0]} = {new}")
    assert check(path)["base"]["here"] is True
    runs = []
    for settings in ("zero3.yaml", "deepspeed.yaml"):
        out = tmp_path / settings
        done = small.launched(path, "--out", out, "--until", 2, **environment(settings))
        assert done.returncode == 0, done.stderr
        lines = train.read_metrics(out / train.METRICS)
        assert [m["step"] for m in lines] == [1, 2]
        assert all(m["grad_norm_infer"] > 0 < m["grad_norm_generate"] for m in lines)
        runs.append([m | {"seconds": 0.0} for m in lines])
    for a, b in zip(*runs, strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=5e-4)
