"""The feed of the development routes: /dev/stream and /dev/rejected."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import pytest
from backports import zstd
from starlette.types import ASGIApp

from pulsecart.app import create_app
from pulsecart.http.dev import feed as feeds
from pulsecart.http.dev import sse
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport
from tests.http.client import DEV, JSON, POST, ingest, problem, served

pytestmark = pytest.mark.anyio

SECONDS = 20


class Stream:
    """A reader of /dev/stream."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.text = ""
        self.task: asyncio.Task[None]
        self._arrived = asyncio.Event()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        self.text += message.get("body", b"").decode()
        self._arrived.set()

    async def until(self, done: Callable[["Stream"], bool]) -> None:
        """Read until something has arrived."""
        async with asyncio.timeout(SECONDS):
            while not done(self):
                self._arrived.clear()
                await self._arrived.wait()

    async def events(self, count: int) -> list[dict[str, Any]]:
        """Return the first events, when so many have arrived."""
        await self.until(lambda stream: len(stream.parsed()) >= count)
        return self.parsed()

    def parsed(self) -> list[dict[str, Any]]:
        blocks = [block.split("\n") for block in self.text.split("\n\n")[:-1] if block.startswith("id: ")]
        return [
            {
                "id": id_.removeprefix("id: "),
                "event": kind.removeprefix("event: "),
                "data": json.loads("\n".join(line.removeprefix("data: ") for line in data)),
            }
            for id_, kind, *data in blocks
        ]


@asynccontextmanager
async def reading(app: ASGIApp, last_id: str = "") -> AsyncIterator[Stream]:
    """Read the stream until the end of the block, as a client that then disconnects."""
    stream, leaves, asked = Stream(), asyncio.Event(), []
    headers = [(b"host", b"localhost"), *([(b"last-event-id", last_id.encode())] if last_id else [])]

    async def receive() -> Any:
        if not asked:
            asked.append(True)
            return {"type": "http.request"}
        await leaves.wait()
        return {"type": "http.disconnect"}

    scope = POST | {"method": "GET", "path": "/dev/stream", "headers": headers, "client": ("127.0.0.1", 1)}
    stream.task = asyncio.create_task(app(scope | {"asgi": {"version": "3.0"}}, receive, stream.send))
    try:
        await stream.until(lambda stream: bool(stream.text))
        yield stream
    finally:
        leaves.set()
        async with asyncio.timeout(SECONDS):
            await stream.task


@asynccontextmanager
async def serving(settings: Settings = DEV, transport: Any = None) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    app = create_app(settings, transport=transport)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        yield app, client


async def test_messages_and_rejected_requests_are_streamed_as_they_come(order_json):
    """Each event has an id, its kind and what happened, numbers exact and line breaks of a payload allowed."""
    traced = attrs.evolve(DEV, trace_url="http://traces/{trace_id}")
    async with serving(traced) as (app, client), reading(app) as stream:
        assert stream.status == 200
        assert stream.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
        assert stream.headers[b"x-content-type-options"] == b"nosniff"
        assert await stream.events(0) == []
        body = order_json().replace(b'{"total": 1}', b'{\r\n"total":\n89.90,\r "n": 123456789012345678901234567890}')
        answer = (await ingest(client, body)).json()
        await ingest(client, order_json(order_id=""))
        published, rejected = await stream.events(2)
    assert (published["event"], rejected["event"]) == ("message", "rejected")
    message = published["data"]
    assert message["message_id"] == answer["message_id"]
    assert message["trace_id"] == answer["trace_id"]
    assert message["trace_url"] == f"http://traces/{answer['trace_id']}"
    assert message["attributes"] == {"event_type": "order.placed", "event_id": answer["event_id"]}
    assert (message["topic"], message["ordering_key"]) == ("pulsecart.commerce-events", "u1")
    assert message["time"].endswith("Z")
    assert '89.90,\ndata:  "n": 123456789012345678901234567890}' in stream.text
    assert rejected["data"]["status"] == 422
    assert rejected["data"]["path"] == "/events/ingest"
    assert rejected["data"]["content_type"] == "application/json"
    assert rejected["data"]["problem"]["errors"][0]["pointer"] == "/order_id"
    assert json.loads(rejected["data"]["body"])["order_id"] == ""


