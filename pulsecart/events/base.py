"""The class that every event extends, the decorator that declares one, and validators for fields.

@event("order.placed", topic="pulsecart.commerce-events")
@frozen(kw_only=True)
class OrderPlaced(Event):
    order_id: str = field(validator=non_empty)
"""

import inspect
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, TypeVar

import attrs
from attrs import field, frozen

from pulsecart.errors import DefinitionError
from pulsecart.events.lazy import JsonArray

__all__ = [
    "MAX_ID_BYTES",
    "Event",
    "FieldError",
    "at_most",
    "declared",
    "describe",
    "described",
    "event",
    "max_bytes",
    "non_empty",
]

MAX_ID_BYTES = 1024
"""Pub/Sub's limit for an ordering key and for an attribute's value, in bytes of UTF-8."""

# https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
_TOPIC = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")


class FieldError(ValueError):
    """A field's value is refused, with the code to report (see `Fault.code`).

    A validator may raise it, or any other `ValueError` or `TypeError`, which is reported as `invalid`. The message of a
    `FieldError` reaches the caller as it is; from any other message the value is removed.
    """

    def __init__(self, message: str, code: str = "invalid") -> None:
        super().__init__(message)
        self.code = code


def non_empty(_instance: Any, _attribute: "attrs.Attribute[str]", value: Any) -> None:
    """Validate that a field is a string with at least one character."""
    if not isinstance(value, str):
        raise FieldError(f"expected a string, got {type(value).__name__}", "wrong-type")
    if not value:
        raise FieldError("must not be empty", "empty")


def max_bytes(limit: int) -> Callable[[Any, "attrs.Attribute[str]", str], None]:
    """Return a validator: the string has at most `limit` bytes in UTF-8."""
    return partial(at_most, limit)


def at_most(limit: int, _instance: Any, _attribute: "attrs.Attribute[str]", value: str) -> None:
    """Validate for `max_bytes`."""
    # A character has at most 4 bytes, so a short string needs no encoding to be judged.
    if len(value) * 4 > limit and (size := len(value.encode())) > limit:
        raise FieldError(f"has {size:,} bytes of UTF-8; the limit is {limit:,}", "too-long")


def described(text: str, *, example: Any = ...) -> dict[str, Any]:
    """Return the metadata of a field for the documents: what it is, and a value that it may have.

    total: Decimal = field(metadata=described("What the user pays.", example=Decimal("89.90")))

    The text may contain Markdown. The example must be valid, which is checked at startup.
    """
    return {"description": text} | ({} if example is ... else {"example": example})


def _json_object(_instance: Any, _attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, Mapping):
        raise FieldError(f"expected an object, got {describe(value)}", "wrong-type")


def _with_offset(_instance: Any, _attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, datetime):
        raise FieldError(f"expected a datetime, got {type(value).__name__}", "wrong-type")
    if value.utcoffset() is None:
        raise FieldError("has no offset, so it could be any moment; use datetime.now(UTC)")
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise FieldError("is outside the years 1 to 9999 in UTC", "out-of-range") from None


def describe(value: Any) -> str:
    """Name the kind of a JSON value, for a message. The value may be personal data, so it is not shown."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple, JsonArray)):
        return "an array"
    if isinstance(value, float):
        return "a float, which may have lost digits; read JSON with Catalog.read, or with parse_float=Decimal"
    return "a number"


def id_of(fields: Mapping[str, Any]) -> str | None:
    """Return the event id that decoded fields bring, if it is one."""
    event_id = fields.get("event_id")
    return event_id if isinstance(event_id, str) and len(event_id.encode()) <= MAX_ID_BYTES else None


@frozen(kw_only=True)
class Event:
    """The fields of every event. Extend it, and declare the subclass with `@event`."""

    event_type: ClassVar[str]
    topic: ClassVar[str]
    payload_members: ClassVar[Mapping[str, Mapping[str, Any]]]
    """What an untyped payload usually holds, by name: documented with `described`, not checked."""

    event_id: str | None = field(
        default=None,
        validator=attrs.validators.optional([non_empty, max_bytes(MAX_ID_BYTES)]),
        metadata=described("Generated if missing. Consumers drop duplicates by it; retry under the same one."),
    )
    """1 to 1024 bytes of UTF-8; generated if missing. Consumers drop duplicates by it."""

    timestamp: datetime | None = field(
        default=None,
        validator=attrs.validators.optional(_with_offset),
        metadata=described("When it happened. Generated if missing; published in UTC."),
    )
    """When it happened, with an offset; generated if missing, published in UTC."""

    user_id: str = field(
        validator=[non_empty, max_bytes(MAX_ID_BYTES)],
        metadata=described("The user it is about. A user's events are delivered in order.", example="user-1"),
    )
    """1 to 1024 bytes of UTF-8. A user's events are delivered in order."""

    payload: Any = field(
        validator=_json_object, metadata=described("What else there is to know. Published exactly as received.")
    )
    """Any JSON object: a mapping, or the `JsonObject` that was received, which is read-only.

    A subclass may type it with an attrs class of its own.
    """


