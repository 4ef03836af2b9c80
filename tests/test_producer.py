import json
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from attrs import field, frozen, validators

from pulsecart import (
    GRPC_LIMIT,
    BrokerUnavailable,
    Catalog,
    DefinitionError,
    Event,
    EventTypeNotAllowed,
    InvalidEvent,
    MalformedBody,
    Message,
    MessageTooLarge,
    Producer,
    event,
    trace_id_of,
)
from pulsecart.events import OrderPlaced, PersonalizedSend
from pulsecart.transports import MemoryTransport

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ODD_OFFSET = timezone(timedelta(minutes=9, seconds=21))


class Colour(Enum):
    RED = "red"


@dataclass
class Wide:
    item: Any
    _private: int = 1


class Struct(msgspec.Struct):
    x: Decimal


@pytest.fixture
def transport():
    return MemoryTransport()


@pytest.fixture
def producer(transport):
    return Producer(transport, clock=lambda: NOON, new_event_id=lambda: "evt_new")


@frozen
class Shop:
    name: str = "shop"

    def may_send(self, event_type: str) -> bool:
        return event_type == "order.placed"


def test_caller_may_not_send_an_instance_of_another_type(producer):
    """Instances follow the rules of documents; what is no event at all is invalid."""

    class Undeclared(Event):
        pass

    placed = OrderPlaced(user_id="u1", order_id="o1", payload={})
    assert producer.prepare(placed, caller=Shop()).message.attributes["source"] == "shop"
    with pytest.raises(EventTypeNotAllowed, match="may not send 'message.personalized_send' events"):
        producer.prepare(PersonalizedSend(user_id="u1", payload={}), caller=Shop())
    with pytest.raises(InvalidEvent, match="is not declared"):
        producer.prepare(Undeclared(user_id="u1", payload={}), caller=Shop())


async def test_ingest_publishes_the_whole_event(producer, transport, order_json):
    """A body becomes one message with the topic of its type, the user id as key, and type and id as attributes."""
    receipt = await producer.ingest(order_json())
    (message,) = transport.messages
    assert message.topic == receipt.topic == "pulsecart.commerce-events"
    assert message.ordering_key == "u1"
    assert message.attributes == {"event_type": "order.placed", "event_id": "evt_new"}
    assert message.json() == {
        "event_type": "order.placed",
        "event_id": "evt_new",
        "timestamp": "2026-01-31T12:00:00Z",
        "user_id": "u1",
        "payload": {"total": 1},
        "order_id": "o1",
    }
    assert (receipt.event_id, receipt.message_id) == ("evt_new", message.message_id)
    assert receipt.trace_id == trace_id_of("evt_new")


async def test_publish_accepts_an_event_instance(producer, transport):
    """An instance of an event class is completed and published like a body."""
    event = OrderPlaced(user_id="u1", order_id="o1", payload={"total": Decimal("89.90")})
    receipt = await producer.publish(event)
    assert b'"total":89.90' in transport.messages[0].data
    assert receipt.event_id == "evt_new"
    assert event.event_id is None  # what the caller holds is not changed


async def test_event_id_and_timestamp_of_the_caller_are_kept(producer, transport, order_json):
    """The caller's event id and timestamp are published, the timestamp converted to UTC."""
    await producer.ingest(order_json(event_id="mine", timestamp="2026-01-31T14:00:00.5+02:00"))
    zone = timezone(timedelta(hours=-3))
    moment = datetime(2026, 1, 31, 9, tzinfo=zone)
    await producer.publish(PersonalizedSend(user_id="u", payload={}, event_id="too", timestamp=moment))
    assert [(m.json()["event_id"], m.json()["timestamp"]) for m in transport.messages] == [
        ("mine", "2026-01-31T12:00:00.500000Z"),
        ("too", "2026-01-31T12:00:00Z"),
    ]
    assert transport.messages[0].attributes["event_id"] == "mine"


async def test_default_id_and_time(transport, order_json):
    """By default ids have our form, and timestamps are the current time."""
    before = datetime.now(UTC)
    receipt = await Producer(transport).ingest(order_json())
    published = datetime.fromisoformat(transport.messages[0].json()["timestamp"])
    assert before <= published <= datetime.now(UTC)
    assert receipt.event_id == f"evt_{receipt.trace_id}"


async def test_invalid_body_is_not_published(producer, transport):
    """An invalid body raises an error and publishes nothing."""
    with pytest.raises(MalformedBody):
        await producer.ingest(b"[]")
    assert transport.messages == []


