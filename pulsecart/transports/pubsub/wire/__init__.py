"""Wires: how requests get to Pub/Sub. `rest` is JSON over HTTP/1.1, the default; `grpc` is Google's generated client.

A wire makes one attempt. What is above it is the same for all wires: queues, retries, deadlines, and reachability.
"""

from collections.abc import Sequence
from typing import Protocol

from pulsecart.message import Message
from pulsecart.ports import Load

__all__ = ["Metadata", "Wire", "WireError"]

Metadata = tuple[tuple[str, str], ...]
"""Headers that authorize a request, with names in lower case."""


class WireError(Exception):
    """An attempt was not confirmed. It may have reached the broker nevertheless.

    `status` is a canonical status name, such as `UNAVAILABLE`
    (https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto). `answered` says whether the broker
    itself has answered, so that it can be reached; it is None if that was not tried. `retry_after` is how many seconds
    the broker asks to wait. The message is for the log: it may contain texts of the broker.
    """

    def __init__(self, status: str, detail: str, *, answered: bool | None, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.status = status
        self.answered = answered
        self.retry_after = retry_after


class Wire(Protocol):
    """Sends requests to Pub/Sub. Topics are full names, such as `projects/p/topics/t`.

    Its methods make one attempt, which ends at a deadline in the time of the event loop or earlier, and raise
    `WireError`.
    """

    copies: int
    """How many copies of a message are in memory while it is published, the message included."""

    batch_keys: int
    """Of how many ordering keys batches may have messages in flight, so that single events find a connection."""

    async def publish(
        self, topic: str, key: str, messages: Sequence[Message], deadline: float, metadata: Metadata
    ) -> Sequence[str]:
        """Publish messages that share an ordering key, and return the message ids that the broker has returned."""
        ...

    async def get_topic(self, topic: str, deadline: float, metadata: Metadata) -> None:
        """Look up a topic; `NOT_FOUND` if there is none."""
        ...

    async def create_topic(self, topic: str, deadline: float, metadata: Metadata) -> None:
        """Create a topic; `ALREADY_EXISTS` if there is one."""
        ...

    def load(self) -> Load:
        """Return how the wire's connections are used."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
