"""Mutated input."""

import asyncio
import json
import random

import pytest

from tests.faults.conftest import MOST_MEMORY_MB
from tests.serving import serving

pytestmark = [pytest.mark.faults, pytest.mark.emulator, pytest.mark.anyio]

REQUESTS = 100_000
CONNECTIONS = 32
HEAD = b"POST /events/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

EVENTS = [
    b'{"event_type":"order.placed","user_id":"u1","order_id":"o1","payload":{"total":89.90,"lines":[1,2e5,null,"x"]}}',
    '{"event_type":"cart.item_added","user_id":"é😀","session_id":"s","event_id":"mine","payload":{}}'.encode(),
    b'{"event_type":"product.viewed","user_id":"u","session_id":"s","timestamp":"2026-01-31T12:00:00+01:00","payload":{}}',
]
PIECES = [
    *(b'"%b"' % name for name in (b"event_type", b"user_id", b"order_id", b"payload", b"\\u0065vent_type", b"\\ud800")),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"null",
        b"true",
        b"-",
        b"1e999",
        b"1e-999999999",
        b"0.1",
        b"NaN",
    ),
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"9" * 5000, b"[" * 300, b'{"a":' * 300, b" " * 1000),
]


def mutated(rng: random.Random) -> bytes:
    """Return a valid event with random mutations."""
    body = bytearray(rng.choice(EVENTS))
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(5):
            case 0:
                body[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del body[at : at + rng.randint(1, 20)]
            case 2:
                body[at:at] = rng.choice(PIECES)
            case 3:
                body[at:at] = body[at : at + rng.randint(1, 60)]
            case _:
                body[at : at + rng.randint(1, 20)] = rng.choice(PIECES)
    return bytes(body)


async def test_hundred_thousand_mutated_bodies(tmp_path, scale):
    """Each body is answered 202 or 4xx with a reason: no 5xx, no hang, no traceback, and memory does not grow."""
    statuses: dict[int, int] = {}
    left = iter(range(REQUESTS * scale))

    async def post_on(port: int, seed: int) -> None:
        rng = random.Random(seed)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            body = mutated(rng)
            writer.write(HEAD % len(body) + body)
            async with asyncio.timeout(30):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                answer = await reader.readexactly(length)
            status = int(head[9:12])
            statuses[status] = statuses.get(status, 0) + 1
            assert status == 202 or 400 <= status < 500, (body, answer)
            document = json.loads(answer)
            assert b"Traceback" not in answer
            if status != 202:
                assert document["detail"], (body, answer)
                assert document["retryable"] is False
        writer.close()

    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (shown where it fails)
    with serving(cwd=tmp_path) as served:
        port = int(served.url.rpartition(":")[2])
        async with asyncio.TaskGroup() as connections:
            for number in range(CONNECTIONS):
                connections.create_task(post_on(port, seed + number))
        assert sum(statuses.values()) == REQUESTS * scale
        assert {202, 400, 422} <= set(statuses)
        assert served.peak_memory_mb < MOST_MEMORY_MB
