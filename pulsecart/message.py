"""What crosses the publish port, and what comes back."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import frozen

__all__ = ["MAX_MESSAGE_BYTES", "Message", "Prepared", "PublishedMessage", "Receipt"]

MAX_MESSAGE_BYTES = 10_000_000
"""The most bytes one publish request may have (https://cloud.google.com/pubsub/quotas)."""

# What a request has beside the texts of its one message, at most: the topic's path and its own framing; and the
# framing of each attribute.
_ENVELOPE_BYTES = 512
_ATTRIBUTE_BYTES = 12


@frozen(kw_only=True)
class Message:
    """One event, ready to be published."""

    topic: str
    """The topic's short name, without project."""

    data: bytes
    """The whole event as UTF-8 JSON."""

    attributes: Mapping[str, str]

    ordering_key: str = ""
    """Messages of one topic and key are delivered in the order of their publishing; empty: no order."""

    @property
    def size(self) -> int:
        """The bytes that a publish request with this message has at most: what is within the limit here is there."""
        texts = self.ordering_key + "".join(self.attributes) + "".join(self.attributes.values())
        return (
            len(self.data)
            + (len(texts) if texts.isascii() else len(texts.encode()))
            + _ATTRIBUTE_BYTES * len(self.attributes)
            + _ENVELOPE_BYTES
        )


@frozen(kw_only=True)
class PublishedMessage(Message):
    """A message that was published, with its message id."""

    message_id: str

    def json(self, **options: Any) -> Any:
        """Return the data, decoded. Options are those of `json.loads`, such as `parse_float=Decimal`."""
        return json.loads(self.data, **options)


@frozen(kw_only=True)
class Prepared:
    """An event that has been validated, completed and encoded. It keeps nothing of what it was made from."""

    event_id: str
    event_type: str
    timestamp: datetime
    message: Message
    size: int
    """`Message.size`, before a trace context is added."""


@frozen(kw_only=True)
class Receipt:
    """Proof that the broker has the event."""

    event_id: str
    message_id: str
    """The id the broker gave the message."""

    trace_id: str
    """The event's OpenTelemetry trace id, 32 lowercase hex digits."""

    topic: str

    event_type: str = ""

    traceparent: str = ""
    """The trace context that the message carries (W3C Trace Context); empty where nobody traces."""
