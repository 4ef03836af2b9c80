"""What the core asks of the world: a transport, a clock and a source of ids."""

from collections.abc import Callable, Iterable
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from pulsecart.message import Message

__all__ = ["Clock", "IdFactory", "Transport"]

Clock = Callable[[], datetime]
"""Returns the current time, with an offset."""

IdFactory = Callable[[], str]
"""Returns a new event id, 1 to 1024 bytes of UTF-8."""


class Transport(Protocol):
    """The publish port: publishes a message to a topic and returns its message id.

    A transport is open inside `async with`. After that, and before where it has something to open,
    `publish` raises `TransportClosed`.
    Messages of one topic and ordering key are published in the order of the calls.
    """

    async def publish(self, message: Message) -> str:
        """Publish one message and return the message id that the broker gave it.

        Raises a `PublishError`, a new instance for each call, unless the broker has confirmed.
        """
        ...

    async def check(self, topics: Iterable[str]) -> list[str]:
        """Ask the broker for the topics and return those that it does not have.

        A topic that may not be looked at counts as there: publishing needs no right to look.
        Raises `BrokerUnavailable` where the broker cannot be reached.
        """
        ...

    async def aclose(self) -> None:
        """Close. Closing twice is no error."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
