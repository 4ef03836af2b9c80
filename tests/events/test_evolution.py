"""What a change of an event class breaks, and for whom."""

import json
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, Union
from uuid import UUID

import attrs
import pytest
from attrs import field, frozen, validators
from hypothesis import HealthCheck, given, settings

from pulsecart import Catalog, Event, Producer, event
from pulsecart.events import described, max_bytes, non_empty
from pulsecart.events.evolution import CONSUMERS, PRODUCERS, STRICT_CONSUMERS, compare
from pulsecart.events.schema import body_schema, json_text
from pulsecart.transports import MemoryTransport
from tests.events.schemas import accepted


def made(topic: str = "test-topic", **fields: Any) -> type[Event]:
    """Declare an event class whose payload has these fields, each given as a type or as attrs' `field(type=…)`."""
    attributes = {name: each if hasattr(each, "counter") else field(type=each) for name, each in fields.items()}
    inner = attrs.make_class("Inner", attributes, frozen=True, kw_only=True)

    @event("test.changed", topic=topic)
    @frozen(kw_only=True)
    class Changed(Event):
        payload: inner

    return Changed


def schemas(*classes: type[Event]) -> dict[str, Any]:
    """Return schemas as a folder of an export holds them."""
    return {cls.event_type: json.loads(json_text(body_schema(cls)), parse_float=Decimal) for cls in classes}


@frozen(kw_only=True)
class Card:
    kind: Literal["card"] = "card"
    last4: str


@frozen(kw_only=True)
class Cash:
    kind: Literal["cash"] = "cash"


@frozen(kw_only=True)
class Gift:
    kind: Literal["gift"] = "gift"
    code: str


@frozen(kw_only=True)
class Tree:
    kind: Literal["tree"] = "tree"
    left: Union["Tree", "Leaf"]


@frozen(kw_only=True)
class Leaf:
    kind: Literal["leaf"] = "leaf"


@frozen(kw_only=True)
class Node:
    name: str
    children: "list[Node]" = field(factory=list)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class More(Enum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


ALL = {PRODUCERS, CONSUMERS}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": str}, {"a": str}, {}),
        ({"a": str}, {"a": str, "b": field(type=str, default="")}, {"/b": ("is added", {STRICT_CONSUMERS})}),
        (
            {"a": str},
            {"a": str, "b": str},
            {"/b": ("is added as a required field", {PRODUCERS}), "/b ": ("is added", {STRICT_CONSUMERS})},
        ),
        ({"a": str, "b": str}, {"a": str}, {"/b": ("is removed", ALL)}),
        ({"a": str, "b": field(type=str, default="")}, {"a": str}, {"/b": ("is removed", {PRODUCERS})}),
        ({"a": field(type=str, default="")}, {"a": str}, {"/a": ("is required now", {PRODUCERS})}),
        ({"a": str}, {"a": field(type=str, default="")}, {}),
        ({"a": str}, {"a": int}, {"/a": ("was string, is integer", ALL)}),
        ({"a": int}, {"a": Decimal}, {"/a": ("was integer, is number", {CONSUMERS})}),
        ({"a": Decimal}, {"a": int}, {"/a": ("was number, is integer", {PRODUCERS})}),
        ({"a": float}, {"a": Decimal}, {}),
        ({"a": str}, {"a": datetime}, {"/a": ("was string, is date-time", {PRODUCERS})}),
        ({"a": date}, {"a": datetime}, {"/a": ("was date, is date-time", ALL)}),
        ({"a": UUID}, {"a": str}, {"/a": ("was uuid, is string", {CONSUMERS})}),
        ({"a": str}, {"a": str | None}, {"/a": ("was string, is null", {CONSUMERS})}),
        ({"a": str | None}, {"a": str}, {"/a": ("was null, is string", {PRODUCERS})}),
        ({"a": str}, {"a": Any}, {"/a": ("was string, is any value", {CONSUMERS})}),
        ({"a": Any}, {"a": str}, {"/a": ("was any value, is string", {PRODUCERS})}),
        ({"a": Colour}, {"a": More}, {"/a": ('allows "green"', {CONSUMERS})}),
        ({"a": More}, {"a": Colour}, {"/a": ('no longer allows "green"', {PRODUCERS})}),
        ({"a": Colour}, {"a": str}, {"/a": ('was one of "red", "blue", is string', {CONSUMERS})}),
        (
            {"a": Literal[1]},
            {"a": Literal[True]},
            {"/a": ("allows true", {CONSUMERS}), "/a ": ("no longer allows 1", {PRODUCERS})},
        ),
        ({"a": Literal[1, 5]}, {"a": field(type=int, validator=validators.le(3))}, None),
        ({"a": Literal[True]}, {"a": bool}, {"/a": ("was one of true, is boolean", {CONSUMERS})}),
        ({"a": list[int]}, {"a": tuple[int, ...]}, {}),
        ({"a": list[int]}, {"a": list[str]}, {"/a/*": ("was integer, is string", ALL)}),
        ({"a": dict[str, int]}, {"a": dict[str, Decimal]}, {"/a/*": ("was integer, is number", {CONSUMERS})}),
        (
            {"a": Card | Cash},
            {"a": Card | Cash | Gift},
            {"/a/kind": ('allows "gift"', {CONSUMERS}), "/a/code": ("is added", {STRICT_CONSUMERS})},
        ),
        ({"a": Card | Cash | Gift}, {"a": Card | Cash}, None),
        ({"a": Card | Cash}, {"a": Cash | Card}, {}),
        ({"a": Card}, {"a": Card | Cash}, None),
        ({"a": Node}, {"a": Node}, {}),
        ({"a": Tree | Leaf}, {"a": Tree | Leaf}, {}),
        ({"a": dict[str, Any]}, {"a": Card}, None),
        ({"a": Card}, {"a": dict[str, str]}, None),
        (
            {"a": field(type=int, validator=validators.ge(1))},
            {"a": field(type=int, validator=validators.ge(5))},
            {"/a": ("was at least 1, is at least 5", {PRODUCERS})},
        ),
        (
            {"a": field(type=Decimal, validator=validators.ge(1))},
            {"a": field(type=Decimal, validator=validators.gt(1))},
            {"/a": ("was at least 1, is more than 1", {PRODUCERS})},
        ),
        (
            {"a": int},
            {"a": field(type=int, validator=validators.le(5))},
            {"/a": ("was without an upper bound, is at most 5", {PRODUCERS})},
        ),
        (
            {"a": field(type=str, validator=non_empty)},
            {"a": str},
            {"/a": ("was at least 1 characters, is without a lower bound", {CONSUMERS})},
        ),
        ({"a": str}, {"a": field(type=str, validator=validators.min_len(0))}, {}),
        (
            {"a": field(type=str, validator=max_bytes(10))},
            {"a": field(type=str, validator=max_bytes(20))},
            {"/a": ("was at most 10 characters, is at most 20 characters", {CONSUMERS})},
        ),
        (
            {"a": str},
            {"a": field(type=str, validator=validators.matches_re("a+"))},
            {"/a": ("was without this pattern, is restricted to the pattern ^(?:a+)$", {PRODUCERS})},
        ),
    ],
)
def test_change_of_a_field(before, now, expected):
    """Each change has a reason at its place, and says whom it breaks."""
    found = compare(schemas(made(**before)), schemas(made(**now)))
    if expected is None:
        assert found
        return
    wanted = {(f"/payload{place.strip()}", reason, frozenset(breaks)) for place, (reason, breaks) in expected.items()}
    assert {(change.pointer, change.reason, change.breaks) for change in found} == wanted


