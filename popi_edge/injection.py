"""Posts that speak to the model which reads them, and are left out of what it reads.

A post is somebody's taste or nothing; one that orders a summariser about, speaks of "the reader" in the third person,
calls the other posts worthless, or forges a chat's control tokens, is neither. The rules are data,
``spec/injection.json``: kinds of phrases with a weight each, counted once a kind in the folded text (look-alike and
invisible characters, letters set apart, digits for letters). Posts and profiles whose kinds add up to ``enough`` are
commands.

Not covered: languages other than English (those are not read at all), lies that command nothing (an ordinary post of
its own weight), statements and prompts, which are orders by nature.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from popi_edge.guard.folding import fold
from popi_edge.signals import Post, Profile, Signal

APART = re.compile(r"\b(?:\w ){2,}\w\b")
"""Letters with a space after each."""
LONGEST = 20_000
"""Characters that are looked at; what stands behind them in a post is cut off before a model reads it."""


@functools.cache
def spec() -> Mapping[str, Any]:
    """The rules: ``enough``, ``leet``, and of each kind its weight and its patterns."""
    data: dict[str, Any] = json.loads(files("popi_edge.spec").joinpath("injection.json").read_text("utf-8"))
    sets = {name: "(?:" + "|".join(words) + ")" for name, words in data["sets"].items()}
    data["kinds"] = [
        (kind["name"], kind["weight"], [re.compile(_filled(p, sets), re.MULTILINE) for p in kind["patterns"]])
        for kind in data["kinds"]
    ]
    return data


def _filled(pattern: str, sets: Mapping[str, str]) -> str:
    return re.sub(r"%([a-z]+)%", lambda name: sets[name[1]], pattern)


def commands(signal: Signal) -> str | None:
    """Why a post or a profile is taken for a command to the model, or None; None for the other kinds of signal. It says
    none of the text, which may be deleted later."""
    if not isinstance(signal, Post | Profile):
        return None
    found = dict(_found(signal.text[:LONGEST]))
    return ", ".join(found) if sum(found.values()) >= spec()["enough"] else None


def _found(text: str) -> Iterator[tuple[str, int]]:
    """Each kind of phrase that stands in the text, and its weight."""
    plain = fold(text)
    apart = re.sub("  +", "\0", plain)
    joined = APART.sub(lambda hit: hit.group().replace(" ", ""), apart).replace("\0", " ")
    readings = (plain, joined, plain.translate({ord(a): b for a, b in spec()["leet"].items()}))
    for name, weight, patterns in spec()["kinds"]:
        if any(p.search(r) for r in dict.fromkeys(readings) for p in patterns):
            yield name, weight
