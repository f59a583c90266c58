"""The loop of every method: it stops anywhere and goes on exactly.

Everything of a step follows from the recipe and the step's number, so a run that was killed goes on from its last
checkpoint with the same numbers, bit for bit on one machine's CPU. A run's folder: ``recipe.toml``, ``metrics.jsonl``
(a line a step), ``checkpoint.pt`` (adapters, optimizer, step; written whole or not at all), ``best.pt`` (the same, of
the lowest loss on the development users), ``run.json`` (what it was made from), and where TensorBoard is installed
``tensorboard`` (the same lines for it).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import json
import math
import os
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from popi_edge import prompts
from popi_edge.config import Settings
from popi_edge.engines.adapter import Adapter
from popi_edge.errors import ConfigError, EngineError, ModelError, PopiError, StoreError
from popi_edge.files import forget_drafts, whole_file
from popi_edge.vocabulary import Lexicon
from popi_training import checkpoint_check, optimizers, shards, warm
from popi_training.recipe import Recipe
from popi_training.roles import Roles
from popi_training.runfolder import BEST, BOARD, CHECKPOINT, LOCK, METRICS, RECIPE, RUN, read_metrics, read_run
from popi_training.team import Team, join, several

CPU_MEMORY = "DefaultCPUAllocator"
"""Stands in what torch says where the CPU's memory is at an end; on a GPU it raises OutOfMemoryError."""
Tell = Callable[[int, int, Mapping[str, Any]], None]
"""Step, last step, the step's line of metrics."""


