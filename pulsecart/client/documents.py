"""Events of callers as JSON documents that keep their id."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from attrs import define

from pulsecart.errors import Fault, InvalidEvent
from pulsecart.events.base import Event
from pulsecart.events.codec import decode
from pulsecart.events.lazy import JsonObject
from pulsecart.events.write import written

__all__ = ["AnyEvent", "Document", "read", "with_member"]

AnyEvent = Event | Mapping[str, Any] | bytes
"""An instance of an event class; its fields, `event_type` included; or its JSON, which is sent as it is."""


@define(kw_only=True)
class Document:
    """An event as it is sent."""

    index: int
    event: AnyEvent
    raw: bytes
    event_id: str | None
    user_id: str | None
    """Both are None if they are not strings, so that the event is invalid."""

    has_timestamp: bool
    attempts: int = 0
    """How often it was sent. An event that the service aborted was not sent."""

    def keep(self, timestamp: str | None) -> None:
        """Send it with this timestamp from now on, unless it has one."""
        if timestamp and not self.has_timestamp:
            self.raw = with_member(self.raw, "timestamp", timestamp)
            self.has_timestamp = True


def read(event: AnyEvent, index: int, new_event_id: Callable[[int], str]) -> Document:
    """Write an event as JSON, with a new id if it has none.

    Only what the service could not read is found here. Raises an `EventError`.
    """
    raw = event if isinstance(event, bytes) else _encode(event)
    members = decode(raw)
    if "event_id" not in members:
        members["event_id"] = new_event_id(index)
        raw = with_member(raw, "event_id", members["event_id"])
    return Document(
        index=index,
        event=event,
        raw=raw,
        event_id=_text(members["event_id"]),
        user_id=_text(members.get("user_id")),
        has_timestamp="timestamp" in members,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def with_member(raw: bytes, name: str, value: str) -> bytes:
    """Return a JSON object with one more member. All others keep every byte."""
    before, _, after = raw.partition(b"{")
    member = msgspec.json.encode({name: value})[1:-1]
    separator = b"" if after.lstrip().startswith(b"}") else b","
    return b"%b{%b%b%b" % (before, member, separator, after)


def _encode(event: Event | Mapping[str, Any]) -> bytes:
    faults: list[Fault] = []
    if isinstance(event, str):
        raise InvalidEvent("The event is a str: JSON is given as bytes, such as text.encode().")
    if isinstance(event, Event) and "event_type" not in type(event).__dict__:
        raise InvalidEvent(f"{type(event).__qualname__} is not declared: put @event('…', topic='…') above it.")
    try:
        members = written(event, faults, [])
        if isinstance(event, Event):
            missing = [name for name in ("event_id", "timestamp") if members[name] is None]
            members = {"event_type": event.event_type} | {k: v for k, v in members.items() if k not in missing}
        raw = _encoder.encode(members)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"The event cannot be written as JSON: {error}") from error
    if faults:
        raise InvalidEvent("The event holds values that JSON cannot carry.", faults)
    return raw


def _as_received(value: Any) -> msgspec.Raw:
    if isinstance(value, JsonObject):
        return value.raw
    raise TypeError(f"objects of type {type(value).__qualname__} have no form in JSON")


_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=_as_received)
