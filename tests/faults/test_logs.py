"""Logs that nobody reads."""

import asyncio

import httpx
import pytest

from tests.faults.conftest import MOST_MEMORY_MB, hostile_report, until
from tests.faults.load import Load, call, first_deliveries
from tests.serving import serving

pytestmark = [pytest.mark.faults, pytest.mark.emulator, pytest.mark.anyio]

USERS = [f"user-{number}" for number in range(20)]
PART = 300
"""Events of each user before the messages are read: the memory transport keeps the last 10,000."""


async def test_unread_logs(request, scale, tmp_path):
    """While the log's pipe is full, events are published without delay; then dropped lines are counted."""
    load = Load()
    delivered: list[str] = []
    service = serving("--transport", "memory", cwd=tmp_path)
    served = await asyncio.to_thread(service.__enter__)
    try:
        before_mb = served.peak_memory_mb
        served.pause_reading()
        async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
            for first in range(0, 2 * PART * scale, PART):
                async with asyncio.TaskGroup() as callers:
                    for user in USERS:
                        callers.create_task(call(served.url, load, user, PART, first=first))
                messages = (await client.get("/dev/messages")).json()["messages"]
                delivered += [message["data"]["event_id"] for message in messages]
                await client.delete("/dev/messages")
        peak_mb = served.peak_memory_mb
        served.read_on()
        await until(lambda: "log lines were dropped" in served.output)
    finally:
        await asyncio.to_thread(service.__exit__, None, None, None)
    found = first_deliveries(delivered)
    lost = set(load.accepted) - set(delivered)
    disordered = [user for user, numbers in found.items() if numbers != sorted(numbers)]
    memory = [f"{peak_mb:.0f}", f"{peak_mb - before_mb:.0f}"]
    answers = [str(len(load.accepted)), str(sum(load.refused.values())), f"{load.slowest * 1e3:.0f}"]
    hostile_report(request.config, ["unread logs", f"{len(load.sent):,} sound events", "-", *memory, *answers])
    assert (lost, disordered, dict(load.refused)) == (set(), [], {})
    assert load.slowest < 5
    assert peak_mb < MOST_MEMORY_MB
