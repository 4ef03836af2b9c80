"""Reading request bodies: limits of size and time, and of the bytes held by all requests."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from pulsecart import Message
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.testing.strict import strict_pubsub
from pulsecart.transports import MemoryTransport
from tests.http.client import POST, ingest, problem, served

pytestmark = pytest.mark.anyio


async def test_body_over_limit_is_413(order_json):
    """The limit is inclusive, is stated in the answer, and applies with and without Content-Length."""

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


async def test_slow_body_is_408():
    """A body that is not complete in time is answered 408, and the connection is closed."""
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
    """Post a body whose last part is sent only when the event is set or the block ends; then expect a 202."""
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


async def test_arriving_bodies_over_half_of_max_bytes_are_503(order_json):
    """When bodies that are still arriving take half of --max-bytes, another large one is 503; it is accepted later."""
    body = order_json(payload={"x": "y" * 4_900_000})
    async with served(settings=HALF_OF_ALL) as client:
        async with arriving(client, body[:-1], body[-1:]):
            large = order_json(payload={"x": "y" * 2_000_000})
            refused = await ingest(client, chunks(large, 1_900_000))
            problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "1"
        assert (await ingest(client, chunks(large, 1_900_000))).status_code == 202


async def test_small_body_is_read_while_others_stall(order_json):
    """A body within --connection-bytes is read even if stalled bodies take all the bytes for arriving bodies."""
    body = order_json(payload={"x": "y" * 6_000_000})  # alone, it may exceed what bodies may take together
    async with (
        served(settings=HALF_OF_ALL) as client,
        arriving(client, body[:-100_000], body[-100_000:]),
    ):
        assert (await ingest(client, chunks(order_json(payload={"x": "y" * 15_000}), 5_000))).status_code == 202


async def test_waiting_events_over_half_of_max_bytes_are_503(order_json):
    """When events waiting for the broker take half of --max-bytes, another one is 503."""
    waits, gate = asyncio.Event(), asyncio.Event()

    async def hang(_message: Message) -> None:
        waits.set()
        await gate.wait()

    transport = MemoryTransport(hang)
    body = order_json(payload={"x": "y" * 7_000_000})
    async with served(transport, HALF_OF_ALL) as client:
        waiting = asyncio.create_task(ingest(client, body))
        async with asyncio.timeout(10):
            await waits.wait()
        refused = await ingest(client, order_json(user_id="u2", payload={"x": "y" * 1_000_000}))
        assert "the limit is 5,000,000" in problem(refused, 503, "overloaded")["detail"]
        gate.set()
        assert (await waiting).status_code == 202


@pytest.mark.parametrize("listens", [True, False], ids=["silent", "refusing"])
async def test_failed_events_are_freed_at_once(order_json, listens):
    """An event that could not be published takes no memory until the next garbage collection: many do in an outage."""
    async with strict_pubsub(["pulsecart.commerce-events"], project="strict") as server:
        server.script.extend([asyncio.Event()] * 1000)  # no request is answered
        settings = Settings(
            transport="emulator",
            emulator_host=server.host if listens else "127.0.0.1:9",
            project="strict",
            publish_deadline=0.5,
            max_bytes=10_000_000,
        )
        async with served(settings=settings) as client:
            gc.collect()
            gc.disable()
            try:
                bodies = [order_json(user_id=f"u{user}", payload={"x": "y" * 900_000}) for user in range(20)]
                answers = await asyncio.gather(*(ingest(client, body) for body in bodies))
                assert {answer.json()["type"] for answer in answers} == {"overloaded", "broker-unavailable"}
                async with asyncio.timeout(5):
                    while any(isinstance(each, Message) and len(each.data) > 900_000 for each in gc.get_objects()):
                        await asyncio.sleep(0.01)
            finally:
                gc.enable()


async def chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]
