"""How often the guard blocks a summary that says nothing but a preference.

    python -m bench.guard_false_alarms [--users 2000]

``phrasings``  every summary phrasing of the corpus, checked with no signals
``own``        right summaries of made-up users (``popi_training.users``) against the same user's signals
``model``      summaries that popi-smol 0.2.0 really wrote (docs/measured/warm_behaviour.jsonl), against the signals
               that they were made from, drawn again
``store``      right summaries against the signals of 800 people at once, as if they were one person's
``restated``   the hard case: what a person said they like, said back in much the same words (``restated.json``, 45
               pairs about replies, then 25 about other tastes); ``of_words``: those whose summary is of lexicon words
``restated_later``  40 more pairs (``restated_later.json``, 20 and 20), written after the rules that the first met
``as_i``       the summaries of ``store`` said of oneself ("Likes" → "I like"), as a person may edit them
``said_whole`` what a person said they like, word for word, as if they had typed it as their summary: all pairs' left

Prints JSON: how many, how many blocked, and by which rules. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from popi_edge.cli.common import launch
from popi_edge.guard import SignalText, check
from popi_edge.guard.index import SignalIndex
from popi_edge.vocabulary import Lexicon
from popi_training import behaviour, corpus, users

MEASURED = Path(__file__).parent.parent / "docs" / "measured" / "warm_behaviour.jsonl"
RESTATED = Path(__file__).with_name("restated.json")
LATER = Path(__file__).with_name("restated_later.json")
CROWD = 800
ASKED = 200
ABOUT_REPLIES = {RESTATED: 45, LATER: 20}
VERBS = ("Wants", "Prefers", "Likes", "Enjoys", "Values", "Picks", "Trusts", "Dislikes", "Loves", "Finds", "Needs",
         "Takes", "Asks", "Has", "Expects", "Favours", "Looks", "Believes", "Wishes")  # fmt: skip
LIMIT = 45
"""Words of a made-up right summary."""


class Words:
    """Stands in for a tokenizer where only a length is asked for."""

    def encode(self, text: str) -> list[str]:
        return text.split()


def people(name: str, n: int) -> list[tuple[str, list[SignalText]]]:
    """(a right summary, the texts of the person's signals) of made-up users who want something."""
    material, made = users.Material(corpus.load()), []
    for i in range(n):
        person = users.draw(f"{name}:{i}", material, users.Mix())
        if person.wants:
            text = users.say(person.wants, material, random.Random(i), Words(), LIMIT)
            made.append((text, [(s.id, t) for s in person.signals for t in s.texts()]))
    return made


def written() -> list[tuple[str, list[SignalText]]]:
    """(a summary that a model wrote, the texts of the signals it was made from)."""
    rows = [json.loads(line) for line in MEASURED.read_text("utf-8").splitlines()]
    known = {
        u.id: u for part, n in Counter(r["set"] for r in rows).items() for u in behaviour.users(part, n, 0)
    }
    return [
        (r["summary"], [(s.id, t) for s in known[r["user"]].signals for t in s.texts()]) for r in rows if r["summary"]
    ]


def phrasings() -> list[str]:
    """Every summary phrasing of both parts of the corpus."""
    parts = (corpus.load(), corpus.load(heldout=True))
    return [t for c in parts for d in c.dimensions.values() for p in d.poles.values() for t in p.phrasings["summary"]]


def blocked(cases: Iterable[tuple[str, SignalIndex | Sequence[SignalText]]]) -> dict[str, Any]:
    """How many are blocked, by which rules, and what was found in the first of them."""
    lexicon, rules, n, stopped, shown = Lexicon.load(), Counter[str](), 0, 0, []
    for text, texts in cases:
        found = check(text, texts, lexicon)
        n += 1
        stopped += bool(found)
        rules.update({f.rule for f in found})
        shown += [f.message for f in found[:1]]
    return {"checked": n, "blocked": stopped, "rules": dict(sorted(rules.items())), "first": shown[:8]}


def shares(summary: str, said: str) -> bool:
    """Whether a summary is blocked for the words that it shares with the one signal."""
    return any(f.rule in ("overlap", "spelled") for f in check(summary, [("said", said)], Lexicon.load()))


def restated(path: Path) -> dict[str, Any]:
    """The pairs of a file, all of them and those whose summary is made of the lexicon's words."""
    pairs, lexicon = json.loads(path.read_text("utf-8")), Lexicon.load()
    plain = [(b, [("said", a)]) for a, b in pairs if not any(f.rule == "lexicon" for f in check(b, [], lexicon))]
    shared = [shares(b, a) for a, b in pairs]
    about_replies = sum(shared[: ABOUT_REPLIES[path]])
    return {
        "checked": len(pairs), "sharing_too_much": sum(shared), "of_these_about_replies": about_replies,
        "of_words": blocked(plain),
    }  # fmt: skip


def as_i(summary: str) -> str:
    """A summary as its person would say it: "Likes" and "This person finds" at a sentence's start in the first one."""

    def first_person(verb: str) -> str:
        return {"has": "have", "is": "am"}.get(verb) or (verb[:-2] if verb.endswith("shes") else verb.removesuffix("s"))

    said = re.sub(r"\bThis person (\w+)", lambda m: f"I {first_person(m[1])}", summary)
    return re.sub(rf"(^|[.;] )({'|'.join(VERBS)})\b", lambda m: f"{m[1]}I {first_person(m[2].lower())}", said)


def said_whole() -> dict[str, Any]:
    """What people said, as it stands: how much of it shares too much with itself."""
    said, shared, about_replies = 0, 0, 0
    for path, n in ABOUT_REPLIES.items():
        found = [shares(a, a) for a, _ in json.loads(path.read_text("utf-8"))]
        said, shared, about_replies = said + len(found), shared + sum(found), about_replies + sum(found[:n])
    return {"checked": said, "sharing_too_much": shared, "of_these_about_replies": about_replies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2000)
    options = parser.parse_args()
    crowd = people("crowd", CROWD)
    everything = SignalIndex(t for _, texts in crowd for t in texts)
    result = {
        "phrasings": blocked((t, ()) for t in phrasings()),
        "own": blocked(people("own", options.users)),
        "model": blocked(written()),
        "store": {"texts": len(everything)} | blocked((text, everything) for text, _ in crowd[:ASKED]),
        "as_i": blocked((as_i(text), everything) for text, _ in crowd[:ASKED]),
        "restated": restated(RESTATED),
        "restated_later": restated(LATER),
        "said_whole": said_whole(),
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    launch(main)
