"""What changed between two texts, word by word. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

PIECE = re.compile(r"\s+|\w+(?:['’-]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Change:
    """``op`` is equal, insert, delete or replace; ``old`` and ``new`` are what stands there before and after."""

    op: str
    old: str
    new: str


def changes(old: str, new: str) -> tuple[Change, ...]:
    """How ``new`` comes from ``old``; the ``old`` parts joined are the one text, the ``new`` parts the other."""
    a, b = PIECE.findall(old), PIECE.findall(new)
    steps = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    found: list[Change] = []
    for op, i, j, k, m in steps:
        found.append(Change(op, "".join(a[i:j]), "".join(b[k:m])))
        if len(found) > 2 and op != "equal" and found[-2].op == "equal" and found[-2].old.isspace():
            *found, x, space, y = found  # words that change side by side are one change
            found.append(Change("replace", x.old + space.old + y.old, x.new + space.new + y.new))
    return tuple(found)


def marked(found: Iterable[Change]) -> str:
    """Both texts in one: what went in [-brackets-], what came in {+braces+}."""
    parts = []
    for c in found:
        if c.op == "equal":
            parts.append(c.old)
            continue
        parts += [f"[-{c.old}-]"] if c.old else []
        parts += [f"{{+{c.new}+}}"] if c.new else []
    return "".join(parts)
