import asyncio
import hashlib
import os
import random
import subprocess
import sys
import time
import uuid
from contextlib import asynccontextmanager

import grpc
import httpx
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags
from starlette.applications import Starlette
from starlette.routing import Mount

from pulsecart import (
    Batching,
    BrokerUnavailable,
    Limits,
    Message,
    MessageRefused,
    Producer,
    new_event_id,
    trace_id_of,
    unordered,
)
from pulsecart.app import create_app
from pulsecart.events import OrderPlaced
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import EventIdGenerator, EventSampler, Telemetry, tracing
from pulsecart.testing import strict_pubsub
from pulsecart.transports import EmulatorTransport, MemoryTransport

pytestmark = pytest.mark.anyio

TOPIC = OrderPlaced.topic
CALLER_TRACE, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def placed(**fields) -> OrderPlaced:
    return OrderPlaced(**{"user_id": "user-1", "order_id": "o", "payload": {}} | fields)


@pytest.fixture
async def broker():
    async with strict_pubsub([TOPIC]) as server:
        yield server


@pytest.fixture
async def remote(broker, spans):
    limits, observer = Limits(deadline=2), Telemetry()
    async with EmulatorTransport(project="test", host=broker.host, limits=limits, observer=observer) as transport:
        yield transport


@asynccontextmanager
async def posting(transport, **settings):
    """Give a function that posts to the whole application on a transport."""
    app = create_app(Settings(transport="memory", **settings), transport=transport)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

        async def post(body, **headers):
            return await client.post(
                "/events/ingest", content=body, headers={"Content-Type": "application/json"} | headers
            )

        yield post


