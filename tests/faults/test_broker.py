"""Failures of the broker: every event answered 202 is delivered, and in order."""

import asyncio
import os
import random
import time
import uuid

import grpc
import httpx
import pytest

from pulsecart import BrokerUnavailable, Limits, Producer, Receipt
from pulsecart.events import OrderPlaced
from pulsecart.transports import EmulatorTransport
from tests.faults.conftest import TOPIC, until
from tests.faults.load import Load, call, crowd
from tests.faults.proxy import Proxy, proxy
from tests.subscriber import subscriber

pytestmark = [
    pytest.mark.faults,
    pytest.mark.emulator,
    pytest.mark.anyio,
    pytest.mark.parametrize("wire", ["rest", "grpc"], indirect=True),
]

USERS = [f"user-{number}" for number in range(20)]


async def test_connection_reset_at_random(start, world, judge_by_subscriber, scale):
    """The connection to the broker is reset fifty times under load."""
    load = Load()
    async with world() as w:
        callers = start(crowd(w.served.url, load, USERS, 60 * scale, pause=0.02))
        for _ in range(50):
            await asyncio.sleep(random.uniform(0, 0.1))
            w.proxy.cut()
        ended = time.monotonic()
        await callers
        await judge_by_subscriber(load, w, ended)


@pytest.mark.parametrize("direction", ["requests", "answers"])
async def test_silent_broker(start, world, judge_by_subscriber, direction, scale):
    """For longer than the deadline no bytes reach the broker, or none arrive from it while it publishes."""
    load = Load()
    async with world() as w:
        flows = getattr(w.proxy, direction)
        callers = start(crowd(w.served.url, load, USERS, 40 * scale, pause=0.02))
        await until(lambda: len(load.accepted) > 100)
        flows.clear()
        await asyncio.sleep(6)
        flows.set()
        ended = time.monotonic()
        await callers
        assert load.refused["503"]
        await judge_by_subscriber(load, w, ended)


async def test_broker_refuses_connections(start, world, judge_by_subscriber, scale):
    """For 30 seconds the broker refuses connections; the service is not ready, and becomes ready again afterwards."""
    load = Load()
    async with world() as w:
        callers = start(crowd(w.served.url, load, USERS, 40 * scale, pause=0.02))
        await until(lambda: len(load.accepted) > 100)
        await w.proxy.refuse()
        await asyncio.sleep(30)
        await w.proxy.listen()
        ended = time.monotonic()
        await callers
        assert load.refused["503"]
        await judge_by_subscriber(load, w, ended)


async def test_slow_broker(world, judge_by_subscriber, scale):
    """Each answer of the broker is delayed by half a second."""
    load = Load()
    async with world() as w:
        w.proxy.delay = 0.5
        await crowd(w.served.url, load, USERS, 8 * scale)
        await judge_by_subscriber(load, w)


async def test_topic_deleted_and_created_again(start, world, judged, scale):
    """While the topic is missing, events get retryable errors; when it exists again, they are published."""
    load = Load()
    # In development the service would create it, and publish to it before it has a subscription.
    async with world("--transport", "emulator", "--environment", "staging", "--auth", "none") as w:
        callers = start(crowd(w.served.url, load, USERS, 40 * scale, pause=0.02))
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


async def test_broker_with_many_errors(start, strictly, judge_by_server, scale):
    """For a while the broker answers most requests with RESOURCE_EXHAUSTED or another error."""
    load = Load()
    async with strictly() as (served, server):
        callers = start(crowd(served.url, load, USERS, 40 * scale, pause=0.01))
        await until(lambda: len(load.accepted) > 100)
        statuses = [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, None]
        server.script.extend(random.choices(statuses, k=600))
        await until(lambda: not server.script)
        ended = time.monotonic()
        await callers
        judge_by_server(load, served, server, ended)


