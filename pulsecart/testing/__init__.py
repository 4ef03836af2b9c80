"""What tests of applications and transports need. Each name is imported on first access."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pulsecart.testing.contract import Delivered, Outage, TransportContract
    from pulsecart.testing.recording import RecordingTransport
    from pulsecart.testing.service import Service
    from pulsecart.testing.strict import (
        PublishRequest,
        RawAnswer,
        ReceivedMessage,
        StrictPubsub,
        http_answer,
        strict_pubsub,
    )

__all__ = [
    "Delivered",
    "Outage",
    "PublishRequest",
    "RawAnswer",
    "ReceivedMessage",
    "RecordingTransport",
    "Service",
    "StrictPubsub",
    "TransportContract",
    "http_answer",
    "strict_pubsub",
]

_MODULES = dict.fromkeys(("Delivered", "Outage", "TransportContract"), "contract")
_MODULES |= {"RecordingTransport": "recording", "Service": "service"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'strict')}"), name)
