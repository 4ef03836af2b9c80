import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from attrs import frozen
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from pulsecart import (
    Batching,
    BrokerUnavailable,
    EventError,
    EventTypeNotAllowed,
    InvalidEvent,
    Limits,
    Message,
    Producer,
)
from pulsecart.app import create_app
from pulsecart.events import OrderPlaced
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import Telemetry, metrics
from pulsecart.testing import strict_pubsub
from pulsecart.transports import EmulatorTransport, MemoryTransport
from tests.transports.messages import message

pytestmark = pytest.mark.anyio

TOPIC = OrderPlaced.topic
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

Read = Callable[[str], dict[frozenset[tuple[str, Any]], Any]]


@pytest.fixture(scope="session")
def reader() -> InMemoryMetricReader:
    """Set a MeterProvider for the session: OpenTelemetry allows that only once."""
    in_memory = InMemoryMetricReader()
    api.set_meter_provider(MeterProvider([in_memory], shutdown_on_exit=False))
    return in_memory


@pytest.fixture
def read(reader) -> Read:
    """Return the points of a metric, by their attributes."""

    def points(name: str) -> dict[frozenset[tuple[str, Any]], Any]:
        data = reader.get_metrics_data()
        return {
            frozenset(point.attributes.items()): point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }

    return points


@pytest.fixture
def grown(read) -> Callable[[str], dict[frozenset[tuple[str, Any]], float]]:
    """Return the points of a counter or histogram that have grown since the last call, and by how much."""
    seen: dict[tuple[str, frozenset[tuple[str, Any]]], float] = {}

    def growth(name: str) -> dict[frozenset[tuple[str, Any]], float]:
        found = {}
        for attributes, point in read(name).items():
            value = point.count if hasattr(point, "count") else point.value
            if difference := value - seen.get((name, attributes), 0):
                found[attributes] = difference
            seen[name, attributes] = value
        return found

    return growth


def points(*entries: tuple[dict[str, Any], float]) -> dict[frozenset[tuple[str, Any]], float]:
    return {frozenset(attributes.items()): value for attributes, value in entries}


async def test_events_are_counted_by_type_and_outcome(grown, order_json):
    """Each has its type, outcome and error; all unknown types share one label value."""
    grown("pulsecart.events")
    outages = [None, BrokerUnavailable("test")]

    async def handler(_message: Message) -> None:
        if outage := outages.pop(0):
            raise outage

    producer = Producer(MemoryTransport(handler), observer=Telemetry())
    await producer.ingest(order_json())
    bodies = [order_json(), order_json(user_id=""), *(order_json(event_type=f"made.up{n}") for n in range(3)), b"{"]
    for body in bodies:
        with pytest.raises((BrokerUnavailable, EventError)):
            await producer.ingest(body)
    with pytest.raises(InvalidEvent):
        await producer.publish(OrderPlaced(user_id="u", order_id="o", payload={"n": float("nan")}))

    def of(event_type: str, outcome: str, error: str = "") -> dict[str, str]:
        labels = {"cloudevents.event_type": event_type, "pulsecart.outcome": outcome}
        return labels | ({"error.type": error} if error else {})

    assert grown("pulsecart.events") == points(
        (of("order.placed", "published"), 1),
        (of("order.placed", "failed", error="BrokerUnavailable"), 1),
        (of("order.placed", "refused", error="InvalidEvent"), 2),
        (of(metrics.OTHER, "refused", error="UnknownEventType"), 3),
        (of(metrics.OTHER, "refused", error="MalformedBody"), 1),
    )


@frozen
class Sender:
    name: str

    def may_send(self, event_type: str) -> bool:
        return event_type == "order.placed"