async def test_stream_begins_with_what_is_kept_or_after_the_last_id(order_json):
    """A reader that comes later, or comes back, misses nothing; an id of another process counts as none."""
    async with serving() as (app, client):
        for number in range(4):
            await ingest(client, order_json(event_id=str(number), order_id="" if number == 2 else "o"))
        async with reading(app) as stream:
            everything = await stream.events(4)
        assert [each["event"] for each in everything] == ["message", "message", "rejected", "message"]
        async with reading(app, everything[1]["id"]) as stream:
            assert await stream.events(2) == everything[2:]
        for unknown in ("00000000-3", "x", "-", everything[0]["id"].partition("-")[0] + "-x"):
            async with reading(app, unknown) as stream:
                assert await stream.events(4) == everything
        ahead = everything[0]["id"].partition("-")[0] + "-999"
        async with reading(app, ahead) as stream:
            await ingest(client, order_json(event_id="next"))
            (event,) = await stream.events(1)
            assert event["data"]["attributes"]["event_id"] == "next"


async def test_every_reader_gets_every_event(order_json):
    """Any number of readers share the feed."""
    async with serving() as (app, client), reading(app) as one, reading(app) as other:
        for number in range(20):
            await ingest(client, order_json(event_id=str(number)))
        found = [
            [each["data"]["attributes"]["event_id"] for each in await reader.events(20)] for reader in (one, other)
        ]
    assert found == [[str(number) for number in range(20)]] * 2


async def test_cleared_events_are_not_streamed(order_json):
    """DELETE also removes what a later reader would get, and readers continue with what comes next."""
    async with serving() as (app, client):
        await ingest(client, order_json())
        await ingest(client, b"{}")
        assert (await client.delete("/dev/messages")).status_code == 204
        assert (await client.delete("/dev/rejected")).status_code == 204
        async with reading(app) as stream:
            await ingest(client, order_json(event_id="later"))
            (event,) = await stream.events(1)
        assert event["data"]["attributes"]["event_id"] == "later"


async def test_feed_is_bounded_in_bytes(order_json, monkeypatch):
    """The newest events are kept; the newest one even if it is larger than the bound."""
    monkeypatch.setattr(feeds, "MESSAGE_BYTES", 5_000)
    monkeypatch.setattr(feeds, "REJECTED_BYTES", 5_000)
    async with serving() as (app, client):
        for number in range(50):
            await ingest(client, order_json(event_id=str(number)))
            await ingest(client, order_json(order_id="", user_id=str(number)))
        listed = (await client.get("/dev/rejected")).json()["rejected"]
        assert 2 <= len(listed) < 10
        assert '"user_id": "49"' in listed[-1]["body"]
        async with reading(app) as stream:
            events = await stream.events(4)
        assert len(events) < 20
        assert events[-2]["data"]["attributes"]["event_id"] == "49"
        await ingest(client, order_json(payload={"text": "x" * 9_000}))
        async with reading(app) as stream:
            assert len((await stream.events(2))[-1]["data"]["data"]["payload"]["text"]) == 9_000


async def test_large_backlog_arrives_in_pieces(order_json, monkeypatch):
    """A backlog is not put together in memory at once, and arrives whole."""
    monkeypatch.setattr(sse, "PIECE_BYTES", 500)
    async with serving() as (app, client):
        for number in range(10):
            await ingest(client, order_json(event_id=str(number)))
        async with reading(app) as stream:
            events = await stream.events(10)
    assert [each["data"]["attributes"]["event_id"] for each in events] == [str(number) for number in range(10)]


async def test_idle_stream_shows_that_it_is_alive(monkeypatch):
    """Without events, comments are sent."""
    monkeypatch.setattr(sse, "IDLE_SECONDS", 0.01)
    async with serving() as (app, _client), reading(app) as stream:
        await stream.until(lambda stream: ":" in stream.text.removeprefix("retry: 1000\n\n"))
        assert stream.parsed() == []


