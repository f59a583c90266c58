"""What an export of whole models is asked to do, checked before the first hour of work."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError
from popi_edge.models.bases import file_sha256
from popi_edge.models.gguf import Gguf
from popi_edge.models.manifest import NAME
from popi_export import quantize, to_onnx
from popi_export.source import Source

FORMATS = ("gguf", "onnx")
DEFAULTS = {"gguf": "Q4_1", "onnx": "int4"}
NEEDS = {"fp32": ("F32",), "int8": ("Q8_0",), "int4": ("Q4_1", "Q4_0")}
"""Which GGUF an ONNX kind can be made from."""
SAME = {"Q8_0": "int8", "Q4_1": "int4", "Q4_0": "int4"}
"""The ONNX kind that holds the numbers of a GGUF as they are."""
FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 15: "Q4_K_M", 17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL"}
"""``general.file_type`` as llama.cpp numbers it."""
COUNTED = re.compile(
    r".*\.(json|safetensors|jinja|gguf|pt|toml)|(README|LICEN[SC]E|NOTICE|COPYING)(\.(md|txt))?", re.IGNORECASE
)
"""Files of a checkpoint's folder that an export reads."""


@dataclass(frozen=True)
class Plan:
    """An export: ``gguf`` and ``onnx`` are the quantizations wanted, ``merge`` the adapter that goes into the weights,
    ``own`` the quantization that the source has already and that stays bit for bit, ``verify`` full, quick or off,
    ``way`` how ONNX is made: direct (from the GGUF) or optimum (from the folder)."""

    name: str
    version: str
    gguf: tuple[str, ...]
    onnx: tuple[str, ...]
    merge: str | None
    own: str | None = None
    verify: str = "full"
    limits: Path | None = None
    calibration: str | None = None
    licence: str | None = None
    base: Path | None = None
    way: str = "direct"
    command: str = ""

    @property
    def made(self) -> tuple[str, ...]:
        """Every GGUF quantization that must be made, those for ONNX alone too."""
        if self.way == "optimum":
            return self.gguf
        return tuple(dict.fromkeys([*self.gguf, *map(self.onnx_from, self.onnx)]))

    def onnx_from(self, kind: str) -> str:
        """The GGUF quantization that an ONNX kind is made from: the source's own, one that is asked for anyway, or the
        first that will do."""
        return next(k for k in (self.own, *self.gguf, *NEEDS[kind]) if k in NEEDS[kind])


def make(
    source: Source, *, formats: Sequence[str], kinds: Sequence[str], adapters: str | None, name: str | None,
    version: str, **rest: Any,
) -> Plan:  # fmt: skip
    """A plan from a command's words. Raises ConfigError naming the word at fault."""
    formats = tuple(dict.fromkeys(formats)) or ("gguf",)
    if wrong := [f for f in formats if f not in FORMATS]:
        raise ConfigError(f"--to {wrong[0]!r:.40}: there are {', '.join(FORMATS)}")
    known = {"gguf": quantize.KINDS, "onnx": tuple(to_onnx.KINDS)}
    chosen: dict[str, tuple[str, ...]] = {}
    for form in FORMATS:
        asked = tuple(dict.fromkeys(k for k in kinds if k in known[form]))
        chosen[form] = (asked or (_default(source, form),)) if form in formats else ()
    for kind in kinds:
        if not any(kind in known[form] for form in formats):
            there = ", ".join(k for form in formats for k in known[form])
            raise ConfigError(f"--quant {kind!r:.40}: for {' and '.join(formats)} there are {there}")
    name = name or re.sub(r"[^A-Za-z0-9._+-]+", "-", source.path.stem or "model").lstrip("-._+")[:64] or "model"
    for what, text in (("name", name), ("version", version)):
        if not NAME.fullmatch(text):
            raise ConfigError(f"the {what} must be letters, digits and . _ + -, not {text!r:.80}")
    merge = _merge(source, adapters)
    if rest.get("way") == "optimum" and source.kind != "hf":
        raise ConfigError("optimum makes ONNX from a Hugging Face folder without adapters; leave out --onnx optimum")
    if rest.get("way") is not None and "onnx" not in formats:
        raise ConfigError(f"--onnx {rest['way']} says how ONNX is made; add --to onnx")
    own = kind_of(source.file) if source.file is not None and merge is None else None
    rest["way"] = rest.get("way") or "direct"
    return Plan(name=name, version=version, gguf=chosen["gguf"], onnx=chosen["onnx"], merge=merge, own=own, **rest)


def _default(source: Source, form: str) -> str:
    """The quantization where nobody says: that of a GGUF itself, whose numbers then stay as they are."""
    own = kind_of(source.file) if source.file is not None else None
    return (own if form == "gguf" else SAME.get(own or "")) or DEFAULTS[form]


def _merge(source: Source, adapters: str | None) -> str | None:
    """The adapter to merge, or None. Raises ConfigError where it is not clear which."""
    if adapters not in (None, "keep", "merge"):
        raise ConfigError(f"--adapters {adapters!r:.40}: merge or keep")
    if not source.adapters and adapters is not None:
        raise ConfigError(f"{source.path} has no adapters to {adapters}")
    if adapters != "merge":
        return None
    if len(source.adapters) > 1:
        both = " and ".join(source.adapters)
        raise ConfigError(f"{source.path} has adapters for {both}; merged weights hold one: use --adapters keep")
    return next(iter(source.adapters))


def kind_of(gguf: Gguf) -> str | None:
    """The quantization that a GGUF says it has, where most of its matrices have a type of it."""
    kind = FILE_TYPES.get(gguf.fields.get("general.file_type", -1))
    matrices = [t.type for t in gguf.tensors.values() if len(t.shape) == 2]
    if kind is None or 2 * sum(t in quantize.INTENDED[kind] for t in matrices) < len(matrices):
        return None
    return kind


def described(source: Source, base: Path | None) -> str:
    """What a source is, in words, without places on this device."""
    if source.kind == "run":
        run = source.run
        return f"the run {run.recipe.name} (step {run.step}) on {run.base.name}"
    name = source.path.resolve().name
    if source.kind == "peft":
        assert base is not None
        return f"the PEFT adapter {name} on {base.resolve().name}"
    return name


def fingerprint(source: Source, base: Path | None) -> str:
    """SHA-256 (hex) over the names and hashes of every file that an export of this source may read."""
    found: dict[str, str] = {}
    for part, place in (("", source.path), ("base:", base)):
        if place is None:
            continue
        here = sorted(place.iterdir()) if place.is_dir() else [place]
        if source.kind == "run" and not place.is_dir():
            here.append(place.parent / "recipe.toml")
        for path in here:
            if path.is_file() and (COUNTED.fullmatch(path.name) or not place.is_dir()):
                found[part + path.name] = file_sha256(path)
    if source.kind == "run":
        found["base"] = source.run.base.sha256
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
