"""Fixtures of the fault suite: the service as a process, with a broker that fails, and the report."""

import asyncio
import os
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from pulsecart.testing import PublishRequest, StrictPubsub, strict_pubsub
from tests.faults.load import Load, first_deliveries, longest_wait
from tests.faults.proxy import Proxy, proxy
from tests.google_login import TokenEndpoint, token_endpoint
from tests.serving import Served, serving
from tests.subscriber import Subscriber, subscriber

TOPIC = "pulsecart.commerce-events"
DEADLINE = "2"
MOST_MEMORY_MB = 400

_report = pytest.StashKey[list[str]]()
_hostile = pytest.StashKey[list[str]]()


@define
class World:
    """A running service, its proxy to the emulator, and a subscription."""

    served: Served
    proxy: Proxy
    project: str
    subscriber: Subscriber


class Always(deque[Any]):
    """A script that replies to every request in the same way."""

    def popleft(self) -> Any:
        return self[0]


@pytest.fixture
def wire(request: pytest.FixtureRequest) -> str:
    """Return how the service publishes: rest, unless the test says otherwise."""
    return getattr(request, "param", "rest")


@asynccontextmanager
async def running(*arguments: str, cwd: Path, **environment: str) -> AsyncIterator[Served]:
    """Run the service, and wait for it in a thread: it starts and stops with servers that run in this event loop."""
    service = serving(*arguments, cwd=cwd, **environment)
    served = await asyncio.to_thread(service.__enter__)
    try:
        yield served
    finally:
        await asyncio.to_thread(service.__exit__, None, None, None)


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> int:
    """Return the factor of the load: 10 with `--long`, otherwise 1."""
    return 10 if request.config.getoption("--long") else 1


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., asyncio.Task[None]]]:
    """Run coroutines in the background, and cancel them at the end of the test."""
    tasks: list[asyncio.Task[None]] = []

    def run(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(coroutine))
        return tasks[-1]

    yield run
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def world(tmp_path: Path, wire: str) -> Callable[..., AsyncIterator[World]]:
    """Run the service with the emulator as its broker, through a proxy. `front` returns the address for the service."""

    @asynccontextmanager
    async def run(
        *arguments: str, front: Callable[[str], str] = lambda address: address, **environment: str
    ) -> AsyncIterator[World]:
        project = f"p-{uuid.uuid4().hex[:12]}"
        emulator = os.environ["PUBSUB_EMULATOR_HOST"]
        with subscriber(emulator, project) as client:
            await asyncio.to_thread(client.create_topic, TOPIC)
            async with proxy(emulator) as passes:
                host = front(passes.address)
                options = ("--project", project, "--emulator-host", host, "--publish-deadline", DEADLINE)
                async with running(*options, "--wire", wire, *arguments, cwd=tmp_path, **environment) as served:
                    await asyncio.to_thread(client.subscribe, [TOPIC])
                    yield World(served, passes, project, client)

    return run


@pytest.fixture
def judged(request: pytest.FixtureRequest) -> Callable[..., float]:
    """Check a load: no accepted event is lost, first deliveries are in order, and no others are delivered.

    Returns the longest time that a user has waited for an accepted event since `fault_ended`. For a fault from which
    the service recovers while it lasts, that is when it has begun.
    """

    def judge(load: Load, delivered: list[str], memory_mb: float, fault_ended: float | None = None) -> float:
        found = first_deliveries(delivered)
        lost = set(load.accepted) - set(delivered)
        made_up = set(delivered) - load.sent
        disordered = [user for user, numbers in found.items() if numbers != sorted(numbers)]
        recovery = 0.0 if fault_ended is None else longest_wait(load, fault_ended)
        figures = [len(load.sent), len(load.accepted), len(delivered), len(lost), len(disordered), f"{memory_mb:.0f}"]
        name = request.node.name.removeprefix("test_").replace("_", " ")
        row = " | ".join([name, *map(str, figures), "" if fault_ended is None else f"{recovery:.1f}"])
        request.config.stash.setdefault(_report, []).append(f"| {row} |")
        assert (lost, made_up, disordered) == (set(), set(), [])
        assert memory_mb < MOST_MEMORY_MB
        return recovery

    return judge


