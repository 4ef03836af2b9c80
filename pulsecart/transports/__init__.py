"""Transports: memory, the Pub/Sub emulator, and Google Cloud Pub/Sub.

`KeyedQueues` and `TransportConfig` are for transports of your own; see `pulsecart.transports.registry`.

Each is imported on first access, and Google's packages only when a transport is opened, so that tests
that use only the memory transport start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pulsecart.transports.emulator import EmulatorTransport
    from pulsecart.transports.keyed import Failure, KeyedQueues, Request, Send
    from pulsecart.transports.memory import MemoryTransport, PublishedMessage
    from pulsecart.transports.pubsub import PubSubTransport
    from pulsecart.transports.registry import TransportConfig

__all__ = [
    "EmulatorTransport",
    "Failure",
    "KeyedQueues",
    "MemoryTransport",
    "PubSubTransport",
    "PublishedMessage",
    "Request",
    "Send",
    "TransportConfig",
]

_MODULES = {
    "EmulatorTransport": "pulsecart.transports.emulator",
    "Failure": "pulsecart.transports.keyed",
    "KeyedQueues": "pulsecart.transports.keyed",
    "MemoryTransport": "pulsecart.transports.memory",
    "PubSubTransport": "pulsecart.transports.pubsub",
    "PublishedMessage": "pulsecart.transports.memory",
    "Request": "pulsecart.transports.keyed",
    "Send": "pulsecart.transports.keyed",
    "TransportConfig": "pulsecart.transports.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