async def test_events_are_counted_by_source(grown, order_json):
    """Each source has a label value of its own, also for the events that it may not send."""
    grown("pulsecart.events")
    producer = Producer(MemoryTransport(), observer=Telemetry())
    for name in ("a", "b", "a"):
        await producer.publish(producer.prepare(order_json(), caller=Sender(name)))
    with pytest.raises(EventTypeNotAllowed, match="may not send 'payment.failed' events"):
        producer.prepare(order_json(event_type="payment.failed"), caller=Sender("a"))
    labels = {"cloudevents.event_type": "order.placed", "pulsecart.outcome": "published"}
    refused = {"cloudevents.event_type": "payment.failed", "pulsecart.outcome": "refused"}
    assert grown("pulsecart.events") == points(
        *((labels | {"pulsecart.source": name}, count) for name, count in (("a", 2), ("b", 1))),
        (refused | {"pulsecart.source": "a", "error.type": "EventTypeNotAllowed"}, 1),
    )


async def test_labels_of_sources_are_bounded(grown, order_json):
    """However many sources there have been, there is a fixed number of label values; the others share one."""
    grown("pulsecart.events")
    producer = Producer(MemoryTransport(), observer=Telemetry())
    count = metrics.MOST_SOURCES + 50
    for number in range(count):
        await producer.publish(producer.prepare(order_json(), caller=Sender(f"source-{number}")))
    grew = {dict(labels)["pulsecart.source"]: number for labels, number in grown("pulsecart.events").items()}
    assert sum(grew.values()) == count
    assert grew[metrics.OTHER] >= 50
    assert len(grew) <= metrics.MOST_SOURCES + 1