async def test_path_of_a_span_below_a_prefix_is_whole(spans, order_json):
    """Below a prefix `url.path` is the path that the caller asked for, and the route that of pulsecart."""
    outer = Starlette(routes=[Mount("/shop", create_app(Settings(transport="memory")))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as client:
        headers = {"Content-Type": "application/json"}
        await client.post("/shop/events/ingest", content=order_json(), headers=headers)
    attributes = spans.one("POST").attributes
    assert (attributes["url.path"], attributes["http.route"]) == ("/shop/events/ingest", "/events/ingest")


async def test_one_event_is_three_spans_in_two_traces(spans, broker, remote, order_json):
    """The request, the event's root in the trace of its id, and its send below: names, kinds, links, attributes."""
    async with posting(remote) as post:
        response = await post(order_json())
    answer = response.json()
    request, create, send = spans.one("POST"), spans.one("create"), spans.one("send")

    assert (request.name, request.kind, request.parent) == ("POST /events/ingest", SpanKind.SERVER, None)
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/events/ingest",
        "http.response.status_code": 202,
        "url.path": "/events/ingest",
        "url.scheme": "http",
    }

    assert (create.name, create.kind, create.parent) == (f"create {TOPIC}", SpanKind.PRODUCER, None)
    assert f"{create.context.trace_id:032x}" == trace_id_of(answer["event_id"]) == answer["trace_id"]
    assert dict(create.attributes) == {
        "messaging.system": "gcp_pubsub",
        "messaging.operation.name": "create",
        "messaging.operation.type": "create",
        "messaging.destination.name": TOPIC,
        "messaging.message.id": answer["message_id"],
        "cloudevents.event_id": answer["event_id"],
        "cloudevents.event_type": "order.placed",
    }
    assert [link.context.span_id for link in create.links] == [request.context.span_id]
    assert [link.context.span_id for link in request.links] == [create.context.span_id]

    host, _, port = broker.host.partition(":")
    assert (send.name, send.kind, send.parent.span_id) == (f"send {TOPIC}", SpanKind.CLIENT, create.context.span_id)
    assert send.context.trace_id == create.context.trace_id
    assert dict(send.attributes) == {
        "messaging.system": "gcp_pubsub",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": TOPIC,
        "messaging.batch.message_count": 1,
        "server.address": host,
        "server.port": int(port),
    }
    assert {span.status.status_code for span in (request, create, send)} == {StatusCode.UNSET}

    (sent,) = broker.messages
    flags = f"{create.context.trace_id:032x}-{create.context.span_id:016x}-01"
    assert dict(sent.attributes) == {
        "event_type": "order.placed",
        "event_id": answer["event_id"],
        "traceparent": f"00-{flags}",
        "googclient_traceparent": f"00-{flags}",
    }
    own = f"{request.context.trace_id:032x}-{request.context.span_id:016x}-01"
    assert response.headers["traceresponse"] == f"00-{own}"


async def test_one_request_with_several_events_is_a_root_with_links(spans, broker):
    """A send of several messages is a trace of its own, linked to each event and back."""
    limits = Limits(batching={TOPIC: Batching(max_messages=3)})
    gate = asyncio.Event()
    broker.script.append(gate)
    async with EmulatorTransport(project="test", host=broker.host, limits=limits, observer=Telemetry()) as transport:
        producer = Producer(transport, observer=Telemetry())
        tasks = [asyncio.create_task(producer.publish(placed())) for _ in range(4)]
        await broker.received(1)
        gate.set()
        await asyncio.gather(*tasks)
    creates = {span.context.span_id: span for span in spans("create")}
    first, several = sorted(spans("send"), key=lambda span: span.attributes["messaging.batch.message_count"])
    assert first.parent.span_id in creates
    assert (several.parent, several.attributes["messaging.batch.message_count"]) == (None, 3)
    linked = {link.context.span_id for link in several.links}
    assert linked == set(creates) - {first.parent.span_id}
    assert several.context.trace_id not in {span.context.trace_id for span in creates.values()}
    for span_id in linked:
        assert [link.context.span_id for link in creates[span_id].links] == [several.context.span_id]


async def test_waiting_and_retrying_are_recorded_separately(spans, broker, remote):
    """A create span has an event for the end of its wait, and a send span one for each failed attempt."""
    gate = asyncio.Event()
    broker.script.extend([gate, grpc.StatusCode.UNAVAILABLE, None])
    producer = Producer(remote, observer=Telemetry())
    first = asyncio.create_task(producer.publish(placed()))
    await broker.received(1)
    second = asyncio.create_task(producer.publish(placed()))
    await asyncio.sleep(0.05)
    gate.set()
    await asyncio.gather(first, second)
    _, waited = sorted(spans("create"), key=lambda span: span.start_time)
    (turn,) = waited.events
    assert turn.name == "pulsecart.turn_came"
    assert turn.timestamp - waited.start_time >= 10_000_000
    _, retried = sorted(spans("send"), key=lambda span: span.start_time)
    (failed,) = retried.events
    assert (failed.name, dict(failed.attributes)) == ("pulsecart.attempt_failed", {"error.type": "UNAVAILABLE"})
    assert retried.status.status_code is StatusCode.UNSET


async def test_a_failure_is_marked_on_every_span(spans, broker, remote, order_json):
    """A refusal by the broker is an error of all three spans; send and create have the broker's status as its type."""
    broker.topics.clear()
    async with posting(remote) as post:
        response = await post(order_json())
    assert response.status_code == 503
    for name, kind in (("send", "NOT_FOUND"), ("create", "NOT_FOUND"), ("POST", "503")):
        span = spans.one(name)
        assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, kind)
    assert "messaging.message.id" not in spans.one("create").attributes


async def test_4xx_is_no_error_of_the_request(spans, order_json):
    """A 4xx leaves the status of the request's span unset, and no span is made for the event."""
    async with posting(MemoryTransport()) as post:
        await post(order_json(user_id=""))
    request = spans.one("POST")
    assert (request.status.status_code, request.attributes["http.response.status_code"]) == (StatusCode.UNSET, 422)
    assert spans("create") == []