def test_change_of_the_event_types():
    """A type that is removed breaks its producers, one that moves its consumers, and one that is new nobody."""

    @event("test.other", topic="other-topic")
    @frozen(kw_only=True)
    class Other(Event):
        pass

    found = compare(schemas(made(a=str)), schemas(Other))
    assert [(change.event_type, change.reason, change.breaks) for change in found] == [
        ("test.changed", "is removed: its events are rejected", {PRODUCERS}),
        ("test.other", "is new, on the topic other-topic", set()),
    ]
    (moved,) = compare(schemas(made(a=str)), schemas(made(a=str, topic="new-topic")))
    assert (moved.pointer, moved.reason) == ("", "moves from the topic test-topic to new-topic")
    assert moved.breaks == {CONSUMERS}


def test_documentation_of_a_payload_is_no_change():
    """Members of an untyped payload that are documented, or no longer, restrict nothing."""

    def declared(**payload: Any) -> type[Event]:
        @event("test.open", topic="test-topic", payload=payload)
        @frozen(kw_only=True)
        class Open(Event):
            pass

        return Open

    plain, shown = declared(), declared(total=described("What the user pays.", example=5))
    assert compare(schemas(plain), schemas(shown)) == compare(schemas(shown), schemas(plain)) == []


TYPES: list[Any] = [
    str,
    str | None,
    int,
    Decimal,
    bool,
    date,
    UUID,
    Any,
    Colour,
    More,
    Literal["red"],
    Literal["red", 1],
    list[int],
    tuple[Colour, ...],
    dict[str, int],
    dict[str, Any],
    Card,
    Card | Cash,
    Card | Cash | Gift | None,
    field(type=str, validator=non_empty),
    field(type=str, validator=[validators.min_len(2), validators.max_len(4)]),
    field(type=str, validator=validators.matches_re("[a-z]+")),
    field(type=int, validator=[validators.ge(0), validators.lt(5)]),
    field(type=int, default=3),
    field(type=str | None, default=None),
]


CLASSES = [made(a=type_) for type_ in TYPES]


def bodies(cls: type[Event]) -> list[bytes]:
    """Return bodies that a class accepts, apart from what JSON Schema cannot say."""
    found = []

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(accepted(json.loads(json_text(body_schema(cls)))))
    def collect(document: Any) -> None:
        if not any(isinstance(value, float) and value.is_integer() for value in document["payload"].values()):
            found.append(json.dumps(document).encode())

    collect()
    return found


@pytest.fixture(scope="module")
def bodies_of_all() -> list[list[bytes]]:
    return list(map(bodies, CLASSES))


@pytest.mark.parametrize("n", range(len(TYPES)))
def test_compatible_means_compatible(n, bodies_of_all):
    """Without a change that breaks producers, new classes accept old bodies; so for consumers, the other way round."""
    old = Catalog([CLASSES[n]])
    for cls, new_bodies in zip(CLASSES, bodies_of_all, strict=True):
        producer = Producer(MemoryTransport(), catalog=Catalog([cls]))
        broken = {who for change in compare(schemas(CLASSES[n]), schemas(cls)) for who in change.breaks}
        for body in [] if PRODUCERS in broken else bodies_of_all[n]:
            producer.prepare(body)
        for body in [] if CONSUMERS in broken else new_bodies:
            old.read(producer.prepare(body).message.data, tolerant=True)
