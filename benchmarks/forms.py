"""The forms in which events are sent: one a request, or many."""

import gzip
import json
import random
from collections.abc import Callable, Sequence

from attrs import frozen

__all__ = ["FORMS", "INGEST", "SINGLE", "Form", "body"]

USERS = 1000
LINES = 3
BYTES, LINE_BYTES = 390, 56
"""About the size of an order of so many lines, and of each further line."""

_random = random.Random(1)
"""Seeded, so that every service gets the same users in the same order."""


def body(number: int, size: int = 0) -> bytes:
    """Return an order by one of the users, of about 400 bytes, or of a larger size."""
    lines = LINES + max(0, size - BYTES) // LINE_BYTES
    order = {
        "event_type": "order.placed",
        "user_id": f"user-{_random.randrange(USERS)}",
        "order_id": f"order-{number}",
        "payload": {
            "total": 89.90,
            "currency": "EUR",
            "lines": [{"sku": f"sku-{line}", "quantity": line, "price": 44.95} for line in range(lines)],
            "note": "x" * 100,
        },
    }
    return json.dumps(order).encode()


@frozen
class Form:
    """How the body of a request is made of events."""

    path: str
    content_type: str
    events: int
    """The number of events in a request."""

    join: Callable[[Sequence[bytes]], bytes]
    coding: str = ""
    """The Content-Encoding."""

    def request_of(self, events: Sequence[bytes], key: str = "") -> bytes:
        """Return a whole HTTP request, with the caller's key if there is one."""
        data = self.join(events)
        headers = {
            "Host": "x",
            "Content-Type": self.content_type,
            "Content-Length": len(data),
            "Content-Encoding": self.coding,
            "Authorization": key and f"Bearer {key}",
        }
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value)]
        return "\r\n".join([*lines, "\r\n"]).encode() + data


def _only(events: Sequence[bytes]) -> bytes:
    (event,) = events
    return event


def _array(events: Sequence[bytes]) -> bytes:
    return b"[%b]" % b",".join(events)


def _lines(events: Sequence[bytes]) -> bytes:
    return b"".join(event + b"\n" for event in events)


def _cloud_events(events: Sequence[bytes]) -> bytes:
    return _array([_cloud_event(number, json.loads(event)) for number, event in enumerate(events)])


def _cloud_event(number: int, event: dict[str, object]) -> bytes:
    attributes = {"specversion": "1.0", "id": str(number), "source": "/shop", "type": event.pop("event_type")}
    return json.dumps({**attributes, "data": event}).encode()


def _zstd(events: Sequence[bytes]) -> bytes:
    from backports import zstd

    return zstd.compress(_lines(events))


INGEST = "/events/ingest"
_BATCH, _JSON, _NDJSON = "/events/batch", "application/json", "application/x-ndjson"
SINGLE = "single"

FORMS = {
    SINGLE: Form(INGEST, _JSON, 1, _only),
    "arrays of 100": Form(_BATCH, _JSON, 100, _array),
    "arrays of 10,000": Form(_BATCH, _JSON, 10_000, _array),
    "CloudEvents, batches of 100": Form(
        "/events/cloudevents", "application/cloudevents-batch+json", 100, _cloud_events
    ),
    "NDJSON": Form(_BATCH, _NDJSON, 10_000, _lines),
    "NDJSON, gzip": Form(_BATCH, _NDJSON, 10_000, lambda events: gzip.compress(_lines(events)), "gzip"),
    "NDJSON, zstd": Form(_BATCH, _NDJSON, 10_000, _zstd, "zstd"),
}
