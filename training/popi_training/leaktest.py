"""Summaries of people who want the same, for the attacker: what tells two of them apart is not what they want.

    python -m popi_training.leaktest --bundle B [--users N] [--signals N] [--seed S] [--sampled T] [--no-mask]
        [--engine E] --out FILE.jsonl

People come in couples: the same wants, drawn from the held-out prompts, shown in other signals, on other prompts where
enough are left; most have facts among their signals, since those are what must not show. ``--signals``: so many for
each want, two at least (default: one to three, as in training). ``--sampled``: at this temperature instead of greedily;
``--no-mask``: without the closed vocabulary, which is how a leak would show. FILE has the lines of
``popi_training.attacker``; what it finds among people who want the same, and among all, is printed as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from popi_edge import config
from popi_edge.cli.common import launch
from popi_edge.engines.base import Engine
from popi_edge.errors import ConfigError, PopiError
from popi_training import attacker, testsets
from popi_training import corpus as corpora
from popi_training.behaviour import summaries
from popi_training.cli import Meter
from popi_training.evaluate.journal import write_whole
from popi_training.evaluate.run import open_pair
from popi_training.users import Material, Mix, User, Want, draw, draw_wants

MOST_SIGNALS = 16


class Sampled:
    """An engine that samples what it streams at a temperature, the same for the same prompt and seed."""

    def __init__(self, engine: Engine, temperature: float, seed: int) -> None:
        self._engine, self._temperature, self._seed = engine, temperature, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def stream(self, prompt: Sequence[int], **options: Any) -> Iterator[int]:
        blob = json.dumps([self._seed, list(map(int, prompt))]).encode()
        seed = int.from_bytes(hashlib.sha256(blob).digest()[:4], "big")
        yield from self._engine.stream(prompt, **options | {"temperature": self._temperature, "seed": seed})


def label(wants: Sequence[Want]) -> str:
    """Wants as the attacker compares them, whatever their order."""
    return ", ".join(sorted(f"{w.dimension}:{w.pole}" for w in wants))


def couples(count: int, signals: int | None, seed: int, folder: Path = corpora.FOLDER) -> list[tuple[User, str]]:
    """``count`` people with the label of what they want, the two of a couple one after the other.

    Raises ConfigError for an odd or too small number of people, or of signals.
    """
    if count < 2 or count % 2:
        raise ConfigError(f"--users is {count}; people come in couples, so it must be even and at least 2")
    if signals is not None and not 1 <= signals <= MOST_SIGNALS:
        raise ConfigError(f"--signals is {signals}; it must be from 1 to {MOST_SIGNALS}")
    material, mix, _ = testsets.source(folder, "prompts")
    numbers = mix.signals if signals is None else (*(0.0 for _ in range(signals - 1)), 1.0)
    mix = replace(mix, signals=numbers, most=len(mix.wants) * len(numbers), distractors=1.0)
    out: list[tuple[User, str]] = []
    for k in range(count // 2):
        name = f"leak:{seed}:{k}"
        wants = draw_wants(random.Random(f"wants:{name}"), material, mix, lambda _: True)
        out += [(user, label(wants)) for user in _couple(name, wants, material, mix)]
    return out


def _couple(name: str, wants: Sequence[Want], material: Material, mix: Mix) -> tuple[User, User]:
    """Two people of the same wants; no prompt is in both one's signals as long as each want has another."""
    one = draw(f"{name}:one", material, mix, wants=wants)
    texts = {t for s in one.signals for t in s.texts()}
    shown = [i for i, text in material.corpus.prompts.items() if text in texts]
    enough = all(any(p.prompt not in shown for p in material.pairs[w.dimension]) for w in wants)
    return one, draw(f"{name}:other", material, mix, wants=wants, avoid=shown if enough else ())


def line(user: User, wants: str, text: str) -> dict[str, Any]:
    """What the attacker reads of one person."""
    return {"user": user.id, "wants": wants, "signals": [t for s in user.signals for t in s.texts()], "text": text}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--signals", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampled", type=float, metavar="T")
    parser.add_argument("--no-mask", action="store_true")
    parser.add_argument("--engine", choices=["onnx", "llama_cpp"])
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    try:
        if options.sampled is not None and not 0 < options.sampled <= 10:
            raise ConfigError(f"--sampled is {options.sampled}; a temperature is above 0 and at most 10")
        people = couples(options.users, options.signals, options.seed)
        settings = config.load(closed_vocabulary=not options.no_mask)
        model = open_pair(options.bundle, options.engine, settings)
        if options.sampled is not None:
            model = replace(model, engine=Sampled(model.engine, options.sampled, options.seed))
        lines = []
        with closing(model.engine), closing(Meter()) as meter:
            for user, wants in people:
                [(_, text, _)] = summaries(model, [user])
                lines.append(line(user, wants, text))
                meter("summaries", 1, len(people))
        write_whole(options.out, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
        read = attacker.read(options.out)
        found = {name: attacker.attack(read, options.seed, same_wants=same)
                 for name, same in (("same_wants", True), ("all", False))}  # fmt: skip
    except (PopiError, OSError) as e:
        sys.exit(f"leaktest: {e}")
    print(json.dumps({"model": model.model, "mask": not options.no_mask, "sampled": options.sampled} | found, indent=1))


if __name__ == "__main__":
    launch(main)
