"""The command line. Each module of this package is a command; a new one needs nothing but its file.

A module defines `command`, a click command. It is imported when its help or the command itself is needed, so it imports
what is slow to load, such as the server, only when it runs.
"""

import pkgutil
from importlib import import_module

import click

__all__ = ["main"]


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="pulsecart", message="%(prog)s %(version)s")
def main() -> None:
    """Validate commerce events and publish them to Google Pub/Sub."""
