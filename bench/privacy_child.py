"""One person's commands in a process of their own: what the network section watches from outside.

    python -m bench.privacy_child PLAN

PLAN is a JSON file: ``commands``, each a list of words as ``popi`` takes them; ``user``; ``note``, where to write what
the process knows of itself (environment, exit codes, the summary's status); ``plants``, for the test of the search.
Errors are told as ``popi`` tells them. Prints what the commands print.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from popi_edge.cli import program
from popi_edge.errors import PopiError


def needs_a_draft(words: list[str]) -> bool:
    """Whether there is nothing to do for this command where there was too little to say."""
    return words[:2] == ["summary", "approve"] or (words[0] == "ask" and "--plain" not in words)


def run(words: list[str]) -> int:
    """One command, as ``popi_edge.cli.main`` runs it; its exit code."""
    try:
        code = program(words, standalone_mode=False)
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except PopiError as e:
        click.echo(f"popi: {' '.join(str(e).split())}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def status(user: str) -> str:
    """What came of the person's last ``summary refresh``; "none" before one."""
    from popi_edge.config import load
    from popi_edge.store import Store

    settings = load()
    if not settings.database.exists():
        return "none"
    store = Store.open(settings.database)
    try:
        rows = store.summaries(user)
        return str(rows[-1].status) if rows else "none"
    finally:
        store.close()


def plant(plants: dict[str, Any]) -> None:
    """Let canaries out where they must be found: for the test of the search alone."""
    import gzip
    import http.client

    body = gzip.compress(json.dumps({"messages": plants["gzip"]}).encode())
    connection = http.client.HTTPConnection("127.0.0.1", int(plants["port"]))
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    connection.getresponse().read()
    connection.close()
    click.echo(plants["stdout"])
    click.echo(plants["stderr"], err=True)
    Path(plants["file"][0]).write_text(plants["file"][1])


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    codes, made = [], ""
    for words in plan["commands"]:
        skipped = made == "insufficient" and needs_a_draft(words)
        codes.append(None if skipped else run(words))
        if words[:2] == ["summary", "refresh"]:
            made = status(plan["user"])
    if plan.get("plants"):
        plant(plan["plants"])
    own = Path("/proc/self/environ").read_bytes().decode("utf-8", "replace")
    note = {"codes": codes, "status": made, "environ": own, "os_environ": dict(os.environ)}
    Path(plan["note"]).write_text(json.dumps(note), "utf-8")


if __name__ == "__main__":
    main()
