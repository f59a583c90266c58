"""What a person wants done with a finding: ``block`` (the default), ``mask`` it, or ``ask`` them.

In ``config.toml``: a table ``[guard]`` with a rule's name, or ``default``, on the left. A masked text is checked again.
Whatever the policy says, a text with a finding that nobody answered for does not pass.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from popi_edge.errors import ConfigError
from popi_edge.guard.finding import RULES, Finding

ACTIONS = ("block", "mask", "ask")
DEFAULT = "default"
UNMASKABLE = ("text", "size", "form", "structured")
"""Rules whose findings have nothing in them that could be replaced."""
REMOVED = ("hidden", "marks")
NEUTRAL = "something"
AGAIN = re.compile(rf"\b({NEUTRAL})(?:[\s,;:/&-]+{NEUTRAL}\b)+", re.IGNORECASE)


@dataclass(frozen=True)
class Policy:
    """Rule → action; what is not named is blocked."""

    actions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Any, where: str = "guard") -> Policy:
        """From a table of settings. Raises ConfigError for a rule or an action that does not exist."""
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: guard must be a table of rules and actions")
        for rule, action in table.items():
            if rule != DEFAULT and rule not in RULES:
                raise ConfigError(f"{where}: the guard has no rule {rule!r:.40} (known: {', '.join(RULES)})")
            if action not in ACTIONS:
                raise ConfigError(f"{where}: guard.{rule} is {action!r:.40}; it must be {', '.join(ACTIONS)}")
        return cls(dict(table))

    def action(self, rule: str) -> str:
        """What to do with a finding of this rule."""
        action = self.actions.get(rule, self.actions.get(DEFAULT, "block"))
        if action not in ACTIONS or (action == "mask" and rule in UNMASKABLE):
            return "block"
        return action

    def applied(self, found: Iterable[Finding]) -> tuple[Finding, ...]:
        """The findings, each with its action. Where a rule could not decide, that is to block, whatever was set."""
        return tuple(
            dataclasses.replace(f, action="block" if f.failed else self.action(f.rule)) for f in found
        )


def mask(text: str, found: Iterable[Finding]) -> str:
    """The text with every finding whose action is ``mask`` replaced by a neutral word, or left out where no word is."""
    spans: list[list[Any]] = []
    for f in sorted((f for f in found if f.action == "mask"), key=lambda f: (f.start, f.end)):
        instead = "" if f.rule in REMOVED else NEUTRAL
        if spans and f.start < spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], f.end)
            spans[-1][2] = spans[-1][2] or instead
        else:
            spans.append([f.start, f.end, instead])
    out, at = [], 0
    for start, end, instead in spans:
        gap = " " if not instead and text[start:end].isspace() else ""
        out += [text[at:start], instead or gap]
        at = end
    joined = AGAIN.sub(r"\1", "".join([*out, text[at:]]))
    return _sentences(re.sub(r"\s+([.,;:!?])", r"\1", " ".join(joined.split())))


def _sentences(text: str) -> str:
    """With a capital where a neutral word begins a sentence."""
    return re.sub(rf"(^|[.!?]\s+){NEUTRAL}\b", lambda m: f"{m[1]}{NEUTRAL.capitalize()}", text)
