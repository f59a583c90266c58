"""The same adapter in torch, ONNX Runtime and llama.cpp, on the quantized base: do they choose alike?

    python -m popi_training.parity RUN BUNDLE OUT.json [--users N]

For development users: is a summary of what the user wants likelier, per token, than one of the opposite? By torch (the
run's checkpoint on the dequantized base) and by either engine (the bundle's file on the quantized base). On float
weights the agreement is exact (tests/test_export.py); here the engines round activations, so accuracies are compared,
with intervals over users. The closed vocabulary is off: bare log-probabilities are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from popi_edge import config
from popi_edge.cli.common import at_least, launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.models.bundle import open_bundle
from popi_training import base, recipe, train
from popi_training.evaluate.journal import write_whole
from popi_training.evaluate.metrics import interval
from popi_training.loss import token_logprobs
from popi_training.pack import Sample, pack
from popi_training.runfolder import CHECKPOINT, RECIPE
from popi_training.users import draw, mirror, say
from popi_training.warm_start import WarmStart


def cases(trainer: WarmStart, users: int) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """(prompt, completions) of development users: two summaries of their wants, two of the opposite wants."""
    out: list[tuple[tuple[int, ...], list[tuple[int, ...]]]] = []
    for k in range(10 * users):
        data, reader = trainer.data, trainer.reader
        user = draw(f"parity:{k}", data.dev, trainer.recipe.users, allows=data.splits.allows)
        if user.wants and len(out) < users:
            rng = random.Random(user.id)
            texts = [say(w, data.dev, rng, reader.tokenizer) for w in (user.wants, mirror(user.wants, data.dev)) * 2]
            ids = [(*reader.tokenizer.encode(t), reader.tokenizer.eos) for t in texts]
            out.append((reader.prompt(user.signals), ids))
    return out


def choice(scores: list[float], sizes: list[int]) -> tuple[float, float]:
    """(right, margin per token) of [own, opposite, own, opposite] log-probabilities."""
    each = [s / n for s, n in zip(scores, sizes, strict=True)]
    margins = [each[0] - each[1], each[2] - each[3]]
    return float(np.mean([m > 0 for m in margins])), float(np.mean(margins))


@torch.no_grad()
def by_torch(trainer: WarmStart, todo: list[Any]) -> list[tuple[float, float]]:
    """Choices of the checkpoint's float adapter on the dequantized base."""
    out = []
    for prompt, ids in todo:
        packed = pack([Sample(prompt, tuple(i)) for i in ids])
        sums = [float(part.sum()) for part in token_logprobs(trainer.model, [packed])[0].split(packed.sizes)]
        out.append(choice(sums, packed.sizes))
    return out


def by_engine(engine: Any, adapter: str | None, todo: list[Any]) -> list[tuple[float, float]]:
    """Choices of an engine with the exported adapter on the quantized base."""
    out = []
    for prompt, ids in todo:
        scores = engine.score(prompt, [list(i) for i in ids], adapter=adapter)
        out.append(choice([s.total for s in scores], [len(i) for i in ids]))
    return out


def compared(ours: list[tuple[float, float]], torchs: list[tuple[float, float]]) -> dict[str, Any]:
    """Accuracy with its interval, agreement with torch, and how far the margins lie from torch's (nats a token)."""
    right = np.array([r for r, _ in ours])
    bounds = interval(right, [str(i) for i in range(len(right))], seed=0) or (None, None)
    apart = np.array([a[1] - b[1] for a, b in zip(ours, torchs, strict=True)])
    alike = np.mean([(a[1] > 0) == (b[1] > 0) for a, b in zip(ours, torchs, strict=True)])
    return {
        "accuracy": round(float(right.mean()), 4), "low": bounds[0], "high": bounds[1],
        "agrees_with_torch": round(float(alike), 4), "margin_difference": round(float(np.abs(apart).mean()), 5),
        "margin": round(float(np.mean([m for _, m in ours])), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle")
    parser.add_argument("out", type=Path)
    parser.add_argument("--users", type=at_least(1), default=60)
    options = parser.parse_args()
    try:
        settings = config.load()
        path = options.run / RECIPE
        made = recipe.read(path)
        if made.data.corpus:
            made = replace(made, data=replace(made.data, corpus=str(Path(made.data.corpus).resolve())))
        made = replace(made, lora=replace(made.lora, start=""))  # the checkpoint holds the whole adapter
        trainer = train.open_run(made, path, settings)
        if not isinstance(trainer, WarmStart):
            raise ConfigError(f"{options.run} is no warm start: here one adapter alone is compared")
        base.load_lora(trainer.model, train.read_checkpoint(options.run / CHECKPOINT)["adapters"]["infer"])
        todo = cases(trainer, options.users)
        torchs = by_torch(trainer, todo)
        result = {"users": len(todo), "torch": compared(torchs, torchs)}
        bundle = open_bundle(options.bundle, settings)
        for name in ("onnx", "llama_cpp"):
            engine = bundle.engine(name, threads=settings.threads)
            result[name] = compared(by_engine(engine, bundle.adapter("infer"), todo), torchs)
            engine.close()
        write_whole(options.out, json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
    except (PopiError, OSError) as e:
        sys.exit(f"parity: {e}")


if __name__ == "__main__":
    launch(main)
