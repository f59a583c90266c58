"""Opening a joint run: the base that a recipe names, both roles on it, and the people that it is trained on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from popi_edge.config import Settings
from popi_edge.engines.adapter import Adapter
from popi_edge.engines.onnx_graph import Shape
from popi_edge.errors import ConfigError
from popi_edge.models.bases import file_sha256
from popi_edge.models.gguf import Gguf
from popi_training import base, filed, folder, shards, targets, warm
from popi_training.joint import Joint
from popi_training.people import Person
from popi_training.recipe import Recipe
from popi_training.roles import Adapters, Models, Roles
from popi_training.team import several
from popi_training.train import corpus_hash, made_from
from popi_training.vllm_rollout import VllmRollouts


def open_run(recipe: Recipe, where: Path, settings: Settings, device: str) -> Joint:
    """Load data and both roles for a recipe read from ``where``. Raises ConfigError, ModelError."""
    if recipe.data.world:
        from popi_training import popi_micro

        return popi_micro.open_run(recipe, device)
    loaded = find_base(recipe, where, settings)
    vllm = VllmRollouts(recipe, loaded.path) if recipe.joint.rollout == "vllm" else None
    named = {"start" if role == "infer" else f"start_{role}": start for role, start in loaded.starts.items()}
    make: Callable[[int], list[Person]]
    dev: Callable[[int], list[Person]]
    if recipe.data.file:
        found = filed.load(recipe, where)
        make, dev = functools.partial(found.batch, recipe), found.couple
        made = made_from(recipe, {"data": found.loaded.sha256}, loaded.sha256, named, device)
    else:
        data = warm.load(recipe, where)
        make = functools.partial(targets.batch, recipe, data, loaded.reader)
        dev = functools.partial(targets.dev_couple, recipe, data)
        made = made_from(recipe, {"corpus": corpus_hash(data)}, loaded.sha256, named, device)
    joint = Joint(recipe, loaded.reader, loaded.roles(recipe, device), make, dev, made, device)
    joint.rollouts = vllm or joint.rollouts
    return joint


@dataclass
class Loaded:
    """A base before its weights are read: where it lies, its hash, its reader, and what the roles start from."""

    path: Path
    sha256: str
    reader: warm.Reader
    starts: dict[str, Adapter | None]

    def roles(self, recipe: Recipe, device: str) -> Roles:
        """Both roles on it. Raises ModelError for weights that do not fit, ConfigError for an engine that cannot."""
        whole = recipe.lora.full and recipe.train.optimizer == "adamw"
        if several() and shards.wanted() == "deepspeed" and not whole:
            raise ConfigError(
                'DeepSpeed moves whole models by AdamW (lora.full = true, train.optimizer = "adamw"); for others take '
                "training/accelerate/fsdp2.yaml or zero3.yaml"
            )
        model = folder.load_model(self.path) if self.path.is_dir() else base.dequantized(self.path)
        if shards.wanted() and several():  # which puts each process's part where it belongs
            device = "cpu"
        if recipe.lora.full:
            return Models(model.to(device), copy.deepcopy(model).to(device))
        both = Adapters(model, recipe.lora.rank, recipe.lora.alpha, recipe.seed)
        for role, start in self.starts.items():
            if start is not None:
                base.start_lora(both.model, start, Shape.of(Gguf(self.path)), role)
                both.begin(role)
        both.model.to(device)
        return both


def find_base(recipe: Recipe, where: Path, settings: Settings) -> Loaded:
    """The base of a recipe, by name, as a GGUF file or as a Hugging Face folder. Raises ModelError, ConfigError."""
    path = warm.find_base(recipe, where, settings)
    if path.is_dir():
        folder.read_config(path)
        sha256 = folder.folder_sha256(path)
        warm.refuse_base(recipe, path.name, sha256)
        return Loaded(path, sha256, warm.Reader.of(path), {})
    sha256 = file_sha256(path)
    warm.refuse_base(recipe, path.name, sha256)
    starts = {role: warm.read_start(recipe, where, path, role) for role in ("infer", "generate")}
    return Loaded(path, sha256, warm.Reader.of(path), starts)