async def test_streams_end_with_the_service(order_json):
    """A stream ends when the application shuts down, and then there is no other."""
    app = create_app(DEV)
    async with app.router.lifespan_context(app):
        context = reading(app)
        stream = await context.__aenter__()
    async with asyncio.timeout(SECONDS):
        await stream.task
    await context.__aexit__(None, None, None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        response = await client.get("/dev/stream")
        problem(response, 503, "shutting-down")
        assert response.headers["connection"] == "close"


async def test_rejected_requests_are_listed_with_problem_and_body(client, order_json):
    """/dev/rejected has time, status, the problem that was answered, and the body; newest last; DELETE removes them."""
    assert (await client.get("/dev/rejected")).json() == {"rejected": []}
    await ingest(client, order_json())
    answers = [await ingest(client, b'{"a": 1'), await ingest(client, order_json(user_id="", oder_id="x"))]
    listed = (await client.get("/dev/rejected")).json()["rejected"]
    assert [set(each) for each in listed] == [{"time", "status", "problem", "body"}] * 2
    assert [each["problem"] for each in listed] == [answer.json() for answer in answers]
    assert [each["status"] for each in listed] == [400, 422]
    assert listed[0]["body"] == '{"a": 1'
    assert (await client.delete("/dev/rejected")).status_code == 204
    assert (await client.get("/dev/rejected")).json() == {"rejected": []}


async def test_batches_and_validated_events_are_listed(client, order_json):
    """What a batch answers is listed with the failures of its events; what validation refuses, too."""
    batch = await client.post("/events/batch", content=b"[%b, {}]" % order_json(), headers=JSON)
    validated = await client.post("/events/validate", content=b"{}", headers=JSON)
    listed = (await client.get("/dev/rejected")).json()["rejected"]
    assert [each["problem"] for each in listed] == [batch.json(), validated.json()]
    assert listed[0]["problem"]["results"][0]["index"] == 1


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"\xff{\x00}", "\ufffd{\0}"),
        (b"x" * 65_536, "x" * 65_536),
        (b"x" * 70_000, "x" * 65_536),
        (b"x" * 65_535 + "é".encode(), "x" * 65_535),
        (b"\xff" * 65_536, "\ufffd" * 21_845),
        (b"", ""),
    ],
)
async def test_body_is_text_of_at_most_64_kib(client, body, shown):
    """What is not UTF-8 is replaced, and a long body is cut, but not within a character."""
    assert (await ingest(client, body)).status_code == 400
    assert (await client.get("/dev/rejected")).json()["rejected"][0]["body"] == shown


@pytest.mark.parametrize(
    ("coding", "body", "shown"),
    [
        ("gzip", gzip.compress(b'{"event_type": 1}', mtime=0), '{"event_type": 1}'),
        ("zstd", zstd.compress(b"x" * 1_000_000), "x" * 65_536),
        ("gzip", gzip.compress(b"x" * 100_000, compresslevel=0)[:50_000], "x" * 49_975),
        ("gzip", b"no gzip", "no gzip"),
        ("br", b"unknown", "unknown"),
    ],
)
async def test_compressed_body_is_shown_decoded(client, coding, body, shown):
    """A body is shown decoded as far as that is possible, however much it would become."""
    assert (await ingest(client, body, **{"Content-Encoding": coding})).status_code in {400, 415, 422}
    found = (await client.get("/dev/rejected")).json()["rejected"][0]["body"]
    assert found[:40] == shown[:40]
    assert len(found) >= len(shown) - 100
    assert len(found) <= 65_536


async def test_body_is_shown_if_the_headers_were_rejected(client, order_json):
    """What has arrived of a body is shown although it was not read; nothing is waited for."""
    await client.post("/events/ingest", content=order_json())
    assert (await client.get("/dev/rejected")).json()["rejected"][0]["body"] == order_json().decode()


@pytest.mark.parametrize("headers", [[], [(b"expect", b"100-continue")]])
async def test_body_that_has_not_arrived_is_not_waited_for(headers):
    """A request that is rejected for its headers is answered at once, and does not ask for a body."""
    app, sent, asked = create_app(DEV), [], []

    async def receive() -> Any:
        asked.append(True)
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(SECONDS):
        await app(POST | {"headers": headers}, receive, send)
    assert sent[0]["status"] == 415
    assert bool(asked) is not bool(headers)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/dev/rejected")).json()["rejected"][0]["body"] == ""


async def test_client_that_disconnects_is_not_rejected():
    """A request whose client has gone was not answered with a problem."""
    app = create_app(DEV)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    await app(POST, receive, send)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/dev/rejected")).json() == {"rejected": []}


async def test_failures_of_the_broker_are_listed(order_json):
    """A 503 is listed, too."""

    async def outage(_message: Any) -> None:
        raise OSError("away")

    async with served(MemoryTransport(outage)) as client:
        status = (await ingest(client, order_json())).status_code
        (listed,) = (await client.get("/dev/rejected")).json()["rejected"]
    assert listed["status"] == status >= 500


async def test_nothing_is_recorded_outside_development(order_json):
    """In other environments requests are answered as ever, and there is no list of them."""
    settings = Settings(transport="emulator", emulator_host="127.0.0.1:1", environment="staging", auth="none")
    async with served(MemoryTransport(), settings) as client:
        assert (await ingest(client, order_json())).status_code == 202
        problem(await ingest(client, b"{}"), 400, "missing-event-type")
        problem(await client.get("/dev/rejected"), 404, "not-found")
