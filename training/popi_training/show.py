"""Summaries as they are, beside the signals they were made from: users drawn by a seed from an AlignX file.

    python -m popi_training.show FILE [--users 20] [--seed 20261124] [--engine onnx]

Signals are each row's four past pairs and its profile, as ``popi import`` reads them; nothing is stored.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

from popi_edge.cli.common import at_least, launch
from popi_edge.config import load
from popi_edge.errors import ConfigError, PopiError
from popi_edge.importers import read
from popi_edge.importers.jsonl import LineError, Skipped
from popi_edge.signals import Signal
from popi_training.evaluate.run import open_pair


def users_of(path: Path) -> dict[str, list[Signal]]:
    """Every user's signals, in the file's order."""
    users: dict[str, list[Signal]] = defaultdict(list)
    for _, item in read(path):
        if not isinstance(item, LineError | Skipped):
            users[item.user].append(item)
    return dict(users)


def line(signal: Signal) -> str:
    """One signal on one line."""
    texts = [" ".join(t.split())[:90] for t in signal.texts()]
    return f"  {signal.kind:<11} " + " | ".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--users", type=at_least(1), default=20)
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--engine", choices=["onnx", "llama_cpp"], default="onnx")
    args = parser.parse_args()
    try:
        if not (everyone := users_of(args.file)):
            raise ConfigError(f"{args.file}: nobody with a signal in it")
        pair = open_pair(None, args.engine, load())
        for name in random.Random(args.seed).sample(sorted(everyone), min(args.users, len(everyone))):
            made = pair.infer(everyone[name])
            print(f"{name} [{made.status}, {made.tokens} tokens]: {made.text or made.reason}")
            print(*map(line, everyone[name]), sep="\n")
    except PopiError as e:
        sys.exit(f"show: {e}")


if __name__ == "__main__":
    launch(main)
