"""Failures of the service and of callers: signals, missing resources, disconnects and slow clients."""

import asyncio
import os
import random
import resource
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.faults.conftest import DEADLINE, until
from tests.faults.load import Load, crowd
from tests.serving import serving

pytestmark = [pytest.mark.faults, pytest.mark.emulator, pytest.mark.anyio]

USERS = [f"user-{number}" for number in range(20)]
HEAD = b"POST /events/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_stop_under_load(world, start, judge_by_subscriber, tmp_path, number):
    """Each event answered 202 is delivered, and callers continue with the next instance; SIGTERM ends with status 0."""
    load = Load()
    async with world() as w:
        callers = start(crowd(w.served.url, load, USERS, 40, pause=0.02))
        await until(lambda: len(load.accepted) > 200)
        w.served.tell_to_stop(number)
        status = await asyncio.to_thread(w.served.wait)
        assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        assert not callers.done()
        ended = time.monotonic()
        port = w.served.url.rpartition(":")[2]
        options = ("--project", w.project, "--emulator-host", w.proxy.address, "--publish-deadline", DEADLINE)
        service = serving(*options, "--port", port, cwd=tmp_path)
        w.served = await asyncio.to_thread(service.__enter__)
        try:
            await callers
            await judge_by_subscriber(load, w, ended)
        finally:
            await asyncio.to_thread(service.__exit__, None, None, None)


async def test_killed_worker_is_replaced(world, start, judge_by_subscriber):
    """One of two workers is killed under load; the other continues, and a new one is started."""
    load = Load()
    async with world("--workers", "2") as w:
        callers = start(crowd(w.served.url, load, USERS, 60, pause=0.02))
        await until(lambda: len(load.accepted) > 200)
        workers = [pid for pid in w.served.children() if b"spawn_main" in command_line(pid)]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        ended = time.monotonic()
        await until(
            lambda: len({p for p in w.served.children() if b"spawn_main" in command_line(p)} - {workers[0]}) == 2
        )
        await callers
        await judge_by_subscriber(load, w, ended)


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""  # it has ended meanwhile


async def test_callers_that_disconnect(world, start, judge_by_subscriber):
    """Hundreds of callers disconnect within a head, within a body, or before the answer."""
    load = Load()
    body = b'{"event_type":"order.placed","user_id":"gone","order_id":"o","event_id":"gone:%d","payload":{}}'
    async with world() as w:
        port = int(w.served.url.rpartition(":")[2])
        callers = start(crowd(w.served.url, load, USERS, 40, pause=0.02))
        for number in range(300):
            whole = HEAD % len(body % number) + body % number
            cut = random.choice([30, len(whole) - 10, len(whole)])
            if cut == len(whole):
                load.sent.add(f"gone:{number}")
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(whole[:cut])
            await writer.drain()
            writer.transport.abort()
        await callers
        await judge_by_subscriber(load, w)


async def test_slow_bodies(world, judge_by_subscriber):
    """Hundreds of bodies that arrive one byte at a time are answered 408, and delay no other request."""
    load = Load()
    async with world("--body-timeout", "2") as w:
        port = int(w.served.url.rpartition(":")[2])

        async def drip() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD % 100)
            answer = asyncio.create_task(reader.read(100))
            while not answer.done():
                writer.write(b"{")
                await asyncio.wait([answer], timeout=0.2)
            writer.close()
            return answer.result()

        slow = [asyncio.create_task(drip()) for _ in range(200)]
        await crowd(w.served.url, load, USERS, 20)
        assert {answer[:12] for answer in await asyncio.gather(*slow)} == {b"HTTP/1.1 408"}
        await judge_by_subscriber(load, w)


async def test_two_thousand_idle_connections(world, judge_by_subscriber):
    """Idle connections cost little, and delay no other request."""
    load = Load()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        async with world() as w:
            port = int(w.served.url.rpartition(":")[2])
            with ExitStack() as idle:
                for _ in range(2000):
                    idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                await crowd(w.served.url, load, USERS, 20)
            await judge_by_subscriber(load, w)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_file_descriptors_exhausted(world, start, judge_by_subscriber):
    """While no connection can be accepted, existing ones continue; then new ones are accepted again."""
    load = Load()
    async with world() as w:
        port = int(w.served.url.rpartition(":")[2])
        callers = start(crowd(w.served.url, load, USERS, 60, pause=0.05))
        await until(lambda: len(load.accepted) > 100)
        open_now = open_files(w.served.pid)
        resource.prlimit(w.served.pid, resource.RLIMIT_NOFILE, (open_now + 10, 4096))
        with ExitStack() as flood:
            for _ in range(60):
                flood.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            await until(lambda: open_files(w.served.pid) >= open_now + 10)
            before = len(load.accepted)
            await until(lambda: len(load.accepted) > before + 50)
        ended = time.monotonic()
        async with httpx.AsyncClient(base_url=w.served.url, timeout=30) as client:
            assert (await client.get("/livez")).status_code == 200
        await callers
        await judge_by_subscriber(load, w, ended)


async def test_bodies_at_and_over_the_limit(world):
    """A body at the limit is published, one more byte is 413, with and without Content-Length."""
    async with (
        world("--max-body-bytes", "5000000") as w,
        httpx.AsyncClient(base_url=w.served.url, timeout=30) as client,
    ):
        start = b'{"event_type":"order.placed","user_id":"u","order_id":"o","payload":{"x":"'

        async def post(size: int, *, chunked: bool) -> int:
            body = start + b"x" * (size - len(start) - 3) + b'"}}'

            async def chunks():
                for at in range(0, len(body), 100_000):
                    yield body[at : at + 100_000]

            content = chunks() if chunked else body
            headers = {"Content-Type": "application/json"}
            return (await client.post("/events/ingest", content=content, headers=headers)).status_code

        for chunked in (False, True):
            assert await post(5_000_000, chunked=chunked) == 202
            assert await post(5_000_001, chunked=chunked) == 413


async def test_clock_set_back(world, start, judge_by_subscriber, tmp_path):
    """The clock is set back by an hour under load: event ids stay unique, and everything else works."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    load = Load()
    async with world(PYTHONPATH=str(tmp_path)) as w:
        callers = start(crowd(w.served.url, load, USERS, 40, pause=0.02))
        await until(lambda: len(load.accepted) > 100)
        async with httpx.AsyncClient(base_url=w.served.url) as client:

            async def ids() -> list[str]:
                body = {"event_type": "order.placed", "user_id": "u", "order_id": "o", "payload": {}}
                answers = [await client.post("/events/ingest", json=body) for _ in range(20)]
                found = [answer.json()["event_id"] for answer in answers]
                load.sent.update(found)
                return found

            before = await ids()
            (tmp_path / "back").touch()
            ended = time.monotonic()
            after = await ids()
        assert max(after) < min(before)
        assert len({*before, *after}) == 40
        await callers
        assert not load.refused
        await judge_by_subscriber(load, w, ended)


# gRPC asks Python's time.time() and the system's own clock, and would see them differ as no real clock does.
CLOCK = """
import time
from pathlib import Path
back = Path(__file__).with_name("back")
now_ns = time.time_ns
time.time_ns = lambda: now_ns() - 3600 * 10**9 * back.exists()
"""
