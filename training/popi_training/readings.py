"""Thirty summaries beside the signals they were made from, with a verdict each: a page for people to read.

    python -m popi_training.readings OUT.md [--bundle B] [--users N] [--seed S] [--verdicts FILE]

Users are drawn by the seed from the held-out prompts, as ``behaviour`` draws its set ``mixed``. FILE is a JSON object:
user → [summary, verdict, remark]; a verdict (right, partly, wrong, invented, silent) counts only for the very summary
that was read, so a page of another bundle has none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from popi_edge import config
from popi_edge.cli.common import at_least, launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.signals import Comparison, Conversation, Edit, Rating, Signal
from popi_training.behaviour import summaries, users
from popi_training.evaluate.journal import write_whole
from popi_training.evaluate.run import open_pair

WIDTH = 110
VERDICTS = ("right", "partly", "wrong", "invented", "silent")
UNREAD = "not read"


def line(signal: Signal) -> str:
    """A signal in a line: its kind and the beginnings of its texts."""

    def part(text: str) -> str:
        flat = " ".join(text.split()).replace("|", "\\|")
        return flat if len(flat) <= WIDTH else flat[: WIDTH - 1].rstrip() + "…"

    match signal:
        case Comparison(prompt=p, chosen=c, rejected=r):
            said = f"{part(p)} **chosen** {part(c)} **over** {part(r)}"
        case Rating(prompt=p, response=r, score=s):
            said = f"{part(p)} **{10 * s:.0f} of 10 for** {part(r)}"
        case Edit(prompt=p, original=o, edited=e):
            said = f"{part(p)} **changed** {part(o)} **to** {part(e)}"
        case Conversation(messages=turns):
            said = " / ".join(f"{m.role}: {part(m.content)}" for m in turns)
        case _:
            said = part(" ".join(signal.texts()))
    return f"- {signal.kind}: {said}"


def read_verdicts(path: Path | None) -> dict[str, Any]:
    """Verdicts by user. Raises ConfigError for a file that is none."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        for user, (summary, verdict, remark) in found.items():
            if verdict not in VERDICTS or not isinstance(summary, str) or not isinstance(remark, str):
                raise ConfigError(f"{path}: {user}: {verdict!r:.40} is no verdict; there are {', '.join(VERDICTS)}")
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise ConfigError(f"{path}: not a table of verdicts: {e}") from None
    return dict(found)


def page(made: list[tuple[Any, str, str]], verdicts: dict[str, Any], model: str, seed: int) -> str:
    """The page, in Markdown."""
    counts: Counter[str] = Counter()
    parts = []
    for number, (user, text, _) in enumerate(made, 1):
        summary, verdict, remark = verdicts.get(user.id, ("", UNREAD, ""))
        if summary != text:
            verdict, remark = UNREAD, ""
        counts[verdict] += 1
        wants = ", ".join(f"{w.dimension}: {w.pole.replace('_', ' ')}" for w in user.wants) or "nothing"
        parts.append(
            f"## {number}\n\n" + "\n".join(map(line, user.signals)) + f"\n\nWants: {wants}\n\n"
            f"Summary: {f'**{text}**' if text else '(silent)'}\n\nVerdict: {verdict}{f'. {remark}' if remark else ''}\n"
        )
    told = ", ".join(f"{counts[v]} {v}" for v in (*VERDICTS, UNREAD) if counts[v])
    head = f"# {len(made)} summaries, read\n\nUsers of held-out prompts, drawn by seed {seed}; {model}. {told}.\n"
    return "\n".join([head, *parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bundle")
    parser.add_argument("--users", type=at_least(1), default=30)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--verdicts", type=Path)
    options = parser.parse_args()
    try:
        verdicts = read_verdicts(options.verdicts)
        model = open_pair(options.bundle, None, config.load())
        made = summaries(model, users("mixed", options.users, options.seed))
        write_whole(options.out, page(made, verdicts, model.model, options.seed))
    except (PopiError, OSError) as e:
        sys.exit(f"readings: {e}")


if __name__ == "__main__":
    launch(main)
