"""`pulsecart keys`."""

import click

from pulsecart.access.keys import HASH, digest, new_key
from pulsecart.access.sources import NAME

__all__ = ["command"]


@click.group("keys")
def command() -> None:
    """Make keys for sources."""


@command.command("new")
@click.argument("source")
def new(source: str) -> None:
    """Make a key for a source, and print it once.

    The first line is the key, for the caller. The others are for the file of PULSECART_SOURCES, which has only the
    hash of the key. If the source is there already, add the hash to its keys: both keys are valid until you remove
    the old one.
    """
    if not NAME.fullmatch(source):
        raise click.BadParameter("a source has 1 to 64 characters: a-z, 0-9, _ and -", param_hint="SOURCE")
    key = new_key()
    click.echo(key)
    click.echo(f'[{source}]\nkeys = ["{HASH}{digest(key.encode()).hex()}"]')
