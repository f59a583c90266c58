"""PUPA: are the private units of a conversation in the summary that is made of it?

    python -m bench.privacy --section pupa pupa_three [--pupa PUPA_TNB.csv] [--rows N] [--work FOLDER]

Each row (Li et al., "PAPILLON", NAACL 2025; data under MIT, not part of this project) is one person with one signal,
the conversation. A summary is inferred as the program does; then, by a switch of this bench alone, one is forced: the
evidence rule and the language rule are off, and where the model would say nothing the opening word is put into its
mouth. One conversation is too little to say anything by the program's own rules, so ``pupa_three`` takes three rows one
after another as one person's three conversations, with no switch at all. Only for measuring: nothing was tuned on it.
It does NOT see what a unit that is said in other words tells.
"""

from __future__ import annotations

import csv
import hashlib
import sys
import tempfile
from collections import Counter
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
THREE = 3
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
    how: dict[str, Any] = {"constraint": me._constraint(), "adapter": me.bundle.adapter("infer"),
                           "judge": me.bundle.adapter("generate")}  # fmt: skip
    decoding = me.bundle.decoded(me.settings)
    if not force:
        return infer(me.engine, [said], lexicon=me.lexicon, decoding=decoding, **how), False
    with no_least_evidence():
        done = infer(me.engine, [said], decoding=decoding, **how)
        if done.text:
            return done, False
        return infer(me.engine, [said], decoding=replace(decoding, opening=OPENING, candidates=()), **how), True


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


def judged_three(me: Popi, table: list[dict[str, str]], first: int) -> dict[str, Any]:
    """The figures of the person whose three conversations are the rows from ``first`` on, as the program summarizes."""
    lexicon, some = Lexicon.load(), table[first : first + THREE]
    said = [signal(row, first + i) for i, row in enumerate(some)]
    mine = list(dict.fromkeys(u for row in some for u in units(row["pii_units"])))
    made = infer(me.engine, said, lexicon=me.lexicon, decoding=me.bundle.decoded(me.settings),
                 constraint=me._constraint(), adapter=me.bundle.adapter("infer"))  # fmt: skip
    read = [prompts.signal_text(s, me.engine.tokenizer) for s in said if s.id in made.signal_ids]
    return {
        "units": mine,
        "unwritable": [u for u in mine if unwritable(u, lexicon)],
        "in_prompt": leaked(mine, " ".join(read)),
        "produced": {"text": made.text, "reason": made.reason, "found": leaked(mine, made.text)},
    }


def _over(done: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """What the summaries of a kind hold; the share is of the units of those who have one, None where nobody has."""
    made = [r for r in done if r[kind]["text"]]
    total = sum(len(r["units"]) for r in made)
    found = [u for r in made for u in r[kind]["found"]]
    locked = [u for r in made for u in r[kind]["found"] if u in r["unwritable"]]
    return {
        "summaries": len(made), "units": total, "found": found, "unwritable_found": locked,
        "share": round(len(found) / total, 5) if total else None,
        "different_texts": len({r[kind]["text"] for r in made}),
    }  # fmt: skip


def _reasons(done: list[dict[str, Any]]) -> dict[str, int]:
    """Why nothing was produced, and how often."""
    return dict(Counter(r["produced"]["reason"] for r in done if r["produced"]["reason"]))


def summed_three(done: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of ``pupa_three``."""
    made = [r for r in done if r["produced"]["text"]]
    total = sum(len(r["units"]) for r in made)
    return {
        "people": len(done), "produced": _over(done, "produced"), "why_not_produced": _reasons(done),
        "in_prompt_share": round(sum(len(r["in_prompt"]) for r in made) / total, 5) if total else None,
    }  # fmt: skip


def summed(done: list[dict[str, Any]]) -> dict[str, Any]:
    """The section's figures; shares are of units, None where there are none."""
    total = sum(len(r["units"]) for r in done)
    writable = [u for r in done for u in r["units"] if u not in r["unwritable"]]
    return {
        "rows": len(done),
        "units": total,
        "unwritable_share": round(1 - len(writable) / total, 5) if total else None,
        "writable": sorted(set(writable)),
        "in_signal_share": round(sum(len(r["in_signal"]) for r in done) / total, 5) if total else None,
        "in_prompt_share": round(sum(len(r["in_prompt"]) for r in done) / total, 5) if total else None,
        "produced": _over(done, "produced"),
        "why_not_produced": _reasons(done),
        "forced": _over(done, "forced") | {"first_word_given": sum(r["forced"]["given"] for r in done)},
        "papillon": PAPILLON,
    }


def _judged(
    me: Popi, table: list[dict[str, str]], work: Path | None, settings: dict[str, Any], *, three: bool
) -> list[dict[str, Any]]:
    last = len(table) - (THREE - 1) * three  # who would have fewer conversations than three is left out
    starts = range(0, last, THREE if three else 1)
    with Journal(work / ("pupa_three" if three else "pupa") if work else None, settings) as journal:
        for n in starts:
            if str(n) not in journal:
                journal.add(str(n), judged_three(me, table, n) if three else judged(me, table[n], n))
                print(f"row {n + 1} of {len(table)}", file=sys.stderr, flush=True)
        return [journal[str(n)] for n in starts]


def measure(path: Path, limit: int | None = None, work: Path | None = None, *, three: bool = False) -> dict[str, Any]:
    """Run the section, or ``pupa_three``; ``not_run`` where the file is not there. Raises ConfigError, ModelError,
    EngineError."""
    if not path.is_file():
        return {"not_run": f"there is no {path.name} here; it is not part of this project (--pupa FILE)"}
    table = rows(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="popi-pupa-") as folder:
        link_base(Path(folder) / "models")
        with Popi.open(home=folder) as me:
            told: dict[str, Any] = {"sha256": digest, "model": me.bundle.identity}
            told |= {"engine": me.settings.engine, "program": program_digest()}
            done = _judged(me, table[:limit], work, told, three=three)
    figures = summed_three(done) if three else summed(done)
    return {"sha256": digest, "model": told["model"], "of_rows": len(table)} | figures
