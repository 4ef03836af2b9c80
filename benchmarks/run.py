"""Run every row in turn, round after round, and write `results.md` and `results.png`.

    python -m benchmarks.run [--rounds 5] [--events 8000]

This needs an emulator at PUBSUB_EMULATOR_HOST and the installed peers; `nox -s bench` provides both. CPU time per event
is that of the service's processes, divided by the number of events; load generator and broker are separate processes.
All share one machine, so compare only rows of the same run.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import EMULATOR, Rounds, chart, machine, report
from benchmarks.rows import FLOOR, SECTIONS, Row
from pulsecart.events import load_catalog
from pulsecart.testing import strict_pubsub
from pulsecart.transports import EmulatorTransport

FOLDER = Path(__file__).parent
PROJECT = "pulsecart-dev"
BROKER_LATENCY = 0.005
START_SECONDS = 30.0
LOAD_SECONDS = 300.0
WARM_UP = 3000
QUIET = {"OTEL_SDK_DISABLED": "true", "PULSECART_LOG_LEVEL": "warning", "FASTPUBSUB_LOG_LEVEL": "WARNING"}
"""The environment of every row except those that measure telemetry: no line is logged for each event."""

FIRST = b'{"event_type":"order.placed","user_id":"u","order_id":"o","payload":{}}'


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def process(*command: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program until the end of the block, then stop it with SIGTERM, as an orchestrator does."""
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(
            command, env=os.environ | environment, cwd=FOLDER.parent, text=True, stdout=subprocess.PIPE, stderr=log
        )
        try:
            yield running
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read())
            raise
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(START_SECONDS)


def load(port: int, connections: int, events: int, rate: int = 0) -> dict[str, float]:
    """Run the load generator once."""
    arguments = [str(FOLDER / "load.py"), *map(str, (port, connections, events, rate))]
    output = subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True, timeout=LOAD_SECONDS
    ).stdout
    result: dict[str, float] = json.loads(output)
    return result


def wait_until_it_accepts(port: int, service: subprocess.Popen[str]) -> None:
    """Post events until one is answered 202."""
    end = time.monotonic() + START_SECONDS
    head = b"POST /events/ingest HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    while time.monotonic() < end and service.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as connection:
                connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(FIRST) + FIRST)
                if connection.recv(4096).startswith(b"HTTP/1.1 202"):
                    return
        except ConnectionError:
            pass
        time.sleep(0.005)
    raise TimeoutError(f"no event was accepted on port {port} within {START_SECONDS:g} s")


def family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its descendants."""
    return sum(times.user + times.system for times in (member.cpu_times() for member in family(pid)))


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process and its descendants."""
    return sum(member.memory_info().rss for member in family(pid)) / 1e6


def peak_mb(pid: int) -> float:
    """Return the sum of their peak resident memory."""
    status = [Path(f"/proc/{member.pid}/status").read_text() for member in family(pid)]
    return sum(int(text.partition("VmHWM:")[2].split()[0]) for text in status) * 1024 / 1e6


def measure(row: Row, events: int, brokers: Mapping[str, str]) -> dict[str, float]:
    """Start the row's service, apply its load, stop it, and return the figures."""
    port = free_port()
    environment = QUIET | {"PUBSUB_EMULATOR_HOST": brokers[row.broker]} | dict(row.environment)
    started = time.perf_counter()
    with process(*row.command(port), environment=environment) as service:
        wait_until_it_accepts(port, service)
        start_seconds = time.perf_counter() - started
        idle_mb = resident_mb(service.pid)
        load(port, row.connections, WARM_UP, row.rate)
        before = cpu_seconds(service.pid)
        seen = load(port, row.connections, events, row.rate)
        seen["cpu_us"] = (cpu_seconds(service.pid) - before) / events * 1e6
        seen |= {"start_s": start_seconds, "idle_mb": idle_mb, "peak_mb": peak_mb(service.pid)}
    output = service.stdout.read() if service.stdout else ""
    if output.startswith("{"):
        seen |= json.loads(output)
    if seen["refused"]:
        raise RuntimeError(f"{row.name}: {seen['refused']:g} events of {events} were not accepted")
    return seen


