"""``popi ask``: a prompt, under the approved summary, to a generator."""

from __future__ import annotations

import click

from popi_edge.cli.common import App, common, printable, user_option
from popi_edge.cli.summary import as_json, open_popi


@click.command()
@click.argument("prompt")
@click.option("--generator", default="local", show_default=True, help="local, or a name from 'popi generator list'.")
@click.option("--preview", is_flag=True, help="Show the exact bytes that would be sent, and send nothing.")
@click.option("--plain", is_flag=True, help="Without the summary.")
@user_option
@common
def ask(app: App, prompt: str, generator: str, preview: bool, plain: bool, user: str) -> None:
    """Ask a generator. Only your prompt and the summary go out, and what went out is kept in the egress log."""
    with open_popi(app) as me:
        if preview:
            shown = me.preview(prompt, generator=generator, user=user, personal=not plain)
            body = shown.request.body.decode("utf-8")
            data = {
                "generator": shown.generator,
                "destination": shown.request.destination,
                "remote": shown.remote,
                "body": body,
                "summary": as_json(shown.summary) if shown.summary else None,
            }
            app.emit(data, f"to {shown.request.destination}, {len(shown.request.body)} bytes:\n{body}")
            return
        if app.json:
            answer = me.ask(prompt, generator=generator, user=user, personal=not plain)
            app.emit(
                {
                    "reply": answer.text,
                    "summary": answer.summary.text if answer.summary else None,
                    "egress_id": answer.egress_id,
                },
                "",
            )
            return
        for piece in me.stream(prompt, generator=generator, user=user, personal=not plain):
            click.echo(printable(piece), nl=False)
        click.echo()
