"""``popi guard``: try a text on the guard, and see which rules are on and what is done with what they find."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from popi_edge.cli.common import App, common, printable, user_option
from popi_edge.cli.summary import open_popi


@click.group()
def guard() -> None:
    """What may not leave: try a text, see the rules."""


@guard.command()
@click.argument("text")
@click.option("--form", is_flag=True, help="As for a text that a model wrote: also its form.")
@user_option
@common
def check(app: App, text: str, form: bool, user: str) -> int:
    """Check a text against your signals; exit code 1 when something is found. Nothing is kept or sent."""
    with open_popi(app) as me:
        found = me.check(text, user, form=form)
    data = {"ok": found.ok, "findings": [asdict(f) for f in found.findings]}
    lines = [f"{f.rule} at {f.start}–{f.end} ({f.action}): {printable(f.message)}" for f in found.findings]
    app.emit(data, "\n".join(lines) or "nothing found")
    return 0 if found.ok else 1


@guard.command()
@common
def rules(app: App) -> None:
    """Every rule, what is done with its findings, and which Python libraries add to it here."""
    data = status(app)
    width = max(map(len, data["rules"]))
    lines = [
        f"{name:<{width}}  {r['action']:<5}  {', '.join(r['libraries'])}".rstrip() for name, r in data["rules"].items()
    ]
    missing = [name for name, version in data["libraries"].items() if version is None]
    if missing:
        lines.append(f"not installed: {', '.join(missing)} (pip install 'popi-edge[guard]')")
    app.emit(data, "\n".join(lines))


def status(app: App) -> dict[str, Any]:
    """Rules with their actions and the libraries that add to them; libraries with their versions or None."""
    from popi_edge.guard.finding import RULES
    from popi_edge.guard.libraries import ADDS, LIBRARIES, available
    from popi_edge.guard.policy import Policy

    policy, there = Policy.of(app.settings.guard), available()
    added = {rule: [m for m, rules in ADDS.items() if rule in rules and m in there] for rule in RULES}
    return {
        "rules": {rule: {"action": policy.action(rule), "libraries": added[rule]} for rule in RULES},
        "libraries": {name: there.get(name) for name in LIBRARIES},
    }
