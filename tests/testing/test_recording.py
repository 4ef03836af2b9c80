"""RecordingTransport: assertions about what was published, waiting for it, and outages."""

import asyncio
import threading
from datetime import UTC, datetime
from decimal import Decimal
from unittest.mock import ANY

import pytest
from attrs import field, frozen

from pulsecart import (
    BrokerRefused,
    BrokerUnavailable,
    DefinitionError,
    Event,
    Message,
    Producer,
    SyncProducer,
    TransportClosed,
    event,
)
from pulsecart.events import OrderPlaced, PaymentFailed, non_empty
from pulsecart.testing import RecordingTransport

pytestmark = pytest.mark.anyio


@frozen(kw_only=True)
class Parcel:
    kg: Decimal
    labels: list[str]


@event("recording.shipped", topic="recording-tests")
@frozen(kw_only=True)
class Shipped(Event):
    order_id: str = field(validator=non_empty)
    payload: Parcel


def order(number=1, **changes):
    return OrderPlaced(**({"user_id": "u1", "order_id": f"o{number}", "payload": {"n": number}} | changes))


def shipped(**changes):
    return Shipped(
        **({"user_id": "u1", "order_id": "o1", "payload": Parcel(kg=Decimal("1.20"), labels=["x"])} | changes)
    )


@pytest.fixture
def events():
    return RecordingTransport()


async def publish(events, *published):
    for each in published:
        await Producer(events).publish(each)


async def test_published_returns_typed_events_of_the_class(events):
    """Events come back as instances, oldest first, complete, and with exact numbers; other types are left out."""
    await publish(events, order(1, payload={"total": Decimal("89.90")}), shipped(), order(2))
    first, second = events.published(OrderPlaced)
    assert (first.order_id, str(first.payload["total"]), second.order_id) == ("o1", "89.90", "o2")
    assert first.event_id
    assert first.timestamp.tzinfo is UTC
    assert [found.payload for found in events.published(Shipped)] == [shipped().payload]
    assert events.published(PaymentFailed) == []


async def test_published_filters_by_fields(events):
    """Only events with all of the given values are returned."""
    await publish(events, order(1), order(2), order(1, user_id="u2"))
    assert [found.user_id for found in events.published(OrderPlaced, order_id="o1")] == ["u1", "u2"]
    assert len(events.published(OrderPlaced, order_id="o1", user_id="u2")) == 1


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"total": 89.9}, {"total": 89.9}),
        ({"total": Decimal("89.90")}, {"total": 89.9}),
        ({"total": 5}, {"total": 5.0}),
        ({"a": [1, {"b": None}]}, {"a": (1, {"b": None})}),
        ({"a": True}, {"a": True}),
        ({"at": "now", "n": 1}, {"at": ANY, "n": 1}),
        ({"at": "now"}, ANY),
    ],
)
async def test_payloads_are_compared_by_value(events, payload, expected):
    """Numbers, arrays, nested objects and matchers compare as one would expect of JSON."""
    await publish(events, order(payload=payload))
    assert events.assert_published(OrderPlaced, payload=expected).order_id == "o1"


@pytest.mark.parametrize(
    ("payload", "expected", "line"),
    [
        ({"n": 5}, {"n": 6}, "payload.n: expected 6, got 5"),
        ({"n": 5}, {"n": "5"}, "payload.n: expected '5', got 5"),
        ({"n": 5}, {"n": 5, "m": 1}, "payload.m: expected 1, but it is missing"),
        ({"n": 5, "m": 1}, {"n": 5}, "payload.m: not expected, but it is 1"),
        ({"n": 1}, {"n": True}, "payload.n: expected True, got 1"),
        ({"n": True}, {"n": 1}, "payload.n: expected 1, got True"),
        ({"n": None}, {}, "payload.n: not expected, but it is None"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "payload.a[1]: expected 3, got 2"),
        ({"a": [1, 2]}, {"a": [1]}, "payload.a: expected [1], got [1, 2]"),
        ({"a": {"b": 1}}, {"a": 1}, "payload.a: expected 1, got {'b': 1}"),
        ({"a": "x" * 500}, {"a": "y"}, f"payload.a: expected 'y', got '{'x' * 199}…"),
    ],
)
async def test_a_miss_shows_each_difference(events, payload, expected, line):
    """The message has a line for each place that differs."""
    await publish(events, order(payload=payload))
    with pytest.raises(AssertionError) as raised:
        events.assert_published(OrderPlaced, payload=expected)
    assert str(raised.value).splitlines()[1:] == [f"  {line}"]