@pytest.fixture
def judge_by_subscriber(judged) -> Callable[..., object]:
    """Check a load by the messages that Google's subscriber pulls."""

    async def judge(load: Load, world: World, fault_ended: float | None = None) -> float:
        memory_mb = world.served.peak_memory_mb
        delivered = await asyncio.to_thread(world.subscriber.pull_event_ids, TOPIC, set(load.accepted))
        return judged(load, delivered, memory_mb, fault_ended)

    return judge


@pytest.fixture
def strictly(tmp_path: Path, wire: str) -> Callable[..., AsyncIterator[tuple[Served, StrictPubsub]]]:
    """Run the service with the strict server as its broker."""

    @asynccontextmanager
    async def run(*arguments: str, **environment: str) -> AsyncIterator[tuple[Served, StrictPubsub]]:
        async with strict_pubsub([TOPIC], project="strict") as server:
            options = ("--project", "strict", "--emulator-host", server.host, "--publish-deadline", DEADLINE)
            async with running(*options, "--wire", wire, *arguments, cwd=tmp_path, **environment) as served:
                yield served, server

    return run


@pytest.fixture
def securely(tmp_path: Path, wire: str) -> Callable[..., AsyncIterator[tuple[Served, StrictPubsub, TokenEndpoint]]]:
    """Run the service as in production: TLS, and tokens with a lifetime in seconds, which the strict server checks."""

    @asynccontextmanager
    async def run(
        lifetime: int = 3600, **environment: str
    ) -> AsyncIterator[tuple[Served, StrictPubsub, TokenEndpoint]]:
        first_seen: dict[str, float] = {}

        def reject_expired_token(request: PublishRequest) -> str | None:
            now = time.monotonic()
            seen = first_seen.setdefault(request.headers["authorization"], now)
            return "UNAUTHENTICATED" if now - seen > lifetime else None

        with token_endpoint(lifetime=lifetime) as endpoint:
            machine = endpoint.url.removeprefix("http://")
            async with strict_pubsub([TOPIC], project="strict", tls=True) as server:
                server.script = Always([reject_expired_token])
                where = ("--transport", "pubsub", "--environment", "prod", "--endpoint", server.host, "--wire", wire)
                where += ("--auth", "none")
                async with running(
                    *where,
                    *("--project", "strict", "--publish-deadline", DEADLINE),
                    cwd=tmp_path,
                    CLOUDSDK_CONFIG=str(tmp_path),
                    GCE_METADATA_HOST=machine,
                    GCE_METADATA_IP=machine,
                    PULSECART_CA_FILE=server.roots_file,
                    PUBSUB_EMULATOR_HOST="",
                    **environment,
                ) as served:
                    yield served, server, endpoint

    return run


@pytest.fixture
def judge_by_server(judged) -> Callable[..., float]:
    """Check a load by the messages that the strict server has confirmed."""

    def judge(load: Load, served: Served, server: StrictPubsub, fault_ended: float | None = None) -> float:
        delivered = [message.attributes["event_id"] for message in server.confirmed]
        return judged(load, delivered, served.peak_memory_mb, fault_ended)

    return judge


def hostile_report(config: pytest.Config, figures: list[str]) -> None:
    """Add a row to the report on hostile clients."""
    config.stash.setdefault(_hostile, []).append(f"| {' | '.join(figures)} |")


REPORTS = {
    "faults": (_report, ["fault", "sent", "202", "deliveries", "lost", "users out of order", "peak MB", "recovery s"]),
    "hostile clients, next to a well-behaved one": (
        _hostile,
        ["attack", "sent by attackers", "MB sent", "peak MB", "growth MB", "answered", "refused", "slowest answer ms"],
    ),
}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for title, (key, columns) in REPORTS.items():
        if rows := config.stash.get(key, []):
            terminalreporter.section(title)
            terminalreporter.line(f"| {' | '.join(columns)} |")
            terminalreporter.line("|---" * len(columns) + "|")
            for row in rows:
                terminalreporter.line(row)


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition, for a limited time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        await asyncio.sleep(0.02)