async def test_catalog_argument_replaces_the_default(transport, order_json):
    """Only the event types of the given catalog are accepted."""
    producer = Producer(transport, catalog=Catalog([OrderPlaced]))
    await producer.ingest(order_json())
    with pytest.raises(InvalidEvent):
        await producer.ingest(order_json(order_id=...))


async def test_undeclared_class_cannot_be_published(producer):
    """A class without its own declaration is rejected with the remedy; its parent's declaration does not count."""

    @frozen(kw_only=True)
    class Express(OrderPlaced): ...

    with pytest.raises(InvalidEvent, match="put @event"):
        await producer.publish(Express(user_id="u", payload={}, order_id="o"))


async def test_nan_in_an_event_instance_is_rejected(producer, transport):
    """NaN in an instance is an error; it is not published as null."""
    with pytest.raises(InvalidEvent, match="/payload/rate"):
        await producer.publish(PersonalizedSend(user_id="u", payload={"rate": float("nan")}))
    assert transport.messages == []


async def test_wrong_type_in_an_event_instance_is_rejected(transport):
    """A value of another type than its annotation is rejected, as in a body."""

    @event("test.counted", topic="test-topic")
    @frozen(kw_only=True)
    class Counted(Event):
        count: int
        at: datetime

    producer = Producer(transport)
    await producer.publish(Counted(user_id="u", payload={}, count=1, at=NOON))
    for wrong in ({"count": "1"}, {"at": NOON.replace(tzinfo=None)}):
        with pytest.raises(InvalidEvent, match=f"/{next(iter(wrong))}"):
            await producer.publish(Counted(**{"user_id": "u", "payload": {}, "count": 1, "at": NOON} | wrong))
    assert len(transport.messages) == 1


async def test_converters_run_once(transport):
    """The value that an attrs converter returns is published without being converted again."""

    @event("test.cents", topic="test-topic")
    @frozen(kw_only=True)
    class Priced(Event):
        cents: int = field(converter=lambda euros: euros * 100)

    producer = Producer(transport, catalog=Catalog([Priced]))
    await producer.ingest(b'{"event_type":"test.cents","user_id":"u","payload":{},"cents":2}')
    await producer.publish(Priced(user_id="u", payload={}, cents=2))
    assert [message.json()["cents"] for message in transport.messages] == [200, 200]


@event("test.priced", topic="test-topic")
@frozen(kw_only=True)
class Priced(Event):
    cents: int = field(converter=lambda euros: euros * 100, validator=validators.le(10_000))
    note: str = ""


async def test_instance_is_published_like_a_body(transport):
    """An instance gives the same bytes as the event over HTTP, and its validators and types apply."""
    producer = Producer(transport, catalog=Catalog([Priced]), clock=lambda: NOON, new_event_id=lambda: "evt_new")
    await producer.ingest(b'{"event_type":"test.priced","user_id":"u","payload":{},"cents":99}')
    made = Priced(user_id="u", payload={}, cents=99)
    await producer.publish(made)
    assert transport.messages[0].data == transport.messages[1].data
    for wrong in ({"cents": 10_001}, {"note": 3}):
        changed = copy(made)
        for name, value in wrong.items():
            object.__setattr__(changed, name, value)
        with pytest.raises(InvalidEvent) as caught:
            await producer.publish(changed)
        assert [fault.pointer for fault in caught.value.faults] == [f"/{name}" for name in wrong]
    assert len(transport.messages) == 2


@frozen(kw_only=True)
class Item:
    sku: str


@frozen(kw_only=True)
class Gift(Item):
    wrapping: str


@frozen(kw_only=True)
class Parcel:
    item: Item
    _label: str = "private"
    weight: float = 0.0


@event("test.sent", topic="test-topic")
@frozen(kw_only=True)
class Sent(Event):
    parcel: Parcel
    at: datetime = NOON


SENT = {"user_id": "u", "payload": {}, "parcel": Parcel(item=Item(sku="a"))}


@pytest.mark.parametrize(
    ("changes", "pointer", "code"),
    [
        ({"parcel": Parcel(item=Gift(sku="a", wrapping="red"))}, "/parcel/item/wrapping", "unknown"),
        ({"at": datetime(1890, 1, 1, tzinfo=ODD_OFFSET)}, "/at", "out-of-range"),
        ({"payload": {"a": [datetime(1890, 1, 1, tzinfo=ODD_OFFSET)]}}, "/payload/a/0", "out-of-range"),
        ({"payload": {"at": time(12, tzinfo=ODD_OFFSET)}}, "/payload/at", "out-of-range"),
        ({"payload": {"a": {1: "x", "1": "y"}}}, "/payload/a/1", "duplicate"),
    ],
)
async def test_value_that_json_cannot_represent_is_rejected(producer, transport, changes, pointer, code):
    """A value that JSON cannot represent is rejected with its pointer."""
    with pytest.raises(InvalidEvent) as caught:
        await producer.publish(Sent(**(SENT | changes)))
    assert [(fault.pointer, fault.code) for fault in caught.value.faults] == [(pointer, code)]
    assert transport.messages == []


