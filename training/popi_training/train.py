"""The supervised warm start (DESIGN, the objective: where φ starts): a loop that stops anywhere and goes on exactly.

Everything of a step follows from the recipe and the step's number, so a run that was killed goes on from its last
checkpoint with the same numbers, bit for bit on one machine's CPU. A run's folder: ``recipe.toml``, ``metrics.jsonl``
(a line a step), ``checkpoint.pt`` (adapter, optimizer, step; written whole or not at all), ``run.json`` (what it was
made from).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from popi_edge import prompts
from popi_edge.config import Settings
from popi_edge.engines.adapter import Adapter
from popi_edge.engines.onnx_graph import Shape
from popi_edge.errors import ConfigError, EngineError, ModelError, PopiError, StoreError
from popi_edge.files import whole_file
from popi_edge.models.bases import file_sha256, locate
from popi_edge.models.gguf import Gguf
from popi_edge.vocabulary import Lexicon
from popi_training import base, warm
from popi_training.loss import contrast, supervised
from popi_training.pack import Packed
from popi_training.recipe import Recipe

METRICS, CHECKPOINT, RUN, RECIPE = "metrics.jsonl", "checkpoint.pt", "run.json", "recipe.toml"
COMPARED = ("step", "loss", "contrast", "lr", "grad_norm", "tokens")
"""Fields of a metrics line that a replay must repeat bit for bit; seconds are not among them."""
Tell = Callable[[int, int, float], None]


@dataclass
class Trainer:
    """A run at a step: model with adapter, optimizer, data; ``couples`` are the development users, once made."""

    recipe: Recipe
    data: warm.Set
    reader: warm.Reader
    model: Any
    optimizer: torch.optim.Optimizer
    made_from: dict[str, str]
    device: str = "cpu"
    step: int = 0
    couples: list[list[Packed]] = field(default_factory=list)

    def rate(self, step: int) -> float:
        """The learning rate of a step: up, flat, and down to nothing over the last ``decay`` of the steps."""
        t = self.recipe.train
        up = min(1.0, (step + 1) / max(1, t.warmup))
        down = min(1.0, (t.steps - step) / max(1.0, t.decay * t.steps))
        return t.lr * up * down

    def batches(self, until: int, workers: int) -> Iterable[list[Packed] | PopiError]:
        """The packed users of every step from this one to ``until``, made ahead by ``workers`` processes (0: none)."""
        steps, workers = _Steps(self.recipe, self.data, self.reader), min(workers, os.cpu_count() or 1)
        return DataLoader(
            steps, batch_size=None, sampler=range(self.step, until), num_workers=workers, collate_fn=_as_it_is,
            prefetch_factor=4 if workers else None, worker_init_fn=_leave_interrupts,
        )  # fmt: skip

    def each(self, packs: list[Packed]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """``loss.supervised`` of each; on the CPU one by one, which needs less memory and is no slower."""
        if self.device == "cpu":
            return [supervised(self.model, [p])[0] for p in packs]
        return supervised(self.model, packs)

    def train_step(self, examples: list[Packed]) -> dict[str, Any]:
        """One step over the packed users of its batch; returns its line of metrics."""
        t = self.recipe.train
        lr = self.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        both = self.each(examples)
        loss = torch.stack([each for each, _ in both]).mean()
        apart = contrast([means for _, means in both], [p.of for p in examples], t.scale)
        (loss + t.contrast * apart).backward()
        total, told = loss.item(), apart.item()
        tokens = sum(len(packed.ids) for packed in examples)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters(), t.clip))
        if not math.isfinite(total) or not math.isfinite(norm):
            raise ModelError(f"step {self.step}: the loss is not a number; a lower train.lr may help")
        self.optimizer.step()
        self.step += 1
        return {
            "step": self.step, "loss": total, "contrast": told, "lr": lr, "grad_norm": norm, "tokens": tokens,
        }  # fmt: skip

    def parameters(self) -> list[Any]:
        """The adapter's parameters, in the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def develop(self) -> dict[str, Any]:
        """On development couples: the loss; how often a user's summary is likelier, per token, than the opposite one
        (``dev_choice``); how often each is likelier behind its own signals than behind the other's, taken together
        (``dev_contrast``: how likely a wording is in itself cancels out)."""
        losses, right, apart = [], [], []
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

    def save(self, folder: Path) -> None:
        """Write the checkpoint whole. Raises StoreError (a full disk); the one before stays then."""
        state = {
            "step": self.step,
            "made_from": self.made_from,
            "lora": {n: torch.from_numpy(a) for n, a in base.lora_state(self.model).items()},
            "optimizer": self.optimizer.state_dict(),
        }
        made = io.BytesIO()  # torch turns a full disk into an error that does not say so
        torch.save(state, made)
        try:
            with whole_file(folder / CHECKPOINT) as out:
                out.write(made.getbuffer())
        except OSError as e:
            raise StoreError(f"cannot write the checkpoint of step {self.step} to {folder}: {e.strerror}") from None

    def restore(self, folder: Path) -> None:
        """Go on from the checkpoint. Raises ConfigError for one made from something else, ModelError for a damaged
        one."""
        state = read_checkpoint(folder / CHECKPOINT)
        for key in sorted(self.made_from.keys() | state["made_from"]):
            if state["made_from"].get(key) != self.made_from.get(key):
                raise ConfigError(f"{folder} was begun from another {key}; take another --out, or the {key} of then")
        base.load_lora(self.model, state["lora"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """``step``, ``made_from``, ``lora`` (arrays by name, as ``base.lora_state``) and ``optimizer`` of a checkpoint.

    Raises ModelError for a file that is missing or damaged anywhere.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch itself does not check the sums of what it reads
            if bad := file.testzip():
                raise ModelError(f"{path}: damaged: {bad}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        lora = {str(n): v.numpy() for n, v in state["lora"].items()}
        made_from = {str(k): str(v) for k, v in state["made_from"].items()}
        return {"step": int(state["step"]), "made_from": made_from, "lora": lora, "optimizer": state["optimizer"]}
    except ModelError:
        raise
    except OSError as e:
        raise ModelError(f"cannot read {path}: {e.strerror}") from None
    except Exception as e:  # torch raises many kinds for a damaged file
        raise ModelError(f"{path}: not a checkpoint: {type(e).__name__}") from None


class _Steps(Dataset[list[Packed] | PopiError]):
    """Step → its packed users, or what is wrong with them: torch would wrap an error of a worker in its traceback."""

    def __init__(self, recipe: Recipe, data: warm.Set, reader: warm.Reader) -> None:
        self.recipe, self.data, self.reader = recipe, data, reader

    def __getitem__(self, step: int) -> list[Packed] | PopiError:
        try:
            return [p for _, p in warm.batch(self.recipe, self.data, self.reader, step)]
        except PopiError as e:
            return e


def _as_it_is(value: Any) -> Any:
    return value


def _leave_interrupts(_: int) -> None:
    """An interrupt is for the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _next(batches: Iterator[list[Packed] | PopiError]) -> list[Packed]:
    """The next step's users. Raises what was wrong with them, EngineError where a worker is gone."""
    try:
        made = next(batches)
    except RuntimeError as e:
        raise EngineError(f"a process that makes batches ended ({str(e)[:60]}); fewer --workers may help") from None
    if isinstance(made, PopiError):
        raise made
    return made


def open_run(recipe: Recipe, where: Path, settings: Settings, device: str = "cpu") -> Trainer:
    """Load data and model for a recipe read from ``where``. Raises ConfigError, ModelError.

    On another ``device`` than "cpu" matrices are multiplied in TF32, and steps do not repeat bit for bit.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"there is no device {device} here")
    data = warm.load(recipe, where)
    gguf = locate(recipe.base.name, settings.models)
    digest = file_sha256(gguf)
    warm.refuse_base(recipe, gguf.name, digest)
    torch.set_num_threads(recipe.train.threads)
    torch.use_deterministic_algorithms(device == "cpu")
    if device != "cpu":
        torch.set_float32_matmul_precision("high")
    reader = warm.Reader.of(gguf)
    adapter = warm.read_start(recipe, where, gguf)
    model = base.with_lora(base.dequantized(gguf), recipe.lora.rank, recipe.lora.alpha, recipe.seed).to(device)
    if adapter is not None:
        base.start_lora(model, adapter, Shape.of(Gguf(gguf)))
    made = made_from(recipe, data, digest, adapter, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.train.lr, weight_decay=0.0)
    return Trainer(recipe, data, reader, model, optimizer, made, device)


def made_from(
    recipe: Recipe, data: warm.Set, base_sha256: str, start: Adapter | None, device: str
) -> dict[str, str]:
    """Hashes of all that a run depends on, and the device where it is not the CPU."""
    texts = [*warm.all_texts(data.corpus), data.corpus.facts, data.corpus.reactions, sorted(data.weights.items())]
    contract = [dict(prompts.spec()), sorted(Lexicon.load().words)]
    return {
        "recipe": recipe_hash(recipe),
        "corpus": _hash(texts),
        "prompt contract": _hash(contract),
        "base": base_sha256,
        **({"start": start.sha256} if start is not None else {}),
        **({"device": device} if device != "cpu" else {}),
    }


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of a recipe's text, as a run keeps it."""
    return _hash(recipe.text)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def run(trainer: Trainer, folder: Path, *, until: int, minutes: float | None, tell: Tell, workers: int = 0) -> bool:
    """Train up to step ``until``, or for so many minutes, then save; ``workers`` processes make the batches ahead.
    Returns whether the recipe's end was reached."""
    t, began = trainer.recipe.train, time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            trainer.restore(folder)
        _keep(folder / METRICS, trainer.step)
        with whole_file(folder / RECIPE) as out:
            out.write(trainer.recipe.text.encode())
        with whole_file(folder / RUN) as out:
            out.write(json.dumps({"name": trainer.recipe.name, **trainer.made_from}, indent=1).encode() + b"\n")
        saved = trainer.step
        batches = iter(trainer.batches(min(until, t.steps), workers))
        with (folder / METRICS).open("a", encoding="utf-8") as log:
            while trainer.step < min(until, t.steps):
                started = time.monotonic()
                line = trainer.train_step(_next(batches))
                line["seconds"] = round(time.monotonic() - started, 2)
                if trainer.step % t.dev_every == 0 or trainer.step == t.steps:
                    line |= trainer.develop()
                log.write(json.dumps(line) + "\n")
                log.flush()
                tell(trainer.step, min(until, t.steps), line["loss"])
                late = minutes is not None and time.monotonic() - began >= 60 * minutes
                if trainer.step % t.checkpoint_every == 0 or late:
                    trainer.save(folder)
                    saved = trainer.step
                if late:
                    break
        if saved != trainer.step:
            trainer.save(folder)
    except OSError as e:
        raise StoreError(f"cannot write to {folder}: {e.strerror}") from None
    except torch.OutOfMemoryError:
        raise EngineError(f"step {trainer.step}: too little memory on {trainer.device} for this train.batch") from None
    return trainer.step >= t.steps


def _keep(path: Path, step: int) -> None:
    """Drop the lines of steps that the checkpoint does not hold: they will be made again."""
    lines = read_metrics(path) if path.exists() else []
    with whole_file(path) as out:
        out.write("".join(json.dumps(m) + "\n" for m in lines if m["step"] <= step).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics of a run, step by step; a last line that was cut off is left out. Raises ConfigError."""
    out = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            out.append({**value, "step": int(value["step"])})
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise ConfigError(f"{path}, line {number}: not a line of metrics") from None
    return out


def differences(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[str]:
    """Where two runs' metrics differ in their common steps: empty if they agree bit for bit."""
    known = {m["step"]: m for m in theirs}
    out = []
    for m in ours:
        other = known.get(m["step"])
        if other is None:
            out.append(f"step {m['step']} is not there to compare with")
            continue
        unlike = [k for k in COMPARED if m.get(k) != other.get(k)]
        out += [f"step {m['step']}: {k} {m.get(k)!r} against {other.get(k)!r}" for k in unlike]
    return out
