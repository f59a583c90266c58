"""``popi generator``: who answers. Keys go to the keyring or stay in the environment, never into a file."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from popi_edge.cli.common import App, ask_passphrase, common, tell_head, user_option

TEST_PROMPT = "Reply with the one word: ready"


@click.group()
def generator() -> None:
    """Add, list, remove and test generators (OpenAI-compatible URLs)."""


def _describe(entry: Any) -> dict[str, Any]:
    key = f"environment variable {entry.key_env}" if entry.key_env else "keyring" if entry.key_keyring else None
    return {
        "name": entry.name,
        "url": entry.url,
        "model": entry.model,
        "key": key,
        "remote": entry.remote,
        "trusted": entry.trusted,
        "timeout_s": entry.timeout_s,
        "max_tokens": entry.max_tokens,
        "temperature": entry.temperature,
    }


def _line(d: dict[str, Any]) -> str:
    if d["name"] == "local":
        return "local: the model in this process"
    trust = "trusted: may see drafts" if d["trusted"] else "remote: gets approved summaries only"
    return f"{d['name']}: {d['model']} at {d['url']} ({trust}; key: {d['key'] or 'none'})"


@generator.command()
@click.argument("name")
@click.option("--url", required=True, help="The base, such as https://api.example.org/v1.")
@click.option("--model", required=True, help="The model's name there.")
@click.option("--key-env", metavar="VAR", help="The environment variable that holds the key.")
@click.option("--key-stdin", is_flag=True, help="Read the key from stdin and keep it in the system's keyring.")
@click.option("--trusted", is_flag=True, help="Treat it like a local model: it may also see drafts.")
@click.option("--allow-http", is_flag=True, help="Permit plain http to another machine.")
@click.option("--timeout", "timeout_s", type=float, default=120.0, show_default=True, help="Seconds in total.")
@click.option("--max-tokens", type=int, default=512, show_default=True, help="Longest reply; 0 leaves it out.")
@click.option("--temperature", type=float, help="Left to the server unless given.")
@common
def add(app: App, name: str, key_stdin: bool, max_tokens: int, **fields: Any) -> None:
    """Add a generator. Nothing is sent; see 'popi generator test'."""
    from popi_edge.generators import registry

    entry = registry.Entry(name=name, key_keyring=key_stdin, max_tokens=max_tokens or None, **fields)
    registry.add(app.settings.home, entry, key=_read_key() if key_stdin else None)
    if entry.url.startswith("http:") and entry.allow_http:
        app.note(f"popi: {entry.url} is plain http: everybody on the way can read what is sent")
    if entry.key_env and not os.environ.get(entry.key_env):
        app.note(f"popi: {entry.key_env} is not set now; it must be when {name} is used")
    data = _describe(entry)
    app.emit(data, f"added {_line(data)}")


def _read_key() -> str:
    """The key from stdin: asked for without echo at a terminal, else the first line."""
    import sys

    from popi_edge.errors import ConfigError

    if sys.stdin.isatty():
        key = str(click.prompt("Key", hide_input=True, err=True))
    else:
        key = sys.stdin.readline(10_000)
    key = key.strip()
    if not key:
        raise ConfigError("no key came on stdin")
    return key


@generator.command("list")
@common
def list_(app: App) -> None:
    """List the generators; 'local' is always there."""
    from popi_edge.generators import registry

    local = {
        "name": "local",
        "url": None,
        "model": app.settings.model,
        "key": None,
        "remote": False,
        "trusted": True,
    }
    found = [local, *(_describe(e) for e in registry.load(app.settings.home).values())]
    app.emit(found, lambda: "\n".join(map(_line, found)))


@generator.command()
@click.argument("name")
@common
def remove(app: App, name: str) -> None:
    """Remove a generator, and its key from the keyring."""
    from popi_edge.generators import registry

    entry = registry.remove(app.settings.home, name)
    app.emit({"removed": entry.name}, f"removed {entry.name}")


@generator.command()
@click.argument("name")
@user_option
@common
def test(app: App, name: str, user: str) -> None:
    """Send a generator one short fixed prompt, without any summary; it goes into the egress log too."""
    from popi_edge.edge import Popi
    from popi_edge.generators.wire import clean

    with Popi.open(home=app.settings.home, passphrase=ask_passphrase) as me:
        start = time.monotonic()
        answer = me.ask(TEST_PROMPT, generator=name, user=user, personal=False)
        seconds = round(time.monotonic() - start, 3)
        tell_head(app, me.egress)
    reply = clean(answer.text, 80)
    data = {"generator": name, "seconds": seconds, "reply": reply, "egress_id": answer.egress_id}
    app.emit(data, f"{name} answered in {seconds:.2f} s: {reply}\negress record {answer.egress_id}")
