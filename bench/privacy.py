"""The privacy report: run its sections, keep what they found, and write docs/privacy-report.md from that alone.

    python -m bench.privacy [--section NAME …] [--users N] [--rows N] [--pupa FILE] [--work FOLDER]
        [--measured FOLDER] [--out FILE] [--json FILE]

Sections: network, pupa, pupa_three, measured (all of them unless named). What a section found is kept, as soon as it is
done, as privacy_NAME.json in the folder of measured outputs, and a section that is not run is reported as it was last,
or as not run. 200 users or all of PUPA take a quarter of an hour or more: with --work a run that was ended goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from bench import privacy_measured, privacy_network, privacy_pupa
from bench.privacy_canaries import PLACES
from popi_edge.cli.common import at_least, launch
from popi_edge.errors import PopiError
from popi_training.evaluate.journal import write_json, write_whole

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS = ("network", "pupa", "pupa_three", "measured")
KEPT = ("network", "pupa", "pupa_three")
"""Sections whose outcome is kept as a file; ``measured`` only reads."""


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--users", type=at_least(1), default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=at_least(1), help="only the first so many rows of PUPA")
    parser.add_argument("--pupa", type=Path, default=Path("PUPA_TNB.csv"))
    parser.add_argument("--work", type=Path, help="keep finished people and rows here, and go on with them")
    parser.add_argument("--measured", type=Path, default=DOCS / "measured")
    parser.add_argument("--out", type=Path, default=DOCS / "privacy-report.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every section's figures here")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every section's figures: of this run, or as they were kept. Raises PopiError."""
    found: dict[str, Any] = {}
    for name in KEPT:
        path = args.measured / f"privacy_{name}.json"
        made = _made(name, args) if name in args.section else {"not_run": "its figures were never made, or not kept"}
        if "not_run" not in made:
            write_json(path, made)
        elif name in args.section:
            print(f"bench.privacy: {name} was not run: {made['not_run']}", file=sys.stderr)
        found[name] = json.loads(path.read_text("utf-8")) if path.is_file() else made
    found["measured"] = privacy_measured.measure(args.measured)
    return found


