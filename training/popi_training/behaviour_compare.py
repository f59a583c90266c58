"""Two listings of ``popi_training.behaviour`` of the same people, person by person: who names more of what they want.

    python -m popi_training.behaviour_compare BEFORE.jsonl AFTER.jsonl [--sets SET …] [--seed K] [--json]

Of the sets taken together (default: all in which anybody wants something), with 95% intervals over people: the share of
a person's wants that are named, and the poles named that are none of theirs. The probe was fitted on the corpus' own
phrasings, so it reads best what is said in them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_training import probe
from popi_training.evaluate.metrics import difference, mean
from popi_training.runfolder import json_lines
from popi_training.users import Want


def read(path: Path) -> dict[tuple[str, str], tuple[list[Want], str]]:
    """(set, user) → what that user wants and the summary. Raises ConfigError for what is no such listing."""
    found: dict[tuple[str, str], tuple[list[Want], str]] = {}
    for number, line in json_lines(path):
        try:
            wants = [Want(*word.split(":")) for word in line["wants"]]
            part, user, text = (line[k] for k in ("set", "user", "summary"))
            if not all(isinstance(x, str) for x in (part, user, text)):
                raise TypeError
        except (TypeError, KeyError, AttributeError):
            raise ConfigError(f"{path}, line {number}: not a line of popi_training.behaviour") from None
        found[part, user] = wants, text
    return found


def compared(
    before: Mapping[tuple[str, str], tuple[list[Want], str]], after: Mapping[tuple[str, str], tuple[list[Want], str]],
    sets: Sequence[str], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """``people``, and of each figure ``before``, ``after`` and their ``difference`` (``metrics.difference``). Raises
    ConfigError where the people differ, or a set is not there."""
    parts = {part for part, _ in before}
    if lost := [s for s in sets if s not in parts]:
        raise ConfigError(f"there is no set {lost[0]!r:.40}; there are {', '.join(sorted(parts))}")
    if {k: wants for k, (wants, _) in before.items()} != {k: wants for k, (wants, _) in after.items()}:
        raise ConfigError("the two listings are of different people")
    keys = [k for k, (wants, _) in before.items() if wants and (k[0] in sets or not sets)]
    if not keys:
        raise ConfigError("nobody in these sets wants anything")
    out: dict[str, Any] = {"people": len(keys)}
    for name in ("named", "others"):
        old, new = (np.array([_figure(name, *listing[k]) for k in keys]) for listing in (before, after))
        out[name] = {"before": mean(old), "after": mean(new)}
        out[name] |= difference(new - old, [user for _, user in keys], seed=seed)
    return out


def _figure(name: str, wants: Sequence[Want], text: str) -> float:
    verdict = probe.judge(text, wants, probe.fitted())
    return verdict.named / len(wants) if name == "named" else float(verdict.other + verdict.opposite + verdict.torn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--sets", nargs="+", default=[], metavar="SET")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        found = compared(read(options.before), read(options.after), options.sets, options.seed)
    except (PopiError, OSError) as e:
        sys.exit(f"behaviour_compare: {e}")
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['people']} people")
    for name, text in (("named", "wants named, a person"), ("others", "poles that nobody wants, a person")):
        f = found[name]
        sure = "no interval" if f["low"] is None else f"{f['low']:+.2f} to {f['high']:+.2f}"
        print(f"{text}: {f['before']:.2f} -> {f['after']:.2f}, {f['difference']:+.2f} ({sure})")


if __name__ == "__main__":
    launch(main)