@pytest.mark.parametrize(
    ("payload", "written"),
    [
        (
            {"parcel": Parcel(item=Gift(sku="a", wrapping="red"))},
            b'{"parcel":{"item":{"sku":"a","wrapping":"red"},"_label":"private","weight":0.0}}',
        ),
        ({"all": [MappingProxyType({"x": (Item(sku="a"),)})]}, b'{"all":[{"x":[{"sku":"a"}]}]}'),
        ({1: Decimal("1.50"), Colour.RED: Colour.RED}, b'{"1":1.50,"red":"red"}'),
        ({Decimal("1.5"): UUID(int=1)}, b'{"1.5":"00000000-0000-0000-0000-000000000001"}'),
        ({"wide": Wide(item=Item(sku="a"))}, b'{"wide":{"item":{"sku":"a"},"_private":1}}'),
        ({"struct": Struct(x=Decimal("1.0"))}, b'{"struct":{"x":1.0}}'),
    ],
)
async def test_objects_in_a_free_payload_are_published_completely(producer, transport, payload, written):
    """Attrs classes, dataclasses and mappings keep all their fields, including private ones, at any depth."""
    await producer.publish(PersonalizedSend(user_id="u", payload=payload))
    assert b'"payload":' + written + b"}" in transport.messages[0].data


async def test_field_outside_init_is_published(transport):
    """A field with init=False is in the message if it has a value, from Python and over HTTP."""

    @event("test.summed", topic="test-topic")
    @frozen(kw_only=True)
    class Summed(Event):
        sizes: list[int]
        total: int = field(init=False)
        unset: int = field(init=False)

        def __attrs_post_init__(self):
            object.__setattr__(self, "total", sum(self.sizes))

    producer = Producer(transport, catalog=Catalog([Summed]), clock=lambda: NOON, new_event_id=lambda: "evt_new")
    await producer.ingest(b'{"event_type":"test.summed","user_id":"u","payload":{},"sizes":[1,2]}')
    await producer.publish(Summed(user_id="u", payload={}, sizes=[1, 2]))
    assert transport.messages[0].data == transport.messages[1].data
    assert transport.messages[0].data.endswith(b'"sizes":[1,2],"total":3}')


async def test_numbers_are_encoded_as_over_http(producer, transport):
    """An integer in a float field is published as a float, like an integer in a body."""
    producer = Producer(transport, catalog=Catalog([Sent]), clock=lambda: NOON, new_event_id=lambda: "evt_new")
    await producer.publish(Sent(**(SENT | {"parcel": Parcel(item=Item(sku="a"), weight=5)})))
    await producer.ingest(
        b'{"event_type":"test.sent","user_id":"u","payload":{},"parcel":{"item":{"sku":"a"},"weight":5}}'
    )
    assert transport.messages[0].data == transport.messages[1].data


def infinite(value: float) -> float:
    return value * 1e308 * 10


@pytest.mark.parametrize(
    "declared",
    [
        field(factory=lambda: float("nan")),
        field(default=1.0, converter=infinite),
        field(factory=lambda: Decimal("Infinity")),
        field(factory=object),
    ],
)
async def test_class_that_produces_invalid_json_is_a_defect(transport, declared):
    """An invalid value from the class's own code is not the caller's fault, and is not published."""

    @event("test.broken", topic="test-topic")
    @frozen(kw_only=True)
    class Broken(Event):
        rate: float = declared

    producer = Producer(transport, catalog=Catalog([Broken]))
    with pytest.raises(DefinitionError, match=r"Broken made an event that"):
        await producer.ingest(b'{"event_type":"test.broken","user_id":"u","payload":{}}')
    with pytest.raises(InvalidEvent, match="/rate|cannot be written"):
        await producer.publish(Broken(user_id="u", payload={}))
    assert transport.messages == []


