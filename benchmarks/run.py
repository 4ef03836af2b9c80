"""Runs every row in turn, round after round, and writes `results.md`: `python -m benchmarks.run [--rounds 5]`.

A row is a service under one load. The CPU time is that of the service's processes alone, from /proc, divided by the
events; load generator and broker are processes of their own. All share one machine, so compare rows of one run.
"""

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from attrs import Factory, frozen

FOLDER = Path(__file__).parent
BROKER_LATENCY = 0.005
START_SECONDS = 30.0
LOAD_SECONDS = 300.0
WARM_UP = 1000
SHARDED = "pulsecart.commerce-events=shards:8"
UNORDERED = "pulsecart.commerce-events=none"


@frozen
class Row:
    """A service and the load it is put under."""

    name: str
    command: Callable[[int], list[str]]
    environment: Mapping[str, str] = Factory(dict)
    connections: int = 64
    rate: int = 0
    """Events a second; 0 for as many as it takes."""


def bare(name: str) -> Callable[[int], list[str]]:
    """Return the command for an application of floor.py, under the server and the settings that pulsecart uses."""
    options = ["--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "error"]
    return lambda port: ["-m", "uvicorn", f"benchmarks.floor:{name}", "--port", str(port), *options]


def pulsecart(*options: str) -> Callable[[int], list[str]]:
    """Return the command for the service itself."""
    return lambda port: ["-m", "pulsecart", "serve", "--port", str(port), *options]


def with_clock(port: int) -> list[str]:
    """Return the command for the service with a clock in its event loop."""
    return ["-m", "benchmarks.lag", str(port)]


MEMORY = {"PUBSUB_EMULATOR_HOST": ""}
QUIET = {"OTEL_SDK_DISABLED": "true", "PULSECART_LOG_LEVEL": "warning"}
"""What every row has, but those that measure telemetry: the floor has none either."""


def sampled(share: str) -> dict[str, str]:
    """Return the settings for everything on: traces of a share of the events, metrics, and a log line for each."""
    return {
        "OTEL_SDK_DISABLED": "",
        "PULSECART_LOG_LEVEL": "info",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": share,
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    }


SECTIONS: dict[str, list[Row]] = {
    "As fast as they can, 64 connections": [
        Row("bare ASGI route", bare("route")),
        Row("bare ASGI and bare stub (the floor)", bare("publish")),
        Row("pulsecart, memory", pulsecart(), MEMORY),
        Row("pulsecart", pulsecart()),
    ],
    "1000 events/s, 64 connections": [
        Row("bare ASGI and bare stub (the floor)", bare("publish"), rate=1000),
        Row("pulsecart", pulsecart(), rate=1000),
        Row("pulsecart, with a clock in its loop", with_clock, rate=1000),
    ],
    "Telemetry, as fast as they can, 64 connections": [
        Row("off, logs at warning", pulsecart()),
        Row("all on, 10 % sampled", pulsecart(), sampled("0.1")),
        Row("all on, 100 % sampled", pulsecart(), sampled("1")),
    ],
    "Orderings, as fast as they can, 256 connections": [
        Row("`user`", pulsecart(), connections=256),
        Row("`shards:8`", pulsecart("--ordering", SHARDED), connections=256),
        Row("`none`", pulsecart("--ordering", UNORDERED), connections=256),
    ],
}


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def process(*arguments: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run Python on something until the end of the block, and stop it as an orchestrator would."""
    command = [sys.executable, *arguments]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it is closed with the block below)
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
    body = b'{"event_type":"order.placed","user_id":"u","order_id":"o","payload":{}}'
    head = b"POST /events/ingest HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    while time.monotonic() < end and service.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as connection:
                connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                if connection.recv(4096).startswith(b"HTTP/1.1 202"):
                    return
        except ConnectionError:
            pass
        time.sleep(0.005)
    raise TimeoutError(f"no event was accepted on port {port} within {START_SECONDS:g} s")


def family(pid: int) -> list[psutil.Process]:
    """Return a process and those it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and those it started have used."""
    return sum(times.user + times.system for times in (member.cpu_times() for member in family(pid)))


def resident_mb(pid: int) -> float:
    """Return their resident memory."""
    return sum(member.memory_info().rss for member in family(pid)) / 1e6


def measure(row: Row, events: int) -> dict[str, float]:
    """Start the row's service, put it under its load, stop it, and return what was seen."""
    port = free_port()
    started = time.perf_counter()
    with process(*row.command(port), environment=QUIET | dict(row.environment)) as service:
        wait_until_it_accepts(port, service)
        start_seconds = time.perf_counter() - started
        idle_mb = resident_mb(service.pid)
        load(port, row.connections, WARM_UP)
        before = cpu_seconds(service.pid)
        seen = load(port, row.connections, events, row.rate)
        seen["cpu_us"] = (cpu_seconds(service.pid) - before) / events * 1e6
        seen |= {"start_s": start_seconds, "idle_mb": idle_mb, "loaded_mb": resident_mb(service.pid)}
    output = service.stdout.read() if service.stdout else ""
    if output.startswith("{"):
        seen |= json.loads(output)
    if seen["refused"]:
        raise RuntimeError(f"{row.name}: {seen['refused']:g} events of {events} were not accepted")
    return seen


def library(users: int) -> dict[str, Any]:
    """Run library.py once."""
    arguments = [sys.executable, "-m", "benchmarks.library", str(users)]
    output = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent).stdout
    result: dict[str, Any] = json.loads(output)
    return result


Rounds = list[dict[str, float]]


def middle(rounds: Rounds, name: str, digits: int = 0) -> str:
    """Return the median of a figure and, where there were several rounds, its range."""
    values = [seen[name] for seen in rounds]
    median = f"{statistics.median(values):,.{digits}f}"
    return median if len(values) == 1 else f"{median} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


COLUMNS = {
    "CPU us/event": ("cpu_us", 0),
    "events/s": ("per_second", 0),
    "p50 ms": ("p50_ms", 1),
    "p99 ms": ("p99_ms", 1),
    "memory MB": ("loaded_mb", 0),
    "start to first 202, s": ("start_s", 2),
}


def table(results: dict[str, Rounds]) -> list[str]:
    """Return the rows of one section."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, rounds in results.items():
        figures = [middle(rounds, figure, digits) for figure, digits in COLUMNS.values()]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


def ratio(over: Rounds, under: Rounds, figure: str = "cpu_us") -> str:
    """Return the median ratio of a figure, round by round, so that a slow minute slows both sides."""
    ratios = [a[figure] / b[figure] for a, b in zip(over, under, strict=True)]
    return middle([{"ratio": each} for each in ratios], "ratio", 2)


def findings(results: dict[str, dict[str, Rounds]], libraries: list[dict[str, Any]]) -> list[str]:
    """Return the ratios that the project promises."""
    full, steady, telemetry, orderings = results.values()
    off = telemetry["off, logs at warning"]
    floor = "bare ASGI and bare stub (the floor)"
    clocked = steady["pulsecart, with a clock in its loop"]
    lines = [
        f"- CPU per event over the floor, at full speed: {ratio(full['pulsecart'], full[floor])}",
        f"- CPU per event over the floor, at 1000 events/s: {ratio(steady['pulsecart'], steady[floor])}",
        f"- event-loop lag at 1000 events/s, p99: {middle(clocked, 'lag_p99_ms', 1)} ms",
        f"- CPU per event with telemetry on, 10 % sampled, over off: {ratio(telemetry['all on, 10 % sampled'], off)}",
        f"- CPU per event with telemetry on, 100 % sampled, over off: {ratio(telemetry['all on, 100 % sampled'], off)}",
        f"- throughput of `shards:8` over `user`: {ratio(orderings['`shards:8`'], orderings['`user`'], 'per_second')}",
    ]
    for name in ("transport", "producer"):
        rounds = [seen[name] for seen in libraries]
        lines.append(
            f"- library, {name}.publish, unordered, 100 messages a request: {middle(rounds, 'per_second')} messages/s, "
            f"{middle(rounds, 'cpu_us', 1)} us of CPU each"
        )
    last = libraries[-1]
    if "after_mb" in last:
        lines.append(
            f"- resident memory before many distinct users {last['before_mb']:.1f} MB, after {last['after_mb']:.1f} MB"
        )
    busiest = max(
        seen["generator_busy"] for section in results.values() for rounds in section.values() for seen in rounds
    )
    lines.append(f"- the load generator was busy for at most {busiest:.0%} of one core")
    return lines


def machine() -> list[str]:
    """Say what this was measured on."""
    packages = ["pulsecart", "uvicorn", "starlette", "grpcio", "google-cloud-pubsub", "msgspec", "cattrs"]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    where = f"{datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores for all"
    return [f"{where}; Python {platform.python_version()}, {versions}."]


PREFACE = f"""# Benchmark

Made by `nox -s bench`. Each figure is a median over rounds, with its range. CPU time per event is that of the service
alone. The broker is the tests' strict Pub/Sub server, which waits {BROKER_LATENCY * 1e3:g} ms before each
answer; events are orders of about 400 bytes by 1000 users.

What it does not show: a network, TLS, Google's own front end, and more than a few cores. Throughput and latency here
are those of a machine that also runs broker and load generator; the ratios are what carries over.
"""


def main() -> None:
    """Measure everything, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=15_000, help="events of each load")
    parser.add_argument("--users", type=int, default=1_000_000, help="distinct users to publish in the library")
    parser.add_argument("--output", type=Path, default=FOLDER / "results.md")
    asked = parser.parse_args()

    results: dict[str, dict[str, Rounds]] = {
        section: {row.name: [] for row in rows} for section, rows in SECTIONS.items()
    }
    libraries = []
    port = free_port()
    os.environ["PUBSUB_EMULATOR_HOST"] = f"127.0.0.1:{port}"
    with (
        process("-m", "benchmarks.broker", str(port), str(BROKER_LATENCY), environment={}),
        process("-m", "benchmarks.collector", environment={}) as collects,
    ):
        assert collects.stdout is not None
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collects.stdout.readline().strip()
        for number in range(asked.rounds):
            for section, rows in SECTIONS.items():
                for row in rows:
                    seen = measure(row, asked.events)
                    results[section][row.name].append(seen)
                    print(f"{number + 1}/{asked.rounds} {section}: {row.name}: {seen['cpu_us']:.0f} us", flush=True)
            libraries.append(library(asked.users if number == asked.rounds - 1 else 0))
    received = json.loads(collects.stdout.readline())
    lines = [PREFACE, *machine()]
    for section, rounds in results.items():
        lines += ["", f"## {section}", "", *table(rounds)]
    lines += [
        "",
        "## In short",
        "",
        *findings(results, libraries),
        f"- the collector received {received['spans']:,} spans and {received['metrics']:,} metrics",
        "",
    ]
    asked.output.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
