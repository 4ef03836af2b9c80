"""`Catalog.read`: the data of a message becomes the event that was published."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

import msgspec
import pytest
from attrs import field, frozen

from pulsecart import (
    Catalog,
    Event,
    InvalidEvent,
    MalformedBody,
    MissingEventType,
    Producer,
    UnknownEventType,
    event,
    load_catalog,
)
from pulsecart.events import JsonObject, OrderPlaced
from pulsecart.transports import MemoryTransport


@frozen(kw_only=True)
class Line:
    price: Decimal
    tags: dict[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Card:
    kind: Literal["card"] = "card"
    last4: str


@frozen(kw_only=True)
class Cash:
    kind: Literal["cash"] = "cash"


@frozen(kw_only=True)
class Bought:
    lines: tuple[Line, ...]
    by_name: dict[str, Line] = field(factory=dict)
    paid: Card | Cash | None = None
    free: Any = None
    total: Decimal = field(init=False)

    @total.default
    def _sum(self) -> Decimal:
        return sum((line.price for line in self.lines), Decimal(0))


@event("test.bought", topic="test-topic")
@frozen(kw_only=True)
class BoughtSomething(Event):
    payload: Bought


CATALOG = Catalog([BoughtSomething, OrderPlaced])


def published(source: Any) -> bytes:
    return Producer(MemoryTransport(), catalog=CATALOG).prepare(source).message.data


def bought(change: Callable[[dict[str, Any]], None] = lambda _document: None) -> bytes:
    """Return the data of a published message, with a change made to it."""
    payload = Bought(
        lines=(Line(price=Decimal("89.90")),), by_name={"a": Line(price=Decimal("1.10"))}, paid=Card(last4="4242")
    )
    document = msgspec.json.decode(published(BoughtSomething(user_id="u", payload=payload)))
    change(document)
    return msgspec.json.encode(document)


def test_untyped_event_is_read_as_it_was_published():
    """The id, the time and an exact payload are there, and the event can be published again unchanged."""
    data = published(b'{"event_type":"order.placed","user_id":"u","order_id":"o","payload":{"total":89.90,"n":1e400}}')
    found = load_catalog().read(data)
    assert isinstance(found, OrderPlaced)
    assert isinstance(found.payload, JsonObject)
    assert found.event_id is not None
    assert found.event_id.startswith("evt_")
    assert found.timestamp is not None
    assert found.payload["total"] == Decimal("89.90")
    assert found.payload["n"] == Decimal("1e400")
    assert published(found) == data


def test_typed_event_is_read_as_it_was_published():
    """Nested classes, unions and a field that the class computes come back equal."""
    payload = Bought(lines=(Line(price=Decimal("89.90")),), paid=Card(last4="4242"), free={"a": [Decimal("1.50")]})
    data = published(BoughtSomething(user_id="u", payload=payload))
    assert b'"total":89.90' in data
    found = CATALOG.read(data)
    assert found.payload == payload
    assert str(found.payload.lines[0].price) == "89.90"
    assert published(found) == data


def test_float_where_digits_count_is_explained():
    """JSON that was decoded to floats is refused with a hint, since digits may be lost already."""
    with pytest.raises(InvalidEvent) as caught:
        CATALOG.structure(json.loads(bought()))
    wrong = [fault for fault in caught.value.faults if fault.code == "wrong-type"]
    assert [fault.pointer for fault in wrong] == ["/payload/lines/0/price", "/payload/by_name/a/price"]
    assert wrong[0].message == (
        "expected a number, got a float, which may have lost digits; read JSON with Catalog.read, or with "
        "parse_float=Decimal"
    )


PLACES = {
    "top": lambda document: document.update(new=1),
    "payload": lambda document: document["payload"].update(new=1),
    "in a tuple": lambda document: document["payload"]["lines"][0].update(new=1),
    "in a dict": lambda document: document["payload"]["by_name"]["a"].update(new=1),
    "in a union": lambda document: document["payload"]["paid"].update(new=1),
}


@pytest.mark.parametrize("place", PLACES)
def test_unknown_field_is_ignored_only_if_tolerant(place):
    """A field that the class does not have is a fault, or ignored at every level."""
    data = bought(PLACES[place])
    with pytest.raises(InvalidEvent) as caught:
        CATALOG.read(data)
    assert [fault.code for fault in caught.value.faults] == ["unknown"]
    assert CATALOG.read(data, tolerant=True).payload == CATALOG.read(bought()).payload


def test_tolerant_keeps_what_is_free():
    """Names in a free value and in a dict are data, not fields."""
    data = bought(lambda document: document["payload"].update(free={"new": 1}, by_name={"new": {"price": 1}}))
    payload = CATALOG.read(data, tolerant=True).payload
    assert payload.free == {"new": 1}
    assert payload.by_name == {"new": Line(price=Decimal(1))}


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        (lambda document: document["payload"].pop("lines"), "/payload/lines", "missing"),
        (lambda document: document["payload"].update(lines={}), "/payload/lines", "wrong-type"),
        (lambda document: document["payload"].update(by_name=[]), "/payload/by_name", "wrong-type"),
        (lambda document: document["payload"]["paid"].update(kind="gift"), "/payload/paid/kind", "invalid"),
        (lambda document: document["payload"]["paid"].pop("kind"), "/payload/paid/kind", "missing"),
        (lambda document: document.update(payload=[]), "/payload", "wrong-type"),
        (lambda document: document.update(user_id=None), "/user_id", "wrong-type"),
    ],
)
def test_wrong_values_are_refused(tolerant, change, pointer, code):
    """Tolerance is for fields that are unknown, not for values that are wrong."""
    with pytest.raises(InvalidEvent) as caught:
        CATALOG.read(bought(change), tolerant=tolerant)
    assert [(fault.pointer, fault.code) for fault in caught.value.faults] == [(pointer, code)]


@pytest.mark.parametrize("tolerant", [False, True])
def test_repeated_name_in_a_typed_value_is_refused(tolerant):
    """A repeated name, of which one value would be lost, is refused."""
    data = b'{"event_type":"test.bought","user_id":"u","payload":{"lines":[{"price":1,"price":2}]}}'
    with pytest.raises(InvalidEvent) as caught:
        CATALOG.read(data, tolerant=tolerant)
    assert [(fault.pointer, fault.code) for fault in caught.value.faults] == [("/payload/lines/0/price", "duplicate")]


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", MalformedBody),
        (b"[]", MalformedBody),
        (b'{"user_id":"u"}', MissingEventType),
        (b'{"event_type":"test.sold","user_id":"u","payload":{}}', UnknownEventType),
        (b'{"event_type":{"a":1},"user_id":"u","payload":{}}', InvalidEvent),
    ],
)
def test_data_that_is_no_known_event_is_refused(data, error, tolerant):
    """What is not an event of the catalog raises the same errors as a body."""
    with pytest.raises(error):
        CATALOG.read(data, tolerant=tolerant)