async def test_a_miss_shows_the_most_similar_event(events):
    """Of several events, the one with the fewest differences is shown, the latest of these."""
    await publish(events, order(1), order(2, user_id="u2"), order(3, user_id="u2"), shipped())
    with pytest.raises(AssertionError) as raised:
        events.assert_published(OrderPlaced, user_id="u2", order_id="o4", payload={"n": 3})
    assert str(raised.value) == (
        "no OrderPlaced with user_id='u2', order_id='o4', payload={'n': 3} was published. "
        "The most similar of 3 differs:\n"
        "  order_id: expected 'o4', got 'o3'"
    )


async def test_a_miss_in_a_class_of_payloads_shows_its_fields(events):
    """Nested attrs classes are compared field by field."""
    await publish(events, shipped())
    with pytest.raises(AssertionError, match=r"  payload.kg: expected Decimal\('2'\), got Decimal\('1.20'\)"):
        events.assert_published(Shipped, payload=Parcel(kg=Decimal(2), labels=["x"]))


async def test_a_miss_without_events_of_the_class_says_what_was_published(events):
    """The message counts the other types, messages without a type, and shows failures."""
    with pytest.raises(AssertionError, match=r"^no OrderPlaced was published. Nothing is there.$"):
        events.assert_published(OrderPlaced)
    await publish(events, shipped(), shipped())
    await events.publish(Message(topic="t", data=b"{}", attributes={}))
    with events.outage(), pytest.raises(BrokerUnavailable):
        await publish(events, order())
    with pytest.raises(AssertionError) as raised:
        events.assert_published(OrderPlaced, user_id="u1")
    first, second = str(raised.value).splitlines()
    assert first == (
        "no OrderPlaced with user_id='u1' was published. "
        "Others are: 2 recording.shipped, 1 message without event_type on t."
    )
    assert second == "order.placed failed: BrokerUnavailable: the broker is away (an outage in a test)"


@pytest.mark.parametrize(
    ("cls", "fields", "error", "message"),
    [
        ("order.placed", {}, TypeError, "an event class is expected, such as OrderPlaced, not 'order.placed'"),
        (dict, {}, TypeError, "an event class is expected"),
        (Event, {}, DefinitionError, "is not declared"),
        (OrderPlaced, {"usr_id": "u1"}, TypeError, "OrderPlaced has no field 'usr_id'; did you mean 'user_id'?"),
        (OrderPlaced, {"x": 1}, TypeError, "OrderPlaced has no field 'x'; its fields are event_id, timestamp, "),
    ],
)
async def test_what_cannot_be_asked_is_an_error(events, cls, fields, error, message):
    """A misspelt field or something else than an event class is an error, even if nothing was published."""
    for method in (events.published, events.assert_published):
        with pytest.raises(error) as raised:
            method(cls, **fields)
        assert message in str(raised.value)
    with pytest.raises(error):
        await events.wait_for(cls, **fields)