async def test_a_defect_is_counted_as_a_failure(grown, order_json):
    """An unexpected exception is counted under the name of its class."""
    grown("pulsecart.events")
    producer = Producer(MemoryTransport(), observer=Telemetry(), clock=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await producer.ingest(order_json())
    labels = {"cloudevents.event_type": "order.placed", "pulsecart.outcome": "failed"}
    assert grown("pulsecart.events") == points((labels | {"error.type": "ZeroDivisionError"}, 1))


async def test_requests_to_the_broker_are_counted_and_timed(grown, read):
    """Messages and durations follow the conventions, with the recommended buckets and the broker's status."""
    for name in ("messaging.client.operation.duration", "messaging.client.sent.messages", "pulsecart.requests"):
        grown(name)
    limits = Limits(deadline=5, batching={TOPIC: Batching(max_messages=20, max_latency=0.5)})
    async with (
        strict_pubsub([TOPIC]) as server,
        EmulatorTransport(project="test", host=server.host, limits=limits, observer=Telemetry()) as transport,
    ):
        await asyncio.gather(*(transport.publish(message(n, "user", TOPIC)) for n in range(20)))
        server.script.append(grpc.StatusCode.PERMISSION_DENIED)
        with pytest.raises(Exception, match="PERMISSION_DENIED"):
            await transport.publish(message(21, "", TOPIC))
    send = {
        "messaging.system": "gcp_pubsub",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": TOPIC,
        "server.address": "127.0.0.1",
        "server.port": int(server.host.rpartition(":")[2]),
    }
    failed = send | {"error.type": "PERMISSION_DENIED"}
    assert grown("messaging.client.operation.duration") == points((send, 1), (failed, 1))
    assert grown("messaging.client.sent.messages") == points((send, 20), (failed, 1))
    sizes = {"messaging.destination.name": TOPIC}
    assert grown("pulsecart.requests") == points(
        (sizes | {"pulsecart.batch.size": "11-100"}, 1), (sizes | {"pulsecart.batch.size": "1"}, 1)
    )
    point = read("messaging.client.operation.duration")[frozenset(send.items())]
    assert point.explicit_bounds == BUCKETS
    assert 0 < point.sum < 10


async def test_http_requests_are_timed_by_route_and_status(grown, read, order_json):
    """Durations in seconds, in the recommended buckets; a 5xx has its status as the error's type."""
    grown("http.server.request.duration")

    async def outage(_message: Message) -> None:
        raise BrokerUnavailable("test")

    for transport, body in (
        (MemoryTransport(), order_json()),
        (MemoryTransport(), b"{"),
        (MemoryTransport(outage), order_json()),
    ):
        app = create_app(Settings(transport="memory"), transport=transport)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.post("/events/ingest", content=body, headers={"Content-Type": "application/json"})
    route = {"http.request.method": "POST", "http.route": "/events/ingest", "url.scheme": "http"}
    assert grown("http.server.request.duration") == points(
        (route | {"http.response.status_code": 202}, 1),
        (route | {"http.response.status_code": 400}, 1),
        (route | {"http.response.status_code": 503, "error.type": "503"}, 1),
    )
    accepted = frozenset((route | {"http.response.status_code": 202}).items())
    assert read("http.server.request.duration")[accepted].explicit_bounds == BUCKETS


async def test_unknown_paths_share_one_series(grown):
    """Without a route there is no `http.route`: a path is a value that a caller chooses."""
    grown("http.server.request.duration")
    app = create_app(Settings(transport="memory"), transport=MemoryTransport())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/a", "/b"):
            await client.get(path)
    not_found = {"http.request.method": "GET", "http.response.status_code": 404, "url.scheme": "http"}
    assert grown("http.server.request.duration") == points((not_found, 2))


async def test_load_is_observed(read):
    """There are gauges for messages, bytes, waiting messages and the age of the oldest."""

    def value(name: str) -> float:
        (point,) = read(name).values()
        return point.value

    gate = asyncio.Event()
    async with (
        strict_pubsub([TOPIC]) as server,
        EmulatorTransport(project="test", host=server.host, observer=Telemetry()) as transport,
    ):
        server.script.append(gate)
        calls = [message(n, "user", TOPIC) for n in range(3)]
        tasks = [asyncio.create_task(transport.publish(calls[0]))]
        await server.received(1)
        tasks += [asyncio.create_task(transport.publish(call)) for call in calls[1:]]
        await asyncio.sleep(0.05)
        assert value("pulsecart.messages.in_flight") == 3
        assert value("pulsecart.bytes.in_flight") == sum(call.size for call in calls)
        assert value("pulsecart.messages.waiting") == 2
        assert value("pulsecart.oldest_message.age") >= 0.04
        gate.set()
        await asyncio.gather(*tasks)
        assert value("pulsecart.messages.in_flight") == value("pulsecart.oldest_message.age") == 0


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (1, "1"),
        (2, "2-10"),
        (10, "2-10"),
        (11, "11-100"),
        (100, "11-100"),
        (1000, "101-1000"),
        (10_000, "1001-10000"),
        (10_001, "more"),
    ],
)
def test_batch_sizes_fall_into_few_classes(grown, count, name):
    """The label of a request's size is one of four."""
    grown("pulsecart.requests")
    Telemetry().sending("t", count, [], ("h", 1)).ended("")
    assert grown("pulsecart.requests") == points(({"messaging.destination.name": "t", "pulsecart.batch.size": name}, 1))


async def test_batches_are_counted_by_size(grown):
    """A batch counts once, in a class by the number of its events, which are counted one by one."""
    grown("pulsecart.batches")
    grown("pulsecart.events")
    app = create_app(Settings(transport="memory"))
    event = {"event_type": "order.placed", "user_id": "u", "order_id": "o", "payload": {}}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.post("/events/batch", json=[event] * 50 + [{}])
        await client.post("/events/batch", json=[event])
        headers = {"Content-Type": "application/x-ndjson"}
        await client.post("/events/batch", content=b"", headers=headers)
    sizes = [({"pulsecart.batch.size": size}, 1) for size in ("11-100", "1", "0")]
    assert grown("pulsecart.batches") == points(*sizes)
    placed = {"cloudevents.event_type": "order.placed", "pulsecart.outcome": "published"}
    missing = {
        "cloudevents.event_type": metrics.OTHER,
        "pulsecart.outcome": "refused",
        "error.type": "MissingEventType",
    }
    assert grown("pulsecart.events") == points((placed, 51), (missing, 1))
