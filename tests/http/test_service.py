"""The HTTP contract, through ASGI."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Self

import attrs
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount

from pulsecart import (
    BrokerRefused,
    BrokerUnavailable,
    Message,
    MessageRefused,
    PublishError,
    PulsecartError,
    TransportClosed,
    errors,
)
from pulsecart.app import create_app
from pulsecart.http.problems import _KINDS
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import logs
from pulsecart.transports import EmulatorTransport, MemoryTransport
from tests.strict_server import strict_server

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
DEV = Settings(transport="memory")

POST = {  # a request as a server hands it over, for what no client library does
    "type": "http",
    "method": "POST",
    "path": "/events/ingest",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}


@asynccontextmanager
async def served(transport: Any = None, settings: Settings = DEV) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, transport=transport)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://localhost"
        ) as client,
    ):
        yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with served() as client:
        yield client


def problem(response: httpx.Response, status: int, type_: str) -> dict[str, Any]:
    """Check what every problem has in common, and return it."""
    document = response.json()
    assert (response.status_code, document["status"], document["type"]) == (status, status, type_)
    assert response.headers["content-type"] == "application/problem+json"
    assert document["retryable"] is (status >= 500 or status == 408)
    assert document["title"]
    assert document["detail"]
    assert all(fault.keys() == {"pointer", "code", "message"} for fault in document["errors"])
    assert "Traceback" not in response.text
    return document


async def ingest(client: httpx.AsyncClient, body: bytes, **headers: str) -> httpx.Response:
    return await client.post("/events/ingest", content=body, headers=JSON | headers)


def failing(error: Exception) -> MemoryTransport:
    async def fail(_message: Message) -> None:
        raise error

    return MemoryTransport(fail)


async def test_an_event_is_accepted_and_there_at_once(client, order_json):
    """202 carries the ids, and the message is there when its 202 is."""
    response = await ingest(client, order_json(payload={"total": 89.9}))
    answer = response.json()
    assert response.status_code == 202
    assert answer.keys() == {"status", "event_id", "message_id", "trace_id"}
    assert answer["status"] == "accepted"
    assert re.fullmatch(r"evt_[0-9a-f]{32}", answer["event_id"])
    assert answer["trace_id"] == answer["event_id"][4:]
    (message,) = (await client.get("/dev/messages")).json()["messages"]
    assert message.keys() == {"topic", "message_id", "ordering_key", "attributes", "data"}
    assert message["message_id"] == answer["message_id"]
    assert message["topic"] == "pulsecart.commerce-events"
    assert message["ordering_key"] == "u1"
    assert message["attributes"] == {"event_type": "order.placed", "event_id": answer["event_id"]}
    assert message["data"]["payload"] == {"total": 89.9}


async def test_numbers_are_shown_as_they_were_published(client, order_json):
    """/dev/messages shows every digit of the data."""
    await ingest(client, order_json().replace(b'"total": 1', b'"total": 89.90, "n": 123456789012345678901234567890'))
    text = (await client.get("/dev/messages")).text
    assert '{"total": 89.90, "n": 123456789012345678901234567890}' in text


@pytest.mark.parametrize(
    ("body", "status", "type_", "pointers"),
    [
        (b"", 400, "malformed-body", []),
        (b"[]", 400, "malformed-body", []),
        (b'{"a":NaN}', 400, "malformed-body", []),
        (b'{"user_id":"a","user_id":"b"}', 400, "malformed-body", ["/user_id"]),
        (b'{"a":' * 3000, 400, "malformed-body", []),
        (b"{}", 400, "missing-event-type", ["/event_type", "/user_id", "/payload"]),
        (b'{"event_type":null}', 422, "invalid-event", ["/event_type", "/user_id", "/payload"]),
        (b'{"event_type":"order.place"}', 422, "unknown-event-type", ["/event_type", "/user_id", "/payload"]),
        (b'{"event_type":"order.placed"}', 422, "invalid-event", ["/user_id", "/payload", "/order_id"]),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_bad_body_is_a_problem_that_names_every_fault(client, body, status, type_, pointers):
    """Each case of the contract has its status and type, and all faults have their place."""
    document = problem(await ingest(client, body), status, type_)
    assert [fault["pointer"] for fault in document["errors"]] == pointers
    assert (await client.get("/dev/messages")).json() == {"messages": []}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
fields = ["event_type", "event_id", "timestamp", "user_id", "payload", "order_id", "session_id"]
events = st.dictionaries(
    st.sampled_from(fields) | st.text(max_size=5),
    json_values | st.sampled_from(["order.placed", "cart.abandoned", "2026-01-31T12:00:00Z"]),
)


@given(
    body=st.binary() | json_values.map(lambda v: json.dumps(v).encode()) | events.map(lambda v: json.dumps(v).encode())
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_body_makes_the_service_fail(body):
    """Whatever the body, the answer is a 202 or a 4xx with problem details."""

    async def send() -> httpx.Response:
        async with served() as client:
            return await ingest(client, body)

    response = asyncio.run(send())
    if response.status_code != 202:
        assert 400 <= response.status_code < 500
        problem(response, response.status_code, response.json()["type"])


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"', "application/json;"],
)
async def test_json_is_taken_however_it_is_spelled(client, order_json, content_type):
    """Media types are case-insensitive and may say charset=utf-8."""
    response = await client.post("/events/ingest", content=order_json(), headers={"Content-Type": content_type})
    assert response.status_code == 202


@pytest.mark.parametrize(
    ("headers", "accept"),
    [
        ({}, ("accept", "application/json")),
        ({"Content-Type": ""}, ("accept", "application/json")),
        ({"Content-Type": "text/plain"}, ("accept", "application/json")),
        ({"Content-Type": "application/x-www-form-urlencoded"}, ("accept", "application/json")),
        ({"Content-Type": "application/json; charset=latin-1"}, ("accept", "application/json")),
        ({"Content-Type": "application/jsonx"}, ("accept", "application/json")),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, ("accept-encoding", "identity")),
        (
            [("Content-Type", "application/json"), ("Content-Encoding", "identity"), ("Content-Encoding", "br")],
            ("accept-encoding", "identity"),
        ),
        ([("Content-Type", "application/json"), ("Content-Type", "text/plain")], ("accept", "application/json")),
    ],
)
async def test_another_media_type_is_refused_saying_what_to_send(client, order_json, headers, accept):
    """Without the right Content-Type, or with a coding, the answer is 415 and the remedy."""
    response = await client.post("/events/ingest", content=order_json(), headers=headers)
    document = problem(response, 415, "unsupported-media-type")
    assert "Content-" in document["detail"]
    assert response.headers[accept[0]] == accept[1]


async def test_a_body_over_the_limit_is_refused_stating_the_limit(order_json):
    """The limit is inclusive, and holds with and without Content-Length."""

    async def chunks(body: bytes) -> AsyncIterator[bytes]:
        yield body[:10]
        yield body[10:]

    body = order_json()
    async with served(settings=Settings(transport="memory", max_body_bytes=len(body))) as client:
        assert (await ingest(client, body)).status_code == 202
        assert (await ingest(client, chunks(body))).status_code == 202
        for too_large in (body + b" ", chunks(body + b" ")):
            document = problem(await ingest(client, too_large), 413, "body-too-large")
            assert document["limit"] == len(body)
            assert str(len(body)) in document["detail"]


async def test_a_message_over_pubsubs_limit_is_413_too(order_json):
    """A body within the limit whose message is over Pub/Sub's is 413, not 500."""
    settings = Settings(transport="memory", max_body_bytes=10_000_000)
    body = order_json(payload={"x": ""})
    body = order_json(payload={"x": "y" * (10_000_000 - len(body))})
    async with served(settings=settings) as client:
        assert problem(await ingest(client, body), 413, "body-too-large")["limit"] == 10_000_000


