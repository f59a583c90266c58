"""Summaries for the attackers of ``bench.tells``, made once and kept.

    python -m bench.tells_write --personas spc_valid.jsonl --work FOLDER [--stage people long likelihood]
        [--couples 100] [--open 100] [--long 12] [--updates 50] [--asked 50] [--seed 0] [--bundle popi-smol]

``people``      couples who want the same (``bench.tells_personas``): FOLDER/closed.jsonl, and of the first of so many
                couples FOLDER/open.jsonl, without the closed vocabulary
``long``        one person after another, a summary after every signal: FOLDER/long.jsonl
``likelihood``  how likely the model finds either one's summary behind the signals of both: FOLDER/likelihood.jsonl

The files hold persona lines, so they stay out of the project. A run that was ended goes on where it stopped; what is
kept is of one bundle, one lexicon and one seed, and another is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.common import program_digest
from bench.tells_personas import Drawer, Person, line, read
from popi_edge import config, prompts
from popi_edge.cli.common import launch
from popi_edge.errors import PopiError
from popi_edge.signals import Signal
from popi_edge.summarize import inference_prompt
from popi_training.cli import Meter
from popi_training.evaluate.journal import Journal, write_whole
from popi_training.evaluate.run import Pair, open_pair

STAGES = ("people", "long", "likelihood")


@dataclass
class Writer:
    """One bundle on one engine, and what it wrote so far."""

    model: Pair
    journal: Journal

    def text(self, key: str, signals: Sequence[Signal], *, closed: bool = True) -> str:
        """The summary of signals, empty where there is too little to say; made, or as it was kept."""
        if key not in self.journal:
            made = (self.model if closed else replace(self.model, constraint=None)).infer(signals)
            self.journal.add(key, made.text if made.status == "draft" else "")
        return str(self.journal[key])

    def likelihoods(self, key: str, signals: Sequence[Signal], texts: Sequence[str]) -> list[float]:
        """log p(text | signals) of each text, masked and renormalised as it is decoded; nats, the end included."""
        if key not in self.journal:
            m, limit = self.model, int(prompts.spec()["limits"]["summary_tokens"])
            tokenizer = m.engine.tokenizer
            _, prompt = inference_prompt(tokenizer, list(signals), m.engine.context_length)
            said = [[*tokenizer.encode(t), tokenizer.eos] for t in texts]
            scores = m.engine.score(
                prompt, said, constraint=m.constraint, max_tokens=limit + 1, adapter=m.infer_adapter
            )
            self.journal.add(key, [round(s.total, 4) for s in scores])
        return [float(x) for x in self.journal[key]]


def couples(draw: Drawer, count: int) -> Iterator[tuple[int, tuple[Person, Person]]]:
    for k in range(count):
        yield k, draw.couple(k)


def people(w: Writer, draw: Drawer, args: argparse.Namespace, meter: Meter) -> dict[str, list[dict[str, Any]]]:
    """Stage one."""
    closed, unmasked = [], []
    for k, both in couples(draw, args.couples):
        for side, person in zip(("one", "other"), both, strict=True):
            closed.append(line(person, w.text(f"{k}:{side}", person.signals)))
            if side == "one" and k < args.open:  # the prompt is still in the engine's cache
                unmasked.append(line(person, w.text(f"{k}:{side}:open", person.signals, closed=False)))
        meter("couples", 1, args.couples)
    return {"closed": closed, "open": unmasked}


def long(w: Writer, draw: Drawer, args: argparse.Namespace, meter: Meter) -> dict[str, list[dict[str, Any]]]:
    """Stage two."""
    out = []
    for k in range(args.long):
        person, texts = draw.long(k, args.updates), []
        for i in range(1, len(person.signals) + 1):
            texts.append(w.text(f"long:{k}:{i}", person.signals[:i]))
            meter("updates", 1, args.long * args.updates)
        out.append(line(person, texts[-1]) | {"texts": texts})
    return {"long": out}


def likelihood(w: Writer, draw: Drawer, args: argparse.Namespace, meter: Meter) -> dict[str, list[dict[str, Any]]]:
    """Stage three: couples both of whom have a summary, and not the same."""
    out: list[dict[str, Any]] = []
    for k, both in couples(draw, args.couples):
        texts = [w.text(f"{k}:{side}", p.signals) for side, p in zip(("one", "other"), both, strict=True)]
        if len(out) == args.asked:
            break
        if not all(texts) or texts[0] == texts[1]:
            continue
        row: dict[str, Any] = {"couple": both[0].id.rpartition(":")[0]}
        for which in ("signals", "others"):
            row[which] = [w.likelihoods(f"likelihood:{k}:{i}:{which}", getattr(p, which), texts)
                          for i, p in enumerate(both)]  # fmt: skip
        out.append(row)
        meter("likelihoods", 1, args.asked)
    return {"likelihood": out}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--personas", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--couples", type=int, default=100)
    parser.add_argument("--open", type=int, default=100)
    parser.add_argument("--long", type=int, default=12)
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--asked", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", default="popi-smol")
    return parser.parse_args(words)


def main() -> int:
    args = arguments()
    try:
        lines = read(args.personas)
        draw = Drawer(lines, args.seed)
        model = open_pair(args.bundle, None, config.load(closed_vocabulary=True))
        told = {"bundle": model.identity, "model": model.model, "engine": model.engine.name, "seed": args.seed,
                "updates": args.updates, "program": program_digest(),
                "lines": hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()}  # fmt: skip
        with closing(model.engine), closing(Meter()) as meter, Journal(args.work, told) as journal:
            writer = Writer(model, journal)
            for name in args.stage:
                stage = {"people": people, "long": long, "likelihood": likelihood}[name]
                for file, rows in stage(writer, draw, args, meter).items():
                    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                    write_whole(args.work / f"{file}.jsonl", text)
        write_whole(args.work / "told.json", json.dumps(told) + "\n")
    except (PopiError, OSError) as e:
        print(f"bench.tells_write: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    launch(main)
