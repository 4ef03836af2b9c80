"""Every error pulsecart raises.

    PulsecartError
    ├── DefinitionError        an event class or the catalog is wrong; found at startup
    ├── SettingsError          the settings are wrong or contradict each other; found at startup
    ├── EventError             the event is invalid; sending the same event again never succeeds
    │   ├── MalformedBody      the body is not a JSON object, or cannot be read exactly
    │   ├── MissingEventType
    │   ├── UnknownEventType
    │   ├── InvalidEvent       fields are missing, unknown or invalid
    │   ├── EventTypeNotAllowed  the caller may not send events of this type
    │   └── MessageTooLarge    the finished message exceeds Pub/Sub's limit
    └── PublishError           the event is valid, but was not published, or the outcome is unknown
        ├── MessageRefused     the broker rejects this message permanently
        ├── BrokerUnavailable  the broker cannot be reached, or is slower than the deadline
        ├── Overloaded         too many messages or bytes are in flight
        ├── BrokerRefused      the broker rejects the topic: it does not exist, or access is denied
        └── TransportClosed    the transport is not open

`retryable` says whether sending the same event again, with the same `event_id`, can succeed.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

import msgspec
from attrs import frozen

if TYPE_CHECKING:
    from pulsecart.message import Message, SizeLimit

__all__ = [
    "Aborted",
    "BrokerRefused",
    "BrokerUnavailable",
    "DefinitionError",
    "EventError",
    "EventTypeNotAllowed",
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
    """The place in the body, as a JSON pointer (RFC 6901); empty for the whole body."""

    code: str
    """The kind: `missing`, `unknown`, `duplicate`, `wrong-type`, `empty`, `too-long`, `out-of-range` or `invalid`."""

    message: str
    """What is wrong and how to fix it, as a sentence."""

    def __str__(self) -> str:
        return f"{self.pointer or '(body)'}: {self.message}"


class PulsecartError(Exception):
    """Base class of all errors raised by pulsecart."""

    retryable: ClassVar[bool] = False


class DefinitionError(PulsecartError):
    """An event class, or the catalog of event classes, is defined incorrectly."""


class SettingsError(PulsecartError):
    """The settings are wrong. The message lists every problem, not only the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Take the problems; one may be given as it is."""
        problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class EventError(PulsecartError):
    """The event is invalid: sending the same event again cannot succeed.

    `event_type` and `event_id` identify the event, as far as they are known, and may be logged. `event_type` is empty
    unless it is in the catalog.
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
    """The body is not a JSON object, or cannot be read without loss."""


class MissingEventType(EventError):
    """The body has no `event_type`."""


class UnknownEventType(EventError):
    """The catalog has no event class for this `event_type`."""


class InvalidEvent(EventError):
    """Fields are missing, unknown or invalid; `faults` lists all of them."""


class EventTypeNotAllowed(EventError):
    """The caller may not send events of this type. The event itself is valid."""


class MessageTooLarge(EventError):
    """The finished message is larger than Pub/Sub's API accepts. `limit` is the number of bytes that it exceeds."""

    def __init__(self, message: "Message", size: int, limit: "SizeLimit") -> None:
        data = len(message.data)
        if data > limit.data:
            detail = f"The event has {data:,} bytes of data; the limit of Pub/Sub's {limit.api} API is {limit.data:,}."
        else:
            detail = f"The finished message has up to {size:,} bytes; the limit is {limit.total:,}."
        if limit.data < limit.total:
            detail += f" With PULSECART_WIRE=grpc it is {limit.total:,} for the whole message."
        super().__init__(
            detail,
            event_type=message.attributes["event_type"],
            event_id=message.attributes["event_id"],
        )
        self.topic = message.topic
        self.limit = limit.data if data > limit.data else limit.total


class _Timed(msgspec.Struct):
    timestamp: datetime


class PublishError(PulsecartError):
    """The event is valid, but was not published, or it is unknown whether it was.

    `event_id` and `timestamp` are the values that the event was going to be published with. Include them in a retry,
    so that consumers can recognize a duplicate.

    `detail` is shown to callers. `log_detail` is logged instead of it, and may contain the broker's own message.
    `error_type` classifies the error for telemetry with a value from a small set: the broker's gRPC status, if any.
    A transport raises a new instance for each message. It need not set `message`: the producer does.
    """

    retryable = True
    retry_after: int = 1
    """Seconds to wait before a retry."""

    def __init__(
        self,
        detail: str,
        log_detail: str = "",
        *,
        message: "Message | None" = None,
        error_type: str = "",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        if retry_after is not None:
            self.retry_after = retry_after
        self.log_detail = log_detail or detail
        self.error_type = error_type or type(self).__name__
        self.message = message

    @property
    def event_id(self) -> str | None:
        """The event's id, or None if the error is not about a single event."""
        return self._attribute("event_id") or None

    @property
    def event_type(self) -> str:
        """The event's type; empty if unknown."""
        return self._attribute("event_type")

    @property
    def topic(self) -> str:
        """The event's topic; empty if unknown."""
        return self.message.topic if self.message else ""

    @property
    def traceparent(self) -> str:
        """The trace context in the message's attributes; empty if there is none."""
        return self._attribute("traceparent")

    @property
    def timestamp(self) -> datetime | None:
        """The event's timestamp, or None if the error is not about a single event."""
        return msgspec.json.decode(self.message.data, type=_Timed).timestamp if self.message else None

    def _attribute(self, name: str) -> str:
        return self.message.attributes.get(name, "") if self.message else ""


class MessageRefused(PublishError):
    """The broker rejects this message, and would reject it again."""

    retryable = False


class BrokerUnavailable(PublishError):
    """The broker could not be reached, or did not confirm in time. It may still deliver the message."""


class Aborted(BrokerUnavailable):
    """An earlier event of the same ordering key failed, so this one was not sent: it would overtake a retry."""


class BrokerRefused(PublishError):
    """The broker rejects the topic: it does not exist, or access is denied.

    The event is valid; an operator must fix the topic or its permissions.
    """

    retry_after = 60


class Overloaded(PublishError):
    """Too many messages or bytes are in flight. This message was not accepted."""


class TransportClosed(PublishError):
    """The transport is not open yet, or is closed."""
