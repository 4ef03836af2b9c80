"""The memory transport: keeps published messages in memory, for unit tests and development."""

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from pulsecart.errors import TransportClosed
from pulsecart.message import Message, PublishedMessage
from pulsecart.transports.registry import TransportConfig
from pulsecart.transports.turns import Turns

__all__ = ["MemoryTransport", "PublishedMessage", "from_config"]

Handler = Callable[[Message], Awaitable[None]]


class MemoryTransport:
    """Keeps published messages in memory.

    It keeps the newest messages: at most `keep`, with at most `keep_bytes` bytes of data in total. The newest message
    is kept even if it is larger.

    `handler` is an async function that is called with each message before it is published. It may wait, record the
    message, or raise a `PublishError` to simulate a failure of the broker:

        async def outage(message: Message) -> None:
            raise BrokerUnavailable("test")

        transport = MemoryTransport(outage)

    Unlike other transports it needs no opening: it can be used without `async with` until it is closed. Without a
    handler, threads with event loops of their own can share it.
    """

    def __init__(self, handler: Handler | None = None, *, keep: int = 10_000, keep_bytes: int = 64_000_000) -> None:
        self._handler = handler
        self._keep_messages = keep
        self._keep_bytes = keep_bytes
        self._messages: deque[PublishedMessage] = deque()
        self._bytes = 0
        self._published = 0
        self._lock = threading.RLock()
        self._listeners: list[Callable[[PublishedMessage], None]] = []
        self._turns = Turns()
        self._closed = False

    @property
    def keeps_deadline(self) -> bool:
        """Whether there is no handler, which may wait or fail."""
        return self._handler is None

    @property
    def messages(self) -> list[PublishedMessage]:
        """The published messages, newest last."""
        with self._lock:
            return list(self._messages)

    def clear(self) -> None:
        """Remove all messages. Message ids continue to count up."""
        with self._lock:
            self._messages.clear()
            self._bytes = 0

    @contextmanager
    def listening(self, listener: Callable[[PublishedMessage], None]) -> Iterator[None]:
        """Within the block, call a function with each message that is published, in the thread that publishes it."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)

    async def publish(self, message: Message) -> str:
        """Keep a message and return its message id; the first is `1`."""
        if self._handler is None:
            return self._keep(message)
        async with self._turns.of(message):
            if not self._closed:
                await self._handler(message)
            return self._keep(message)

    def admit(self, message: Message) -> str | None:
        """Keep a message and return its message id; see `Admitting`. With a handler, call `publish` instead."""
        return self._keep(message) if self._handler is None else None

    async def room(self, message: Message) -> None:
        """Return at once: there is always room."""

    def _keep(self, message: Message) -> str:
        with self._lock:
            if self._closed:
                raise TransportClosed("the memory transport is closed", message=message)
            self._published += 1
            kept = PublishedMessage(
                topic=message.topic,
                data=message.data,
                attributes=dict(message.attributes),
                ordering_key=message.ordering_key,
                message_id=str(self._published),
            )
            self._messages.append(kept)
            self._bytes += len(kept.data)
            while len(self._messages) > self._keep_messages or (
                self._bytes > self._keep_bytes and len(self._messages) > 1
            ):
                self._bytes -= len(self._messages.popleft().data)
            for listener in self._listeners:
                listener(kept)
        return kept.message_id

    async def check(self, topics: Iterable[str]) -> list[str]:
        """Return an empty list: every topic exists."""
        return []

    async def aclose(self) -> None:
        """Reject further messages. Published messages can still be read."""
        self._closed = True

    async def __aenter__(self) -> Self:
        self._closed = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def from_config(config: TransportConfig) -> MemoryTransport:
    """Return the transport `memory`."""
    config.allow_options()
    return MemoryTransport()
