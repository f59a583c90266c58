"""A person may overrule the guard on their own text, word by word: what they named is kept, and nothing else passes.

An ``Overruled`` covers the same rule's findings inside its place in that very text, later ones too. A rule that failed
has found nothing yet, so there is nothing to overrule: that blocks always.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from popi_edge.errors import ConfigError

if TYPE_CHECKING:
    from popi_edge.guard import Finding

EDGES = re.compile(r"^[^\w]+|[^\w]+$")


@dataclass(frozen=True)
class Overruled:
    """A finding that the person overruled: its rule, its place in the text (characters), what stands there, and the
    signal that it came from."""

    rule: str
    start: int
    end: int
    text: str
    signal_id: str | None = None


def words_of(text: str) -> tuple[str, ...]:
    """What a person names when they overrule: pieces between spaces, without the punctuation around them."""
    return tuple(EDGES.sub("", piece) or piece for piece in text.split())


def overrule(text: str, findings: Iterable[Finding], named: Iterable[str]) -> tuple[Overruled, ...]:
    """The findings in ``text`` all of whose words are ``named`` (several words in one name count one by one).

    Raises ConfigError for a name that stands in no finding: a person should know what they overrule.
    """
    wanted = [word for name in named for word in words_of(name)]
    at_issue: set[str] = set()
    done = []
    for f in findings:
        words = words_of(text[f.start : f.end])
        if f.failed or not words:
            continue
        at_issue.update(words)
        if set(words) <= set(wanted):
            done.append(Overruled(f.rule, f.start, f.end, text[f.start : f.end], f.signal_id))
    for word in wanted:
        if word not in at_issue:
            raise ConfigError(f"the guard finds nothing in {word!r:.60}, so there is nothing to overrule")
    return tuple(done)


def accepted(text: str, findings: Iterable[Finding]) -> tuple[Overruled, ...]:
    """Findings that the person let pass when they were asked, as they are recorded."""
    return tuple(Overruled(f.rule, f.start, f.end, text[f.start : f.end], f.signal_id) for f in findings)


def standing(text: str, findings: Iterable[Finding], overruled: Sequence[Overruled]) -> tuple[Finding, ...]:
    """The findings that no ``overruled`` one covers."""
    valid = [o for o in overruled if o.text and text[o.start : o.end] == o.text]
    return tuple(
        f for f in findings
        if f.failed or not any(o.rule == f.rule and o.start <= f.start < f.end <= o.end for o in valid)
    )  # fmt: skip
