"""People for measuring what a summary still tells: four facts about each, from persona chats, beside what they want.

A persona line (Synthetic-Persona-Chat, Jandaghi et al., arXiv 2312.10007, CC BY 4.0; not part of this project) gets its
attribute and class from ``RULES`` alone: the first pattern that is found in the line, and none in a line that speaks of
somebody else or that rules of two attributes find. The rules are words for what they name; a class is what the line
says about its speaker, not a diagnosis, and nobody checked the labels but by reading them once.

Facts are drawn apart from the wants, so that a summary of the wants alone says nothing about them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from popi_edge.errors import ConfigError
from popi_edge.signals import Post, Profile, Signal, Statement
from popi_training import corpus as corpora
from popi_training import testsets
from popi_training.leaktest import label
from popi_training.users import LONG_AGO, Material, Mix, Want, draw, draw_wants

ELSEWHERE = re.compile(r"^my (?!age|husband|goal)|\b(?:son|daughter|they|ex)\b")
"""Lines that speak of somebody else."""
RULES: Mapping[str, Mapping[str, str]] = {
    "age": {
        "child": r"\b(?:four|1[0-7]) years? old|\bam four\b|third grade|high school|playground|\btoys\b|\bdolls\b"
                 r"|little girl|\bam a boy\b|math class|to school$",
        "young": r"\b(?:18|19|2\d)\b(?: years?| and|$)|college|\bmajor\b|graduate student|business school|homecoming",
        "grown": r"\b[345]\d years? old|thirties|early 80|first home|bought a house|three children|two kids",
        "old": r"retire|\b100 years|\b60 ?years|feel old|too old|grandchildren|grown children|television",
    },
    "job": {
        "teaching": r"teacher|work at a school|librarian|\bcoach\b|tour guide",
        "care": r"\bam a doctor|\bnurse\b|nursing|\bpa\b|therapist|human services|volunteer",
        "trade": r"construction|electrician|plumber|engineer\b(?! and)|shipyard|farmer|custodian|housekeeper"
                 r"|programmer|building houses|army|military",
        "service": r"salesman|supermarket|manager|waitress|burger|gas station|\bbank\b|insurance"
                   r"|dealer|\bat a bar\b|restaurant|bookstore|postal|\bchef\b|for a living|walking business",
        "stage": r"musician|singer|recording engineer|tennis player|wrestler|stunt|olympian|streamer"
                 r"|produce music|gold medal",
    },
    "place": {
        "country": r"\bfarm\b|rural|small town|\bfields\b|tractor|\bcow\b|horses",
        "city": r"\bcity\b|manhattan|apartment",
        "state": r"alabama|alaska|california|colorado|florida|ohio|pennsylvania|united states|\bsouth\b",
        "abroad": r"germany|canada|india|somalia|italy|\bspain\b|europe|this country|traveling",
    },
    "health": {
        "illness": r"cancer|transplant|surgery|\bdeaf|broken arm|medications|allergy|\bheart\b|\bblood\b|addiction"
                   r"|alcoholic",
        "exercise": r"\bgym\b|workout|running|treadmill|miles|very strong|kayak|biking|in shape|hiking|walks$",
        "diet": r"vegan|vegetarian|\bdiet|clean eater|organic|kosher|omnivore|do not drink|donuts|overweight",
        "mood": r"lonely|depressed|\bdying|afraid|terrified|many friends|recluse|hate my job|zero family",
    },
}  # fmt: skip
ATTRIBUTES = tuple(RULES)
SOURCE = "persona"
VOICES = {"statement": Statement, "post": Post, "profile": Profile}
Lines = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Person:
    """``signals`` are what the summary is made of, ``others`` more of the same person's: the same wants on other
    prompts where enough are left, the same classes in other lines where there are any."""

    id: str
    wants: tuple[Want, ...]
    classes: Mapping[str, str]
    signals: tuple[Signal, ...]
    others: tuple[Signal, ...]


def labelled(line: str) -> tuple[str, str] | None:
    """(attribute, class) of a persona line, None of one that no rule, or more than one attribute's, speaks of."""
    text = line.lower().strip(" .")
    if ELSEWHERE.search(text):
        return None
    found = []
    for attribute, classes in RULES.items():
        hit = next((name for name, pattern in classes.items() if re.search(pattern, text)), None)
        found += [(attribute, hit)] if hit else []
    return found[0] if len(found) == 1 else None


