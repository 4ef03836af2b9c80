"""The broker fails, and comes back: every 202 was true, and order holds."""

import asyncio
import random
import time

import pytest

from tests.faults.conftest import TOPIC, until
from tests.faults.load import Load, crowd

pytestmark = [pytest.mark.faults, pytest.mark.emulator, pytest.mark.anyio]

USERS = [f"user-{number}" for number in range(20)]


async def test_connection_cut_at_random(world, judge_by_subscriber, scale):
    """The connection to the broker is cut fifty times, under load."""
    load = Load()
    async with world() as w:
        callers = asyncio.create_task(crowd(w.served.url, load, USERS, 60 * scale, pause=0.02))
        for _ in range(50):
            await asyncio.sleep(random.uniform(0, 0.1))
            w.proxy.cut()
        ended = time.monotonic()
        await callers
        await judge_by_subscriber(load, w, ended)


@pytest.mark.parametrize("direction", ["requests", "answers"])
async def test_broker_silent(world, judge_by_subscriber, direction, scale):
    """Past the deadline nothing is passed on: to the broker, or, while it goes on publishing, from it."""
    load = Load()
    async with world() as w:
        flows = getattr(w.proxy, direction)
        callers = asyncio.create_task(crowd(w.served.url, load, USERS, 40 * scale, pause=0.02))
        await until(lambda: len(load.accepted) > 100)
        flows.clear()
        await asyncio.sleep(6)
        flows.set()
        ended = time.monotonic()
        await callers
        assert load.refused["503"]
        await judge_by_subscriber(load, w, ended)


async def test_broker_refuses_connections(world, judge_by_subscriber, scale):
    """For thirty seconds nobody listens; readiness falls meanwhile, and comes back by itself."""
    load = Load()
    async with world() as w:
        callers = asyncio.create_task(crowd(w.served.url, load, USERS, 40 * scale, pause=0.02))
        await until(lambda: len(load.accepted) > 100)
        await w.proxy.refuse()
        await asyncio.sleep(30)
        await w.proxy.listen()
        ended = time.monotonic()
        await callers
        assert load.refused["503"]
        await judge_by_subscriber(load, w, ended)


async def test_broker_slow(world, judge_by_subscriber, scale):
    """Each answer comes half a second late."""
    load = Load()
    async with world() as w:
        w.proxy.delay = 0.5
        await crowd(w.served.url, load, USERS, 8 * scale)
        await judge_by_subscriber(load, w)


async def test_topic_deleted_and_made_again(world, judged, scale):
    """While the topic is missing events are refused, retryably; when it is back they are published."""
    load = Load()
    async with world() as w:
        callers = asyncio.create_task(crowd(w.served.url, load, USERS, 40 * scale, pause=0.02))
        await until(lambda: len(load.accepted) > 100)
        await asyncio.to_thread(w.subscriber.delete_topic, TOPIC)
        await until(lambda: load.refused["503"])
        await w.proxy.refuse()  # nothing is to be published before there is a new subscription
        delivered = await asyncio.to_thread(w.subscriber.pull_event_ids, TOPIC, set(load.accepted))
        await asyncio.to_thread(w.subscriber.create_topic, TOPIC)
        await asyncio.to_thread(w.subscriber.subscribe, [TOPIC], "again")
        await w.proxy.listen()
        ended = time.monotonic()
        await callers
        rest = set(load.accepted).difference(delivered)
        memory_mb = w.served.peak_memory_mb
        delivered += await asyncio.to_thread(w.subscriber.pull_event_ids, TOPIC, rest, "again")
        judged(load, delivered, memory_mb, ended)
