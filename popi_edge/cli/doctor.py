"""``popi doctor``: is everything in order, and does anything leave?"""

from __future__ import annotations

from dataclasses import asdict

import click

from popi_edge.cli.common import App, ask_passphrase, common
from popi_edge.doctor.watch import Seen


@click.command()
@click.option(
    "--offline", is_flag=True,
    help="Walk the main path in a process of its own, on a made-up person, and list every connection it tries to open "
    "and every file it writes.",
)  # fmt: skip
@common
def doctor(app: App, offline: bool) -> int:
    """Look at data folder, store, egress log, lexicon, bundle, engine and keyring. Exit 1 when one is not in order."""
    if offline:
        from popi_edge.doctor.watch import run

        app.note("walking the main path; this takes a little while")
        seen = run(app.settings)
        app.emit(seen.to_json(), lambda: as_text(seen))
        return 0 if seen.ok else 1
    from popi_edge.doctor.checks import checks

    found = list(checks(app.settings, ask_passphrase))
    lines = (f"{'ok ' if c.ok else 'BAD'} {c.name:8} {c.found}" for c in found)
    app.emit([asdict(c) for c in found], lambda: "\n".join(lines))
    return 0 if all(c.ok for c in found) else 1


def as_text(seen: Seen) -> str:
    """What was seen, for people."""

    def part(title: str, lines: list[str]) -> list[str]:
        return [f"{title}: {len(lines) or 'none'}", *(f"  {line}" for line in lines)]

    return "\n".join([
        *part("Steps", seen.steps), *part("Connections tried", seen.connections),
        *part("Sockets of this device", seen.local), *part("Processes started", seen.processes),
        *part("Files written", seen.files), *part("Covered", seen.covered), *part("Not covered", seen.not_covered),
        *([f"Stopped by {seen.error}"] if seen.error else []),
    ])  # fmt: skip
