"""What lies in a run's folder, by name, and how its metrics are read; loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError

METRICS, CHECKPOINT, BEST, RUN, RECIPE = "metrics.jsonl", "checkpoint.pt", "best.pt", "run.json", "recipe.toml"
BOARD, LOCK = "tensorboard", ".lock"
UNCOMPARED = ("seconds",)
"""Fields of a metrics line that a replay need not repeat bit for bit."""
LARGEST = 1e300
"""What is not smaller can neither be drawn nor reckoned with."""


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number, and neither NaN nor infinity nor a whole number that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line of a file; the value is None where the line is not JSON. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            for n, blob in enumerate(file, 1):
                try:
                    yield n, json.loads(blob)
                except (ValueError, RecursionError):
                    yield n, None
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None


def metric_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The metrics of a run, step by step, and None for a last line that was cut off. Raises ConfigError for any other
    line that is not one of metrics."""
    bad = 0
    for n, value in json_lines(path):
        if bad:
            raise ConfigError(f"{path}, line {bad}: not a line of metrics")
        step = value.get("step") if isinstance(value, dict) else None
        if type(step) is int and 0 <= step < 2**53:
            yield value
        else:
            bad = n
    if bad:
        yield None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics of a run, step by step; a last line that was cut off is left out. Raises ConfigError."""
    return [line for line in metric_lines(path) if line is not None]


def differences(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[str]:
    """Where two runs' metrics differ in their common steps: empty if they agree bit for bit."""
    known = {m["step"]: m for m in theirs}
    out = []
    for m in ours:
        other = known.get(m["step"])
        if other is None:
            out.append(f"step {m['step']} is not there to compare with")
            continue
        keys = [k for k in m if k not in UNCOMPARED and not k.startswith("dev_")]
        unlike = [k for k in keys if m[k] != other.get(k)]
        out += [f"step {m['step']}: {k} {m.get(k)!r} against {other.get(k)!r}" for k in unlike]
    return out


def read_run(folder: Path) -> dict[str, Any]:
    """What a run was made from; nothing where its folder does not say it. Raises ConfigError for a damaged file."""
    path = folder / RUN
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: not a run: {e}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: not a run: no object")
    return found