async def test_typed_payloads_are_published_as_json(transport):
    """Nested attrs classes are encoded field by field in order, with private fields and without properties."""

    class Status(Enum):
        OPEN = "open"

    @frozen(kw_only=True)
    class Line:
        sku: str
        price: Decimal

    @frozen(kw_only=True)
    class Basket:
        lines: list[Line]
        first: Line | None = None
        by_sku: dict[str, Line] = field(factory=dict)
        status: Status = Status.OPEN
        _private: str = "kept"

        @cached_property
        def total(self) -> Decimal:
            return sum((line.price for line in self.lines), Decimal(0))

    @event("test.basket", topic="test-topic")
    @frozen(kw_only=True)
    class BasketFilled(Event):
        payload: Basket

    payload = (
        '{"lines":[{"sku":"a","price":1.10}],"first":null,"by_sku":{"a":{"sku":"a","price":1.10}},'
        '"status":"open","_private":"kept"}'
    )
    body = f'{{"event_type":"test.basket","user_id":"u","payload":{payload}}}'
    producer = Producer(transport, catalog=Catalog([BasketFilled]))
    await producer.ingest(body.encode())
    basket = Basket(lines=[Line(sku="a", price=Decimal("1.10"))], by_sku={"a": Line(sku="a", price=Decimal("1.10"))})
    assert basket.total == Decimal("1.10")
    await producer.publish(BasketFilled(user_id="u", payload=basket))
    for message in transport.messages:
        assert f'"payload":{payload}'.encode() in message.data


async def test_data_over_the_limit_of_the_rest_api_is_rejected(producer, transport, order_json):
    """The data of a message has at most 7,340,032 bytes, which always fit into a request in base64."""
    empty = order_json(payload={"x": ""})
    await producer.ingest(empty)
    room = 7_340_032 - len(transport.messages[0].data)
    await producer.ingest(order_json(payload={"x": "y" * room}))
    assert len(transport.messages[-1].data) == 7_340_032
    with pytest.raises(MessageTooLarge, match=r"7,340,033 bytes of data; the limit of Pub/Sub's REST API is 7,340,032"):
        await producer.ingest(order_json(payload={"x": "y" * (room + 1)}))


async def test_message_over_the_limit_of_the_grpc_api_is_rejected(transport, order_json):
    """The finished message, including attributes and key, has at most 10,000,000 bytes."""
    producer = Producer(transport, size_limit=GRPC_LIMIT)
    empty = order_json(payload={"x": ""})
    await producer.ingest(empty)
    room = 10_000_000 - transport.messages[0].size
    await producer.ingest(order_json(payload={"x": "y" * room}))
    assert transport.messages[-1].size == 10_000_000
    with pytest.raises(MessageTooLarge, match=r"up to 10,000,001 bytes; the limit is 10,000,000"):
        await producer.ingest(order_json(payload={"x": "y" * (room + 1)}))


async def test_publish_error_has_event_id_and_timestamp(order_json):
    """A PublishError has the event's id and timestamp, so that a retry publishes the same event."""

    async def outage(_message: Message) -> None:
        raise BrokerUnavailable("test")

    producer = Producer(MemoryTransport(outage), clock=lambda: NOON, new_event_id=lambda: "evt_new")
    with pytest.raises(BrokerUnavailable) as caught:
        await producer.ingest(order_json())
    assert (caught.value.event_id, caught.value.timestamp) == ("evt_new", NOON)
    assert caught.value.retryable


async def test_text_of_an_error_has_all_faults(producer):
    """The text of an error has the summary and every fault with its pointer."""
    with pytest.raises(InvalidEvent) as caught:
        await producer.ingest(json.dumps({"event_type": "order.placed", "user_id": "u", "payload": {}}).encode())
    assert str(caught.value) == ("The event is not a valid 'order.placed' event.\n/order_id: is required, but missing")


@pytest.mark.anyio
async def test_document_is_prepared_as_its_bytes_are(order):
    """A decoded JSON object gives the same message as its bytes, and is held to the same rules."""
    producer = Producer(MemoryTransport())
    document = order(event_id="mine", timestamp="2026-01-31T12:00:00Z", payload={"total": Decimal("89.90")})
    prepared = producer.prepare(document)
    body = json.dumps(order(event_id="mine", timestamp="2026-01-31T12:00:00Z", payload=0)).replace(
        '"payload": 0', '"payload":{"total":89.90}'
    )
    assert prepared == producer.prepare(body.encode())
    assert (await producer.publish(prepared)).event_id == "mine"
    for wrong in ({"total": float("nan")}, {"total": object()}, None):
        with pytest.raises(InvalidEvent):
            producer.prepare(order(payload=wrong))
