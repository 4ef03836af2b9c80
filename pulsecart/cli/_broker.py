"""The transports of the settings whose broker has topics."""

from typing import TYPE_CHECKING

from pulsecart.errors import SettingsError
from pulsecart.serve.settings import Settings

if TYPE_CHECKING:
    from pulsecart.transports import EmulatorTransport, PubSubTransport

__all__ = ["remote_transport"]


def remote_transport(settings: Settings) -> "EmulatorTransport | PubSubTransport":
    """Return the transport of the settings, unopened. Raises `SettingsError`, also without credentials."""
    if settings.transport == "pubsub":
        from pulsecart.serve.wiring import pubsub_transport

        pubsub = pubsub_transport(settings)
        pubsub.require()
        return pubsub
    if settings.transport == "emulator":
        from pulsecart.transports import EmulatorTransport

        return EmulatorTransport(
            project=settings.project,
            host=settings.emulator_host,
            wire=settings.wire,
            limits=settings.limits,
            topics=settings.topics,
        )
    raise SettingsError(
        [f"the {settings.transport} transport has no topics: set PULSECART_TRANSPORT to pubsub, or to emulator"]
    )
