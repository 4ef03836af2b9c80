"""Measure pulsecart without HTTP: `library.py [USERS]` prints one line of JSON.

This process publishes to a broker: one event per request over a bare gRPC stub, at PUBSUB_GRPC_HOST; then at
PUBSUB_EMULATOR_HOST, one event per request, ordered by user; then unordered, 100 messages per request. Finally it
publishes events of USERS distinct users, and reports resident memory before and after.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Any

import grpc.aio
import psutil
import uvloop

from benchmarks import floor
from pulsecart import Batching, Limits, Message, Producer, unordered
from pulsecart.events import OrderPlaced
from pulsecart.transports import EmulatorTransport

MESSAGES = 20_000
CALLERS, AT_ONCE = 8, 200
"""The number of callers, and how many publishes each awaits at once."""

ONE_BY_ONE = 8000
"""Events that are published one per request, by 64 callers that await each one."""

TOPIC = OrderPlaced.topic


def ready_messages() -> list[Message]:
    """Return unordered messages of about the size of an order."""
    data = b'{"event_type":"order.placed","user_id":"user-1","order_id":"order-1","payload":{"note":"%b"}}' % (
        b"x" * 150
    )
    return [
        Message(topic=TOPIC, data=data, attributes={"event_type": "order.placed", "event_id": f"evt_{number:032x}"})
        for number in range(MESSAGES)
    ]


def events() -> list[OrderPlaced]:
    """Return orders, each by a different user."""
    return [
        OrderPlaced(user_id=f"user-{number}", order_id="order-1", payload={"total": number, "note": "x" * 100})
        for number in range(MESSAGES)
    ]


async def rate(
    publish: Callable[[Any], Awaitable[object]], items: list[Any], callers: int = CALLERS, at_once: int = AT_ONCE
) -> dict[str, float]:
    """Publish all items, and return the rate per second and the CPU time per item."""

    async def call(part: list[Any]) -> None:
        for start in range(0, len(part), at_once):
            await asyncio.gather(*map(publish, part[start : start + at_once]))

    clock, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call(items[first::callers]) for first in range(callers)))
    return {
        "per_second": len(items) / (time.perf_counter() - clock),
        "cpu_us": (time.process_time() - cpu) / len(items) * 1e6,
    }


def resident_mb() -> float:
    """Return this process's resident memory."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


async def publish_distinct(producer: Producer, users: Iterator[int]) -> None:
    """Publish one event for each user, one after another."""
    for user in users:
        await producer.publish(OrderPlaced(user_id=f"distinct-{user}", order_id="order-1", payload={"total": 1}))


async def main(users: int) -> None:
    """Measure, and print the result."""
    limits = Limits(max_messages=2 * MESSAGES, max_bytes=10**9, batching={TOPIC: Batching(max_messages=100)})
    host = os.environ["PUBSUB_EMULATOR_HOST"]
    async with EmulatorTransport(project=floor.PROJECT, host=host, limits=limits) as transport:
        messages, orders = ready_messages(), events()
        producer = Producer(transport, ordering={TOPIC: unordered})
        await rate(transport.publish, messages[:2000])
        alone = {"callers": 64, "at_once": 1}
        by_user = Producer(transport)
        await rate(by_user.publish, orders[:1000], **alone)
        async with grpc.aio.insecure_channel(os.environ["PUBSUB_GRPC_HOST"]) as channel:
            publish = floor.bare_stub(channel, floor.TOPIC)

            def publish_bare(message: Message) -> Awaitable[object]:
                return publish(message.data, message.attributes["event_id"])

            await rate(publish_bare, messages[:1000], **alone)
            result: dict[str, Any] = {"stub": await rate(publish_bare, messages[:ONE_BY_ONE], **alone)}
        result |= {
            "ordered": await rate(by_user.publish, orders[:ONE_BY_ONE], **alone),
            "transport": await rate(transport.publish, messages),
            "producer": await rate(producer.publish, orders),
        }
        del messages, orders
        if users:
            numbers = iter(range(users + 10_000))
            await asyncio.gather(*(publish_distinct(by_user, islice(numbers, 100)) for _ in range(100)))
            result |= {"users": users, "before_mb": resident_mb()}
            await asyncio.gather(*(publish_distinct(by_user, numbers) for _ in range(64)))
            result["after_mb"] = resident_mb()
    print(json.dumps(result))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
