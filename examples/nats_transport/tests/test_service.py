"""`pulsecart serve --transport nats`: over HTTP, and while the server is killed and started again."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pulsecart_nats import NatsTransport

from pulsecart import BrokerRefused, BrokerUnavailable, Limits, Message, TransportClosed

TOPIC = "pulsecart.commerce-events"
SECONDS = 30

Serve = Callable[..., object]

pytestmark = pytest.mark.anyio


def order(user: str, number: int, **changes: object) -> dict[str, object]:
    event_id = f"{user}-{number}"
    fields = {"event_type": "order.placed", "user_id": user, "order_id": f"order {number}", "payload": {"total": 89.9}}
    return fields | {"event_id": event_id} | changes


@contextmanager
def served(url: str, folder: Path, *arguments: str) -> Iterator[str]:
    """Run the service on a free port, and give its address."""
    command = [sys.executable, "-m", "pulsecart", "serve", "--port", "0", "--transport", "nats"]
    options = ["--transport-options", f"url={url}", *arguments]
    log = folder / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen([*command, *options], cwd=folder, stderr=stderr, stdout=subprocess.DEVNULL) as process,
    ):
        try:
            end = time.monotonic() + SECONDS
            while not (found := re.search(r"Uvicorn running on (http://[\w.:]+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()
            process.wait(SECONDS)


async def test_events_of_a_user_are_in_order(server, tmp_path):
    """Events posted one after the other by each of several users are in the stream once, and in their order."""
    users = [f"user {number}" for number in range(5)]
    with served(server.url, tmp_path) as url:
        async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:

            async def post(user: str) -> None:
                for number in range(10):
                    assert (await client.post("/events/ingest", json=order(user, number))).status_code == 202

            await asyncio.gather(*map(post, users))
            assert (await client.get("/readyz")).json() == {"status": "ready", "broker": "ok", "missing_topics": []}
    messages = await server.messages(TOPIC)
    for user in users:
        found = [message.attributes["event_id"] for message in messages if message.ordering_key == user]
        assert found == [f"{user}-{number}" for number in range(10)]
    assert b'"total":89.9' in messages[0].data


async def test_event_that_is_sent_again_is_kept_once(server, tmp_path):
    """JetStream recognizes an event by its id: a retry gets the same message id, and is not kept again."""
    with served(server.url, tmp_path) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            first, again = [
                (await client.post("/events/ingest", json=order("u", 1, order_id=order_id))).json()
                for order_id in ("o0", "o1")
            ]
    assert first["message_id"] == again["message_id"] == "pulsecart_commerce-events:1"
    (message,) = await server.messages(TOPIC)
    assert json.loads(message.data)["order_id"] == "o0"


async def test_restart_of_the_server_loses_nothing(server, tmp_path):
    """The server is killed twice under load. Each event with a 202 is in the stream once, in the order of its user."""
    confirmed: dict[str, list[str]] = {}
    failures: list[int] = []
    stop = asyncio.Event()

    with served(server.url, tmp_path, "--publish-deadline", "2") as url:
        async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:

            async def post(user: str) -> None:
                """Post events, each again until it is accepted, as a caller does."""
                number = 0
                while not stop.is_set():
                    response = await client.post("/events/ingest", json=order(user, number))
                    if response.status_code == 202:
                        confirmed.setdefault(user, []).append(response.json()["event_id"])
                        number += 1
                    else:
                        assert response.json()["type"] == "broker-unavailable"
                        failures.append(response.status_code)

            async with asyncio.TaskGroup() as group:
                for number in range(8):
                    group.create_task(post(f"user-{number}"))
                for seconds in (0.2, 3.0):  # shorter, and longer than the deadline
                    await grown(confirmed)
                    async with server.outage():
                        await asyncio.sleep(seconds)
                await grown(confirmed)
                stop.set()
    assert set(failures) == {503}
    messages = await server.messages(TOPIC)
    for user, event_ids in confirmed.items():
        found = [message.attributes["event_id"] for message in messages if message.ordering_key == user]
        assert found == event_ids


async def grown(confirmed: dict[str, list[str]]) -> None:
    """Wait until each user has had some more events confirmed."""
    before = {user: len(event_ids) for user, event_ids in confirmed.items()}
    async with asyncio.timeout(SECONDS):
        while len(confirmed) < 8 or any(
            len(event_ids) < before.get(user, 0) + 20 for user, event_ids in confirmed.items()
        ):
            await asyncio.sleep(0.02)


async def test_missing_stream_is_a_missing_topic(server):
    """A subject that no stream keeps is missing, and a message to it is not confirmed."""
    async with NatsTransport(server.url, limits=Limits(deadline=0.5)) as transport:
        assert await transport.check([TOPIC]) == [TOPIC]
        with pytest.raises(BrokerRefused, match="no stream keeps the subject"):
            await transport.publish(Message(topic=TOPIC, data=b"{}", attributes={}))
        await transport.create_topics([TOPIC])
        assert await transport.check([TOPIC]) == []
        assert await transport.publish(Message(topic=TOPIC, data=b"{}", attributes={})) == "pulsecart_commerce-events:1"


async def test_outage_is_reported(server):
    """While the server is away, a check and the creation of topics raise BrokerUnavailable."""
    async with NatsTransport(server.url, limits=Limits(deadline=0.5)) as transport, server.outage():
        for ask in (transport.check, transport.create_topics):
            with pytest.raises(BrokerUnavailable):
                await ask([TOPIC])
    with pytest.raises(TransportClosed):
        await transport.check([TOPIC])


def test_service_does_not_start_without_the_server(tmp_path):
    """If NATS cannot be reached at the start, one sentence says so."""
    command = [sys.executable, "-m", "pulsecart", "serve", "--port", "0", "--transport", "nats"]
    options = ["--transport-options", "url=nats://127.0.0.1:1"]
    ended = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=2 * SECONDS, check=False
    )
    assert ended.returncode == 3
    assert "the transport nats failed to open: ConnectionError: NATS does not answer at 127.0.0.1:1" in ended.stderr
    assert "Traceback" not in ended.stderr
