"""The development routes: what they show, and to whom."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport
from tests.http.client import ingest, problem

pytestmark = pytest.mark.anyio

LISTED = ("shop.test", "172.16.0.0/12", "testclient", "testserver")


ROUTES = [
    ("GET", "/dev/messages", 200),
    ("DELETE", "/dev/messages", 204),
    ("GET", "/dev/rejected", 200),
    ("DELETE", "/dev/rejected", 204),
    ("GET", "/dev", 200),
]


async def answers(client: Any = ("127.0.0.1", 1), host: str = "localhost:8000", **headers: str) -> bool:
    """Return whether the routes of development answer a peer; if not, check the problem, also of the stream."""
    app = create_app(Settings(transport="memory", dev_hosts=LISTED), transport=MemoryTransport())
    asgi = httpx.ASGITransport(app, client=client)
    async with httpx.AsyncClient(transport=asgi, base_url="http://localhost") as caller:
        responses = [
            await caller.request(method, path, headers={"Host": host, **headers}) for method, path, _ in ROUTES
        ]
        if [response.status_code for response in responses] == [status for _, _, status in ROUTES]:
            return True
        responses.append(await caller.get("/dev/stream", headers={"Host": host, **headers}))
    for response in responses:
        document = response.json()
        assert (response.status_code, document["type"], document["retryable"]) == (403, "forbidden-host", False)
        assert response.headers["content-type"] == "application/problem+json"
    return False


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("172.17.0.1", True),
        ("testclient", True),
        ("192.168.1.5", False),
        ("2001:db8::1", False),
    ],
)
async def test_only_loopback_and_listed_peers_are_answered(peer, allowed):
    """A machine elsewhere in the network can neither read nor delete messages, whatever Host it sends."""
    assert await answers(client=(peer, 1)) is allowed


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("[::1]", True),
        ("shop.test:80", True),
        ("172.17.0.2:8000", True),
        ("testserver", True),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("evil.example:80@localhost", False),
        ("0.0.0.0:8000", False),
        ("::1", False),
        ("[::1", False),
        ("localhost:http", False),
        ("localhost, evil.example", False),
        ("", False),
    ],
)
async def test_only_loopback_and_listed_hosts_are_answered(host, allowed):
    """A page whose name was made to resolve to this machine (DNS rebinding) can neither read nor delete messages."""
    assert await answers(host=host) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:8000", True),
        ("https://LOCALHOST:8000", True),
        ("http://localhost:3000", False),
        ("http://localhost", False),
        ("http://evil.example", False),
        ("ftp://localhost:8000", False),
        ("localhost:8000", False),
        ("null", False),
        ("", False),
    ],
)
async def test_only_pages_of_the_same_origin_are_answered(origin, allowed):
    """Pages of other origins are rejected, including those of other servers on this machine."""
    assert await answers(Origin=origin) is allowed


@pytest.mark.parametrize(
    ("server", "status"),
    [(None, 200), (("/run/pulsecart.sock", None), 200), (("127.0.0.1", 8000), 403)],
)
async def test_peer_without_address_is_local_on_a_unix_socket_only(server, status):
    """A Unix socket has no peer address; a TCP connection without one has been reset, and may be from any peer."""
    app = create_app(Settings(transport="memory"))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/dev/messages",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": None,
        "server": server,
    }
    await app(scope, None, send)
    assert sent[0]["status"] == status


async def test_missing_or_repeated_host_is_403():
    """A request with no Host, or with two, is rejected."""
    app = create_app(Settings(transport="memory"))
    for hosts in ([], [(b"host", b"localhost"), (b"host", b"localhost")]):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/dev/messages", "query_string": b"", "headers": hosts}
        await app(scope, None, send)
        assert sent[0]["status"] == 403


async def test_numbers_are_shown_as_published(client, order_json):
    """/dev/messages shows every digit of the data."""
    await ingest(client, order_json().replace(b'"total": 1', b'"total": 89.90, "n": 123456789012345678901234567890'))
    text = (await client.get("/dev/messages")).text
    assert '{"total": 89.90, "n": 123456789012345678901234567890}' in text


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
    """Query parameters filter the list, which has the newest message last."""
    await ingest(client, order_json(event_id="1"))
    viewed = {"event_type": "product.viewed", "user_id": "u2", "session_id": "s", "payload": {}, "event_id": "2"}
    await ingest(client, json.dumps(viewed).encode())
    await ingest(client, order_json(event_id="3", user_id="u2"))
    messages = (await client.get(f"/dev/messages?{query}")).json()["messages"]
    assert [message["attributes"]["event_id"] for message in messages] == event_ids


async def test_unknown_filter_is_400(client):
    """A misspelled filter is an error that lists the filters; it does not return all messages."""
    document = problem(await client.get("/dev/messages?user=u1"), 400, "malformed-request")
    assert "user_id" in document["detail"]


async def test_delete_empties_the_list(client, order_json):
    """DELETE removes all messages."""
    await ingest(client, order_json())
    assert (await client.delete("/dev/messages")).status_code == 204
    assert (await client.get("/dev/messages")).json() == {"messages": []}


def event_ids(response: httpx.Response) -> list[str]:
    return [message["attributes"]["event_id"] for message in response.json()["messages"]]


@pytest.mark.parametrize("query", ["wait=30&count=2", "wait=30&count=2&event_type=order.placed&user_id=u1"])
async def test_wait_answers_once_enough_messages_match(client, order_json, query):
    """Messages that are there already count, those that do not match do not; the answer comes with the last needed."""
    await ingest(client, order_json(event_id="1"))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        waiting = group.create_task(client.get(f"/dev/messages?{query}"))
        if "user_id" in query:
            await ingest(client, order_json(event_id="other", user_id="u2"))
            done, _ = await asyncio.wait({waiting}, timeout=0.1)
            assert not done
        await ingest(client, order_json(event_id="2"))
    assert event_ids(waiting.result()) == ["1", "2"]


@pytest.mark.parametrize("query", ["wait=30", "wait=30&count=1", "wait=30&count=0", "count=9", "wait=0&count=9"])
async def test_wait_answers_at_once_if_there_are_enough_or_it_is_0(client, order_json, query):
    """The default is to wait for one message, and for no time."""
    await ingest(client, order_json(event_id="1"))
    async with asyncio.timeout(20):
        assert event_ids(await client.get(f"/dev/messages?{query}")) == ["1"]


async def test_wait_ends_with_what_is_there(client, order_json):
    """After `wait` seconds the answer has the messages that are there, although they are fewer than `count`."""
    await ingest(client, order_json(event_id="1"))
    started = time.monotonic()
    assert event_ids(await client.get("/dev/messages?wait=0.3&count=2")) == ["1"]
    assert 0.29 < time.monotonic() - started < 20


async def test_messages_that_are_cleared_do_not_count(client, order_json):
    """A message that is deleted during the wait no longer counts."""
    await ingest(client, order_json(event_id="1"))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        waiting = group.create_task(client.get("/dev/messages?wait=30&count=2"))
        await asyncio.wait({waiting}, timeout=0.1)
        await client.delete("/dev/messages")
        for event_id in ("2", "3"):
            await ingest(client, order_json(event_id=event_id))
    assert event_ids(waiting.result()) == ["2", "3"]


async def test_wait_ends_when_the_service_stops(order_json):
    """A service that stops does not wait for messages: the answer has those that are there."""
    app = create_app(Settings(transport="memory"))
    async with (
        asyncio.timeout(20),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        async with app.router.lifespan_context(app):
            await ingest(client, order_json(event_id="1"))
            waiting = asyncio.create_task(client.get("/dev/messages?wait=30&count=2"))
            await asyncio.wait({waiting}, timeout=0.1)
        assert event_ids(await waiting) == ["1"]


@pytest.mark.parametrize(
    "query",
    [
        "wait=60.1",
        "wait=61",
        "wait=1e1",
        "wait=nan",
        "wait=inf",
        "wait=-1",
        "wait=",
        "wait=%D9%A3",
        "wait=five",
        f"wait={'9' * 5000}",
        "count=-1",
        "count=1.5",
        "count=",
        "count=two",
        f"count={'9' * 5000}",
    ],
)
async def test_invalid_wait_or_count_is_400(client, query):
    """A wait over 60 seconds, and what is no number, is a malformed request whose detail names the parameter."""
    document = problem(await client.get(f"/dev/messages?{query}"), 400, "malformed-request")
    assert document["detail"].startswith(f"{query.partition('=')[0]} must be")
    assert len(document["detail"]) < 200
