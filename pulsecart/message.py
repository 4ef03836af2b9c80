"""Messages, prepared events and receipts: what transports and the producer take and return."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import frozen

__all__ = [
    "GRPC_LIMIT",
    "MAX_MESSAGE_BYTES",
    "REST_LIMIT",
    "Message",
    "Prepared",
    "PublishedMessage",
    "Receipt",
    "SizeLimit",
]

MAX_MESSAGE_BYTES = 10_000_000
"""Maximum bytes of a publish request (https://cloud.google.com/pubsub/quotas)."""


@frozen
class SizeLimit:
    """How large a message may be for one of Pub/Sub's APIs."""

    api: str
    data: int
    """Maximum bytes of data."""

    total: int = MAX_MESSAGE_BYTES
    """Maximum bytes of a request with this message only, before it is encoded."""


REST_LIMIT = SizeLimit("REST", 7_340_032)
"""A request may have 10,485,760 bytes, in which data is base64: with this much data there is room for attributes."""

GRPC_LIMIT = SizeLimit("gRPC", MAX_MESSAGE_BYTES)
"""A request may have 10,000,000 bytes, without base64."""

# Upper bounds for what a request with one message contains in addition to the message's data and texts: the topic's
# path and the framing of the request, and the framing of each attribute.
_ENVELOPE_BYTES = 512
_ATTRIBUTE_BYTES = 12


@frozen(kw_only=True)
class Message:
    """An event that is ready to be published."""

    topic: str
    """The short name of the topic, without the project."""

    data: bytes
    """The whole event as UTF-8 JSON."""

    attributes: Mapping[str, str]

    ordering_key: str = ""
    """Messages of one topic and key are delivered in the order in which they are published. Empty: no order."""

    @property
    def size(self) -> int:
        """An upper bound for the bytes of a publish request with this message only."""
        texts = self.ordering_key + "".join(self.attributes) + "".join(self.attributes.values())
        return (
            len(self.data)
            + (len(texts) if texts.isascii() else len(texts.encode()))
            + _ATTRIBUTE_BYTES * len(self.attributes)
            + _ENVELOPE_BYTES
        )


@frozen(kw_only=True)
class PublishedMessage(Message):
    """A published message and its message id."""

    message_id: str

    def json(self, **options: Any) -> Any:
        """Decode the data. Options are passed to `json.loads`, such as `parse_float=Decimal`."""
        return json.loads(self.data, **options)


@frozen(kw_only=True)
class Prepared:
    """An event that has been validated, completed and encoded. It keeps no reference to its source."""

    event_id: str
    event_type: str
    timestamp: datetime
    message: Message
    size: int
    """`Message.size` before a trace context is added."""


@frozen(kw_only=True)
class Receipt:
    """Confirmation that the broker has the event."""

    event_id: str
    message_id: str
    """The id that the broker assigned to the message."""

    trace_id: str
    """The event's OpenTelemetry trace id, 32 lowercase hex digits."""

    topic: str

    event_type: str = ""

    traceparent: str = ""
    """The trace context in the message's attributes (W3C Trace Context); empty without tracing."""
