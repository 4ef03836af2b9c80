"""Options made from the settings, and errors about them."""

from itertools import groupby
from textwrap import wrap
from typing import Any

import attrs
import click

from pulsecart.errors import SettingsError
from pulsecart.serve.settings import Settings
from pulsecart.serve.values import option

__all__ = ["SettingsCommand", "usage_error"]


class SettingsCommand(click.Command):
    """A command with an option for each setting, and a help page that shows them in groups."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.params += [click.Option([option(setting), setting.name]) for setting in attrs.fields(Settings)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each option above its text, not to the left of it: that would leave a narrow column."""
        fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(Settings)
        for group, settings in groupby(fields, lambda setting: setting.metadata["group"]):
            with formatter.section(group):
                for setting in settings:
                    metadata = setting.metadata
                    source = f"[env: {metadata['variable']}, default: {metadata['default']}]"
                    _write(formatter, f"{option(setting)} {metadata['metavar']}", metadata["help"], source)
        with formatter.section("Other"):
            help_option = self.get_help_option(ctx)
            assert help_option is not None  # main turns it on
            _write(formatter, ", ".join(help_option.opts), help_option.help or "")


def _write(formatter: click.HelpFormatter, name: str, *texts: str) -> None:
    margin = " " * formatter.current_indent
    indent = margin + 4 * " "
    formatter.write(f"{margin}{name}\n")
    for text in texts:  # click's own wrapping also breaks names at their hyphens
        lines = wrap(text, formatter.width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        formatter.write("\n".join([*lines, ""]))


def usage_error(error: SettingsError) -> click.UsageError:
    """Return the error to raise for wrong settings: it lists them all."""
    return click.UsageError("\n  ".join(["the settings do not work:", *error.problems]))
