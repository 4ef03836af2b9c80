"""Transports: memory, the Pub/Sub emulator, and Google Cloud Pub/Sub.

Each is imported on first access, and Google's packages only when a transport is opened, so that tests
that use only the memory transport start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pulsecart.transports.emulator import EmulatorTransport
    from pulsecart.transports.memory import MemoryTransport, PublishedMessage
    from pulsecart.transports.pubsub import PubSubTransport

__all__ = ["EmulatorTransport", "MemoryTransport", "PubSubTransport", "PublishedMessage"]

_MODULES = {
    "EmulatorTransport": "pulsecart.transports.emulator",
    "MemoryTransport": "pulsecart.transports.memory",
    "PubSubTransport": "pulsecart.transports.pubsub",
    "PublishedMessage": "pulsecart.transports.memory",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
