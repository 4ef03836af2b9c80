"""The command line: `pulsecart serve`."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import click
import structlog

from pulsecart.errors import DefinitionError, SettingsError
from pulsecart.events import load_catalog
from pulsecart.events.base import MAX_ID_BYTES
from pulsecart.ids import made_at, trace_id_of
from pulsecart.server import run
from pulsecart.settings import Settings, load_setting, load_settings
from pulsecart.telemetry import logs
from pulsecart.transports.pubsub import require_credentials

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pulsecart", message="%(prog)s %(version)s")
def main() -> None:
    """Validate commerce events and publish them to Google Pub/Sub."""


def _settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each setting, named as its field."""
    for setting in reversed(attrs.fields(Settings)):
        metadata = setting.metadata
        command = click.option(
            f"--{setting.name.replace('_', '-')}",
            setting.name,
            metavar=metadata["variable"],
            help=f"{metadata['help']} Default: {metadata['default']}.",
        )(command)
    return command


@main.command(context_settings={"max_content_width": 100})
@_settings_options
def serve(**options: str | None) -> None:
    """Serve HTTP.

    Each option can also be set by the environment variable shown behind it, or in a file .env in
    the working directory. An option goes before the environment, and that before the file.
    """
    _open_standard_streams()
    # Worker processes read the environment too, so the options are put there: one way for all.
    for setting in attrs.fields(Settings):
        if options[setting.name] is not None:
            os.environ[setting.metadata["variable"]] = options[setting.name] or ""
    sys.path.insert(0, str(Path.cwd()))  # for modules of PULSECART_EVENTS, as with python -m
    try:
        settings = load_settings()
        settings.require_topics(load_catalog(settings.events).topics)
        if settings.transport == "pubsub":
            require_credentials()  # here, since a worker process that fails to start is started again and again
    except SettingsError as error:
        raise click.UsageError("\n  ".join(["the settings do not work:", *error.problems])) from None
    except DefinitionError as error:
        raise click.ClickException(str(error)) from None
    logs.configure(settings.log_level, settings.project)
    structlog.get_logger("pulsecart").info(_banner(settings))
    run(settings)


def _open_standard_streams() -> None:
    """Open the null device where a standard stream is closed: the event loop or a socket would get its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("event_id")
def trace(event_id: str) -> None:
    """Print the trace id of an event, when its id was made, and where to see the trace.

    The time is there for ids that pulsecart made, the link where PULSECART_TRACE_URL (or .env) has a template.
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
        raise click.UsageError("\n  ".join(["the settings do not work:", *error.problems])) from None
    if template:
        click.echo(template.replace("{trace_id}", trace_id_of(event_id)))


def _fits(event_id: str) -> bool:
    try:
        return len(event_id.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:
        return False


def _banner(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    port = settings.port or "a free port"
    if settings.transport == "memory":
        target = "to memory, which keeps nothing when it stops; see GET /dev/messages"
    elif settings.transport == "pubsub":
        target = f"to Google Cloud Pub/Sub at {settings.endpoint}, project {settings.project}"
    else:
        target = f"to the Pub/Sub emulator at {settings.emulator_host}, project {settings.project}"
    return f"pulsecart ({settings.environment}) on http://{host}:{port} publishes {target}"
