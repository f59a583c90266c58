"""How much an export of a run may lose: limits by kind of file, defaults that a recipe's table ``[limits]`` overrides.

``popi export`` judges by them what it wrote (``popi_export.verify``), of other checkpoints too.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError

KINDS = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_NL", "fp32", "int8", "int4")
"""Kinds of file: those of GGUF, then those of ONNX."""
TABLES = ("logits", "kl", "agreement", "perplexity")


def _table(**values: float) -> Any:
    return field(default_factory=lambda: values)


@dataclass(frozen=True)
class Limits:
    """``tokenizer``: strings that may be tokenized in another way. By kind of file: ``logits``, the largest difference
    of a logit; ``kl``, the most mean KL to the reference, in nats; ``agreement``, the least share of positions with the
    same greedy token; ``perplexity``, the most that it may be, relative to the reference's. ``task``: the most that a
    task's figure (0 to 1) may fall. A kind that a table does not name has no limit there."""

    tokenizer: int = 0
    task: float = 0.125
    logits: Mapping[str, float] = _table(F32=0.01, fp32=0.01)
    kl: Mapping[str, float] = _table(
        F32=1e-6, F16=1e-4, Q8_0=0.01, Q6_K=0.02, Q5_K_M=0.05, Q4_K_M=0.1, Q4_1=0.15, Q4_0=0.2, IQ4_NL=0.15,
        fp32=1e-6, int8=0.02, int4=0.2,
    )  # fmt: skip
    agreement: Mapping[str, float] = _table(F32=0.999, fp32=0.999, F16=0.99, Q8_0=0.93)
    perplexity: Mapping[str, float] = _table(
        F32=1.0001, F16=1.001, Q8_0=1.02, Q6_K=1.03, Q5_K_M=1.06, Q4_K_M=1.12, Q4_1=1.15, Q4_0=1.25, IQ4_NL=1.2,
        fp32=1.0001, int8=1.03, int4=1.25,
    )  # fmt: skip


def read(path: Path) -> Limits:
    """The limits of a TOML file's table ``[limits]``; the defaults where it has none. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not TOML: {e}") from None
    return parse(tables(text, str(path)).get("limits", {}), str(path))


def tables(text: str, where: str) -> dict[str, Any]:
    """What a TOML text says. Raises ConfigError: not TOML, or numbers too long or lists too deep to be read."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{where}: not TOML: {e}") from None


def refuse_large(value: Any, key: str, where: str) -> None:
    """Raises ConfigError for a whole number beyond the 64 bits of TOML, which may be too long to be told."""
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where}: {key} is a whole number of more than 64 bits")


def parse(table: Any, where: str) -> Limits:
    """The limits of a table; a kind that it names overrides that kind's default, the others stay.

    Raises ConfigError naming the key: an unknown one, what is no number, or one that nothing could break.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: limits must be a table")
    known, values = {f.name for f in fields(Limits)}, dict[str, Any]()
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: there is no key limits.{key}; there are {', '.join(sorted(known))}")
        if key in TABLES:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: limits.{key} must be a table of kinds")
            if odd := next((k for k in value if k not in KINDS), None):
                raise ConfigError(f"{where}: there is no kind limits.{key}.{odd}; there are {', '.join(KINDS)}")
            own = {k: _number(v, f"limits.{key}.{k}", where) for k, v in value.items()}
            values[key] = {**getattr(Limits(), key), **own}
        elif key == "tokenizer":
            refuse_large(value, "limits.tokenizer", where)
            if type(value) is not int or value < 0:
                raise ConfigError(f"{where}: limits.tokenizer must be a whole number of at least 0, not {value!r:.40}")
            values[key] = value
        else:
            values[key] = _number(value, f"limits.{key}", where)
    return replace(Limits(), **values)


def _number(value: Any, key: str, where: str) -> float:
    refuse_large(value, key, where)
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{where}: {key} must be a number of at least 0, not {value!r:.40}")
    return float(value)
