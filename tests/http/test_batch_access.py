"""Batches of authenticated callers: their types, their rate and their name."""

import asyncio
import json
from typing import Any

import pytest

from tests.http.client import JSON, problem
from tests.http.test_auth import KEY, SLOW, guarded
from tests.http.test_batch import LINES, incomplete, ndjson, order
from tests.http.test_idempotency import expected

pytestmark = pytest.mark.anyio


async def post(client: Any, content: bytes, key: str | None, headers: dict[str, str]) -> Any:
    credentials = {"Authorization": f"Bearer {key}"} if key else {}
    return await client.post("/events/batch", content=content, headers=headers | credentials)


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