async def test_failing_transport_is_an_error_of_both_spans(spans, order_json):
    """An unexpected exception of a transport ends the spans of request and event as errors."""

    async def defective(_message: Message) -> None:
        raise ZeroDivisionError

    async with posting(MemoryTransport(defective)) as post:
        assert (await post(order_json())).status_code == 503
    assert spans.one("POST").attributes["error.type"] == "503"
    assert spans.one("create").status.status_code is StatusCode.ERROR
    assert spans.one("create").attributes["error.type"] == "ZeroDivisionError"


async def test_cancelled_publish_ends_its_span(spans, broker, remote):
    """A publish that is cancelled leaves no span open."""
    broker.script.append(asyncio.Event())
    task = asyncio.create_task(Producer(remote, observer=Telemetry()).publish(placed()))
    await broker.received(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert spans.one("create").attributes["error.type"] == "CancelledError"


async def test_cancelled_request_ends_its_spans(spans, broker, remote, order_json):
    """A server that cancels a request leaves no span open."""
    broker.script.append(asyncio.Event())
    async with posting(remote) as post:
        task = asyncio.create_task(post(order_json()))
        await broker.received(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert spans.one("POST").attributes["error.type"] == "500"
    assert spans.one("create").attributes["error.type"] == "CancelledError"


async def test_the_request_follows_its_caller(spans, order_json):
    """The request's span continues the caller's trace; the event has its own."""
    async with posting(MemoryTransport()) as post:
        response = await post(order_json(), traceparent=f"00-{CALLER_TRACE}-{CALLER_SPAN}-01", tracestate="a=b")
    request, create = spans.one("POST"), spans.one("create")
    assert (f"{request.parent.trace_id:032x}", f"{request.parent.span_id:016x}") == (CALLER_TRACE, CALLER_SPAN)
    assert f"{request.context.trace_id:032x}" == CALLER_TRACE
    assert f"{create.context.trace_id:032x}" == response.json()["trace_id"]
    assert not create.context.trace_state


@pytest.mark.parametrize(
    "header", ["", "00-xyz", f"00-{'0' * 32}-{CALLER_SPAN}-01", f"ff-{CALLER_TRACE}-{CALLER_SPAN}-01"]
)
async def test_malformed_traceparent_is_ignored(spans, order_json, header):
    """The request starts a new trace and is answered as usual."""
    async with posting(MemoryTransport()) as post:
        response = await post(order_json(), traceparent=header)
    assert response.status_code == 202
    assert spans.one("POST").parent is None


@pytest.mark.parametrize(("flag", "recorded"), [("01", 1), ("00", 0)])
async def test_an_event_is_sampled_by_its_callers_flag(traced, order_json, flag, recorded):
    """With a ratio of 0 an event is sampled if its remote caller is; its message has the flag in both cases."""
    spans, transport = traced(ALWAYS_OFF), MemoryTransport()
    async with posting(transport) as post:
        await post(order_json(), traceparent=f"00-{CALLER_TRACE}-{CALLER_SPAN}-{flag}")
    assert len(spans("create")) == len(spans("POST")) == recorded
    (message,) = transport.messages
    assert message.attributes["traceparent"].endswith(f"-{flag}")
    assert message.attributes["traceparent"][3:35] == trace_id_of(message.attributes["event_id"])


LOW_TRACE, HIGH_TRACE = "4bf92f3577b34da60000000000000001", "4bf92f3577b34da6ffffffffffffffff"
LOW_EVENT, HIGH_EVENT = "evt_0123456789ab00000000000000000001", "evt_0123456789ab0000ffffffffffffffff"


@pytest.mark.parametrize(
    ("callers", "caller", "traced_events"),
    [
        ("always", (LOW_TRACE, "01"), {LOW_EVENT, HIGH_EVENT}),
        ("always", (HIGH_TRACE, "01"), {LOW_EVENT, HIGH_EVENT}),
        ("always", (HIGH_TRACE, "00"), {LOW_EVENT}),
        ("ratio", (LOW_TRACE, "01"), {LOW_EVENT, HIGH_EVENT}),
        ("ratio", (HIGH_TRACE, "01"), {LOW_EVENT}),
        ("ratio", (LOW_TRACE, "00"), {LOW_EVENT}),
        ("never", (LOW_TRACE, "01"), {LOW_EVENT}),
        ("never", (HIGH_TRACE, "01"), {LOW_EVENT}),
        ("never", (LOW_TRACE, "00"), {LOW_EVENT}),
    ],
)
async def test_events_are_sampled_by_caller_and_setting(traced, order_json, callers, caller, traced_events):
    """The flag of all callers counts, of those whose trace id is below the ratio, or of none."""
    (trace_id, flag), spans, transport = caller, traced(TraceIdRatioBased(0.5)), MemoryTransport()
    async with posting(transport, trace_callers=callers) as post:
        for event_id in (LOW_EVENT, HIGH_EVENT):
            await post(order_json(event_id=event_id), traceparent=f"00-{trace_id}-{CALLER_SPAN}-{flag}")
    assert {span.attributes["cloudevents.event_id"] for span in spans("create")} == traced_events
    for message in transport.messages:
        sampled = message.attributes["event_id"] in traced_events
        assert message.attributes["traceparent"].endswith(f"-{int(sampled):02x}")


@pytest.mark.parametrize(
    ("callers", "caller", "recorded"),
    [
        ("always", (HIGH_TRACE, "01"), True),
        ("always", (LOW_TRACE, "00"), False),
        ("ratio", (LOW_TRACE, "01"), True),
        ("ratio", (HIGH_TRACE, "01"), False),
        ("ratio", (LOW_TRACE, "00"), False),
        ("never", (LOW_TRACE, "01"), True),
        ("never", (LOW_TRACE, "00"), True),
        ("never", (HIGH_TRACE, "01"), False),
    ],
)
async def test_requests_are_sampled_by_caller_and_setting(traced, order_json, callers, caller, recorded):
    """A request is always in its caller's trace; with `never` only the trace id decides whether it is sampled."""
    (trace_id, flag), spans = caller, traced(TraceIdRatioBased(0.5))
    async with posting(MemoryTransport(), trace_callers=callers) as post:
        response = await post(order_json(), traceparent=f"00-{trace_id}-{CALLER_SPAN}-{flag}")
    _version, answered, _span_id, answered_flag = response.headers["traceresponse"].split("-")
    assert (answered, answered_flag) == (trace_id, f"{int(recorded):02x}")
    assert [f"{span.parent.span_id:016x}" for span in spans("POST")] == [CALLER_SPAN] * recorded


@pytest.mark.parametrize(("environment", "recorded"), [("dev", 1), ("staging", 0), ("prod", 0)])
async def test_sampled_callers_count_by_default_in_development_only(traced, order_json, environment, recorded):
    """In staging and prod the ratio is the upper bound."""
    spans, transport = traced(ALWAYS_OFF), MemoryTransport()
    settings = Settings(transport="pubsub", project="shop", environment=environment, auth="none")
    app = create_app(settings, transport=transport)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        headers = {"Content-Type": "application/json", "traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01"}
        await client.post("/events/ingest", content=order_json(), headers=headers)
    assert len(spans("create")) == len(spans("POST")) == recorded


@pytest.mark.parametrize("flag", ["00", "01"])
async def test_unsampled_event_in_sampled_request(traced, broker, order_json, flag):
    """The request's span links to the event's trace, and there is no span for the send."""
    spans = traced(TraceIdRatioBased(0.5))
    limits, observer = Limits(deadline=2), Telemetry()
    trace_id = LOW_TRACE
    async with (
        EmulatorTransport(project="test", host=broker.host, limits=limits, observer=observer) as transport,
        posting(transport, trace_callers="never") as post,
    ):
        response = await post(order_json(event_id=HIGH_EVENT), traceparent=f"00-{trace_id}-{CALLER_SPAN}-{flag}")
    assert response.status_code == 202
    assert (spans("create"), spans("send")) == ([], [])
    (link,) = spans.one("POST").links
    (sent,) = broker.messages
    assert sent.attributes["traceparent"] == f"00-{trace_id_of(HIGH_EVENT)}-{link.context.span_id:016x}-00"


class Deciding(Sampler):
    """A sampler of a host, which records its calls and returns a fixed decision."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.asked = []

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, **_others):
        self.asked.append((name, kind, f"{trace_id:032x}", dict(attributes)))
        state = trace.TraceState([("vendor", "x")])
        return SamplingResult(self.decision, {**attributes, "by": "a host"}, state)

    def get_description(self) -> str:
        return "Deciding"


@pytest.mark.parametrize("decision", list(Decision))
async def test_custom_sampler_is_called_once_for_each_span(traced, order_json, decision):
    """It gets name, kind, trace id and attributes; its decision, attributes and tracestate are used."""
    sampler, transport = Deciding(decision), MemoryTransport()
    spans = traced(sampler)
    async with posting(transport) as post:
        response = await post(order_json())
    event_id, trace_id = response.json()["event_id"], response.json()["trace_id"]
    (request, create) = sampler.asked
    assert request[:2] == ("POST /events/ingest", SpanKind.SERVER)
    assert create[:3] == (f"create {TOPIC}", SpanKind.PRODUCER, trace_id)
    assert create[3]["cloudevents.event_id"] == event_id
    (message,) = transport.messages
    flag = "01" if decision is Decision.RECORD_AND_SAMPLE else "00"
    assert message.attributes["traceparent"].startswith(f"00-{trace_id}-")
    assert message.attributes["traceparent"].endswith(f"-{flag}")
    assert message.attributes["tracestate"] == "vendor=x"
    # The SDK does not export spans that are only recorded.
    assert [span.attributes["by"] for span in spans("create")] == ["a host"] * (flag == "01")


@pytest.mark.parametrize("options", [{}, {"sampler": ALWAYS_OFF}])
async def test_provider_without_event_sampler_uses_its_own_rules(monkeypatch, order_json, options):
    """The setting for callers has no effect on it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(id_generator=EventIdGenerator(), shutdown_on_exit=False, **options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    transport = MemoryTransport()
    async with posting(transport, trace_callers="never") as post:
        response = await post(order_json(), traceparent=f"00-{HIGH_TRACE}-{CALLER_SPAN}-01")
    recorded = [span.name for span in exporter.get_finished_spans()]
    assert recorded == ([] if options else [f"create {TOPIC}", "POST /events/ingest"])
    (message,) = transport.messages
    assert message.attributes["traceparent"].split("-")[1::2] == [
        response.json()["trace_id"],
        "00" if options else "01",
    ]


def test_provider_of_another_sdk_is_used_without_loading_opentelemetrys():
    """Any implementation of the API will do; one without spans adds nothing to messages."""
    program = """
import asyncio, sys
from opentelemetry import trace
trace.set_tracer_provider(trace.NoOpTracerProvider())
from pulsecart import Producer
from pulsecart.events import OrderPlaced
from pulsecart.telemetry import Telemetry
from pulsecart.transports import MemoryTransport
transport = MemoryTransport()
event = OrderPlaced(user_id="u", order_id="o", payload={})
asyncio.run(Producer(transport, observer=Telemetry()).publish(event))
assert set(transport.messages[0].attributes) == {"event_type", "event_id"}
assert "opentelemetry.sdk" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")


async def test_sampler_that_ignores_parents_is_obeyed():
    """With ALWAYS_OFF nothing is sampled, even for sampled callers."""
    sampler = EventSampler(ALWAYS_OFF)
    caller = trace.SpanContext(int(CALLER_TRACE, 16), int(CALLER_SPAN, 16), is_remote=True, trace_flags=TraceFlags(1))
    assert sampler.should_sample(Context({tracing.CALLER: caller}), 1, "create t").decision is Decision.DROP
    assert sampler.get_description() == "EventSampler{AlwaysOffSampler}"


async def test_in_a_library_the_current_span_is_the_caller(traced):
    """An event published inside a sampled span of the host is sampled, and linked to it."""
    spans = traced(ALWAYS_OFF)
    host = trace.NonRecordingSpan(
        trace.SpanContext(int(CALLER_TRACE, 16), int(CALLER_SPAN, 16), is_remote=True, trace_flags=TraceFlags(1))
    )
    with trace.use_span(host):
        await Producer(MemoryTransport(), observer=Telemetry()).publish(placed())
    assert [f"{link.context.trace_id:032x}" for link in spans.one("create").links] == [CALLER_TRACE]


async def test_a_request_is_sampled_if_any_of_its_events_is(traced, broker):
    """A batch with one sampled event has a send span, linked to that event only; a batch without has none."""
    low, high = "evt_0123456789ab00000000000000000001", "evt_0123456789ab0000ffffffffffffffff"
    spans = traced(TraceIdRatioBased(0.5))
    limits = Limits(batching={TOPIC: Batching(max_messages=2, max_latency=5)})
    async with EmulatorTransport(project="test", host=broker.host, limits=limits, observer=Telemetry()) as transport:
        producer = Producer(transport, ordering={TOPIC: unordered}, observer=Telemetry())
        for ids in ((low, high), (high, high)):
            await asyncio.gather(*(producer.publish(placed(event_id=event_id)) for event_id in ids))
    send, create = spans.one("send"), spans.one("create")
    assert send.attributes["messaging.batch.message_count"] == 2
    assert [link.context.trace_id for link in send.links] == [create.context.trace_id]
    assert len(broker.requests) == 2


def uuid7() -> uuid.UUID:
    """RFC 9562, section 5.7."""
    milliseconds = (time.time_ns() // 1_000_000).to_bytes(6)
    random_part = bytearray(os.urandom(10))
    random_part[0] = 0x70 | random_part[0] & 0x0F
    random_part[2] = 0x80 | random_part[2] & 0x3F
    return uuid.UUID(bytes=milliseconds + bytes(random_part))


@pytest.mark.parametrize(
    "new_id",
    [
        new_event_id,
        lambda: str(uuid.uuid4()),
        lambda: str(uuid7()),
        lambda: f"evt_{uuid.uuid4().hex}",
        lambda: f"evt_{uuid7().hex}",
    ],
    ids=["ours", "uuid4", "uuid7", "evt_uuid4", "evt_uuid7"],
)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_sampling_is_even_and_the_same_for_the_same_id(traced, new_id, ratio):
    """The ratio of many ids is sampled, and each id is decided alike, whether the sampler is asked or not."""
    traced(TraceIdRatioBased(ratio), known=True)
    ids = [new_id() for _ in range(2000)]

    prepare = Producer(MemoryTransport()).prepare

    def sampled(event_id: str, observer: Telemetry) -> bool:
        observed = observer.publishing(prepare(placed(event_id=event_id)))
        _version, trace_id, _span_id, flags = observed.attributes["traceparent"].split("-")
        observed.published("1")
        assert trace_id == trace_id_of(event_id)
        return flags == "01"

    quick = Telemetry()
    found = [sampled(event_id, quick) for event_id in ids]
    deviation = (ratio * (1 - ratio) / len(ids)) ** 0.5
    assert abs(sum(found) / len(ids) - ratio) < 5 * deviation
    traced(TraceIdRatioBased(ratio))
    asking = Telemetry()
    again = random.sample(range(len(ids)), 100)
    for observer in (quick, asking):
        assert [sampled(ids[n], observer) for n in again] == [found[n] for n in again]


async def test_turn_is_recorded_once_when_a_request_is_halved(spans, broker):
    """A create span has one end of its wait even if the broker's refusal makes the request be split."""
    broker.poison = b"poison"
    limits = Limits(batching={TOPIC: Batching(max_messages=8, max_latency=1)})
    async with EmulatorTransport(project="test", host=broker.host, limits=limits, observer=Telemetry()) as transport:
        producer = Producer(transport, ordering={TOPIC: unordered}, observer=Telemetry())
        events = [placed(order_id="poison" if number == 5 else "o") for number in range(8)]
        results = await asyncio.gather(*map(producer.publish, events), return_exceptions=True)
    assert [isinstance(result, MessageRefused) for result in results].index(True) == 5
    assert [[event.name for event in span.events] for span in spans("create")] == [["pulsecart.turn_came"]] * 8


async def test_send_cancelled_by_drain_is_a_failure(spans, broker, monkeypatch):
    """A send that a drain cancels before the broker has answered is an error of its span."""
    monkeypatch.setattr("pulsecart.transports.pubsub.publisher.DRAIN_SECONDS", 0.1)
    broker.script.append(asyncio.Event())
    async with EmulatorTransport(project="test", host=broker.host, observer=Telemetry()) as transport:
        publishing = asyncio.create_task(Producer(transport, observer=Telemetry()).publish(placed()))
        await broker.received(1)
    with pytest.raises(BrokerUnavailable):
        await publishing
    assert spans.one("send").attributes["error.type"] == "CancelledError"


@pytest.mark.parametrize("header", ["a" * 7000, "=", "a=b,a=b", "\x00"])
async def test_tracestate_of_the_caller_is_ignored(spans, order_json, header, caplog):
    """The caller's span is the parent whatever the header contains, and nothing is logged."""
    async with posting(MemoryTransport()) as post:
        await post(order_json(), traceparent=f"00-{CALLER_TRACE}-{CALLER_SPAN}-01", tracestate=header)
    assert f"{spans.one('POST').parent.trace_id:032x}" == CALLER_TRACE
    assert caplog.records == []


async def test_spans_of_the_host_have_other_traces(spans):
    """The trace id of an event is used for its root only, not for the next span of the same task."""
    receipt = await Producer(MemoryTransport(), observer=Telemetry()).publish(placed())
    trace.get_tracer("host").start_span("the host's own").end()
    assert f"{spans.one('the host').context.trace_id:032x}" != receipt.trace_id


async def test_a_retry_adds_a_root_to_the_same_trace(spans):
    """Two publishes under one event id are two roots in one trace."""
    producer = Producer(MemoryTransport(), observer=Telemetry())
    for _ in range(2):
        await producer.publish(placed(event_id="an id of mine"))
    first, second = spans("create")
    digest = hashlib.sha256(b"an id of mine").hexdigest()[:32]
    assert f"{first.context.trace_id:032x}" == f"{second.context.trace_id:032x}" == digest
    assert (first.parent, second.parent) == (None, None)
    assert first.context.span_id != second.context.span_id


@pytest.mark.parametrize(("setting", "found"), [("false", None), ("true", "user-é")])
async def test_ordering_key_is_recorded_only_if_allowed(spans, order_json, setting, found):
    """A user id is personal data: without the setting no span contains it."""
    async with posting(MemoryTransport(), personal_data=setting) as post:
        await post(order_json(user_id="user-é"))
    assert spans.one("create").attributes.get("messaging.gcp_pubsub.message.ordering_key") == found
    if found is None:
        assert not [span for span in spans("") if "user-é" in span.to_json()]


async def test_a_tracestate_that_a_sampler_sets_is_passed_on(traced, monkeypatch):
    """Consumers get the state of the event's trace under both names."""
    state = trace.TraceState([("vendor", "x")])
    context = trace.SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(3), trace_state=state)
    assert tracing.propagated(context) == {
        "traceparent": f"00-{1:032x}-{2:016x}-01",
        "googclient_traceparent": f"00-{1:032x}-{2:016x}-01",
        "tracestate": "vendor=x",
        "googclient_tracestate": "vendor=x",
    }


async def test_without_a_provider_nothing_is_added(order_json):
    """Without tracing, message and answer have no trace context."""
    transport = MemoryTransport()
    async with posting(transport) as post:
        response = await post(order_json(), traceparent=f"00-{CALLER_TRACE}-{CALLER_SPAN}-01")
    assert "traceresponse" not in response.headers
    assert set(transport.messages[0].attributes) == {"event_type", "event_id"}


async def test_an_error_carries_the_events_trace_context(spans):
    """A publish error has what a log line needs."""

    async def outage(_message: Message) -> None:
        raise BrokerUnavailable("test")

    with pytest.raises(BrokerUnavailable) as caught:
        await Producer(MemoryTransport(outage), observer=Telemetry()).publish(placed())
    create = spans.one("create")
    assert caught.value.traceparent == f"00-{create.context.trace_id:032x}-{create.context.span_id:016x}-01"
    assert (caught.value.topic, caught.value.event_type) == (TOPIC, "order.placed")
    assert create.attributes["error.type"] == "BrokerUnavailable"


async def test_raising_span_processor_does_not_change_the_answer(spans, order_json, caplog):
    """The exception is logged, and the event is accepted."""

    class Raising(SpanProcessor):
        def on_end(self, span):
            if span.kind is SpanKind.SERVER:
                raise RuntimeError("secret inside")

    trace.get_tracer_provider().add_span_processor(Raising())
    async with posting(MemoryTransport()) as post:
        response = await post(order_json())
    assert response.status_code == 202
    assert "Telemetry raised an exception" in caplog.text


@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson"])
async def test_a_batch_is_one_request_and_a_trace_for_each_event(spans, broker, media_type):
    """However many events: one request span with their number, and a root for each, linked to the request."""
    events = [
        b'{"event_type":"order.placed","user_id":"user-%d","order_id":"o","payload":{}}' % (number % 3)
        for number in range(300)
    ]
    body = b"[%b]" % b",".join(events) if media_type == "application/json" else b"\n".join(events)
    async with EmulatorTransport(project="test", host=broker.host, observer=Telemetry()) as transport:
        app = create_app(Settings(transport="memory"), transport=transport)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            response = await client.post("/events/batch", content=body, headers={"Content-Type": media_type})
    assert response.json()["accepted"] == 300
    request = spans.one("POST /events/batch")
    assert request.attributes["messaging.batch.message_count"] == 300
    assert len(request.links) <= 128
    creates = spans("create ")
    assert len(creates) == 300
    assert {f"{create.context.trace_id:032x}" for create in creates} == {
        trace_id_of(message.attributes["event_id"]) for message in broker.confirmed
    }
    for create in creates:
        assert create.parent is None
        assert next(link.context.span_id for link in create.links) == request.context.span_id
        assert create.attributes["messaging.message.id"]
        assert [event.name for event in create.events] == ["pulsecart.turn_came"]
    for message in broker.confirmed:
        assert message.attributes["traceparent"].split("-")[1] == trace_id_of(message.attributes["event_id"])
    sends = spans("send ")
    assert sum(send.attributes["messaging.batch.message_count"] for send in sends) == 300


async def test_transport_without_admission_publishes_in_the_events_span(spans):
    """A transport that is awaited is called with the event's span as the current one."""
    found = []

    async def handler(message: Message) -> None:
        await asyncio.sleep(0)
        context = trace.get_current_span().get_span_context()
        found.append((f"{context.trace_id:032x}", trace_id_of(message.attributes["event_id"])))

    producer = Producer(MemoryTransport(handler), observer=Telemetry())
    async for outcome in producer.publish_many(placed(user_id=f"user-{number % 2}") for number in range(6)):
        assert outcome.message_id
    assert len(found) == 6
    assert all(current == event for current, event in found)
    assert not trace.get_current_span().get_span_context().is_valid
