"""``popi egress``: what was sent, byte for byte, and whether the record of it is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from popi_edge.cli.common import App, common

if TYPE_CHECKING:
    from popi_edge.egress import EgressLog, Record


@click.group()
def egress() -> None:
    """Look at everything that was ever sent, and check the chain."""


def _brief(log: EgressLog, record: Record) -> dict[str, Any]:
    """A request in one object, with what came of it (None: nothing was recorded)."""
    meta = record.meta
    names = ("generator", "destination", "user", "summary_version", "body_bytes")
    outcome = log.outcome_of(record.id)
    return {
        "id": record.id,
        "at": record.at,
        **{name: meta.get(name) for name in names},
        "erased": record.body is None,
        "outcome": outcome.meta if outcome else None,
    }


def _line(b: dict[str, Any]) -> str:
    outcome = b["outcome"]
    came = "no outcome recorded" if outcome is None else outcome["status"]
    if outcome is not None and outcome["error"]:
        came += f" ({outcome['error']})"
    version = b["summary_version"]
    summary = "no summary" if version is None else f"summary {version}"
    erased = ", erased" if b["erased"] else ""
    return f"{b['at']}  {b['id']}  {b['generator']}  {b['body_bytes']:,} bytes{erased}, {summary}: {came}"


@egress.command("list")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The last so many requests.")
@click.option("--user", help="Only this user's.")
@common
def list_(app: App, limit: int, user: str | None) -> None:
    """List the requests, oldest first."""
    from popi_edge.egress import EgressLog

    with app.store() as store:
        log = EgressLog(store)
        found = [_brief(log, r) for r in log.records(limit, user=user, kind="request")]
    app.emit(found, lambda: "\n".join(map(_line, found)) or "nothing was ever sent")


@egress.command()
@click.argument("record_id", metavar="ID")
@common
def show(app: App, record_id: str) -> None:
    """Show one record: a request with its exact body, or an outcome. The start of an ID is enough."""
    from popi_edge.egress import EgressLog

    with app.store() as store:
        log = EgressLog(store)
        record = log.get(record_id)
        outcome = log.outcome_of(record.id) if record.type == "request" else None
    data = record.to_json() | ({"outcome": outcome.meta if outcome else None} if record.type == "request" else {})
    app.emit(data, lambda: _text(data))


def _text(data: dict[str, Any]) -> str:
    """The record's fields one a line, the body last and as it went out."""
    body = data.get("body", data.get("body_base64"))
    lines = [f"{name}: {value}" for name, value in data.items() if name not in ("body", "body_base64", "outcome")]
    if data["type"] == "request":
        lines.append(f"outcome: {data['outcome'] or 'none recorded'}")
        lines += ["", "(the body was erased)" if body is None else str(body)]
    return "\n".join(lines)


@egress.command()
@common
def verify(app: App) -> int:
    """Recompute the chain. Exit 1, naming the first record that does not fit, when something was changed."""
    from popi_edge.egress import EgressLog

    with app.store() as store:
        result = EgressLog(store).verify()
    data = {"ok": result.ok, "records": result.records, "first_bad": result.first_bad, "why": result.why}
    if result.ok:
        app.emit(data, f"{result.records} records, the chain holds (a cut tail is not seen yet)")
        return 0
    if app.json:
        app.emit(data, "")
    else:
        app.note(f"popi: egress record {result.first_bad}: {result.why}")
    return 1
