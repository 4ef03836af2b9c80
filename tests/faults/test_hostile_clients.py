"""Hostile clients, which send endlessly, never read, or stall, next to a well-behaved one."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from attrs import define

from tests.faults.conftest import hostile_report
from tests.serving import Served, serving

pytestmark = [pytest.mark.faults, pytest.mark.emulator, pytest.mark.anyio]

ATTACK_SECONDS = 5
MAX_BYTES_MB = 100
"""The default of `--max-bytes`."""

MEMORY_MB = 100
"""Memory for the messages that the memory transport keeps."""

SLOWEST_SECONDS = 5
"""Ten times the measured value: only a service that has stopped answering is slower."""

EVENT = b'{"event_type":"order.placed","user_id":"u%d","order_id":"o","payload":{"v":%b}}'
JSON = {"Content-Type": "application/json"}
HEAD = b"POST /events/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@define
class Attack:
    """What the attackers have sent, and the results of the well-behaved client."""

    port: int
    sent: int = 0
    answered: int = 0
    refused: int = 0
    slowest: float = 0.0

    async def flood(self, first: bytes, then: bytes, *, reads: bool = False) -> None:
        """Send bytes endlessly, on a new connection whenever one is closed, until the end of the attack."""
        end = time.monotonic() + ATTACK_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(end - time.monotonic()):
                    await self._send(first, then, reads=reads)

    async def _send(self, first: bytes, then: bytes, *, reads: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            if not reads:
                writer.transport.pause_reading()  # type: ignore[attr-defined]
            data = first
            while not reader.at_eof() and not writer.transport.is_closing():
                writer.write(data)
                self.sent += len(data)
                data = then
                await writer.drain()
        finally:
            writer.transport.abort()

    async def behave(self, call: str, done: asyncio.Event) -> None:
        """Send a request every 20 ms, alternately on a new connection and on a kept one."""
        method, path = call.split()
        limits = httpx.Limits(max_keepalive_connections=1)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60, limits=limits) as client:
            number = 0
            while not done.is_set():
                number += 1
                headers = JSON | ({"Connection": "close"} if number % 2 else {})
                start = time.monotonic()
                answer = await client.request(method, path, content=EVENT % (number, b"1"), headers=headers)
                self.slowest = max(self.slowest, time.monotonic() - start)
                self.answered += answer.is_success
                self.refused += not answer.is_success
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def attacked(
    request: pytest.FixtureRequest, served: Served, what: str, most_mb: float, call: str = "POST /events/ingest"
) -> AsyncIterator[Attack]:
    """Run the block as an attack next to a well-behaved client; then report and check the results.

    The attack may add `most_mb` to the service's peak memory.
    """
    attack = Attack(int(served.url.rpartition(":")[2]))
    before = served.peak_memory_mb
    done = asyncio.Event()
    behaving = asyncio.create_task(attack.behave(call, done))
    try:
        yield attack
    finally:
        done.set()
        await behaving
    growth = served.peak_memory_mb - before
    name = request.node.name.removeprefix("test_").replace("_", " ")
    figures = [f"{attack.sent / 1e6:.0f}", f"{before + growth:.0f}", f"{growth:.0f}"]
    figures += [str(attack.answered), str(attack.refused), f"{attack.slowest * 1e3:.0f}"]
    hostile_report(request.config, [name, what, *figures])
    assert growth < most_mb
    assert attack.slowest < SLOWEST_SECONDS
    assert attack.answered
    assert not attack.refused


@pytest.fixture
async def memory(tmp_path) -> AsyncIterator[Served]:
    service = serving("--transport", "memory", cwd=tmp_path, PUBSUB_EMULATOR_HOST="")
    served = await asyncio.to_thread(service.__enter__)
    try:
        yield served
    finally:
        await asyncio.to_thread(service.__exit__, None, None, None)


async def test_endless_trailers(memory, request):
    """Connections with endless trailers of chunked bodies are closed, and memory does not grow."""
    async with attacked(request, memory, "4 connections of trailers `a:`, one line after another", 20) as attack:
        first = HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
        await asyncio.gather(*(attack.flood(first, b"a:\r\n" * 16_000) for _ in range(4)))


async def test_pipelined_requests_without_reading(memory, request):
    """Pipelined requests of clients that never read are no longer read, and memory does not grow."""
    async with attacked(request, memory, "4 connections of `GET /`, no answer read", 20) as attack:
        request_ = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        await asyncio.gather(*(attack.flood(request_, request_ * 3000) for _ in range(4)))


async def test_pipelined_events_without_reading(memory, request):
    """The same with valid events: each is published, until unread answers fill the connection."""
    body = EVENT % (0, b"2")
    async with attacked(request, memory, "4 connections of events, no answer read", 20 + MEMORY_MB) as attack:
        event = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        await asyncio.gather(*(attack.flood(event, event * 300) for _ in range(4)))


async def test_stalled_bodies(memory, request):
    """138 bodies of 725 kB each never end; other callers' events are still published."""
    async with attacked(
        request, memory, "138 bodies that stop before their end, again when rejected", MAX_BYTES_MB
    ) as attack:
        end = time.monotonic() + ATTACK_SECONDS

        async def stall() -> None:
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
                    writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 725_000)
                    attack.sent += 725_000
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(end - time.monotonic()):
                            await reader.read()
                    writer.transport.abort()

        await asyncio.gather(*(stall() for _ in range(138)))


@pytest.mark.parametrize("payload", ["arrays", "text"])
async def test_hanging_broker(strictly, request, payload):
    """With a hanging broker, 80 callers send events of 1 MB: those that wait are limited in bytes, the rest are 503."""
    value = b"[" + b",".join([b"[]"] * 330_000) + b"]" if payload == "arrays" else b'"' + b"x" * 1_000_000 + b'"'
    async with strictly() as (served, server):
        server.script.extend([asyncio.Event()] * 100_000)
        what = f"80 callers of 1 MB events ({payload}), again when rejected"
        async with (
            attacked(request, served, what, 2 * MAX_BYTES_MB, "GET /livez") as attack,
            httpx.AsyncClient(timeout=60) as client,
        ):
            end = time.monotonic() + ATTACK_SECONDS

            async def post(user: int) -> None:
                while time.monotonic() < end:
                    body = EVENT % (user, value)
                    attack.sent += len(body)
                    answer = await client.post(f"{served.url}/events/ingest", content=body, headers=JSON)
                    assert answer.status_code == 503

            await asyncio.gather(*(post(user) for user in range(80)))