async def test_rejected_message_among_thousands(start, strictly, judge_by_server, scale):
    """A message that the broker rejects fails alone; the other messages of its request are published."""
    load = Load()
    async with strictly("--ordering", f"{TOPIC}=shards:2") as (served, server):
        server.poison = b"poison-pill"
        server.latency = 0.02
        callers = start(crowd(served.url, load, [f"user-{n}" for n in range(100)], 20 * scale))
        async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
            for number in range(10):
                body = {
                    "event_type": "order.placed",
                    "user_id": f"bad-{number}",
                    "order_id": "poison-pill",
                    "payload": {},
                }
                answer = await client.post("/events/ingest", json=body)
                assert (answer.status_code, answer.json()["type"]) == (422, "message-refused")
        await callers
        assert max(len(request.messages) for request in server.requests) > 10
        judge_by_server(load, served, server)


async def test_one_hot_user(strictly, judge_by_server):
    """While one user's events wait for each other for seconds, other users' events do not wait."""
    hot, others = Load(), Load()
    async with strictly("--batching", f"{TOPIC}=1:1000000:0", "--publish-deadline", "20") as (served, server):
        server.latency = 0.05
        async with asyncio.TaskGroup() as callers:
            for number in range(60):
                callers.create_task(call(served.url, hot, "hot", 1, first=number))
            callers.create_task(crowd(served.url, others, [f"user-{n}" for n in range(50)], 5))
        assert others.slowest < hot.slowest / 2
        delivered = [m.attributes["event_id"] for m in server.confirmed if m.ordering_key != "hot"]
        assert set(others.accepted) == set(delivered)
        others.sent |= hot.sent
        judge_by_server(others, served, server)


async def test_token_endpoint_down(start, securely, judge_by_server):
    """When tokens expire and cannot be renewed, events get retryable errors until there is a new token."""
    load = Load()
    async with securely(lifetime=4) as (served, server, endpoint):
        callers = start(crowd(served.url, load, USERS, 40, pause=0.3))
        await until(lambda: len(load.accepted) > 100)
        endpoint.down = True
        await until(lambda: load.refused["503"])
        endpoint.down = False
        ended = time.monotonic()
        await callers
        judge_by_server(load, served, server, ended)


async def test_hundreds_of_messages_at_once_on_one_key(start, judged, wire, scale):
    """With the library, messages published concurrently on a key keep their order when failed ones are retried."""
    emulator, project = os.environ["PUBSUB_EMULATOR_HOST"], f"p-{uuid.uuid4().hex[:12]}"
    load = Load()
    with subscriber(emulator, project) as client:
        await asyncio.to_thread(client.create_topic, TOPIC)
        await asyncio.to_thread(client.subscribe, [TOPIC])
        async with (
            proxy(emulator) as passes,
            EmulatorTransport(project=project, host=passes.address, wire=wire, limits=Limits(deadline=2)) as transport,
        ):
            producer = Producer(transport)
            left = [f"user:{number}" for number in range(500 * scale)]
            load.sent.update(left)
            start(cut_now_and_then(passes))
            while left:
                events = [OrderPlaced(user_id="user", order_id="o", event_id=each, payload={}) for each in left]
                results = await asyncio.gather(*map(producer.publish, events), return_exceptions=True)
                failed = []
                for event_id, result in zip(left, results, strict=True):
                    if isinstance(result, Receipt):
                        load.accepted[event_id] = time.monotonic()
                    else:
                        assert isinstance(result, BrokerUnavailable)
                        failed.append(event_id)
                left = failed
                await asyncio.sleep(0.1)

        delivered = await asyncio.to_thread(client.pull_event_ids, TOPIC, set(load.accepted))
        judged(load, delivered, 0)


async def cut_now_and_then(passes: Proxy) -> None:
    """Repeatedly reset connections, and then block answers for longer than the deadline."""
    while True:
        for _ in range(3):
            await asyncio.sleep(random.uniform(0, 0.05))
            passes.cut()
        passes.answers.clear()
        await asyncio.sleep(3)
        passes.answers.set()
