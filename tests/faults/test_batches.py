"""Batches and streams while the service stops, the broker fails, or the client leaves."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.faults.conftest import until
from tests.serving import serving

pytestmark = [pytest.mark.faults, pytest.mark.anyio]

HEAD = (
    b"POST /events/batch HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def order(number: int, user: str) -> dict[str, Any]:
    return {"event_type": "order.placed", "user_id": user, "order_id": "o", "payload": {"n": number}}


def chunk(*events: dict[str, Any]) -> bytes:
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    return b"%x\r\n%b\r\n" % (len(lines), lines)


async def answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return json.loads(await reader.readexactly(length))


async def count(url: str) -> int:
    async with httpx.AsyncClient(base_url=url) as client:
        return len((await client.get("/dev/messages")).json()["messages"])


async def test_stop_during_a_stream_says_where_to_resume(tmp_path):
    """A stream that goes on after SIGTERM is answered with the first line that was not processed."""
    with serving(cwd=tmp_path) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
        writer.write(HEAD + chunk(*(order(n, "u") for n in range(10))))
        async with asyncio.timeout(10):
            while await count(served.url) < 10:
                await asyncio.sleep(0.02)
        served.tell_to_stop()
        answered = asyncio.create_task(answer(reader))
        number = 10
        while not answered.done():
            writer.write(chunk(order(number, "u")))
            number += 1
            await asyncio.sleep(0.02)
        document = await answered
        writer.close()
        assert await asyncio.to_thread(served.wait) == 0
    assert (document["status"], document["type"], document["failed"]) == (503, "batch-incomplete", 0)
    assert document["stopped_at"] == document["accepted"] + 1
    assert 10 <= document["accepted"] < number


async def test_client_that_leaves_a_stream_costs_others_nothing(tmp_path):
    """Streams that end in the middle of a line leave no place taken, and single events go on."""
    with serving("--max-streams", "2", cwd=tmp_path) as served:
        port = int(served.url.rpartition(":")[2])
        for number in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + chunk(order(number, "u"))[:-4])
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        async with httpx.AsyncClient(base_url=served.url) as client:
            async with asyncio.timeout(10):
                while True:
                    lines = json.dumps(order(0, "v")).encode()
                    headers = {"Content-Type": "application/x-ndjson"}
                    if (await client.post("/events/batch", content=lines, headers=headers)).status_code == 202:
                        break
            assert (await client.post("/events/ingest", json=order(1, "v"))).status_code == 202


@pytest.mark.parametrize("form", ["array", "lines"])
async def test_broker_that_hangs_in_the_middle(strictly, form):
    """What it confirms is accepted; a resend of what failed, with the ids of the results, completes it in order."""
    async with strictly() as (served, server):
        server.script.extend([None, asyncio.Event(), asyncio.Event()])
        events = [order(n, f"u{n % 4}") for n in range(200)]
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            if form == "array":
                first = await client.post("/events/batch", json=events)
            else:
                lines = b"\n".join(json.dumps(event).encode() for event in events)
                headers = {"Content-Type": "application/x-ndjson"}
                first = await client.post("/events/batch", content=lines, headers=headers)
            assert first.status_code in {202, 503}, first.text
            failed = first.json().get("results", []) if first.status_code == 503 else []
            server.script.clear()
            again = [
                events[result["index"]] | {"event_id": result["event_id"], "timestamp": result["timestamp"]}
                for result in failed
            ]
            if again:
                assert (await client.post("/events/batch", json=again)).status_code == 202
        await until(lambda: len({m.attributes["event_id"] for m in server.confirmed}) == 200)
        seen: dict[str, int] = {}
        for message in server.confirmed:
            seen.setdefault(message.attributes["event_id"], json.loads(message.data)["payload"]["n"])
        for user in range(4):
            assert [n for n in seen.values() if n % 4 == user] == list(range(user, 200, 4))