async def test_wait_for_returns_when_it_is_published(events):
    """It returns the event that matches, published before or during the wait, and does not wait any longer."""
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waiting = group.create_task(events.wait_for(OrderPlaced, order_id="o2", timeout=60))
        await asyncio.sleep(0)
        await publish(events, order(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        await publish(events, order(2))
    assert waiting.result().order_id == "o2"
    assert await events.wait_for(OrderPlaced, timeout=0) == events.published(OrderPlaced)[0]


async def test_wait_for_ends_with_the_nearest_miss(events):
    """After the timeout it fails as assert_published does."""
    await publish(events, order(1))
    with pytest.raises(
        AssertionError, match=r"was published within 0.1 s. There is one with:\n  order_id: expected 'o2'"
    ):
        await events.wait_for(OrderPlaced, order_id="o2", timeout=0.1)


async def test_wait_for_notices_other_threads(events):
    """An event that another thread publishes ends the wait."""
    with SyncProducer(events) as producer:
        thread = threading.Timer(0.1, producer.publish, [order()])
        thread.start()
        assert (await events.wait_for(OrderPlaced, timeout=30)).order_id == "o1"
        await asyncio.to_thread(thread.join)


def test_blocking_wait_for_waits_for_other_threads(events):
    """A thread without an event loop waits in the same way, and fails in the same way."""
    with SyncProducer(events) as producer:
        threads = [threading.Timer(n / 10, producer.publish, [order(n)]) for n in (1, 2)]
        for thread in threads:
            thread.start()
        assert events.blocking_wait_for(OrderPlaced, order_id="o2", timeout=30).payload == {"n": 2}
        for thread in threads:
            thread.join()
    with pytest.raises(
        AssertionError, match=r"no PaymentFailed was published within 0.1 s. Others are: 2 order.placed."
    ):
        events.blocking_wait_for(PaymentFailed, timeout=0.1)


async def test_blocking_wait_for_refuses_to_block_an_event_loop(events):
    """In a coroutine it would wait for itself."""
    with pytest.raises(RuntimeError, match="use `await wait_for"):
        events.blocking_wait_for(OrderPlaced)


@pytest.mark.parametrize("error", [BrokerUnavailable, BrokerRefused])
async def test_outage_fails_every_event_in_its_block(events, error):
    """Within the block nothing is published; the error has the event's id. Afterwards everything works again."""
    with events.outage(error), pytest.raises(error) as raised:
        await publish(events, order(1, event_id="e1"))
    assert raised.value.event_id == "e1"
    await publish(events, order(2))
    assert [found.order_id for found in events.published(OrderPlaced)] == ["o2"]
    events.assert_nothing_unexpected()


async def test_outage_concerns_batches(events):
    """Events that are published many at a time fail, too."""
    producer = Producer(events)
    with events.outage():
        failed = [outcome async for outcome in producer.publish_many([order(1), order(2, user_id="u2")])]
    assert [type(outcome) for outcome in failed] == [BrokerUnavailable] * 2
    published = [outcome async for outcome in producer.publish_many([order(1), order(2)])]
    assert [outcome.message_id for outcome in published] == ["1", "2"]


@pytest.mark.parametrize("wrong", [BrokerUnavailable("x"), ValueError, "away"])
def test_outage_takes_the_class_of_an_error(events, wrong):
    """Anything else is an error, with an example."""
    with (
        pytest.raises(TypeError, match=r"outage\(\) takes a class, such as pulsecart.BrokerRefused, not"),
        events.outage(wrong),
    ):
        pass


async def test_outage_that_nobody_notices_is_unexpected(events):
    """A block in which nothing was published tests nothing, unless it has failed itself."""
    with pytest.raises(KeyError), events.outage():
        raise KeyError
    events.assert_nothing_unexpected()
    with events.outage():
        pass
    with pytest.raises(AssertionError, match="nothing was published in an outage"):
        events.assert_nothing_unexpected()


async def test_failures_outside_an_outage_are_unexpected_until_they_are_asserted(events):
    """An event that is published after the transport was closed is reported, unless a test expects that."""
    await events.aclose()
    for number in range(12):
        with pytest.raises(TransportClosed):
            await publish(events, order(number))
    with pytest.raises(AssertionError) as raised:
        events.assert_nothing_unexpected()
    lines = str(raised.value).splitlines()
    assert lines[0] == "12 events could not be published, which the test does not expect:"
    assert lines[1] == "  order.placed: TransportClosed: the memory transport is closed"
    assert lines[11:] == ["  and 2 more"]
    assert events.assert_failed(OrderPlaced, order_id="o3").payload == {"n": 3}
    with pytest.raises(AssertionError, match="^11 events"):
        events.assert_nothing_unexpected()
    events.assert_failed(OrderPlaced)
    events.assert_nothing_unexpected()


async def test_assert_failed_shows_the_nearest_miss(events):
    """Failures are compared like published events."""
    with events.outage(), pytest.raises(BrokerUnavailable):
        await publish(events, order(1))
    with pytest.raises(
        AssertionError, match=r"o2' failed to be published. There is one with:\n  order_id: expected 'o2'"
    ):
        events.assert_failed(OrderPlaced, order_id="o2")


async def test_times_are_compared(events):
    """A timestamp is compared as the moment that it is."""
    moment = datetime(2026, 1, 31, 12, tzinfo=UTC)
    await publish(events, order(timestamp=moment))
    assert events.assert_published(OrderPlaced, timestamp=moment)
