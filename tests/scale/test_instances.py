"""Instances behind a load balancer, which are killed, drained and added under load."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from string import Template

import httpx
import pytest
from attrs import Factory, define

from pulsecart.testing import strict_pubsub
from tests.faults.debian import installed
from tests.faults.load import first_deliveries
from tests.serving import Served, serving

pytestmark = [pytest.mark.anyio, pytest.mark.scale]

TOPIC = "pulsecart.commerce-events"
USERS = [f"user{number}" for number in range(40)]
SLOTS = ("a", "b", "c", "d")
"""haproxy's servers. Three have an instance at first."""

BROKER_SECONDS = 0.02
PAUSE_SECONDS = 0.02
RESEND_SECONDS = 0.1
WAIT_SECONDS = 30
MOST_RECOVERY_SECONDS = 10.0
"""Much more than is needed: the machine may be busy."""

DRAIN_SECONDS = "1"
"""Five times as long as haproxy needs to notice."""


@define
class Load:
    """What callers have sent, and when each was answered."""

    ends: asyncio.Event = Factory(asyncio.Event)
    sent: int = 0
    accepted: dict[str, float] = Factory(dict)
    """When each event was answered 202, by its id."""
    failures: list[tuple[float, str]] = Factory(list)
    """When a request had another answer, by status."""

    async def call(self, url: str, user: str) -> None:
        """Post events of one user until the end, each after the answer to the one before, and again if it failed."""
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=httpx.Limits(max_connections=1)) as client:
            for number in itertools.count():
                if self.ends.is_set():
                    return
                event_id = f"{user}:{number}"
                body = {"event_type": "order.placed", "user_id": user, "order_id": "o", "payload": {}}
                self.sent += 1
                first = time.monotonic()
                while (status := await _status(client, body | {"event_id": event_id})) != "202":
                    assert status in ("no answer", "502", "503", "504"), f"{event_id}: {status}"
                    assert time.monotonic() - first < WAIT_SECONDS, f"{event_id} was never accepted: {status}"
                    self.failures.append((time.monotonic(), status))
                    await asyncio.sleep(RESEND_SECONDS)
                self.accepted[event_id] = time.monotonic()
                await asyncio.sleep(PAUSE_SECONDS)

    def since(self, moment: float) -> dict[str, list[float]]:
        """Return when events were accepted after a moment, by user."""
        found: dict[str, list[float]] = defaultdict(list)
        for event_id, accepted in self.accepted.items():
            if accepted > moment:
                found[event_id.partition(":")[0]].append(accepted)
        return found

    def longest_wait(self, moment: float) -> float:
        """Return the longest time after a moment in which no event of some user was accepted."""
        return max(
            later - earlier
            for times in self.since(moment).values()
            for earlier, later in itertools.pairwise([moment, *times])
        )


async def _status(client: httpx.AsyncClient, body: dict[str, object]) -> str:
    try:
        return str((await client.post("/events/ingest", json=body)).status_code)
    except httpx.TransportError:
        return "no answer"


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def haproxy(folder: Path, ports: dict[str, int]) -> Iterator[tuple[str, Callable[[], dict[str, str]]]]:
    """Run an haproxy in front of the ports. Give its URL, and a function that returns each server's state."""
    program = installed("sbin/haproxy", "haproxy")
    (port,) = free_ports(1)
    servers = "".join(f"    server {name} 127.0.0.1:{each}\n" for name, each in ports.items())
    file = folder / "haproxy.cfg"
    template = Template(Path(__file__).with_name("haproxy.cfg").read_text())
    file.write_text(template.substitute(folder=folder, port=port, servers=servers))

    def states() -> dict[str, str]:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(folder / "admin"))
            admin.sendall(b"show stat\n")
            text = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        rows = [line.split(",") for line in text.splitlines() if line]
        status = rows[0].index("status")
        return {row[1]: row[status] for row in rows if row[0] == "instances" and row[1] in ports}

    with subprocess.Popen([program, "-f", file], stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + WAIT_SECONDS
            while True:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < end, "haproxy did not start in time"
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}", states
        finally:
            process.kill()  # it drains on SIGTERM