async def test_a_body_that_arrives_too_slowly_is_408():
    """A body that does not end in time is answered, and the connection closed."""
    app = create_app(Settings(transport="memory", body_timeout=0.1))
    sent: list[Any] = []
    stalled = asyncio.Event()
    parts = [{"type": "http.request", "body": b'{"event', "more_body": True}]

    async def receive() -> Any:
        if parts:
            return parts.pop()
        return await stalled.wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(POST, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["retryable"] is True


@asynccontextmanager
async def arriving(client: httpx.AsyncClient, *parts: bytes) -> AsyncIterator[asyncio.Event]:
    """Post a body of which all parts but the last have arrived, until the event is set; then expect a 202."""
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        for part in parts[:-1]:
            yield part
        started.set()
        await go_on.wait()
        yield parts[-1]

    reading = asyncio.create_task(ingest(client, slow()))
    async with asyncio.timeout(10):
        await started.wait()
        yield go_on
        go_on.set()
        assert (await reading).status_code == 202


HALF_OF_ALL = Settings(transport="memory", max_bytes=10_000_000, max_body_bytes=10_000_000)


async def test_bodies_that_arrive_take_at_most_half_of_max_bytes(order_json):
    """Over half of --max-bytes in bodies that are still arriving, a further large one is 503, and later accepted."""
    body = order_json(payload={"x": "y" * 4_900_000})
    async with served(settings=HALF_OF_ALL) as client:
        async with arriving(client, body[:-1], body[-1:]):
            large = order_json(payload={"x": "y" * 2_000_000})
            refused = await ingest(client, chunks(large, 1_900_000))
            problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "1"
        assert (await ingest(client, chunks(large, 1_900_000))).status_code == 202


async def test_a_small_body_is_read_whatever_else_arrives(order_json):
    """A body within --connection-bytes is read although stalled bodies hold all that bodies may."""
    body = order_json(payload={"x": "y" * 5_010_000})
    async with (
        served(settings=HALF_OF_ALL) as client,
        arriving(client, body[:-100_000], body[-100_000:]),
    ):
        assert (await ingest(client, chunks(order_json(payload={"x": "y" * 15_000}), 5_000))).status_code == 202


async def test_events_that_wait_for_the_broker_are_bounded_in_bytes(order_json):
    """Over --max-bytes in events that wait for the broker, a further one is 503, and accepted afterwards."""
    waits, gate = asyncio.Event(), asyncio.Event()

    async def hang(_message: Message) -> None:
        waits.set()
        await gate.wait()

    transport = MemoryTransport(hang)
    body = order_json(payload={"x": "y" * 9_000_000})
    async with served(transport, HALF_OF_ALL) as client:
        waiting = asyncio.create_task(ingest(client, body))
        async with asyncio.timeout(10):
            await waits.wait()
        refused = await ingest(client, order_json(user_id="u2", payload={"x": "y" * 1_000_000}))
        assert "the limit is 5,000,000" in problem(refused, 503, "overloaded")["detail"]
        gate.set()
        assert (await waiting).status_code == 202


async def chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def test_a_caller_that_hangs_up_is_no_error(order_json):
    """A connection lost before the body is complete publishes nothing and raises nothing."""
    transport = MemoryTransport()
    app = create_app(DEV, transport=transport)
    parts = [{"type": "http.disconnect"}, {"type": "http.request", "body": order_json(), "more_body": True}]

    async def receive() -> Any:
        return parts.pop()

    async def send(_message: Any) -> None: ...

    await app(POST, receive, send)
    assert transport.messages == []


@pytest.mark.parametrize(
    ("error", "retry_after"), [(BrokerUnavailable("it hangs"), "1"), (BrokerRefused("no such topic"), "60")]
)
async def test_an_outage_is_503_with_what_to_retry_under(order_json, error, retry_after):
    """503 says when to retry, and under which event id and timestamp."""
    async with served(failing(error)) as client:
        response = await ingest(client, order_json())
    document = problem(response, 503, "broker-unavailable")
    assert response.headers["retry-after"] == retry_after
    assert re.fullmatch(r"evt_[0-9a-f]{32}", document["event_id"])
    assert document["timestamp"].endswith("Z")
    datetime.fromisoformat(document["timestamp"])
    assert str(error) in document["detail"]


async def test_a_transports_own_error_is_a_503_too(order_json):
    """An error class that a transport derives has its parent's answer, and what to retry under."""

    class Brownout(BrokerUnavailable): ...

    for error in (Brownout("slow"), PublishError("odd")):
        async with served(failing(error)) as client:
            response = await ingest(client, order_json(event_id="mine"))
        assert problem(response, 503, "broker-unavailable")["event_id"] == "mine"
        assert response.headers["retry-after"] == "1"


async def test_a_lasting_refusal_is_loud_for_the_operator(order_json, capsys):
    """A topic that is missing or forbidden is logged as an error; the caller could do nothing."""
    async with served(failing(BrokerRefused("topic x: not found"))) as client:
        await ingest(client, order_json())
    line = json.loads(capsys.readouterr().err)
    assert (line["severity"], line["detail"]) == ("ERROR", "topic x: not found")


@pytest.mark.parametrize("error", [BrokerUnavailable, BrokerRefused, MessageRefused])
async def test_broker_text_is_logged_and_not_answered(order_json, capsys, error):
    """What the broker said, which may name what is inside, is for the operator; the caller gets our own sentence."""
    async with served(failing(error("the broker failed (UNAVAILABLE)", "UNAVAILABLE: ipv4:10.0.0.7:443"))) as client:
        response = await ingest(client, order_json())
    assert response.json()["detail"] == "the broker failed (UNAVAILABLE)"
    assert json.loads(capsys.readouterr().err)["detail"] == "UNAVAILABLE: ipv4:10.0.0.7:443"


async def test_log_line_of_a_rejected_event_names_its_faults(order_json, capsys):
    """The operator sees which fields were wrong, and how, but no values."""
    async with served() as client:
        await ingest(client, order_json(user_id="", oder_id="secret"))
    logs.flush()
    line = json.loads(capsys.readouterr().err)
    assert (line["severity"], line["problem"]) == ("INFO", "invalid-event")
    assert line["faults"] == "/user_id empty, /oder_id unknown"
    assert "secret" not in str(line)


async def test_a_message_that_the_broker_refuses_is_422(order_json):
    """A refusal of this one message is not retryable."""
    async with served(failing(MessageRefused("bad"))) as client:
        response = await ingest(client, order_json(event_id="mine"))
    document = problem(response, 422, "message-refused")
    assert document["event_id"] == "mine"
    assert "retry-after" not in response.headers


async def test_after_closing_it_is_503_and_the_connection_ends(order_json):
    """While shutting down the caller is told to go elsewhere."""
    async with served(failing(TransportClosed("closed"))) as client:
        response = await ingest(client, order_json())
    problem(response, 503, "shutting-down")
    assert response.headers["connection"] == "close"


async def test_a_defect_is_a_500_without_a_traceback(order_json):
    """What nobody foresaw is a retryable problem that shows nothing of the inside."""
    async with served(failing(RuntimeError("secret inside"))) as client:
        response = await ingest(client, order_json())
    problem(response, 500, "internal-error")
    assert "secret" not in response.text


def test_every_error_of_an_event_has_its_problem():
    """No error that publishing can raise is without a status, and retryable agrees with it."""
    raised = [getattr(errors, name) for name in errors.__all__]
    leaves = [
        cls for cls in raised if issubclass(cls, errors.EventError | errors.PublishError) and not cls.__subclasses__()
    ]
    assert set(leaves) < set(_KINDS)
    for cls, (status, _, _) in _KINDS.items():
        assert issubclass(cls, PulsecartError)
        assert cls.retryable == (status >= 500)


@pytest.mark.parametrize("path", ["/health", "/livez"])
async def test_liveness_is_ok_whatever_the_broker_does(path):
    """/health and /livez answer ok."""
    async with served() as client:
        response = await client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_readiness_on_memory(client):
    """Memory is always ready."""
    response = await client.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ready", "broker": "ok", "missing_topics": []})


async def test_readiness_falls_with_the_broker_and_comes_back(caplog):
    """503 while the broker is unreachable, unless it is excluded; 200 again when it is back, with no traffic."""
    async with strict_server([]) as server:
        host = server.host
    settings = Settings(transport="emulator", emulator_host=host, environment="staging", project="test")
    async with served(settings=settings) as client:
        assert "not available yet" in caplog.text
        document = problem(await client.get("/readyz"), 503, "broker-unavailable")
        assert document["broker"] == "unavailable"
        assert (await client.get("/readyz?exclude=broker")).json() == {"status": "ready"}
        assert (await client.get("/livez")).status_code == 200


async def test_a_missing_topic_is_named_at_start_and_in_readiness(caplog):
    """Outside development a missing topic is not created, but named in the log and by /readyz."""
    async with strict_server(["pulsecart.user-actions", "pulsecart.system-events"]) as server:
        settings = Settings(transport="emulator", emulator_host=server.host, environment="staging", project="test")
        async with served(settings=settings) as client:
            assert "pulsecart.commerce-events does not exist in project test" in caplog.text
            response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json()["missing_topics"] == ["pulsecart.commerce-events"]


async def test_in_development_missing_topics_are_created_on_the_emulator(order_json):
    """A new emulator needs no preparation; one that lost its topics gets them back with the first event for each."""
    async with strict_server([]) as server:
        settings = Settings(transport="emulator", emulator_host=server.host, project="test")
        async with served(settings=settings) as client:
            assert (await ingest(client, order_json())).status_code == 202
            server.topics.clear()
            assert (await ingest(client, order_json())).status_code == 202
    assert [message.ordering_key for message in server.confirmed] == ["u1", "u1"]


@pytest.mark.parametrize(
    ("query", "event_ids"),
    [
        ("", ["1", "2", "3"]),
        ("topic=pulsecart.commerce-events", ["1", "3"]),
        ("event_type=product.viewed", ["2"]),
        ("event_id=3", ["3"]),
        ("user_id=u2", ["2", "3"]),
        ("user_id=u2&event_type=order.placed", ["3"]),
        ("user_id=nobody", []),
    ],
)
async def test_messages_can_be_filtered(client, order_json, query, event_ids):
    """Filters narrow the list, newest last."""
    await ingest(client, order_json(event_id="1"))
    viewed = {"event_type": "product.viewed", "user_id": "u2", "session_id": "s", "payload": {}, "event_id": "2"}
    await ingest(client, json.dumps(viewed).encode())
    await ingest(client, order_json(event_id="3", user_id="u2"))
    messages = (await client.get(f"/dev/messages?{query}")).json()["messages"]
    assert [message["attributes"]["event_id"] for message in messages] == event_ids


async def test_an_unknown_filter_is_refused(client):
    """A misspelt filter does not return everything."""
    document = problem(await client.get("/dev/messages?user=u1"), 400, "bad-request")
    assert "user_id" in document["detail"]


async def test_messages_can_be_forgotten(client, order_json):
    """DELETE empties the list."""
    await ingest(client, order_json())
    assert (await client.delete("/dev/messages")).status_code == 204
    assert (await client.get("/dev/messages")).json() == {"messages": []}


async def test_messages_are_shown_only_in_development_and_only_from_memory():
    """Elsewhere /dev/messages does not exist."""
    emulator = Settings(transport="emulator", emulator_host="127.0.0.1:1")
    staging = Settings(transport="emulator", emulator_host="127.0.0.1:1", environment="staging")
    for app in (create_app(emulator), create_app(staging, transport=MemoryTransport())):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            problem(await client.get("/dev/messages"), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "status", "type_"),
    [
        ("GET", "/", 404, "not-found"),
        ("POST", "/events", 404, "not-found"),
        ("POST", "/events/ingest/", 404, "not-found"),
        ("GET", "/events/ingest", 405, "method-not-allowed"),
        ("PUT", "/dev/messages", 405, "method-not-allowed"),
        ("POST", "/health", 405, "method-not-allowed"),
    ],
)
async def test_another_path_or_method_is_a_problem_too(client, method, path, status, type_):
    """404 and 405 are problem details, and say where events go."""
    response = await client.request(method, path)
    assert "POST /events/ingest" in problem(response, status, type_)["detail"]
    if status == 405:
        assert response.headers["allow"]


