"""Made-up people whose signals hold a canary in every field, of every kind: what the network section looks for.

A canary is a word that nobody uses, a number of twelve digits, a mail address, a name of two words, or, where a field
takes nothing else, a time or an address in ids and names. All are drawn from a seed.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from popi_edge.vocabulary import ordinary_words

TEXTS: dict[str, dict[str, str]] = {
    "comparison": {
        "prompt": "How do I get a wine stain out of a tablecloth?",
        "chosen": "Blot it, cover it with salt, then wash it cold.",
        "rejected": "What a situation to be in! Let us first consider the kind of cloth, and how old the stain is.",
    },
    "rating": {
        "prompt": "What is a good stretch after sitting all day?",
        "response": "Stand up, reach for the ceiling, hold for ten seconds, and do it three times.",
    },
    "edit": {
        "prompt": "Write a note asking my neighbour to water the plants.",
        "original": "I am writing to enquire whether you might possibly be willing to water my plants while I am away.",
        "edited": "Hi! Could you water my plants this week? Thank you!",
    },
    "statement": {"text": "I like answers that are short and that get to the point at once."},
    "post": {
        "prompt": "What did you think of the course?",
        "text": "Good course, no long talk, one example a page, and I could use it on the same day.",
    },
    "conversation": {
        "system": "You are a helpful assistant in a garden shop.",
        "user": "When do I cut the roses back? Just the month please.",
        "assistant": "In late winter, before the new leaves come out.",
    },
    "profile": {"text": "Reads on the train, has little time, and skips every introduction."},
}
SYLLABLES = [c + v for c in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "t", "v", "w", "z", "qu", "kr")
             for v in ("a", "e", "i", "o", "u", "y")]  # fmt: skip
COMMON = ("id", "source", "at")
PLACES = sum(map(len, TEXTS.values())) + len(COMMON) * len(TEXTS) + 1
"""Fields of one person's seven signals that hold a canary each; the last is the person's own name."""


@dataclass(frozen=True)
class Person:
    """``signals`` as JSON objects, one of each kind; ``canaries``: place (kind.field) → what stands there."""

    user: str
    signals: list[dict[str, Any]]
    canaries: dict[str, str]

    def needles(self) -> dict[str, str]:
        """What to look for → its place: every canary, each of its words, and a time to the minute."""
        found: dict[str, str] = {}
        for place, canary in self.canaries.items():
            parts = [canary[:16]] if place.endswith(".at") else re.findall(r"[^\W_]{8,}", canary)
            found |= dict.fromkeys((canary, *parts), place)
        return found


def word(rng: random.Random) -> str:
    """A word of eight letters and more that is in no lexicon."""
    while True:
        made = "".join(rng.choice(SYLLABLES) for _ in range(4)) + rng.choice("dklmnrstx")
        if made not in ordinary_words():
            return made


def canary(rng: random.Random, form: int) -> str:
    """A word, number, address or name, in turn."""
    return (
        lambda: word(rng),
        lambda: str(rng.randrange(10**11, 10**12)),
        lambda: f"{word(rng)}@{word(rng)}.example",
        lambda: f"{word(rng).title()} {word(rng).title()}",
    )[form % 4]()


def _at(rng: random.Random) -> str:
    return (f"19{rng.randrange(50, 80)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}T{rng.randrange(24):02}:"
            f"{rng.randrange(60):02}:{rng.randrange(60):02}.{rng.randrange(1, 1000):03}Z")  # fmt: skip


def _planted(text: str, what: str, rng: random.Random) -> str:
    words = text.split()
    words.insert(rng.randrange(min(8, len(words)) + 1), what)  # early, so that the prompt does not cut it
    return " ".join(words)


def person(seed: int, number: int) -> Person:
    """The so-many-th made-up person of a seed."""
    rng = random.Random(f"privacy:{seed}:{number}")
    user = f"{word(rng)}-{word(rng)}"
    canaries, signals = {"user": user}, []
    for k, (kind, texts) in enumerate(TEXTS.items()):
        common = {"id": f"{word(rng)}-{word(rng)}", "source": word(rng), "at": _at(rng)}
        made = {}
        for i, (name, text) in enumerate(texts.items()):
            canaries[f"{kind}.{name}"] = canary(rng, number + k + i)
            made[name] = _planted(text, canaries[f"{kind}.{name}"], rng)
        canaries |= {f"{kind}.{name}": value for name, value in common.items()}
        if kind == "conversation":
            fields: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in made.items()]}
        else:
            fields = {**made, **({"score": 0.9} if kind == "rating" else {})}
        signals.append({"kind": kind, **common, "user": user, **fields})
    return Person(user, signals, canaries)
