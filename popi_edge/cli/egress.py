"""``popi egress``: what was sent, byte for byte, and whether the record of it is whole."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from popi_edge.cli.common import LATER, App, common, insist
from popi_edge.errors import ConfigError

if TYPE_CHECKING:
    from popi_edge.egress import EgressLog
    from popi_edge.egress_chain import Record, VerifyResult


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
    """Recompute the chain and compare its end with the head, which is kept outside the database.

    Exit 1, naming the first record that is not what was written, or when the head is lost.
    """
    from popi_edge.egress import EgressLog

    with app.store() as store:
        result = EgressLog(store).verify()
    if result.ok or app.json:
        app.emit(asdict(result), lambda: _whole(result))
    else:
        app.note(f"popi: {_broken(result)}")
    return 0 if result.ok else 1


def _whole(result: VerifyResult) -> str:
    text = f"{result.records} records, the chain holds"
    if result.head == "kept":
        text += f" and ends where its head says, in {result.where}"
    else:
        text += "; no head is kept yet, it begins with the next record"
    if result.interrupted:
        text += "\na write had been interrupted; nothing is missing for it"
    return text + "".join(f"\na person began a new head with record {i} (popi egress show)" for i in result.anchors)


def _broken(result: VerifyResult) -> str:
    """One line: the first bad record, or what is still sure without the head."""
    lost = "" if result.head in ("kept", "new", "off") else result.why if result.chain_holds else "the head is lost too"
    if result.chain_holds:
        return (
            f"{lost}; the chain of {result.records} records holds in itself, but a cut tail, a chain computed anew or "
            "an older copy would not show ('popi egress anchor' begins a new head)"
        )
    name = result.first_bad or f"number {result.number}"
    return f"egress record {name}: {result.why}" + (f" ({lost})" if lost else "")


@egress.command()
@click.argument("record_ids", metavar="[ID]...", nargs=-1)
@click.option("--user", help="All that was sent for this user.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def erase(app: App, record_ids: tuple[str, ...], user: str | None, yes: bool) -> None:
    """Erase what was in requests, for good; the chain still holds. When, where and how much was sent stays."""
    from popi_edge.egress import EgressLog

    if bool(record_ids) == (user is not None):
        raise click.UsageError("say either the IDs of requests or --user")
    with app.store() as store:
        log = EgressLog(store)
        wanted = [log.get(i).id for i in record_ids] if user is None else log.with_body(user=user)
        insist(app, yes, f"Erase the bodies of {len(wanted)} requests for good?", "nothing was erased")
        log.erase(*wanted)
        scrubbed = store.scrub()
    if not scrubbed:
        app.note(LATER)
    app.emit({"erased": wanted, "scrubbed": scrubbed}, f"erased the bodies of {len(wanted)} requests")


@egress.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def anchor(app: App, yes: bool) -> None:
    """Begin a new head where the old one is lost or does not fit, so that popi can send again.

    The log keeps a record of it. What the chain itself shows as broken stays so.
    """
    from popi_edge.egress import EgressLog

    with app.store() as store:
        log = EgressLog(store)
        why = log.unfit()
        if not why:
            raise ConfigError("the head fits the egress log: there is nothing to begin anew")
        insist(app, yes, f"{why}. Do you know why, and shall the log go on from here?", "nothing was changed")
        record_id = log.anchor()
        keeper = log.keeper
    where = keeper.where() if keeper else ""
    app.emit({"record": record_id, "where": where}, f"the head begins anew with record {record_id}, in {where}")
