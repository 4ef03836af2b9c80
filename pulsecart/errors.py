"""Every error pulsecart raises.

    PulsecartError
    ├── DefinitionError        an event class or the catalog is wrong; found at start
    ├── SettingsError          the settings are wrong or contradict each other; found at start
    ├── EventError             the caller's fault; the same event never succeeds
    │   ├── MalformedBody      not one JSON object that can be read exactly
    │   ├── MissingEventType
    │   ├── UnknownEventType
    │   ├── InvalidEvent       fields missing, unknown or of the wrong kind
    │   └── MessageTooLarge    over what Pub/Sub takes in one message
    └── PublishError           the event is sound, but it was not published (or nobody can tell)
        ├── MessageRefused     the broker refuses this one message for good
        ├── BrokerUnavailable  the broker is unreachable, or slower than the deadline
        ├── Overloaded         too much is in flight already
        ├── BrokerRefused      the broker refuses the topic: it is missing, or not permitted
        └── TransportClosed    the transport is not open

`retryable` says whether sending the same event again, under the same `event_id`, can succeed.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

import msgspec
from attrs import frozen

if TYPE_CHECKING:
    from pulsecart.message import Message

__all__ = [
    "BrokerRefused",
    "BrokerUnavailable",
    "DefinitionError",
    "EventError",
    "Fault",
    "InvalidEvent",
    "MalformedBody",
    "MessageRefused",
    "MessageTooLarge",
    "MissingEventType",
    "Overloaded",
    "PublishError",
    "PulsecartError",
    "SettingsError",
    "TransportClosed",
    "UnknownEventType",
]


@frozen
class Fault:
    """One thing that is wrong with an event."""

    pointer: str
    """Where: a JSON pointer (RFC 6901) into the body; empty for the body as a whole."""

    code: str
    """What kind: `missing`, `unknown`, `duplicate`, `wrong-type`, `empty`, `too-long`, `out-of-range` or `invalid`."""

    message: str
    """What is wrong and how to mend it, for a person."""

    def __str__(self) -> str:
        return f"{self.pointer or '(body)'}: {self.message}"


class PulsecartError(Exception):
    """The base of all errors raised by pulsecart."""

    retryable: ClassVar[bool] = False


class DefinitionError(PulsecartError):
    """An event class, or the catalog made of them, cannot work."""


class SettingsError(PulsecartError):
    """The settings are wrong. The message names every problem, not only the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class EventError(PulsecartError):
    """The event is at fault: sending the same again cannot succeed.

    `event_type` and `event_id` are what is known of the event and may be logged; `event_type` is empty unless it is one
    of the catalog's.
    """

    topic = traceparent = ""

    def __init__(
        self, detail: str, faults: Sequence[Fault] = (), *, event_type: str = "", event_id: str | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = tuple(faults)
        self.event_type = event_type
        self.event_id = event_id

    def __str__(self) -> str:
        return "\n".join([self.detail, *map(str, self.faults)])


class MalformedBody(EventError):
    """The body is not one JSON object, or not one that can be read without loss."""


class MissingEventType(EventError):
    """The body has no `event_type`."""


class UnknownEventType(EventError):
    """The catalog has no class for this `event_type`."""


class InvalidEvent(EventError):
    """Fields are missing, unknown or of the wrong kind; `faults` lists all of them."""


class MessageTooLarge(EventError):
    """The finished message is larger than `limit` bytes."""

    def __init__(self, message: "Message", size: int, limit: int) -> None:
        super().__init__(
            f"The finished message has up to {size:,} bytes; the limit is {limit:,}.",
            event_type=message.attributes["event_type"],
            event_id=message.attributes["event_id"],
        )
        self.topic = message.topic
        self.limit = limit


class _Timed(msgspec.Struct):
    timestamp: datetime


class PublishError(PulsecartError):
    """The event is valid, but was not published, or nobody can tell whether it was.

    `event_id` and `timestamp` are those that the event was to be published under: send them along when trying again,
    so that consumers see a duplicate as one.

    `detail` is shown to callers; `log_detail` is written to the log in its place, and may repeat what the broker said.
    `error_type` says what happened in one word of few, for telemetry: the broker's gRPC status if there is one.
    A transport raises a new instance for each message, and may leave `message` to the producer.
    """

    retryable = True
    retry_after: ClassVar[int] = 1
    """Seconds to wait before trying again."""

    def __init__(
        self, detail: str, log_detail: str = "", *, message: "Message | None" = None, error_type: str = ""
    ) -> None:
        super().__init__(detail)
        self.log_detail = log_detail or detail
        self.error_type = error_type or type(self).__name__
        self.message = message

    @property
    def event_id(self) -> str | None:
        """The event's id; None if the error is not about one event."""
        return self._attribute("event_id") or None

    @property
    def event_type(self) -> str:
        """The event's type, or empty."""
        return self._attribute("event_type")

    @property
    def topic(self) -> str:
        """The event's topic, or empty."""
        return self.message.topic if self.message else ""

    @property
    def traceparent(self) -> str:
        """The trace context that the message carries, or empty."""
        return self._attribute("traceparent")

    @property
    def timestamp(self) -> datetime | None:
        """The event's time; None if the error is not about one event."""
        return msgspec.json.decode(self.message.data, type=_Timed).timestamp if self.message else None

    def _attribute(self, name: str) -> str:
        return self.message.attributes.get(name, "") if self.message else ""


class MessageRefused(PublishError):
    """The broker refuses this one message, and will again."""

    retryable = False


class BrokerUnavailable(PublishError):
    """The broker was not reached, or did not confirm within the deadline. It may still deliver the message."""


class BrokerRefused(PublishError):
    """The broker refuses the topic: missing, or not permitted. An operator must mend it; the event is sound."""

    retry_after = 60


class Overloaded(PublishError):
    """Too many messages, or bytes of them, are in flight. This one was not taken."""


class TransportClosed(PublishError):
    """The transport is not open: not opened yet, or closed."""
