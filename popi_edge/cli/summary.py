"""``popi summary``: see, refresh, edit, approve or revoke the summary; its history, and what it rests on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from popi_edge.approval import Difference, PreferenceSummary
from popi_edge.cli.common import App, ask_passphrase, at_terminal, common, printable, progress, user_option
from popi_edge.config import MOST
from popi_edge.edge import Popi
from popi_edge.errors import GuardBlocked, StoreError
from popi_edge.guard import Finding


@click.group()
def summary() -> None:
    """The short text about you: the only thing that ever leaves, once you approved it."""


def as_json(s: PreferenceSummary) -> dict[str, Any]:
    return asdict(s) | {"signal_ids": list(s.signal_ids)}


def as_text(s: PreferenceSummary) -> str:
    head = f"version {s.version} · {s.status} · {s.tokens} tokens · from {len(s.signal_ids)} signals · {s.model}"
    lines = [s.text or "(nothing)", head, *([s.reason] if s.reason else [])]
    for o in s.overruled:
        lines.append(f"overruled: {o.text!r} ({o.rule}" + (f", of signal {o.signal_id})" if o.signal_id else ")"))
    return "\n".join(lines)


def open_popi(app: App, **flags: Any) -> Popi:
    """The store and what is needed around it; at a terminal, the guard may ask."""
    asks = not app.json and at_terminal()
    return Popi.open(home=app.settings.home, answer=overrule if asks else None, passphrase=ask_passphrase,
                     **flags)  # fmt: skip


def overrule(found: Finding) -> bool:
    """Ask whether a text may pass with this finding in it."""
    question = f"The guard found this: {printable(found.message)}. May it pass all the same?"
    return click.confirm(question, default=False, err=True)


@summary.command()
@user_option
@common
def show(app: App, user: str) -> None:
    """The newest version."""
    with open_popi(app) as me:
        found = me.summary(user)
    if found is None:
        raise StoreError(f"there is no summary of {user!r} yet; run: popi summary refresh")
    app.emit(as_json(found), lambda: as_text(found))


@summary.command()
@click.option("--drafts", type=click.IntRange(1, MOST["drafts"]), metavar="N",
              help="Of so many drafts keep the one that tells your choices best (default: as the bundle says).")
@click.option("--known/--no-known", default=None,
              help="Of sentences that the model was taught, or word by word (default: the latter for choices alone).")
@user_option
@common
def refresh(app: App, drafts: int | None, known: bool | None, user: str) -> None:
    """Infer a new version from the signals. It stays a draft until you approve it."""
    with open_popi(app, drafts=drafts, known=known) as me:
        made = me.summarize(user)
    app.emit(as_json(made), lambda: as_text(made))


@summary.command()
@click.argument("text")
@click.option("--allow", multiple=True, metavar="WORD", help="Add a word to your own lexicon, so that it may be said.")
@click.option("--overrule", multiple=True, metavar="WORD", help="Let a word stand that the guard blocks, here alone.")
@user_option
@common
def edit(app: App, text: str, allow: tuple[str, ...], overrule: tuple[str, ...], user: str) -> None:
    """Put it in your own words; what you write counts as approved. The guard reads it too.

    What it blocks you may overrule word by word: a finding stands down when each of its words is named, and that is
    recorded with the version.
    """
    with open_popi(app) as me:
        try:
            made = me.edit(text, user, allow=allow, overrule=overrule)
        except GuardBlocked as e:
            hint = "name each word with --overrule to say it all the same, in this version"
            raise GuardBlocked(f"{e} ({hint})", e.findings) from None
    app.emit(as_json(made), lambda: as_text(made))


@summary.command()
@click.option("--version", type=int, help="Another version than the newest.")
@user_option
@common
def approve(app: App, version: int | None, user: str) -> None:
    """Allow a draft, or one that you revoked, to be sent to generators outside this device."""
    with open_popi(app) as me:
        made = me.approve(user, version)
    app.emit(as_json(made), lambda: as_text(made))


@summary.command()
@user_option
@common
def history(app: App, user: str) -> None:
    """Every version, the oldest first, and where it was sent."""
    sent: dict[int, dict[str, int]] | None = None
    with open_popi(app) as me:
        rows, last = me.history(user), ""
        try:
            sent = me.departures(user)
            if len(sent) > 1:
                last = f"{len(sent)} versions were sent; together they tell more of you than the last one alone"
        except StoreError as e:
            last = f"where they were sent cannot be told: {e}"

    def places(r: PreferenceSummary) -> dict[str, int] | None:
        return sent.get(r.version, {}) if sent is not None else None

    def lines(r: PreferenceSummary) -> str:
        return "\n".join([as_text(r), *(f"sent {n} times to {place}" for place, n in (places(r) or {}).items())])

    told = [*map(lines, rows), *([last] if last else [])]
    app.emit([as_json(r) | {"sent": places(r)} for r in rows], lambda: "\n\n".join(told))


@summary.command()
@click.option("--version", type=int, help="Only this version; otherwise every one that is approved or edited.")
@user_option
@common
def revoke(app: App, version: int | None, user: str) -> None:
    """Take approval back: nothing of it leaves any more. What was sent already is out."""
    with open_popi(app) as me:
        gone = me.revoke(user, version)
        left = next((s for s in reversed(me.history(user)) if s.status in ("approved", "edited")), None)
    lines = [f"revoked version {', '.join(str(s.version) for s in gone)}"]
    lines.append(f"version {left.version} is still approved, and is what would be sent: {left.text}" if left else
                 "nothing is approved: no summary leaves until you approve one")  # fmt: skip
    app.emit({"revoked": [as_json(s) for s in gone], "leaving": as_json(left) if left else None}, "\n".join(lines))


@summary.command()
@click.argument("version", type=int)
@user_option
@common
def rollback(app: App, version: int, user: str) -> None:
    """Make an older VERSION the newest again, as a new version; the guard reads it anew."""
    with open_popi(app) as me:
        made = me.rollback(version, user)
    app.emit(as_json(made), lambda: as_text(made))


@summary.command()
@click.argument("old", type=int, required=False)
@click.argument("new", type=int, required=False)
@user_option
@common
def diff(app: App, old: int | None, new: int | None, user: str) -> None:
    """What changed from version OLD (the one before) to NEW (the newest): [-out-] {+in+}."""
    with open_popi(app) as me:
        found = me.diff(old, new, user)
    app.emit(_diff_json(found), lambda: _diff_text(found))


def _diff_json(d: Difference) -> dict[str, Any]:
    before, after = set(d.old.signal_ids), set(d.new.signal_ids)
    return {
        "old": as_json(d.old),
        "new": as_json(d.new),
        "changes": [asdict(c) for c in d.changes],
        "signals_added": [i for i in d.new.signal_ids if i not in before],
        "signals_gone": [i for i in d.old.signal_ids if i not in after],
    }


def _diff_text(d: Difference) -> str:
    from popi_edge.diff import marked

    data = _diff_json(d)
    same = d.old.text == d.new.text
    return (
        f"version {d.old.version} ({d.old.status}) → {d.new.version} ({d.new.status})"
        f" · signals: {len(data['signals_added'])} more, {len(data['signals_gone'])} fewer\n"
        + (f"no difference: {d.new.text or '(nothing)'}" if same else marked(d.changes))
    )


@summary.command()
@click.option("--calls", type=click.IntRange(min=4), default=24, show_default=True,
              help="Run the model over the prompt so often at most; more signals than that are grouped.")  # fmt: skip
@user_option
@common
def explain(app: App, calls: int, user: str) -> None:
    """Which signals each sentence rests on: signals are left out, and the sentence is scored again.

    The figures are nats: how much less likely the model finds the sentence without the signal.
    """
    from popi_edge.cli.explain import as_text as explained

    with open_popi(app) as me, progress(calls, "scoring") as bar:
        row, found = me.explain(user, calls=calls, each=lambda: bar.update(1))
        texts = {i: me.store.get(i).signal for i in row.signal_ids}
    data = {"version": row.version, "model": row.model, "scored_by": me.bundle.identity, **asdict(found)}
    app.emit(data, lambda: explained(row, found, texts, me.bundle.identity))