EventClass = TypeVar("EventClass", bound=type[Event])
_declared: list[type[Event]] = []


def event(
    event_type: str, *, topic: str = "", payload: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[EventClass], EventClass]:
    """Declare an event class: the name of its type, and the short name of the topic it is published to.

    `payload` documents what an untyped payload usually holds, by name, without restricting it:

        @event("order.placed", topic="shop", payload={"total": described("What the user pays.", example=5)})

    The class is a frozen, slotted, keyword-only attrs class: put `@frozen(kw_only=True)` below.
    Raises `DefinitionError` if the class or a name cannot work.
    """
    if not isinstance(event_type, str):
        raise DefinitionError(f"{event_type!r}: write @event('…', topic='…'), with the event type's name first")

    def declare(cls: EventClass) -> EventClass:
        problem = _class_problem(cls) or _name_problem(event_type, topic)
        if problem:
            raise DefinitionError(f"{cls.__module__}.{cls.__qualname__} (event type {event_type!r}): {problem}")
        cls.event_type = event_type
        cls.topic = topic
        cls.payload_members = payload or {}
        _declared.append(cls)
        return cls

    return declare


def declared() -> tuple[type[Event], ...]:
    """Return all event classes declared in this process so far, in order."""
    return tuple(_declared)


def _class_problem(cls: type) -> str | None:
    if not issubclass(cls, Event):
        return "extend pulsecart.Event"
    if "__attrs_attrs__" not in cls.__dict__:
        return "put @frozen(kw_only=True) from attrs between @event and the class"
    if cls.__dictoffset__ or cls.__setattr__ is object.__setattr__:
        return "make it frozen and slotted: use attrs' @frozen(kw_only=True)"
    fields = attrs.fields_dict(cls)
    # attrs ignores annotations as soon as one `field()` has none.
    annotated = [name for name, type_ in inspect.get_annotations(cls).items() if "ClassVar" not in str(type_)]
    if ignored := [name for name in annotated if name not in fields]:
        return f"attrs ignores {', '.join(ignored)}, because another field has no annotation: annotate every field"
    if positional := [name for name, attribute in fields.items() if not attribute.kw_only]:
        return f"make it keyword-only, @frozen(kw_only=True): {', '.join(positional)} is positional"
    if reserved := [name for name in ("event_type", "topic") if name in fields]:
        return f"a field cannot be named {reserved[0]!r}: the decorator declares that name"
    common = attrs.fields_dict(Event)
    if changed := [name for name in ("event_id", "timestamp", "user_id") if fields[name] != common[name]]:
        return f"the field {changed[0]!r} belongs to every event, and cannot be redefined"
    if fields["payload"].default is not attrs.NOTHING:
        return "the payload is required in every event, and cannot have a default"
    return None


def _name_problem(event_type: str, topic: Any) -> str | None:
    if not event_type.isprintable() or not 1 <= len(event_type.encode()) <= MAX_ID_BYTES:
        return f"the event type must be a printable string of 1 to {MAX_ID_BYTES} bytes"
    if not topic:
        return "it names no topic; write @event(…, topic='…')"
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
        return (
            f"the topic {topic!r} is not a Pub/Sub topic name: 3 to 255 of A-Z a-z 0-9 - _ . ~ + %, "
            "a letter first, not starting with 'goog'; write the short name, without projects/…"
        )
    return None