def _made(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a section finds now, with the command and the circumstances. Raises PopiError."""
    command = f"python -m bench.privacy --section {name}"
    if name == "network":
        command += f" --users {args.users} --seed {args.seed}"
        made = privacy_network.measure(args.users, args.seed, args.work)
    else:
        command += f" --pupa {args.pupa.name}" + (f" --rows {args.rows}" if args.rows is not None else "")
        made = privacy_pupa.measure(args.pupa, args.rows, args.work, three=name == "pupa_three")
    return {"command": command} | made | _circumstances()


def _circumstances() -> dict[str, str]:
    """The commit (with ``+`` where files of the program are changed beside it) and the machine."""
    git = ["git", "-C", str(DOCS.parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        code = ["popi_edge", "bench", "training/popi_training"]
        dirty = subprocess.run([*git, "status", "--porcelain", "--", *code], capture_output=True, text=True, check=True)
        at = commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        at = "unknown"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return {"commit": at, "machine": machine}


# the page ---------------------------------------------------------------------------------------------------
def report(found: dict[str, Any]) -> str:
    """The page, from the figures alone."""
    lines = [
        "# The privacy report", "",
        "Written by `python -m bench.privacy`; do not edit. Every figure stands under the command that made it, beside "
        "what it does not cover.", "",
        "## Does anything leave that should not?", "", *network(found["network"]),
        "## Do private units get into a summary?", "", *pupa(found["pupa"]), *pupa_three(found["pupa_three"]),
        "## What other commands measured", "", *privacy_measured.render(found["measured"]),
    ]  # fmt: skip
    return "\n".join(map(_wrapped, lines)).rstrip() + "\n"


def _wrapped(line: str) -> str:
    """A line of at most 120 columns where it has spaces; what belongs to a bullet is indented."""
    deep = len(line) - len(line.lstrip(" ")) + 2 * line.lstrip(" ").startswith("- ")
    return textwrap.fill(line, 120, subsequent_indent=" " * deep, break_long_words=False, break_on_hyphens=False)


def _how(d: dict[str, Any]) -> str:
    return f"`{d['command']}` (commit {d['commit']}; {d['machine']})."


def network(d: dict[str, Any]) -> list[str]:
    """Lines of the section."""
    if "not_run" in d:
        return [f"**Not run**: {d['not_run']}.", ""]
    whole = "equal" if d["bodies_equal"] else "**NOT EQUAL**"
    first = {(f["canary"], f["where"]): f for f in reversed(d["found"])}.values()  # a file left behind is found again
    finds = [f"  - {f['canary']} in {f['where']} ({f['how']}), during {f['during']}" for f in reversed(first)]
    control, lost = d["control"], len({f["canary"] for f in d["found"]})
    return [
        _how(d), "",
        f"A network namespace of loopback alone, a generator on it, a packet capture. {d['users']} people (aim: 200), "
        "one signal of each of the seven kinds; a canary (made-up word, number, address, name, time) in every "
        f"field, {PLACES} places a person but for the ids that `record` gives itself, and one in a torn line; in all "
        f"{d['canaries']:,} (aim: 1,000). Each person's commands in a process of their own: record, import (with the "
        "torn line), refresh, approve, ask with and without the summary, preview, a generator that is not there; then "
        "an aborted refresh, and doctor, also --offline.",
        "",
        f"- **canaries found: {lost} of {d['canaries']:,}** (aim: 0) in {d['searched_mb']} MB of capture, "
        "generator bodies, stdout, stderr, the crash dump, environment, and files outside the database, also decoded "
        "(gzip, base64, hex, escapes, UTF-16, three deep) and by letters and digits alone",
        *finds,
        f"- {d['stored']:,} of them stand in the database; a torn line is not kept",
        f"- bodies in the capture, at the generator and in the egress log: **{whole}**, {d['requests_captured']} and "
        f"{d['requests_logged']} (aim: equal byte for byte); {d['frames']:,} frames, {d['not_tcp']} of them not TCP, "
        f"{d['dropped']} lost by the capture",
        f"- summaries: {', '.join(f'{n} {s}' for s, n in d['summaries'].items())}; commands that failed: "
        f"{d['failed_otherwise']} of {d['commands']:,}, and for {d['failed_as_meant']} people the two that must fail",
        f"- the aborted refresh printed a crash dump: {'yes' if d['crash_dumped'] else 'no'}; exit codes of doctor: "
        f"{', '.join(map(str, d['doctor'].values()))}",
        f"- control: {control['planted']} canaries let out on purpose (in requests plain, base64, hex, escaped, gzip; "
        f"stdout, stderr, environment, a file): {len(control['missed'])} missed; the request that no log knew was "
        f"{'seen' if control['extra_body_seen'] else '**not seen**'}",
        "",
        "Not covered: files made and gone again within one person's commands; the arguments of a process, in which a "
        "person types; memory, swap and core dumps; answers of the local model; TLS. What a person types into `ask` "
        "goes as it was typed.",
        "",
    ]  # fmt: skip


def _share(value: float | None) -> str:
    return "none to count" if value is None else f"{value:.2%}"


def pupa(d: dict[str, Any]) -> list[str]:
    """Lines of the section."""
    if "not_run" in d:
        return [f"**Not run**: {d['not_run']}.", ""]

    def line(title: str, s: dict[str, Any]) -> str:
        return (
            f"- {title}: {s['summaries']} of {d['rows']} rows, {s['different_texts']} different texts; private units "
            f"in them: **{_share(s['share'])}** ({len(s['found'])} of {s['units']}; aim ≤ 0.5%); of those that the "
            f"lexicon makes unwritable: **{len(s['unwritable_found'])}** (aim 0)"
        )

    why = "; ".join(f"{n} × {reason}" for reason, n in d["why_not_produced"].items())
    return [
        _how(d), "",
        f"PUPA_TNB (SHA-256 {d['sha256'][:12]}…), {d['rows']} of its {d['of_rows']} rows, each one person with one "
        f"conversation; {d['units']} private units (three characters and more, not function words alone; case-folded, "
        f"on word boundaries: `bench/privacy_units.py`). Model: {d['model']}. Nothing was tuned on it.", "",
        line("summaries really produced", d["produced"]),
        *([f"  - none where: {why}"] if why else []),
        line("one forced for every row (test-only switch)", d["forced"]),
        f"  - in {d['forced']['first_word_given']} rows the first word was put into the model's mouth",
        f"- units that the lexicon makes unwritable: **{_share(d['unwritable_share'])}** (aim ≥ 97%); writable are: "
        f"{', '.join(d['writable']) or 'none'}",
        f"- control, the same matcher: {_share(d['in_signal_share'])} of the units stand in the conversation itself, "
        f"{_share(d['in_prompt_share'])} in what of it is left in the model's prompt",
        f"- beside it: PAPILLON reports {d['papillon']:.1%} on PUPA (its own models and matcher)", "",
        "Not covered: units of one or two characters, inflected or misspelled ones, and what is told in other words. "
        "The lexicon's exclusions were written after drafts on this file had been seen: not a held-out figure.", "",
    ]  # fmt: skip


def pupa_three(d: dict[str, Any]) -> list[str]:
    """Lines of the section: people of three conversations, summarized as the program does."""
    if "not_run" in d:
        return ["**Three conversations a person: not run**: " + d["not_run"] + ".", ""]
    s = d["produced"]
    why = "; ".join(f"{n} × {reason}" for reason, n in d["why_not_produced"].items())
    return [
        _how(d), "",
        f"The same file, three rows one after another as one person's three conversations, and no switch at all: by "
        f"the program's own rules they are enough to say something. Model: {d['model']}.", "",
        f"- summaries really produced: {s['summaries']} of {d['people']} people, {s['different_texts']} different "
        f"texts; private units in them: **{_share(s['share'])}** ({len(s['found'])} of {s['units']}; aim ≤ 0.5%); of "
        f"those that the lexicon makes unwritable: **{len(s['unwritable_found'])}** (aim 0)",
        *([f"  - none where: {why}"] if why else []),
        f"- control: {_share(d['in_prompt_share'])} of these people's units stood in the model's prompt", "",
        "Not covered: as above; and these people are put together, not real: their conversations are of several "
        "writers.", "",
    ]  # fmt: skip


def main() -> int:
    args = arguments()
    try:
        found = run(args)
        if args.json:
            write_json(args.json, found)
        write_whole(args.out, report(found))
    except PopiError as e:
        print(f"bench.privacy: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f"so are the rows and people in {args.work}" if args.work else "of the one at work nothing (see --work)"
        print(f"bench.privacy: interrupted; sections that were done are kept, {kept}", file=sys.stderr)
        return 130
    print(f"wrote {args.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    launch(main)
