"""The supervised warm start of ``infer`` (DESIGN, the objective: where φ starts)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from popi_edge.config import Settings
from popi_edge.engines.onnx_graph import Shape
from popi_edge.errors import ConfigError
from popi_edge.models.bases import file_sha256
from popi_edge.models.gguf import Gguf
from popi_training import base, warm
from popi_training.loss import contrast, supervised
from popi_training.pack import Packed
from popi_training.recipe import Recipe
from popi_training.roles import One
from popi_training.team import several
from popi_training.train import Trainer, corpus_hash, made_from


class WarmStart(Trainer):
    """A run of the warm start: one adapter learns what a good summary says of made users."""

    def __init__(
        self, recipe: Recipe, data: warm.Set, reader: warm.Reader, model: Any, made: dict[str, str], device: str
    ) -> None:
        if several():
            raise ConfigError("the warm start compares everybody of a step with everybody: it runs in one process")
        super().__init__(recipe, reader, One(model), {"infer": recipe.train.lr}, made, device)
        self.data, self.model = data, model
        self.couples: list[list[Packed]] = []
        """The development users, once made."""

    def maker(self) -> Callable[[int], list[Packed]]:
        return functools.partial(_examples, self.recipe, self.data, self.reader)

    def each(self, packs: list[Packed]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """``loss.supervised`` of each; on the CPU one by one, which needs less memory and is no slower."""
        if self.device == "cpu":
            return [supervised(self.model, [p])[0] for p in packs]
        return supervised(self.model, packs)

    def train_step(self, batch: list[Packed]) -> dict[str, Any]:
        """One step over the packed users of its batch; returns its line of metrics."""
        t = self.recipe.train
        self.set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        both = self.each(batch)
        loss = torch.stack([each for each, _ in both]).mean()
        apart = contrast([means for _, means in both], [p.of for p in batch], t.scale)
        (loss + t.contrast * apart).backward()
        total, told = loss.item(), apart.item()
        norm = self.clipped("infer", total)
        self.optimizer.step()
        self.step += 1
        return {
            "step": self.step, "loss": total, "contrast": told, "lr": self.rate(self.step - 1, t.steps, t.lr),
            "grad_norm": norm, "tokens": sum(len(packed.ids) for packed in batch),
        }  # fmt: skip

    @torch.no_grad()
    def develop(self) -> dict[str, Any]:
        """On development couples: the loss; how often a user's summary is likelier, per token, than the opposite one
        (``dev_choice``); how often each is likelier behind its own signals than behind the other's, taken together
        (``dev_contrast``: how likely a wording is in itself cancels out)."""
        losses, right, apart = list[float](), list[float](), list[float]()
        if not self.couples:
            count = range(self.recipe.train.dev_users)
            self.couples = [warm.dev_couple(self.recipe, self.data, self.reader, i) for i in count]
        for couple in self.couples:
            both = self.each(couple)
            margins = [float(means[0] - means[1]) for _, means in both]
            losses += [loss.item() for loss, _ in both]
            right += [m > 0 for m in margins]
            apart.append(sum(margins) > 0)
        if not losses:
            return {}
        named = {"dev_loss": losses, "dev_choice": right, "dev_contrast": apart}
        return {name: sum(values) / len(values) for name, values in named.items()}


def _examples(recipe: Recipe, data: warm.Set, reader: warm.Reader, step: int) -> list[Packed]:
    return [packed for _, packed in warm.batch(recipe, data, reader, step)]


def open_run(recipe: Recipe, where: Path, settings: Settings, device: str) -> WarmStart:
    """Load data and model for a recipe read from ``where``. Raises ConfigError, ModelError."""
    data = warm.load(recipe, where)
    gguf = warm.find_base(recipe, where, settings)
    digest = file_sha256(gguf)
    warm.refuse_base(recipe, gguf.name, digest)
    reader = warm.Reader.of(gguf)
    start = warm.read_start(recipe, where, gguf)
    model = base.with_lora(base.dequantized(gguf), recipe.lora.rank, recipe.lora.alpha, recipe.seed).to(device)
    if start is not None:
        base.start_lora(model, start, Shape.of(Gguf(gguf)))
    made = made_from(recipe, {"corpus": corpus_hash(data)}, digest, {"start": start}, device)
    return WarmStart(recipe, data, reader, model, made, device)