class Trainer(ABC):
    """A run at a step. What is trained, on what and how is a subclass's: ``warm_start``, ``joint``."""

    def __init__(
        self, recipe: Recipe, reader: warm.Reader, roles: Roles, rates: Mapping[str, float],
        made_from: dict[str, str], device: str,
    ) -> None:  # fmt: skip
        """``rates``: role that is trained → the learning rate that its schedule starts from."""
        self.recipe, self.reader, self.roles, self.made_from, self.device = recipe, reader, roles, made_from, device
        self.team, engine = Team(device, recipe.train.clip), optimizers.made
        if self.team.sharding:
            roles.share_out(self.team.sharding)
            engine = self.team.sharding.optimizer
        self.optimizer = engine(recipe.train.optimizer, roles, dict(rates), recipe.train.lr)
        self.step = 0
        self.best: tuple[float, int] = (math.inf, 0)
        """The lowest loss on the development users, and the step it was seen at."""

    @abstractmethod
    def maker(self) -> Callable[[int], Any]:
        """What makes the examples of a step from its number; it may run in another process."""

    def batches(self, until: int, workers: int) -> Iterable[Any]:
        """The examples of every step from this one to ``until``, or the PopiError that making them raised; made ahead
        by ``workers`` processes (0: none)."""
        steps, workers = _Steps(self.maker()), min(workers, os.cpu_count() or 1)
        return DataLoader(
            steps, batch_size=None, sampler=range(self.step, until), num_workers=workers, collate_fn=_as_it_is,
            prefetch_factor=4 if workers else None, worker_init_fn=functools.partial(_work_for, os.getpid()),
        )  # fmt: skip

    @abstractmethod
    def train_step(self, batch: Any) -> dict[str, Any]:
        """One step; returns its line of metrics, ``step`` and ``loss`` among them."""

    @abstractmethod
    def develop(self) -> dict[str, Any]:
        """Figures on development users, by names that begin with ``dev_``; ``dev_loss`` is what patience looks at."""

    def rate(self, done: int, of: int, lr: float) -> float:
        """The learning rate of the next move after ``done`` of them: up, flat, and down to nothing over the last
        ``decay`` of all."""
        t = self.recipe.train
        return lr * min(1.0, (done + 1) / max(1, t.warmup)) * min(1.0, (of - done) / max(1.0, t.decay * of))

    def set_rates(self) -> None:
        """This step's rate for every group of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step, self.recipe.train.steps, group["base_lr"])

    def clipped(self, role: str, loss: float) -> float:
        """Clip a role's gradient, and return what its norm was. Raises ModelError where it or the loss is no number."""
        norm = self.team.clip(self.roles.parameters(role))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise ModelError(f"step {self.step}: the loss is not a number; a lower train.lr may help")
        return norm

    @property
    def settled(self) -> int:
        """The step from which on all that is trained has begun to move: patience looks at nothing before."""
        return 0

    def over(self) -> bool:
        """Whether the recipe's steps are done, or its patience."""
        t = self.recipe.train
        tired = bool(t.patience) and self.step - max(self.best[1], self.settled) >= t.patience * t.dev_every
        return self.step >= t.steps or tired

    def save(self, folder: Path, name: str = CHECKPOINT) -> None:
        """Write the checkpoint whole, from the main process. Raises StoreError (a full disk); the one before stays
        then."""
        if not (self.team.main or self.team.sharding):
            return
        adapters = {r: {n: torch.from_numpy(a) for n, a in s.items()} for r, s in self.roles.state().items()}
        optimizer = shards.optimizer_state(self.optimizer)
        if not self.team.main:
            return
        state = {
            "step": self.step,
            "made_from": self.made_from,
            "adapters": adapters,
            "optimizer": optimizer,
            "best": list(self.best),
        }
        made = io.BytesIO()  # torch turns a full disk into an error that does not say so
        torch.save(state, made)
        try:
            with whole_file(folder / name) as out:
                out.write(made.getbuffer())
        except OSError as e:
            raise StoreError(f"cannot write the checkpoint of step {self.step} to {folder}: {e.strerror}") from None

    def restore(self, folder: Path) -> None:
        """Go on from the checkpoint. Raises ConfigError for one made from something else, ModelError for a damaged
        one."""
        state = read_checkpoint(folder / CHECKPOINT)
        self._refuse_other(folder, state["made_from"])
        try:
            self.roles.load(state["adapters"])
            shards.load_optimizer(self.optimizer, state["optimizer"])
        except ModelError as e:
            raise ModelError(f"{folder / CHECKPOINT}: {e}") from None
        self.step, self.best = state["step"], state["best"]

    def refuse_taken(self, folder: Path) -> None:
        """Raises ConfigError where a folder without a checkpoint holds another run, or files that are no run's."""
        if os.path.lexists(folder / RUN):
            found = read_run(folder)
            if "recipe" not in found:
                raise ConfigError(f"{folder / RUN}: not one of popi train; take another --out")
            self._refuse_other(folder, {k: v for k, v in found.items() if k not in ("name", "commit")})
        elif alone := [n for n in (BEST, METRICS) if os.path.lexists(folder / n)]:
            raise ConfigError(f"{folder / alone[0]}: there is no {RUN} beside it; take another --out")
        recipe = folder / RECIPE
        try:
            if os.path.lexists(recipe) and recipe.read_bytes() != self.recipe.text.encode():
                raise ConfigError(f"{recipe}: another recipe; take another --out")
        except OSError as e:
            raise ConfigError(f"cannot read the recipe {recipe}: {e.strerror}; take another --out") from None

    def _refuse_other(self, folder: Path, made_from: Mapping[str, Any]) -> None:
        for key in sorted(self.made_from.keys() | made_from):
            if made_from.get(key) != self.made_from.get(key):
                raise ConfigError(f"{folder} was begun from another {key}; take another --out, or the {key} of then")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """``step``, ``made_from``, ``adapters`` (of each role the arrays by name), ``optimizer`` and ``best`` of a
    checkpoint.

    Raises ModelError for a file that is missing or damaged anywhere.
    """
    try:
        checkpoint_check.check(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        adapters = {str(r): {str(n): v.numpy() for n, v in s.items()} for r, s in state["adapters"].items()}
        made_from = {str(k): str(v) for k, v in state["made_from"].items()}
        loss, at = state["best"]
        if type(state["step"]) is not int or state["step"] < 0:
            raise ValueError
        return {
            "step": state["step"], "made_from": made_from, "adapters": adapters, "optimizer": state["optimizer"],
            "best": (float(loss), int(at)),
        }  # fmt: skip
    except ModelError:
        raise
    except OSError as e:
        raise ModelError(f"cannot read {path}: {e.strerror}") from None
    except Exception as e:  # torch raises many kinds for a damaged file
        raise ModelError(f"{path}: not a checkpoint: {type(e).__name__}") from None


class _Steps(Dataset[Any]):
    """Step → its examples, or what is wrong with them: torch would wrap an error of a worker in its traceback."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Any:
        try:
            return self.make(step)
        except PopiError as e:
            return e


def _as_it_is(value: Any) -> Any:
    return value


def _work_for(main: int, _: int) -> None:
    """An interrupt is for the main process, which ends its workers; where it was killed they end by themselves: torch
    would let them wait for ever with what nobody takes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(main,), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _next(batches: Iterator[Any]) -> Any:
    """The next step's examples. Raises what was wrong with them, EngineError where a worker is gone."""
    try:
        made = next(batches)
    except RuntimeError as e:
        raise EngineError(f"a process that makes batches ended ({str(e)[:60]}); fewer --workers may help") from None
    if isinstance(made, PopiError):
        raise made
    return made


def refuse_absent(device: str) -> None:
    """Raises ConfigError for a device that is not here."""
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"there is no device {device} here")


