"""The one program, ``popi``. Each group of commands is a small module of its own, imported when it is called."""

from __future__ import annotations

import importlib
import io
import sys
from importlib.metadata import entry_points
from typing import Any

import click

from popi_edge.quiet import quiet

COMMANDS = {
    "demo": "popi_edge.cli.demo:demo",
    "model": "popi_edge.cli.model:model",
    "record": "popi_edge.cli.record:record",
    "import": "popi_edge.cli.record:import_",
    "signals": "popi_edge.cli.signals:signals",
    "summary": "popi_edge.cli.summary:summary",
    "lexicon": "popi_edge.cli.lexicon:lexicon",
    "guard": "popi_edge.cli.guard:guard",
    "ask": "popi_edge.cli.ask:ask",
    "generator": "popi_edge.cli.generator:generator",
    "bundle": "popi_edge.cli.bundle:bundle",
    "store": "popi_edge.cli.store:store",
    "egress": "popi_edge.cli.egress:egress",
    "doctor": "popi_edge.cli.doctor:doctor",
}


class Program(click.Group):
    """Commands by name, imported lazily; other packages add theirs under the entry points ``popi.commands``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(e.name for e in entry_points(group="popi.commands") if e.name not in COMMANDS)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            quiet(hub=False)
            module, attribute = COMMANDS[name].split(":")
            command: Any = getattr(importlib.import_module(module), attribute)
        else:
            found = [e for e in entry_points(group="popi.commands") if e.name == name]
            if not found:
                return None
            command = found[0].load()
        assert isinstance(command, click.Command)
        return command


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="popi-edge", prog_name="popi")
def program() -> None:
    """Your signals stay on your device. Only a short, readable summary of what you like ever leaves it."""


def main() -> None:
    """Run ``popi``: exit 0 done, 1 refused or failed (one line on stderr), 2 wrong usage, 130 interrupted."""
    from popi_edge.errors import PopiError

    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text; stderr spells it out already
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = program(standalone_mode=False)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("popi: interrupted", err=True)
        sys.exit(130)
    except PopiError as e:
        click.echo(f"popi: {' '.join(str(e).split())}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as e:  # too long a name, say, wherever it was first looked at
        if e.filename is None:
            raise
        click.echo(f"popi: {e.filename!s:.200}: {e.strerror}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