async def test_an_application_opens_and_closes_the_transport_it_is_given():
    """A given transport lives as long as the application's lifespan."""
    opened: list[str] = []

    class Watched(MemoryTransport):
        async def __aenter__(self) -> Self:
            opened.append("opened")
            return await super().__aenter__()

        async def aclose(self) -> None:
            opened.append("closed")
            await super().aclose()

    async with served(Watched()):
        assert opened == ["opened"]
    assert opened == ["opened", "closed"]


async def test_the_application_ends_only_when_the_transport_has_closed():
    """On SIGTERM the server is told to stop at once, and the application waits for what the transport still does."""
    stopping, gate = asyncio.Event(), asyncio.Event()
    closed_by: list[str] = []
    closed: list[bool] = []

    class Slow(MemoryTransport):
        async def aclose(self) -> None:
            if closed_by:
                return  # a second call has nothing to wait for
            closed_by.append("the drain")
            await gate.wait()
            closed.append(True)

    before = signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())
    try:
        app = create_app(DEV, transport=Slow())
        async with asyncio.timeout(20), app.router.lifespan_context(app):
            signal.raise_signal(signal.SIGTERM)
            await stopping.wait()
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.1, gate.set)
        assert closed == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_second_sigterm_stops_without_delay():
    """While the application goes on for a while after SIGTERM, another goes to the server at once, and only that."""
    loop, stops = asyncio.get_running_loop(), []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: stops.append(number))
    try:
        async with create_app(attrs.evolve(DEV, drain_delay=1)).router.lifespan_context(None):
            signal.raise_signal(signal.SIGTERM)
            scheduled = loop.create_future()
            loop.call_soon_threadsafe(scheduled.set_result, None)  # behind what the handler has asked for
            await scheduled
            assert stops == []
            signal.raise_signal(signal.SIGTERM)
            assert stops == [signal.SIGTERM]
        delay_is_over = loop.create_future()
        loop.call_later(1, delay_is_over.set_result, None)
        await delay_is_over
        assert stops == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_application_in_a_thread_leaves_signals_alone():
    """Outside the main thread, where no signal arrives, the application runs as well."""

    async def live() -> int:
        async with served() as client:
            return (await client.get("/livez")).status_code

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(asyncio.run, live()).result() == 200


