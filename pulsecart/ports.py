"""What the core asks of the world: a transport, an observer, a clock and a source of ids."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from attrs import frozen

from pulsecart.message import Message, Prepared, PublishedMessage

__all__ = [
    "UNOBSERVED",
    "Clock",
    "IdFactory",
    "Inspectable",
    "Load",
    "Loaded",
    "Observer",
    "Publishing",
    "Sending",
    "TopicAdmin",
    "Transport",
    "Unobserved",
]

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

    async def publish(self, message: Message, /) -> str:
        """Publish one message and return the message id that the broker gave it.

        Raises a `PublishError`, a new instance for each call, unless the broker has confirmed.
        """
        ...

    async def check(self, topics: Iterable[str], /) -> list[str]:
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
        /,
    ) -> None: ...


class TopicAdmin(Protocol):
    """Creates topics: an ability that a transport may have in addition to publishing."""

    async def create_topics(self, topics: Iterable[str], /) -> None:
        """Create topics. One that exists is left as it is. Raises `BrokerUnavailable`."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """Shows what was published: an ability that a transport for development may have in addition to publishing."""

    @property
    def messages(self) -> "Sequence[PublishedMessage]":
        """What was published, newest last."""
        ...

    def clear(self) -> None:
        """Forget it."""
        ...


@frozen
class Load:
    """What a transport holds at present."""

    messages: int
    bytes: int
    waiting: int
    """Messages that no request carries yet."""

    oldest_age: float
    """For how many seconds the oldest has waited; 0 if there is none."""


class Loaded(Protocol):
    """Something that can say what it holds, in another thread than the one that changes it."""

    def load(self) -> Load:
        """Return what is held."""
        ...


class Publishing(Protocol):
    """Observes one event from `Observer.publishing` until it ends in one of the two ways."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """What is added to the message's attributes, such as a trace context."""
        ...

    def published(self, message_id: str) -> None:
        """Observe that the broker has confirmed."""
        ...

    def failed(self, error: BaseException) -> None:
        """Observe that the event was not published, or that its caller gave up."""
        ...


class Sending(Protocol):
    """Observes one request to the broker, with its retries, from `Observer.sending` until it ends."""

    def attempt_failed(self, error_type: str) -> None:
        """Observe that an attempt failed. There may be another."""
        ...

    def ended(self, error_type: str) -> None:
        """Observe the end of the request; `error_type` is empty if the broker has confirmed."""
        ...


class Observer(Protocol):
    """Watches events on their way: telemetry, for one. Its methods do not block and do not raise.

    `UNOBSERVED` is the one that does nothing.
    """

    def rejected(self, event_type: str, error: Exception) -> None:
        """Observe that an event could not be prepared: an `EventError`, or a defect. An unknown type is empty."""
        ...

    def publishing(self, event: Prepared) -> Publishing:
        """Observe an event that is about to be published, in the task that publishes it, until that has ended."""
        ...

    def current(self) -> Any:
        """Return what identifies the event that the running task publishes, for `waited` and `sending`; or None."""
        ...

    def waited(self, events: Sequence[Any], count: int) -> None:
        """Observe that these events have waited for their turn, and are sent in a request of `count` messages."""
        ...

    def sending(self, topic: str, count: int, events: Sequence[Any], server: tuple[str, int]) -> Sending:
        """Observe a request with `count` messages to the broker at `server` (host and port)."""
        ...

    def watch(self, loaded: Loaded) -> None:
        """Observe what this holds, for as long as it lives."""
        ...


class Unobserved:
    """An observer that does nothing, and its observations."""

    attributes: Mapping[str, str] = {}

    def rejected(self, event_type: str, error: Exception) -> None:
        """Do nothing."""

    def publishing(self, event: Prepared) -> "Unobserved":  # noqa: ARG002
        """Return what does nothing."""
        return self

    def published(self, message_id: str) -> None:
        """Do nothing."""

    def failed(self, error: BaseException) -> None:
        """Do nothing."""

    def current(self) -> None:
        """Return nothing."""

    def waited(self, events: Sequence[Any], count: int) -> None:
        """Do nothing."""

    def sending(self, topic: str, count: int, events: Sequence[Any], server: tuple[str, int]) -> "Unobserved":  # noqa: ARG002
        """Return what does nothing."""
        return self

    def attempt_failed(self, error_type: str) -> None:
        """Do nothing."""

    def ended(self, error_type: str) -> None:
        """Do nothing."""

    def watch(self, loaded: Loaded) -> None:
        """Do nothing."""


UNOBSERVED = Unobserved()
