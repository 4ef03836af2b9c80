"""Batches of authenticated callers: their types, their rate and their name."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pulsecart.transports import MemoryTransport
from tests.http.client import JSON, problem
from tests.http.test_auth import KEY, OTHER, SLOW, SOURCES, guarded
from tests.http.test_batch import LINES, incomplete, ndjson, order, published, streaming
from tests.http.test_idempotency import expected

pytestmark = pytest.mark.anyio


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def post(client: Any, content: Any, key: str, headers: dict[str, str]) -> Any:
    return await client.post("/events/batch", content=content, headers=headers | bearer(key))


async def test_every_route_needs_credentials(tmp_path):
    """All routes that take events are authenticated, before the body is read."""
    async with guarded(tmp_path) as client:
        for path in ("/events/ingest", "/events/batch", "/events/cloudevents", "/events/validate"):
            problem(await client.post(path, content=b"[", headers=JSON), 401, "unauthenticated")


async def test_type_that_a_source_may_not_send_fails_alone(tmp_path):
    """It is 403 in the results; the source is part of the ids that follow from a key, and in the message."""
    other = {"event_type": "message.personalized_send", "user_id": "u", "payload": {}}
    async with guarded(tmp_path) as client:
        body = json.dumps([order(1), other]).encode()
        document = incomplete(await post(client, body, KEY, JSON | {"Idempotency-Key": "k"}), 422)
        (result,) = document["results"]
        assert (result["index"], result["status"], result["type"]) == (1, 403, "event-type-not-allowed")
        response = await client.post("/events/validate", json=other, headers={"Authorization": f"Bearer {KEY}"})
        problem(response, 403, "event-type-not-allowed")
        (message,) = (await client.get("/dev/messages", headers={"Authorization": f"Bearer {KEY}"})).json()["messages"]
    assert message["attributes"]["source"] == "checkout"
    event_id = expected("checkout", "/events/batch", "k", "0", "order.placed", "u")
    assert message["attributes"]["event_id"] == event_id


async def test_array_is_admitted_whole_and_charged_in_full(tmp_path):
    """Any credit is enough for an array; then the source is over its rate."""
    async with guarded(tmp_path) as client:
        body = json.dumps([order(n) for n in range(20)]).encode()
        assert (await post(client, body, SLOW, JSON)).status_code == 202
        response = await post(client, body, SLOW, JSON)
        problem(response, 429, "rate-limited")
        assert int(response.headers["retry-after"]) >= 9


async def test_lines_are_slowed_down(tmp_path):
    """A stream is not refused: it is read at the rate of its source."""
    started = asyncio.get_running_loop().time()
    async with guarded(tmp_path) as client:
        response = await post(client, ndjson(*(order(n) for n in range(4))), SLOW, LINES)
    assert response.json()["accepted"] == 4
    assert asyncio.get_running_loop().time() - started >= 0.9


async def test_client_that_leaves_frees_its_stream(tmp_path):
    """A source with a low rate holds a stream no longer than its client is there, and nothing more is published."""
    (tmp_path / "sources.toml").write_text(SOURCES)
    options = {"auth": "keys", "sources": str(tmp_path / "sources.toml")}
    for whole in (True, False):
        transport = MemoryTransport()
        async with streaming(transport, SLOW, **options) as (part, answer):
            part(ndjson(*(order(n) for n in range(100))), more=not whole)
            await published(transport, 2)
            part(None)
            async with asyncio.timeout(10):
                document = await answer
        assert len(transport.messages) < 10
        if whole:
            # It may have closed only its sending side, so it is answered.
            assert (document["status"], document["type"]) == (408, "request-timeout")
            assert document["title"] == "The client has left"
            assert document["accepted"] == len(transport.messages) == document["stopped_at"] - 1


async def test_more_may_arrive_while_a_source_waits_for_credit(tmp_path):
    """A stream that is slowed down is read to its end, however it arrives."""
    (tmp_path / "sources.toml").write_text(SOURCES)
    transport = MemoryTransport()
    async with streaming(transport, SLOW, auth="keys", sources=str(tmp_path / "sources.toml")) as (part, answer):
        for number in range(4):
            part(ndjson(order(number)))
        started = time.process_time()
        part(b"", more=False)
        assert (await answer)["accepted"] == 4
        assert time.process_time() - started < 0.5


async def test_source_may_take_half_of_the_streams(tmp_path):
    """One source cannot take the streams of all others."""
    gate = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield ndjson(order(1))
        await gate.wait()

    async with guarded(tmp_path, max_streams=3) as client:
        first, second = (asyncio.create_task(post(client, content(), KEY, LINES)) for _ in range(2))
        async with asyncio.timeout(5):
            while len((await client.get("/dev/messages", headers=bearer(KEY))).json()["messages"]) < 2:
                await asyncio.sleep(0.005)
        document = problem(await post(client, ndjson(order(2)), KEY, LINES), 503, "overloaded")
        assert "one source" in document["detail"]
        assert (await post(client, ndjson(order(2)), OTHER, LINES)).status_code == 202
        gate.set()
        assert ((await first).status_code, (await second).status_code) == (202, 202)
