"""The ports of the core: protocols for transports, observers, clocks and id factories."""

from asyncio import Future
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from attrs import frozen

from pulsecart.message import Message, Prepared, PublishedMessage

__all__ = [
    "UNOBSERVED",
    "Admitting",
    "Clock",
    "IdFactory",
    "Inspectable",
    "KeepsDeadline",
    "Load",
    "Loaded",
    "Observer",
    "Publishing",
    "Requiring",
    "Sending",
    "TopicAdmin",
    "Transport",
    "Unobserved",
]

Clock = Callable[[], datetime]
"""Returns the current time, with a UTC offset."""

IdFactory = Callable[[], str]
"""Returns a new event id, 1 to 1024 bytes of UTF-8."""


class Transport(Protocol):
    """Publishes a message to a topic and returns its message id.

    A transport is open inside `async with`. When it is closed, `publish` raises `TransportClosed`; before it is opened
    too, unless it needs no opening. Messages of one topic and ordering key are published in the order of the calls.
    """

    async def publish(self, message: Message, /) -> str:
        """Publish a message and return the message id that the broker assigned.

        Raises a `PublishError`, a new instance for each call, if the broker does not confirm.
        """
        ...

    async def check(self, topics: Iterable[str], /) -> list[str]:
        """Return the topics that do not exist on the broker.

        A topic without permission to read it counts as existing: publishing does not require that permission.
        Raises `BrokerUnavailable` if the broker cannot be reached.
        """
        ...

    async def aclose(self) -> None:
        """Close the transport. Closing it twice is not an error."""
        ...

    # What it returns is not used, so that it may be anything.
    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> object: ...


class KeepsDeadline(Protocol):
    """Says that a transport needs no guard (`pulsecart.guard`). A transport may implement this in addition.

    Every call of `publish` then ends by the deadline with a message id or a `PublishError`, also if the broker hangs,
    and `aclose` ends after some seconds. A class that replaces `publish` must say so again.
    """

    @property
    def keeps_deadline(self) -> bool:
        """Whether it needs no guard."""
        ...


@runtime_checkable
class Requiring(Protocol):
    """Has requirements that can be checked before it is opened. A transport may implement this in addition."""

    def require(self) -> None:
        """Check them, such as credentials. Raises `SettingsError`."""
        ...


@runtime_checkable
class TopicAdmin(Protocol):
    """Creates topics. A transport may implement this in addition to `Transport`."""

    async def create_topics(self, topics: Iterable[str], /) -> None:
        """Create topics; existing ones are not changed. Raises `BrokerUnavailable`."""
        ...


@runtime_checkable
class Admitting(Protocol):
    """Takes a message without a task for each. A transport may implement this in addition to `Transport`.

    Batches are published much faster with it.
    """

    def admit(self, message: Message, /) -> "Future[str] | str | None":
        """Take a message, and return its message id or a future of it. None: call `publish` for this message instead.

        Raises a `PublishError` if the message is not taken: `Overloaded` if there is no room at the moment. If a future
        of a topic and ordering key fails with a retryable error, so do at the same time all that are behind it.
        """
        ...

    async def room(self, message: Message, /) -> None:
        """Wait until there may be room for a message that was not taken, or is to be given to `publish`."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """Lists published messages. A transport for development may implement this in addition to `Transport`."""

    @property
    def messages(self) -> "Sequence[PublishedMessage]":
        """The published messages, newest last."""
        ...

    def clear(self) -> None:
        """Remove all messages."""
        ...


@frozen
class Load:
    """What a transport, or a part of it, currently holds."""

    messages: int = 0
    bytes: int = 0
    waiting: int = 0
    """The number of messages that are not in a request yet."""

    oldest_age: float = 0.0
    """The age of the oldest message in seconds; 0 if there is none."""

    connections: int = 0
    """The number of open connections to the broker."""

    connections_in_use: int = 0
    """The number of connections with a request in flight, if a connection carries one at a time."""

    connections_awaited: int = 0
    """The number of requests that wait for a connection."""


class Loaded(Protocol):
    """Reports what it holds, from any thread."""

    def load(self) -> Load:
        """Return what is currently held."""
        ...


class Publishing(Protocol):
    """Observes an event from `Observer.publishing` until it is published or has failed."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """Attributes to add to the message, such as a trace context."""
        ...

    def admitted(self) -> None:
        """Observe that the message is on its way, and that the current task continues with other events."""
        ...

    def published(self, message_id: str) -> None:
        """Observe that the broker has confirmed the message."""
        ...

    def failed(self, error: BaseException) -> None:
        """Observe that publishing has failed, or that the caller has cancelled it."""
        ...


class Sending(Protocol):
    """Observes a request to the broker, including its retries, from `Observer.sending` until it ends."""

    def attempt_failed(self, error_type: str) -> None:
        """Observe that an attempt has failed. Another may follow."""
        ...

    def ended(self, error_type: str) -> None:
        """Observe the end of the request; `error_type` is empty if the broker has confirmed it."""
        ...


class Caller(Protocol):
    """Who has sent an event: an authenticated source. Messages have its name as the attribute `source`."""

    @property
    def name(self) -> str:
        """The name of the source."""
        ...

    def may_send(self, event_type: str, /) -> bool:
        """Return whether it may send events of this type."""
        ...


class Observer(Protocol):
    """Observes events, for example for telemetry. Its methods do not block and do not raise exceptions.

    `UNOBSERVED` is an observer that does nothing.
    """

    def rejected(self, event_type: str, error: Exception, source: str) -> None:
        """Observe that an event could not be prepared: an `EventError`, or an unexpected exception.

        `event_type` is empty if it is unknown; `source` is the caller's name, or empty.
        """
        ...

    def publishing(self, event: Prepared) -> Publishing:
        """Observe an event that is about to be published. Called in the task that publishes it."""
        ...

    def current(self) -> Any:
        """Return a reference to the event that the current task publishes, for `waited` and `sending`; or None."""
        ...

    def waited(self, events: Sequence[Any], count: int) -> None:
        """Observe that these events have waited, and are now sent in a request of `count` messages."""
        ...

    def sending(self, topic: str, count: int, events: Sequence[Any], server: tuple[str, int]) -> Sending:
        """Observe a request of `count` messages to the broker at `server` (host and port)."""
        ...

    def watch(self, loaded: Loaded) -> None:
        """Observe what this object holds, as long as it exists."""
        ...


class Unobserved:
    """An observer that does nothing; it is its own `Publishing` and `Sending`."""

    attributes: Mapping[str, str] = {}

    def rejected(self, event_type: str, error: Exception, source: str) -> None:
        """Do nothing."""

    def publishing(self, event: Prepared) -> "Unobserved":  # noqa: ARG002
        """Return this object."""
        return self

    def admitted(self) -> None:
        """Do nothing."""

    def published(self, message_id: str) -> None:
        """Do nothing."""

    def failed(self, error: BaseException) -> None:
        """Do nothing."""

    def current(self) -> None:
        """Return None."""

    def waited(self, events: Sequence[Any], count: int) -> None:
        """Do nothing."""

    def sending(self, topic: str, count: int, events: Sequence[Any], server: tuple[str, int]) -> "Unobserved":  # noqa: ARG002
        """Return this object."""
        return self

    def attempt_failed(self, error_type: str) -> None:
        """Do nothing."""

    def ended(self, error_type: str) -> None:
        """Do nothing."""

    def watch(self, loaded: Loaded) -> None:
        """Do nothing."""


UNOBSERVED = Unobserved()
