"""PUPA: are the private units of a conversation in the summary that is made of it?

    python -m bench.privacy --section pupa [--pupa PUPA_TNB.csv] [--rows N] [--work FOLDER]

Each row (Li et al., "PAPILLON", NAACL 2025; data under MIT, not part of this project) is one person with one signal,
the conversation. A summary is inferred as the program does; then, by a switch of this bench alone, one is forced: the
evidence rule and the language rule are off, and where the model would say nothing the opening word is put into its
mouth. Since one conversation is too little evidence for the rules, every three rows that follow each other are also one
person with three conversations, whose summary is inferred as the program does, with no switch. Only for measuring:
nothing was tuned on it. It does NOT see what a unit that is said in other words tells.
"""

from __future__ import annotations

import csv
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.common import link_base, program_digest
from bench.privacy_units import leaked, units, unwritable
from popi_edge import prompts
from popi_edge.edge import Popi
from popi_edge.errors import ConfigError
from popi_edge.signals import Conversation, Message
from popi_edge.summarize import Inferred, infer
from popi_edge.vocabulary import Lexicon
from popi_training.evaluate.journal import Journal

COLUMNS = ("user_query", "target_response", "pii_units")
OPENING = "Prefers"
TOGETHER = 3
"""Rows that make one person with several conversations, in the file's order."""
PAPILLON = 0.075
"""Share of private units that reach the cloud model in PAPILLON's own measurement on PUPA (its abstract)."""


def rows(path: Path) -> list[dict[str, str]]:
    """The file's rows. Raises ConfigError where it is not such a file."""
    csv.field_size_limit(2**24)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise ConfigError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None
    if not found or any(row.get(c) is None for row in found for c in COLUMNS):
        raise ConfigError(f"{path} is not PUPA's table: it must have rows with {', '.join(COLUMNS)}")
    return found


def signal(row: dict[str, str], number: int) -> Conversation:
    """A row as one signal."""
    turns = [("user", row["user_query"]), ("assistant", row["target_response"])]
    said = tuple(Message(role=r, content=t.replace("\0", " ")) for r, t in turns if t.strip())
    return Conversation(id=f"row-{number}", messages=said)


@contextmanager
def no_least_evidence() -> Iterator[None]:
    """The test-only switch: any signal is enough to say something."""
    points: Any = prompts.spec()["evidence"]
    kept = points["minimum"]
    points["minimum"] = 0
    try:
        yield
    finally:
        points["minimum"] = kept


def inferred(me: Popi, said: Conversation, *, force: bool) -> tuple[Inferred, bool]:
    """(summary, whether its first word had to be given) of one signal; ``force`` makes one whatever the rules say."""
    how: dict[str, Any] = {"constraint": me._constraint(), "adapter": me.bundle.adapter("infer")}
    decoding = me.bundle.decoding
    if not force:
        return infer(me.engine, [said], lexicon=me.lexicon, decoding=decoding, **how), False
    with no_least_evidence():
        done = infer(me.engine, [said], decoding=decoding, **how)
        if done.text:
            return done, False
        return infer(me.engine, [said], decoding=replace(decoding, opening=OPENING), **how), True


def judged(me: Popi, row: dict[str, str], number: int) -> dict[str, Any]:
    """A row's figures: its units, those that the lexicon cannot write, those found in each text."""
    said, lexicon = signal(row, number), Lexicon.load()
    mine = units(row["pii_units"])
    produced, _ = inferred(me, said, force=False)
    forced, given = inferred(me, said, force=True)
    return {
        "units": mine,
        "unwritable": [u for u in mine if unwritable(u, lexicon)],
        "in_signal": leaked(mine, " ".join(said.texts())),
        "in_prompt": leaked(mine, prompts.signal_text(said, me.engine.tokenizer)),  # cut, as the model sees it
        "produced": {"text": produced.text, "reason": produced.reason, "found": leaked(mine, produced.text)},
        "forced": {"text": forced.text, "given": given, "found": leaked(mine, forced.text)},
    }


