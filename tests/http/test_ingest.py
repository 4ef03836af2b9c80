"""`POST /events/ingest`: which events are accepted, and how errors are answered and logged."""

import asyncio
import json
import re
from datetime import datetime
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulsecart import BrokerRefused, BrokerUnavailable, MessageRefused, PublishError, TransportClosed
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import logs
from pulsecart.transports import MemoryTransport
from tests.http.client import DEV, JSON, POST, failing, ingest, problem, served

pytestmark = pytest.mark.anyio


async def test_event_is_published_before_the_202(client, order_json):
    """The 202 has the ids of the event and its message, which is published by then."""
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
async def test_invalid_body_is_a_problem_with_every_fault(client, body, status, type_, pointers):
    """Each case of the contract has its status and type, and a pointer for every fault."""
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
def test_any_body_is_202_or_4xx(body):
    """Any body is answered with 202 or with a problem of status 4xx."""

    async def send() -> httpx.Response:
        async with served() as client:
            return await ingest(client, body)

    response = asyncio.run(send())
    if response.status_code != 202:
        assert 400 <= response.status_code < 500
        problem(response, response.status_code, response.json()["type"])


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON;charset="UTF-8"',
        "application/json;",
        "application/json ;\tcharset=us-ascii;",
        'application/json; profile="a; charset=latin-1"; charset=utf-8',
        'application/json; v=1; note="say \\"hi\\"; x=y"',
        'application/json; charset="utf\\-8"',
    ],
)
async def test_spellings_of_application_json_are_accepted(client, order_json, content_type):
    """Media types are case-insensitive and may have parameters; only a charset other than UTF-8 has a meaning."""
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
        ({"Content-Type": 'application/json; v="1"; charset="utf-16"'}, ("accept", "application/json")),
        ({"Content-Type": 'application/json; charset="utf-8'}, ("accept", "application/json")),
        ({"Content-Type": "application/json, application/json"}, ("accept", "application/json")),
        ({"Content-Type": ";"}, ("accept", "application/json")),
        ({"Content-Type": "application/jsonx"}, ("accept", "application/json")),
        ({"Content-Type": "application/json", "Content-Encoding": "br"}, ("accept-encoding", "gzip, zstd")),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip, gzip"}, ("accept-encoding", "gzip, zstd")),
        (
            [("Content-Type", "application/json"), ("Content-Encoding", "identity"), ("Content-Encoding", "br")],
            ("accept-encoding", "gzip, zstd"),
        ),
        ([("Content-Type", "application/json"), ("Content-Type", "text/plain")], ("accept", "application/json")),
    ],
)
async def test_other_media_type_or_coding_is_415(client, order_json, headers, accept):
    """Without the right Content-Type, or with a Content-Encoding, the answer is 415 and states what to send."""
    response = await client.post("/events/ingest", content=order_json(), headers=headers)
    document = problem(response, 415, "unsupported-media-type")
    assert "Content-" in document["detail"]
    assert response.headers[accept[0]] == accept[1]


@pytest.mark.parametrize(("wire", "limit"), [("rest", 7_340_032), ("grpc", 10_000_000)])
async def test_message_over_the_limit_of_the_wire_is_413(order_json, wire, limit):
    """A body within the limit whose message exceeds the wire's limit is 413, on every transport."""
    settings = Settings(transport="memory", max_body_bytes=10_000_000, wire=wire)
    body = order_json(payload={"x": ""})
    body = order_json(payload={"x": "y" * (limit - len(body))})
    async with served(settings=settings) as client:
        refused = problem(await ingest(client, body), 413, "body-too-large")
    assert refused["limit"] == limit
    assert ("PULSECART_WIRE=grpc" in refused["detail"]) == (wire == "rest")


async def test_disconnect_before_the_end_of_the_body_publishes_nothing(order_json):
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
async def test_outage_is_503_with_event_id_and_timestamp(order_json, error, retry_after):
    """A 503 says when to retry, and with which event id and timestamp."""
    async with served(failing(error)) as client:
        response = await ingest(client, order_json())
    document = problem(response, 503, "broker-unavailable")
    assert response.headers["retry-after"] == retry_after
    assert re.fullmatch(r"evt_[0-9a-f]{32}", document["event_id"])
    assert document["timestamp"].endswith("Z")
    datetime.fromisoformat(document["timestamp"])
    assert str(error) in document["detail"]


async def test_error_class_of_a_transport_is_503(order_json):
    """An error class that a transport derives from ours is answered like its parent, with the event id."""

    class Brownout(BrokerUnavailable): ...

    for error in (Brownout("slow"), PublishError("odd")):
        async with served(failing(error)) as client:
            response = await ingest(client, order_json(event_id="mine"))
        assert problem(response, 503, "broker-unavailable")["event_id"] == "mine"
        assert response.headers["retry-after"] == "1"


