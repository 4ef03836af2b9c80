"""Well-behaved callers: each waits for its answer, and retries with the same event id."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

import httpx
from attrs import Factory, define

GIVE_UP_SECONDS = 90.0
"""How long a caller retries an event. It is much longer than any fault: after it, the test fails."""


@define
class Load:
    """What callers have sent, and the results."""

    sent: set[str] = Factory(set)
    accepted: dict[str, float] = Factory(dict)
    """When each event was answered 202."""
    refused: dict[str, int] = Factory(lambda: defaultdict(int))
    """The number of other answers, by status; `none` if there was no answer."""
    slowest: float = 0.0


async def call(  # noqa: PLR0913 (options of the load)
    url: str, load: Load, user: str, events: int, *, first: int = 0, pause: float = 0.0
) -> None:
    """Post numbered events of one user, one after another."""
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        for number in range(first, first + events):
            event_id = f"{user}:{number}"
            load.sent.add(event_id)
            body = {
                "event_type": "order.placed",
                "user_id": user,
                "order_id": "o",
                "event_id": event_id,
                "payload": {"number": number},
            }
            start = time.monotonic()
            while await _status(client, body, load) != 202:
                assert time.monotonic() - start < GIVE_UP_SECONDS, (
                    f"{event_id} was never accepted: {dict(load.refused)}"
                )
                await asyncio.sleep(0.1)
            load.accepted[event_id] = time.monotonic()
            load.slowest = max(load.slowest, time.monotonic() - start)
            if pause:
                await asyncio.sleep(pause)


async def _status(client: httpx.AsyncClient, body: dict[str, object], load: Load) -> int:
    try:
        response = await client.post("/events/ingest", json=body)
    except httpx.TransportError:
        load.refused["none"] += 1
        return 0
    if response.status_code != 202:
        load.refused[str(response.status_code)] += 1
        assert response.status_code == 503, response.text
        assert response.json()["retryable"] is True
    return response.status_code


async def crowd(url: str, load: Load, users: Iterable[str], events: int, *, pause: float = 0.0) -> None:
    """Run the callers of all users concurrently."""
    async with asyncio.TaskGroup() as callers:
        for user in users:
            callers.create_task(call(url, load, user, events, pause=pause))


def first_deliveries(event_ids: Iterable[str]) -> dict[str, list[int]]:
    """Return the numbers of each user's events in the order in which they were first delivered."""
    found: dict[str, dict[int, None]] = defaultdict(dict)
    for event_id in event_ids:
        user, _, number = event_id.rpartition(":")
        if user:  # ids that the service has generated have no order
            found[user].setdefault(int(number))
    return {user: list(numbers) for user, numbers in found.items()}


def longest_wait(load: Load, since: float) -> float:
    """Return the longest time in seconds, after a moment, in which no event of a user that has more was accepted."""
    moments: dict[str, list[float]] = defaultdict(lambda: [since])
    for event_id, moment in load.accepted.items():
        if moment > since:
            moments[event_id.rpartition(":")[0]].append(moment)
    return max((later - earlier for each in moments.values() for earlier, later in pairwise(each)), default=0.0)