async def check(row: Row) -> None:
    """Check that a row's service publishes a complete event, with ordering key and attributes."""

    def post(host: str) -> None:
        port = free_port()
        with process(*row.command(port), environment=QUIET | {"PUBSUB_EMULATOR_HOST": host}) as service:
            wait_until_it_accepts(port, service)

    async with strict_pubsub(sorted(load_catalog().topics), project=PROJECT) as server:
        await asyncio.to_thread(post, server.grpc_host)
    message = server.confirmed[0]
    data = json.loads(message.data)
    if (
        message.ordering_key != "u"
        or dict(message.attributes) != {"event_type": "order.placed", "event_id": data.pop("event_id")}
        or not data.pop("timestamp")
        or data != json.loads(FIRST)
    ):
        raise RuntimeError(f"{row.name} published {message}")


def library(users: int, host: str) -> dict[str, Any]:
    """Run library.py once."""
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.library", str(users)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=FOLDER.parent,
        env=os.environ | {"PUBSUB_EMULATOR_HOST": host},
    ).stdout
    result: dict[str, Any] = json.loads(output)
    return result


async def create_topics(host: str) -> None:
    """Create the topics that are missing on the emulator."""
    async with EmulatorTransport(project=PROJECT, host=host) as transport:
        await transport.create_topics(load_catalog().topics)


def main() -> None:
    """Measure everything, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=8000, help="events in each load")
    parser.add_argument("--users", type=int, default=1_000_000, help="distinct users to publish for without HTTP")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write the results")
    asked = parser.parse_args()

    emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
    if not emulator:
        parser.error("set PUBSUB_EMULATOR_HOST to an emulator's host:port; nox -s bench starts one")
    asyncio.run(create_topics(emulator))
    where = machine()
    for row in SECTIONS[EMULATOR]:
        if row.name != FLOOR:
            asyncio.run(check(row))
    port = free_port()
    brokers = {"": "", "emulator": emulator, "strict": f"127.0.0.1:{port}"}
    results: dict[str, dict[str, Rounds]] = {
        section: {row.name: [] for row in rows} for section, rows in SECTIONS.items()
    }
    libraries = []
    python = sys.executable, "-m"
    with (
        process(*python, "benchmarks.broker", str(port), str(BROKER_LATENCY), environment={}),
        process(*python, "benchmarks.collector", environment={}) as collects,
    ):
        assert collects.stdout is not None
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collects.stdout.readline().strip()
        for number in range(asked.rounds):
            for section, rows in SECTIONS.items():
                # Alternate the order, so that no row always comes first or after the same other row.
                for row in rows if number % 2 == 0 else rows[::-1]:
                    seen = measure(row, asked.events, brokers)
                    results[section][row.name].append(seen)
                    print(f"{number + 1}/{asked.rounds} {section}: {row.name}: {seen['cpu_us']:.0f} us", flush=True)
            libraries.append(library(asked.users if number == asked.rounds - 1 else 0, brokers["strict"]))
    received = json.loads(collects.stdout.readline())
    text = report(
        results,
        libraries,
        received,
        machine=where,
        options=f" -- {' '.join(sys.argv[1:])}" if sys.argv[1:] else "",
        rounds=asked.rounds,
        events=asked.events,
        warm_up=WARM_UP,
        latency=BROKER_LATENCY * 1e3,
    )
    text += subprocess.run(
        [*python, "benchmarks.bodies"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=FOLDER.parent,
        env=os.environ | QUIET,
    ).stdout
    (asked.folder / "results.md").write_text(text)
    chart(results, asked.folder / "results.png")
    print(text)


if __name__ == "__main__":
    main()