def open_run(recipe: Recipe, where: Path, settings: Settings, device: str = "cpu") -> Trainer:
    """Load data and model for a recipe read from ``where``. Raises ConfigError, ModelError.

    On another ``device`` than "cpu" matrices are multiplied in TF32, and steps do not repeat bit for bit.
    """
    refuse_absent(device)
    torch.set_num_threads(recipe.train.threads)
    torch.use_deterministic_algorithms(device == "cpu")
    if device != "cpu":
        torch.set_float32_matmul_precision("high")
        if several():
            join(device)
    method = "joint_run" if recipe.method == "joint" else "warm_start"
    with _memory(lambda: f"{where}: too little memory on {device} for its models"):
        trainer: Trainer = importlib.import_module(f"popi_training.{method}").open_run(recipe, where, settings, device)
    return trainer


@contextmanager
def _memory(what: Callable[[], str]) -> Iterator[None]:
    """Raises EngineError saying ``what`` where there is too little memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if isinstance(e, RuntimeError) and not isinstance(e, torch.OutOfMemoryError) and CPU_MEMORY not in str(e):
            raise
        raise EngineError(what()) from None


def made_from(
    recipe: Recipe, data: Mapping[str, str], base_sha256: str, starts: Mapping[str, Adapter | None], device: str
) -> dict[str, str]:
    """Hashes of all that a run depends on, and the device where it is not the CPU. ``data``: name → hash; ``starts``:
    name → adapter."""
    contract = [dict(prompts.spec()), sorted(Lexicon.load().words)]
    return {
        "recipe": recipe_hash(recipe),
        **data,
        "prompt contract": digest(contract),
        "base": base_sha256,
        **{name: start.sha256 for name, start in starts.items() if start is not None},
        **({"device": device} if device != "cpu" else {}),
    }


def corpus_hash(data: warm.Set) -> str:
    """SHA-256 (hex) of every text and weight that users are made from."""
    texts = [*warm.all_texts(data.corpus), data.corpus.facts, data.corpus.reactions, sorted(data.weights.items())]
    return digest(texts)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of a recipe's text, as a run keeps it."""
    return digest(recipe.text)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def run(trainer: Trainer, folder: Path, *, until: int, minutes: float | None, tell: Tell, workers: int = 0) -> bool:
    """Train up to step ``until``, or for so many minutes, then save; ``workers`` processes make the batches ahead.
    Returns whether the recipe's end was reached, or that of its patience."""
    try:
        with (
            _alone(trainer.team, folder),
            _memory(lambda: f"step {trainer.step}: too little memory on {trainer.device} for this train.batch"),
        ):
            _train(trainer, folder, min(until, trainer.recipe.train.steps), minutes, tell, workers)
    except OSError as e:
        why = "it is no folder" if isinstance(e, FileExistsError) else e.strerror
        odd = (e.filename2 or e.filename) if isinstance(e, FileExistsError | IsADirectoryError) else folder
        raise StoreError(f"cannot write to {odd}: {why}") from None
    return trainer.over()


