"""Batches and streams under load while the broker fails: nothing that was accepted is lost, and all is in order."""

import asyncio
import json
import random
import time
from typing import Any

import httpx
import pytest

from tests.faults.conftest import until
from tests.faults.load import GIVE_UP_SECONDS, Load

pytestmark = [pytest.mark.faults, pytest.mark.emulator, pytest.mark.anyio]

USERS, EVENTS, BATCHES = 20, 200, 8


def order(user: str, number: int) -> dict[str, Any]:
    return {"event_type": "order.placed", "user_id": user, "order_id": "o", "payload": {"number": number}}


async def post(client: httpx.AsyncClient, form: str, events: list[dict[str, Any]], **headers: str) -> httpx.Response:
    if form == "array":
        return await client.post("/events/batch", json=events, headers=headers)
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    return await client.post("/events/batch", content=lines, headers={"Content-Type": "application/x-ndjson"} | headers)


async def upload(url: str, load: Load, form: str, name: str) -> None:
    """Send batches one after another, and what failed again, in its order, before the next one."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for batch in range(BATCHES):
            left = []
            for number in range(EVENTS):
                user = f"{name}-{number % USERS}"
                each = batch * EVENTS // USERS + number // USERS
                left.append(order(user, each) | {"event_id": f"{user}:{each}"})
            load.sent.update(event["event_id"] for event in left)
            start = time.monotonic()
            while left:
                assert time.monotonic() - start < GIVE_UP_SECONDS, dict(load.refused)
                answer = await post(client, form, left)
                failed = left if answer.status_code != 202 else []
                if answer.status_code != 202:
                    load.refused[str(answer.status_code)] += 1
                    document = answer.json()
                    assert document["retryable"], document
                    if "results" in document:
                        done = document.get("stopped_at", len(left) + 1) - 1
                        failed = [left[result["index"]] for result in document["results"]] + left[done:]
                resent = {event["event_id"] for event in failed}
                load.accepted |= {
                    event["event_id"]: time.monotonic() for event in left if event["event_id"] not in resent
                }
                left = failed
                if left:
                    await asyncio.sleep(0.1)


async def uploads(url: str, load: Load, form: str) -> None:
    async with asyncio.TaskGroup() as callers:
        for number in range(3):
            callers.create_task(upload(url, load, form, f"user-{number}"))


@pytest.mark.parametrize("form", ["array", "lines"])
@pytest.mark.parametrize("fault", ["cut", "stalled", "slow"])
async def test_batches(start, world, judge_by_subscriber, fault, form):
    """The broker's connections are reset, it says nothing for longer than the deadline, or it is slow."""
    load = Load()
    async with world() as w:
        w.proxy.delay = 0.2 if fault == "slow" else 0.02
        callers = start(uploads(w.served.url, load, form))
        await until(lambda: load.accepted)
        if fault == "cut":
            for _ in range(20):
                await asyncio.sleep(random.uniform(0, 0.1))
                w.proxy.cut()
        elif fault == "stalled":
            w.proxy.answers.clear()
            await asyncio.sleep(5)
            w.proxy.answers.set()
        ended = time.monotonic()
        await callers
        assert fault != "stalled" or load.refused["503"]
        await judge_by_subscriber(load, w, ended)


@pytest.mark.parametrize("form", ["array", "lines"])
async def test_key_of_one_user_fails_among_many(start, strictly, judge_by_server, form):
    """While requests of one user fail, batches of all users go on; that user's events arrive in order afterwards."""
    load = Load()
    async with strictly() as (served, server):
        failing = True

        def reply(request):
            server.script.append(reply)
            return "UNAVAILABLE" if failing and request.messages[0].ordering_key == "user-0-7" else None

        server.script.append(reply)
        callers = start(uploads(served.url, load, form))
        await until(lambda: load.refused["503"] >= 2)
        assert any(not event_id.startswith("user-0-7:") for event_id in load.accepted)
        failing = False
        ended = time.monotonic()
        await callers
        judge_by_server(load, served, server, ended)


@pytest.mark.parametrize("form", ["array", "lines"])
async def test_whole_body_is_resent_under_its_idempotency_key(strictly, form):
    """After failures in the middle, the same body under the same key gives each event once, in order, by its id."""
    async with strictly() as (served, server):
        events = [order(f"user-{number % 10}", number) for number in range(300)]
        statuses = iter([None, "UNAVAILABLE", None, "FAILED_PRECONDITION"] * 10)

        def reply(_request):
            server.script.append(reply)
            return next(statuses, None)

        server.script.append(reply)
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            answers = []
            while not answers or answers[-1] != 202:
                answer = await post(client, form, events, **{"Idempotency-Key": '"body-1"'})
                answers.append(answer.status_code)
                assert len(answers) < 60
        assert 503 in answers
    seen: dict[str, dict[str, None]] = {}
    numbers: dict[str, int] = {}
    for message in server.confirmed:
        event_id = message.attributes["event_id"]
        seen.setdefault(message.ordering_key, {}).setdefault(event_id)
        numbers[event_id] = json.loads(message.data)["payload"]["number"]
    for user in range(10):
        assert [numbers[event_id] for event_id in seen[f"user-{user}"]] == list(range(user, 300, 10))
