"""`pulsecart trace`."""

import click

from pulsecart.cli._settings import usage_error
from pulsecart.errors import SettingsError
from pulsecart.events.base import MAX_ID_BYTES
from pulsecart.ids import made_at, trace_id_of
from pulsecart.serve.environment import load_setting

__all__ = ["command"]


@click.command("trace", context_settings={"ignore_unknown_options": True})
@click.argument("event_id")
def command(event_id: str) -> None:
    """Print the trace id of an event.

    Also prints when the id was made, for ids that pulsecart made, and the address of the trace, if PULSECART_TRACE_URL
    is set in the environment or in a file .env in the working directory.
    """
    event_id = event_id.strip()
    if not event_id or not _fits(event_id):
        raise click.BadParameter(f"an event id has 1 to {MAX_ID_BYTES} bytes of UTF-8", param_hint="EVENT_ID")
    click.echo(trace_id_of(event_id))
    if made := made_at(event_id):
        click.echo(f"made {made.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}")
    try:
        template = load_setting("trace_url")
    except SettingsError as error:
        raise usage_error(error) from None
    if template:
        click.echo(template.replace("{trace_id}", trace_id_of(event_id)))


def _fits(event_id: str) -> bool:
    try:
        return len(event_id.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:
        return False
