"""The transports of the settings whose broker has topics."""

from typing import TYPE_CHECKING, cast

from pulsecart.errors import SettingsError
from pulsecart.ports import Requiring
from pulsecart.serve.settings import Settings

if TYPE_CHECKING:
    from pulsecart.transports import EmulatorTransport, PubSubTransport

__all__ = ["remote_transport"]


def remote_transport(settings: Settings) -> "EmulatorTransport | PubSubTransport":
    """Return the transport of the settings, unopened. Raises `SettingsError`, also without credentials."""
    if settings.transport in ("emulator", "pubsub"):
        from pulsecart.serve.wiring import transport_of

        transport = cast("EmulatorTransport | PubSubTransport", transport_of(settings))
        if isinstance(transport, Requiring):
            transport.require()
        return transport
    raise SettingsError(
        [f"the {settings.transport} transport has no topics: set PULSECART_TRANSPORT to pubsub, or to emulator"]
    )