class Fleet:
    """Instances of the service, each on the port of its slot."""

    def __init__(self, folder: Path, broker: str, ports: dict[str, int], stack: AsyncExitStack) -> None:
        self._folder = folder
        self._broker = broker
        self._ports = ports
        self._stack = stack
        self.running: dict[str, Served] = {}

    async def add(self, *names: str) -> None:
        """Start instances, and wait until they listen."""
        started = await asyncio.gather(*(self._stack.enter_async_context(self._instance(name)) for name in names))
        self.running |= dict(zip(names, started, strict=True))

    def kill(self, *names: str) -> None:
        for name in names:
            os.kill(self.running.pop(name).pid, signal.SIGKILL)

    async def drain(self, name: str) -> None:
        """End an instance by SIGTERM, and wait until it has ended well."""
        assert await asyncio.to_thread(self.running.pop(name).stop) == 0

    @asynccontextmanager
    async def _instance(self, name: str) -> AsyncIterator[Served]:
        where = ("--port", str(self._ports[name]), "--project", "strict", "--emulator-host", self._broker)
        service = serving(*where, "--drain-delay", DRAIN_SECONDS, cwd=self._folder)
        served = await asyncio.to_thread(service.__enter__)
        try:
            yield served
        finally:
            await asyncio.to_thread(service.__exit__, None, None, None)


def judge(load: Load, delivered: list[str], report: list[list[str]]) -> None:
    """Compare what was accepted with what the broker has, in its order."""
    lost = load.accepted.keys() - set(delivered)
    disordered = [user for user, numbers in first_deliveries(delivered).items() if numbers != sorted(numbers)]
    twice = len(delivered) - len(set(delivered))
    outcome = f"in all: {len(lost)} lost, {twice} delivered twice, {len(disordered)} users out of order"
    report.append([outcome, str(len(load.accepted)), str(len(load.failures)), "", ""])
    assert load.sent == len(load.accepted)
    assert (lost, disordered) == (set(), [])
    assert set(delivered) == load.accepted.keys()


async def test_nothing_is_lost_while_instances_come_and_go(tmp_path, report):
    """What was answered 202 is with the broker, in order for callers that wait, whatever happens to instances."""
    load, ports = Load(), dict(zip(SLOTS, free_ports(len(SLOTS)), strict=True))
    report.append(["step", "events accepted", "sent again", "why", "recovery: longest wait of a user, s"])
    report.append(["---"] * 5)

    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(strict_pubsub([TOPIC], project="strict"))
        broker.latency = BROKER_SECONDS
        fleet = Fleet(tmp_path, broker.host, ports, stack)
        url, states = stack.enter_context(haproxy(tmp_path, ports))
        await fleet.add("a", "b", "c")

        def as_they_are() -> bool:
            found = states()
            return all(found[name].startswith("UP") == (name in fleet.running) for name in SLOTS)

        @asynccontextmanager
        async def step(name: str) -> AsyncIterator[None]:
            """Do something, wait until haproxy has noticed and every user has had ten answers, and report."""
            began = time.monotonic()
            yield
            await until(as_they_are)
            settled = time.monotonic()
            await until(lambda: sum(len(times) >= 10 for times in load.since(settled).values()) == len(USERS))
            failures = Counter(status for moment, status in load.failures if moment > began)
            events, wait = sum(map(len, load.since(began).values())), load.longest_wait(began)
            said = ", ".join(f"{status}: {count}" for status, count in sorted(failures.items()))
            report.append([name, str(events), str(failures.total()), said, f"{wait:.2f}"])
            assert wait < MOST_RECOVERY_SECONDS
            gentle = not name.startswith("kill")
            assert not (gentle and failures), f"{name}: {said}"

        await until(as_they_are)
        async with asyncio.TaskGroup() as callers:
            for user in USERS:
                callers.create_task(load.call(url, user))
            await until(lambda: len(load.since(0)) == len(USERS))
            async with step("nothing happens"):
                pass
            async with step("kill one of three"):
                fleet.kill("a")
            async with step("add one"):
                await fleet.add("a")
            async with step("drain one of three"):
                await fleet.drain("b")
            async with step("add two"):
                await fleet.add("b", "d")
            async with step("kill two of four"):
                fleet.kill("b", "c")
            async with step("add one, drain another, at the same time"):
                await asyncio.gather(fleet.add("c"), fleet.drain("a"))
            every = {name: served.output.count('"event published"') for name, served in fleet.running.items()}
            assert all(every.values()), every
            load.ends.set()
    judge(load, [message.attributes["event_id"] for message in broker.confirmed], report)