async def test_rejected_topic_is_logged_as_an_error(order_json, capsys):
    """A topic that is missing or forbidden is logged as an error, since only an operator can fix it."""
    async with served(failing(BrokerRefused("topic x: not found"))) as client:
        await ingest(client, order_json())
    line = json.loads(capsys.readouterr().err)
    assert (line["severity"], line["detail"]) == ("ERROR", "topic x: not found")


@pytest.mark.parametrize("error", [BrokerUnavailable, BrokerRefused, MessageRefused])
async def test_broker_text_is_logged_but_not_returned(order_json, capsys, error):
    """The broker's text, which may contain internal addresses, is logged; the caller gets our own message."""
    async with served(failing(error("the broker failed (UNAVAILABLE)", "UNAVAILABLE: ipv4:10.0.0.7:443"))) as client:
        response = await ingest(client, order_json())
    assert response.json()["detail"] == "the broker failed (UNAVAILABLE)"
    assert json.loads(capsys.readouterr().err)["detail"] == "UNAVAILABLE: ipv4:10.0.0.7:443"


async def test_log_line_of_a_rejected_event_names_its_faults(order_json, capsys):
    """The log line has the pointer and code of each fault, but no values."""
    async with served() as client:
        await ingest(client, order_json(user_id="", oder_id="secret"))
    logs.flush()
    line = json.loads(capsys.readouterr().err)
    assert (line["severity"], line["problem"]) == ("INFO", "invalid-event")
    assert line["faults"] == "/user_id empty, /oder_id unknown"
    assert "secret" not in str(line)


async def test_message_rejected_by_the_broker_is_422(order_json):
    """A message that the broker rejects is not retryable."""
    async with served(failing(MessageRefused("bad"))) as client:
        response = await ingest(client, order_json(event_id="mine"))
    document = problem(response, 422, "message-refused")
    assert document["event_id"] == "mine"
    assert "retry-after" not in response.headers


async def test_closed_transport_is_503_with_connection_close(order_json):
    """While the service shuts down, events are answered 503 and the connection is closed."""
    async with served(failing(TransportClosed("closed"))) as client:
        response = await ingest(client, order_json())
    problem(response, 503, "shutting-down")
    assert response.headers["connection"] == "close"


async def test_unexpected_exception_is_500_without_details(order_json):
    """An unexpected exception is a retryable problem that reveals no internals."""
    async with served(settings=Settings(transport="memory", events=("tests.http.defective",))) as client:
        response = await ingest(client, order_json(event_type="defective", order_id=..., code="x"))
    problem(response, 500, "internal-error")
    assert "secret" not in response.text


class TestValidate:
    async def test_valid_event_is_200_and_not_published(self, client, order_json):
        """Nothing is published, and no line is logged."""
        response = await client.post("/events/validate", content=order_json(), headers=JSON)
        assert (response.status_code, response.json()) == (200, {"status": "valid"})
        assert (await client.get("/dev/messages")).json() == {"messages": []}

    @given(
        body=st.binary()
        | json_values.map(lambda v: json.dumps(v).encode())
        | events.map(lambda v: json.dumps(v).encode())
    )
    @settings(max_examples=150, deadline=None)
    def test_verdict_is_that_of_ingest(self, body):
        """Any body has the same answer as an event, except that a valid one is 200."""

        async def run() -> None:
            async with served() as client:
                sent = await ingest(client, body)
                asked = await client.post("/events/validate", content=body, headers=JSON)
            if sent.status_code == 202:
                assert asked.status_code == 200
            else:
                assert (asked.status_code, asked.json()) == (sent.status_code, sent.json())

        asyncio.run(run())

    async def test_limits_and_media_types_are_those_of_ingest(self, order_json):
        """A body over the limit and another media type have the same answers."""
        async with served(settings=Settings(transport="memory", max_body_bytes=200)) as client:
            for path in ("/events/ingest", "/events/validate"):
                body = order_json(payload={"x": "y" * 200})
                problem(await client.post(path, content=body, headers=JSON), 413, "body-too-large")
                problem(await client.post(path, content=b"{}"), 415, "unsupported-media-type")
                headers = JSON | {"Content-Encoding": "br"}
                problem(await client.post(path, content=b"{}", headers=headers), 415, "unsupported-media-type")

    async def test_invalid_event_is_not_logged(self, client, capsys):
        """It was not sent, so it was not refused."""
        problem(await client.post("/events/validate", content=b"{}", headers=JSON), 400, "missing-event-type")
        logs.flush()
        assert capsys.readouterr().err == ""