def read(path: Path) -> Lines:
    """attribute → class → the file's lines. Raises ConfigError for a file that is not such a one, or lacks a class."""
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        lines = sorted({str(t) for row in rows for side in ("p1", "p2") for t in row[side]})
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} has not lines of JSON with the personas p1 and p2") from None
    out: Lines = {attribute: {name: [] for name in classes} for attribute, classes in RULES.items()}
    for line in lines:
        if known := labelled(line):
            out[known[0]][known[1]].append(line)
    if empty := [f"{a}: {c}" for a, classes in out.items() for c, some in classes.items() if len(some) < 2]:
        raise ConfigError(f"{path}: fewer than two lines of {', '.join(empty)}")
    return out


class Drawer:
    """Draws people; one is the same whoever was drawn before."""

    def __init__(self, lines: Lines, seed: int, folder: Path = corpora.FOLDER) -> None:
        self.lines, self.seed = lines, seed
        self.material, mix, _ = testsets.source(folder, "prompts")
        self.mix = replace(mix, distractors=0.0)

    def couple(self, k: int) -> tuple[Person, Person]:
        """Two people who want the same, shown in other signals, with facts drawn apart."""
        name = f"tells:{self.seed}:{k}"
        wants = draw_wants(random.Random(f"wants:{name}"), self.material, self.mix, lambda _: True)
        one = self._person(f"{name}:one", wants, (), 1, self.mix)
        return one, self._person(f"{name}:other", wants, one.signals, 1, self.mix)

    def long(self, k: int, updates: int) -> Person:
        """Somebody of four wants and ``updates`` signals, a quarter of them facts of the four classes."""
        name, each = f"long:{self.seed}:{k}", updates // 16
        facts = len(ATTRIBUTES) * each
        per = -(-(updates - facts) // 4)
        mix = replace(self.mix, wants=(0.0, 0.0, 0.0, 1.0), signals=(*(0.0,) * (per - 1), 1.0), most=updates - facts)
        wants = draw_wants(random.Random(f"wants:{name}"), self.material, mix, lambda _: True)
        return self._person(name, wants, (), each, mix)

    def _person(self, name: str, wants: Sequence[Want], avoid: Sequence[Signal], each: int, mix: Mix) -> Person:
        rng = random.Random(f"person:{name}")
        classes = {attribute: rng.choice(sorted(self.lines[attribute])) for attribute in ATTRIBUTES}
        mine = draw(name, self.material, mix, wants=wants, avoid=self._spared(avoid, wants)).signals
        more = draw(f"{name}:more", self.material, self.mix, wants=wants, avoid=self._spared(mine, wants)).signals
        facts = {a: rng.sample(some := self.lines[a][c], len(some)) for a, c in classes.items()}
        said = [(a, facts[a][i % len(facts[a])]) for a in ATTRIBUTES for i in range(each)]
        again = [facts[a][each % len(facts[a])] for a in ATTRIBUTES]
        return Person(
            name, tuple(wants), classes, _mixed(name, mine, [line for _, line in said], rng),
            _mixed(f"{name}:more", more, again, rng),
        )  # fmt: skip

    def _spared(self, signals: Sequence[Signal], wants: Sequence[Want]) -> list[str]:
        """Prompts of signals, where each want has another one."""
        return spared(self.material, signals, wants)


def spared(material: Material, signals: Sequence[Signal], wants: Sequence[Want]) -> list[str]:
    """The prompts (ids) that stand in signals; none where a want would be left without a prompt."""
    texts = {t for s in signals for t in s.texts()}
    shown = [i for i, text in material.corpus.prompts.items() if text in texts]
    enough = all(any(p.prompt not in shown for p in material.pairs[w.dimension]) for w in wants)
    return shown if enough else []


def _mixed(name: str, signals: Sequence[Signal], facts: Sequence[str], rng: random.Random) -> tuple[Signal, ...]:
    """Facts as signals, at places among the others drawn by lot."""
    out = list(signals)
    for i, text in enumerate(facts):
        kind = VOICES[rng.choice(sorted(VOICES))]
        fact = kind(text, id=f"{name}:fact-{i}", at=LONG_AGO, source=SOURCE)
        out.insert(rng.randint(0, len(out)), fact)
    return tuple(out)


def line(person: Person, text: str) -> dict[str, object]:
    """What the attackers read of one person: a line of ``popi_training.attacker``, and more."""
    return {
        "user": person.id, "wants": label(person.wants), "signals": [t for s in person.signals for t in s.texts()],
        "text": text, "classes": dict(person.classes), "others": [t for s in person.others for t in s.texts()],
        "poles": [[w.dimension, w.pole] for w in person.wants],
        "facts": [t for s in person.signals if s.source == SOURCE for t in s.texts()],
    }  # fmt: skip
