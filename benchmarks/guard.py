"""Measure what the guard adds to a transport of others: `python -m benchmarks.guard` prints one line of JSON.

The transports do nothing: one answers at once, one waits for the event loop once. Each number is the least of many
rounds, in microseconds an event: other work on the machine only adds to it.
"""

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

import uvloop

from pulsecart import Message, Transport
from pulsecart.guard import Guarded

ROUNDS = 200
EVENTS = 5_000

MESSAGE = Message(topic="t", data=b"{}", attributes={"event_type": "t", "event_id": "evt_1"}, ordering_key="u")


class Immediate:
    """A transport that does nothing."""

    async def publish(self, _message: Message) -> str:
        return "1"

    async def check(self, _topics: Iterable[str]) -> list[str]:
        return []

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class Waiting(Immediate):
    """A transport that waits for the event loop once."""

    async def publish(self, _message: Message) -> str:
        await asyncio.sleep(0)
        return "1"


async def microseconds(transport: Transport) -> float:
    """Return the least time of a publish."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(EVENTS):
            await transport.publish(MESSAGE)
        rounds.append((time.perf_counter() - start) / EVENTS * 1e6)
    return min(rounds)


async def measure() -> dict[str, Any]:
    """Return the times with and without the guard, and their difference."""
    found = {}
    for transport in (Immediate(), Waiting()):
        direct, watched = await microseconds(transport), await microseconds(Guarded(transport))
        name = type(transport).__name__.lower()
        found[name] = {"direct": direct, "guarded": watched, "added": watched - direct}
    return found


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure())))