def _train(trainer: Trainer, folder: Path, until: int, minutes: float | None, tell: Tell, workers: int) -> None:
    t, team, began = trainer.recipe.train, trainer.team, time.monotonic()
    if os.path.lexists(folder / CHECKPOINT):
        trainer.restore(folder)
    else:
        trainer.refuse_taken(folder)
    team.wait()
    if team.main:
        _begin(trainer, folder)
    saved = trainer.step
    batches = iter(trainer.batches(until, workers))
    with (
        (folder / METRICS).open("a", encoding="utf-8") if team.main else nullcontext() as log,
        _board(folder, trainer.step) if team.main else nullcontext() as board,
    ):
        while trainer.step < until and not trainer.over():
            started = time.monotonic()
            line = trainer.train_step(_next(batches))
            line["seconds"] = round(time.monotonic() - started, 2)
            if trainer.step % t.dev_every == 0 or trainer.step == t.steps:
                line |= trainer.develop()
                if line.get("dev_loss", math.inf) < trainer.best[0]:
                    trainer.best = (line["dev_loss"], trainer.step)
                    trainer.save(folder, BEST)
            if log is not None:
                log.write(json.dumps(line) + "\n")
                log.flush()
                if board is not None:
                    for name in line.keys() - {"step"}:
                        board.add_scalar(name, line[name], trainer.step)
                tell(trainer.step, until, line)
            late = minutes is not None and time.monotonic() - began >= 60 * minutes
            late = any(team.gather([late]))
            if trainer.step % t.checkpoint_every == 0 or late:
                trainer.save(folder)
                saved = trainer.step
            if late:
                break
    if saved != trainer.step:
        trainer.save(folder)
    team.wait()


@contextmanager
def _alone(team: Team, folder: Path) -> Iterator[None]:
    """A run's folder is one trainer's at a time. Raises ConfigError, in all its processes, where it is another's."""
    from filelock import FileLock, Timeout

    lock, busy = FileLock(folder / LOCK), False
    if team.main:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            busy = True
    if any(team.gather([busy])):
        raise ConfigError(f"another popi train is at work in {folder}")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _board(folder: Path, step: int) -> Iterator[Any]:
    """Where the lines after ``step`` go for TensorBoard, later ones dropped; nothing, where it is not installed. What
    its thread cannot write the next call raises, so that the thread itself need not tell."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield None
        return
    told = threading.excepthook
    threading.excepthook = lambda what: None if isinstance(what.exc_value, OSError) else told(what)
    try:
        with SummaryWriter(str(folder / BOARD), purge_step=step + 1) as board:
            yield board
    finally:
        threading.excepthook = told


def _begin(trainer: Trainer, folder: Path) -> None:
    """The folder with what a run is made from, which comes first, and the metrics up to its step; without the drafts
    (``whole_file``) of one that was killed while it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CHECKPOINT, BEST, METRICS, RUN, RECIPE):
        forget_drafts(folder / name)
    made = {"name": trainer.recipe.name, **trainer.made_from, "commit": commits(folder)}
    with whole_file(folder / RUN) as out:
        out.write(json.dumps(made, indent=1).encode() + b"\n")
    with whole_file(folder / RECIPE) as out:
        out.write(trainer.recipe.text.encode())
    _keep(folder / METRICS, trainer.step)


def commits(folder: Path) -> str:
    """Of the code that a run's steps were made with: Git's name of it, with ``+`` where it was changed since; of a run
    that went on under other code all of them."""
    code, before = Path(__file__).parents[1], str(read_run(folder).get("commit") or "")

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(code), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        now = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", __file__) else ""
        if now and git("status", "--porcelain", "--", str(code)):
            now += "+"
    except OSError:
        now = ""  # there is no git
    return " ".join(dict.fromkeys([*before.split(), *now.split()]))


def _keep(path: Path, step: int) -> None:
    """Drop the lines of steps that the checkpoint does not hold: they will be made again."""
    lines = read_metrics(path) if path.exists() else []
    with whole_file(path) as out:
        out.write("".join(json.dumps(m) + "\n" for m in lines if m["step"] <= step).encode())