def test_settings_come_from_the_environment_where_none_are_given(monkeypatch):
    """create_app() is a factory for any ASGI server."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    routes: Callable[[], set[str]] = lambda: {route.path for route in create_app().routes}  # noqa: E731
    assert routes() == {"/events/ingest", "/health", "/livez", "/readyz"}
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    assert "/dev/messages" in routes()
    assert EmulatorTransport


async def test_a_defect_beside_events_is_a_problem_too():
    """A check that fails for a reason of its own is answered 500, and raised for the server to log."""

    class Defective(MemoryTransport):
        async def check(self, topics):
            raise ZeroDivisionError

    app = create_app(Settings(transport="memory"), transport=Defective())
    asgi = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=asgi, base_url="http://test") as client:
        problem(await client.get("/readyz"), 500, "internal-error")


async def test_added_middleware_sees_events(order_json):
    """Middleware that somebody adds to the application is run for events as for all else."""
    app = create_app(DEV)

    def stamping(inner: Any) -> Any:
        async def stamp(scope: Any, receive: Any, send: Any) -> None:
            async def send_stamped(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-stamp", b"1"))
                await send(message)

            await inner(scope, receive, send_stamped)

        return stamp

    app.add_middleware(stamping)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await ingest(client, order_json())
    assert (response.status_code, response.headers["x-stamp"]) == (202, "1")


@pytest.mark.parametrize(
    ("prefix", "path", "status"), [("/shop", "/shop/events/ingest", 202), ("/events", "/events/ingest", 404)]
)
async def test_the_application_can_be_mounted_in_another(order_json, prefix, path, status):
    """Below a prefix of another application events are taken as well, and only there."""
    outer = Starlette(routes=[Mount(prefix, create_app(DEV))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as client:
        response = await client.post(path, content=order_json(), headers=JSON)
    assert response.status_code == status
