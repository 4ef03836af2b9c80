"""The base class of the transports that publish to Pub/Sub, or to its emulator."""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from pulsecart.errors import TransportClosed
from pulsecart.message import Message

if TYPE_CHECKING:
    from pulsecart.transports.pubsub.publisher import Publisher

__all__ = ["API_ANSWER_BYTES", "CALL_SECONDS", "DEFAULT_CONNECTIONS", "RESOURCE_NAME", "RemoteTransport", "WireName"]

WireName = Literal["rest", "grpc"]
"""How requests get to Pub/Sub: its REST API, or its gRPC API by Google's client."""

DEFAULT_CONNECTIONS = 64
"""Maximum number of HTTP connections. With 20 ms for a request, 64 carry 3,200 requests a second."""

CALL_SECONDS = 20.0
"""Maximum seconds of a call of an administrator, its retries included."""

API_ANSWER_BYTES = 64_000_000
"""Maximum bytes of the answer to such a call."""

RESOURCE_NAME = re.compile(r"(?!goog)[A-Za-z][\w.~+%-]{2,254}", re.ASCII)
"""The names of topics and subscriptions (https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names)."""


class RemoteTransport(ABC):
    """A transport that publishes over connections, which it opens in the running event loop.

    Messages of one topic and ordering key are sent in order, one request at a time; messages that
    arrive during a request share the next one.
    """

    keeps_deadline = True

    _publisher: "Publisher | None" = None

    @abstractmethod
    async def _connect(self) -> "Publisher":
        """Create what publishes. The packages that it needs are imported here: Google's take most of a second."""

    async def publish(self, message: Message) -> str:
        """Publish a message; see `Transport.publish`."""
        return await self._open().publish(message)

    def admit(self, message: Message) -> "asyncio.Future[str]":
        """Take a message without waiting; see `Admitting`."""
        return self._open().admit(message)

    async def room(self, message: Message) -> None:
        """Wait until there is room for a message; see `Admitting`."""
        await self._open().room(message)

    async def check(self, topics: Iterable[str]) -> list[str]:
        """Return the topics that are missing; see `Transport.check`."""
        return await self._open().check(topics)

    async def aclose(self) -> None:
        """Wait some seconds for messages in flight, and close the connections."""
        if self._publisher is not None:
            publisher, self._publisher = self._open(), None
            await publisher.aclose()

    async def __aenter__(self) -> Self:
        if self._publisher is not None:
            self._open()  # on another loop, which may have ended, it can be neither used nor closed
            raise RuntimeError(f"the {type(self).__name__} is open already")
        self._loop = asyncio.get_running_loop()
        self._publisher = await self._connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _open(self) -> "Publisher":
        if self._publisher is None:
            raise TransportClosed(f"the {type(self).__name__} is not open; use it inside `async with`")
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError(
                f"the {type(self).__name__} was opened on another event loop: each asyncio.run() makes its own. Use it "
                "in the one that opened it. Code without an event loop publishes through pulsecart.SyncProducer"
            )
        return self._publisher