def together(me: Popi, some: list[dict[str, str]], number: int) -> dict[str, Any]:
    """The figures of one person with the conversations of several rows, by the program's own rules."""
    said, lexicon = [signal(row, number + k) for k, row in enumerate(some)], Lexicon.load()
    mine = [u for row in some for u in units(row["pii_units"])]
    how: dict[str, Any] = {"constraint": me._constraint(), "adapter": me.bundle.adapter("infer")}
    made = infer(me.engine, said, lexicon=me.lexicon, decoding=me.bundle.decoding, **how)
    return {
        "units": mine,
        "unwritable": [u for u in mine if unwritable(u, lexicon)],
        "produced": {"text": made.text, "reason": made.reason, "found": leaked(mine, made.text)},
    }


def summed(done: list[dict[str, Any]], people: list[dict[str, Any]]) -> dict[str, Any]:
    """The section's figures, of rows and of people of several rows; shares are of units, None where there are none."""

    def over(kind: str, done: list[dict[str, Any]]) -> dict[str, Any]:
        made = [r for r in done if r[kind]["text"]]
        total = sum(len(r["units"]) for r in made)
        found = [u for r in made for u in r[kind]["found"]]
        locked = [u for r in made for u in r[kind]["found"] if u in r["unwritable"]]
        return {
            "summaries": len(made), "units": total, "found": found, "unwritable_found": locked,
            "share": round(len(found) / total, 5) if total else None,
            "different_texts": len({r[kind]["text"] for r in made}),
        }  # fmt: skip

    total = sum(len(r["units"]) for r in done)
    writable = [u for r in done for u in r["units"] if u not in r["unwritable"]]
    reasons: dict[str, int] = {}
    for r in done:
        if r["produced"]["reason"]:
            reasons[r["produced"]["reason"]] = reasons.get(r["produced"]["reason"], 0) + 1
    return {
        "rows": len(done),
        "units": total,
        "unwritable_share": round(1 - len(writable) / total, 5) if total else None,
        "writable": sorted(set(writable)),
        "in_signal_share": round(sum(len(r["in_signal"]) for r in done) / total, 5) if total else None,
        "in_prompt_share": round(sum(len(r["in_prompt"]) for r in done) / total, 5) if total else None,
        "produced": over("produced", done),
        "together": over("produced", people) | {"people": len(people), "rows_each": TOGETHER},
        "why_not_produced": reasons,
        "forced": over("forced", done) | {"first_word_given": sum(r["forced"]["given"] for r in done)},
        "papillon": PAPILLON,
    }


def _judge_all(
    me: Popi, table: list[dict[str, str]], work: Path | None, settings: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows, and people of several rows; what is over at the end of the table makes none."""
    starts = range(0, len(table) - TOGETHER + 1, TOGETHER)
    with Journal(work / "pupa" if work else None, settings) as journal:
        for number, row in enumerate(table):
            if str(number) not in journal:
                journal.add(str(number), judged(me, row, number))
                print(f"row {number + 1} of {len(table)}", file=sys.stderr, flush=True)
        for start in starts:
            if f"together {start}" not in journal:
                journal.add(f"together {start}", together(me, table[start : start + TOGETHER], start))
        return [journal[str(n)] for n in range(len(table))], [journal[f"together {n}"] for n in starts]


def measure(path: Path, limit: int | None = None, work: Path | None = None) -> dict[str, Any]:
    """Run the section; ``not_run`` where the file is not there. Raises ConfigError, ModelError, EngineError."""
    if not path.is_file():
        return {"not_run": f"there is no {path.name} here; it is not part of this project (--pupa FILE)"}
    table = rows(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="popi-pupa-") as folder:
        link_base(Path(folder) / "models")
        with Popi.open(home=folder) as me:
            told: dict[str, Any] = {"sha256": digest, "model": me.bundle.identity}
            told |= {"engine": me.settings.engine, "program": program_digest()}
            done, people = _judge_all(me, table[:limit], work, told)
    return {"sha256": digest, "model": told["model"], "of_rows": len(table)} | summed(done, people)
