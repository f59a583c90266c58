"""``popi ask``: a prompt, under the approved summary, to a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from popi_edge.cli.common import App, common, printable, tell_head, user_option
from popi_edge.cli.summary import as_json, open_popi

if TYPE_CHECKING:
    from popi_edge.edge import Preview


def _previewed(shown: Preview) -> tuple[dict[str, Any], str]:
    """What would be sent, for programs and for people; a key in a header is masked as in the egress log."""
    from popi_edge.egress import mask_headers

    request = shown.request
    body, headers = request.body.decode("utf-8"), mask_headers(request.headers)
    data = {
        "generator": shown.generator,
        "destination": request.destination,
        "remote": shown.remote,
        "headers": headers,
        "body": body,
        "summary": as_json(shown.summary) if shown.summary else None,
    }
    head = [f"to {request.destination}, {len(request.body)} bytes:", *(f"{k}: {v}" for k, v in headers.items())]
    return data, "\n".join([*head, *([""] if headers else []), body])


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
        if preview:  # of this very command: without --json the reply is asked for in pieces, and the bytes say so
            shown = me.preview(prompt, generator=generator, user=user, personal=not plain, stream=not app.json)
            app.emit(*_previewed(shown))
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
            tell_head(app, me.egress)
            return
        for piece in me.stream(prompt, generator=generator, user=user, personal=not plain):
            click.echo(printable(piece), nl=False)
        click.echo()
        tell_head(app, me.egress)
