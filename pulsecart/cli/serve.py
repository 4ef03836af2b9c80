"""`pulsecart serve`."""

import os
import sys
from pathlib import Path

import attrs
import click

from pulsecart.cli._settings import SettingsCommand, usage_error
from pulsecart.errors import DefinitionError, SettingsError
from pulsecart.ports import Requiring
from pulsecart.serve.environment import load_settings
from pulsecart.serve.settings import Settings

__all__ = ["command"]


@click.command("serve", cls=SettingsCommand)
def command(**options: str | None) -> None:
    """Serve HTTP.

    Each option can also be set by its environment variable, or in a file .env in the working directory.
    Options take precedence over the environment, and the environment over the file.
    """
    import structlog

    from pulsecart.serve.access import Access
    from pulsecart.serve.server import run
    from pulsecart.serve.wiring import transport_of
    from pulsecart.telemetry import logs

    _open_standard_streams()
    # Worker processes read the environment, so options are put there too.
    for setting in attrs.fields(Settings):
        value = options[setting.name]
        if value is not None:
            os.environ[setting.metadata["variable"]] = value
    sys.path.insert(0, str(Path.cwd()))  # for modules of PULSECART_EVENTS, as with python -m
    try:
        settings = load_settings()
        catalog = settings.catalog
        settings.require_topics(catalog.topics)
        Access(settings, catalog)  # checks the sources file, for the same reason as the credentials
        # Here, since a worker process that fails at startup is restarted again and again.
        transport = transport_of(settings)
        if isinstance(transport, Requiring):
            transport.require()
    except SettingsError as error:
        raise usage_error(error) from None
    except DefinitionError as error:
        raise click.ClickException(str(error)) from None
    logs.configure(settings.log_level, settings.project)
    structlog.get_logger("pulsecart").info(_banner(settings))
    run(settings)


def _open_standard_streams() -> None:
    """Open the null device in place of closed standard streams: the event loop or a socket would get their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _banner(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    port = settings.port or "a free port"
    targets = {
        "memory": "to memory, which keeps nothing when it stops; see GET /dev/messages",
        "pubsub": f"to Google Cloud Pub/Sub at {settings.endpoint}, project {settings.project}",
        "emulator": f"to the Pub/Sub emulator at {settings.emulator_host}, project {settings.project}",
    }
    target = targets.get(settings.transport, f"with the transport {settings.transport}")
    return f"pulsecart ({settings.environment}) on http://{host}:{port} publishes {target}"
