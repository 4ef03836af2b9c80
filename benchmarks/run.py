"""Run every row in turn, round after round, and write `results.md` and `results.png`.

    python -m benchmarks.run [--rounds 5] [--events 8000] [--only wires steady]

This needs an emulator at PUBSUB_EMULATOR_HOST and the installed peers; `nox -s bench` provides both. With `--only`, it
runs only some sections, and writes files only if it is given a `--folder`. CPU time per event is that of the service's
processes, divided by the number of events; load generator and broker are separate processes. All share one machine, so
compare only rows of the same run.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
from attrs import frozen

from benchmarks.floor import PROJECT
from benchmarks.forms import FORMS, INGEST, SINGLE, Form, body
from benchmarks.report import Rounds, chart, machine, report
from benchmarks.rows import BROKERS, FLOOR, SECTIONS, Row, Section, pulsecart
from pulsecart.events import load_catalog
from pulsecart.testing import strict_pubsub
from pulsecart.transports import EmulatorTransport
from tests.google_login import new_key, service_account

FOLDER = Path(__file__).parent
LIBRARY, BODIES = "library", "bodies"
"""What `--only` knows in addition to sections: publishing without HTTP, and costly bodies."""

START_SECONDS = 30.0
LOAD_SECONDS = 300.0
WARM_UP = 3000
QUIET = {
    "GCP_PROJECT_ID": PROJECT,
    "OTEL_SDK_DISABLED": "true",
    "PULSECART_LOG_LEVEL": "warning",
    "FASTPUBSUB_LOG_LEVEL": "WARNING",
}
"""The environment of every row except those that measure telemetry: no line is logged for each event."""

FIRST = b'{"event_type":"order.placed","user_id":"u","order_id":"o","payload":{}}'
INCOMPLETE = b'{"event_type":"order.placed","user_id":"u","payload":{}}'
UNKNOWN_FIELD = b'{"event_type":"order.placed","user_id":"u","order_id":"o","payload":{},"session_id":"s"}'


@frozen
class Address:
    """Where a broker listens; all empty for none."""

    rest: str = ""
    grpc: str = ""
    roots: str = ""
    """The file with the root certificate; empty without TLS."""

    def environment(self, wire: str) -> dict[str, str]:
        """Return the environment of a service that publishes to this broker.

        The variables that begin with PUBSUB_ are for the peers and the floor, except PUBSUB_EMULATOR_HOST.
        """
        host = {"rest": self.rest, "grpc": self.grpc}[wire]
        if not self.roots:
            return {"PUBSUB_EMULATOR_HOST": host, "PULSECART_WIRE": wire}
        return {
            "PUBSUB_EMULATOR_HOST": "",
            "PUBSUB_ENDPOINT": host,
            "PUBSUB_ROOTS": self.roots,
            "PULSECART_WIRE": wire,
            "PULSECART_TRANSPORT": "pubsub",
            "PULSECART_ENDPOINT": host,
            "PULSECART_CA_FILE": self.roots,
        }


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def process(*command: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program until the end of the block, then stop it with SIGTERM, as an orchestrator does.

    What it writes to standard error is shown only if the block fails.
    """
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


def load(port: int, row: Row, events: int) -> dict[str, float]:
    """Apply the row's load once."""
    if row.sender == "load":
        arguments = ["benchmarks.load", str(port), str(row.connections), str(events), f"--rate={row.rate}"]
        arguments += [f"--size={row.size}", f"--form={row.form}", f"--key={row.key}"]
    else:
        arguments = ["benchmarks.senders", row.sender, str(port), str(events)]
    output = subprocess.run(
        [sys.executable, "-m", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LOAD_SECONDS,
        cwd=FOLDER.parent,
    ).stdout
    result: dict[str, float] = json.loads(output)
    return result


@contextmanager
def uploading(port: int) -> Iterator[dict[str, float]]:
    """Upload lines during the block. Afterwards, the figures of the upload are in the dictionary that it gets."""
    figures: dict[str, float] = {}
    command = [sys.executable, "-m", "benchmarks.senders", "upload", str(port), "0"]
    with process(*command, environment={}) as uploader:
        assert uploader.stdout is not None
        if uploader.stdout.readline() != "under way\n":
            raise RuntimeError("the upload ended early")
        yield figures
        uploader.send_signal(signal.SIGTERM)
        if uploader.wait(START_SECONDS):
            raise RuntimeError("the upload was not accepted whole")
        figures["upload_per_second"] = json.loads(uploader.stdout.readline())["per_second"]


@contextmanager
def meanwhile(row: Row, port: int) -> Iterator[dict[str, float]]:
    """Upload during the block if the row says so; see `uploading`."""
    with ExitStack() as stack:
        if row.uploads == "elsewhere":
            port = free_port()
            other = stack.enter_context(process(*pulsecart()(port), environment=QUIET | Address().environment("rest")))
            wait_until_it_accepts(port, other)
        yield stack.enter_context(uploading(port)) if row.uploads else {}


def wait_until_it_accepts(port: int, service: subprocess.Popen[str], key: str = "") -> None:
    """Post events until one is answered 202."""
    end = time.monotonic() + START_SECONDS
    request = FORMS[SINGLE].request_of([FIRST], key)
    while time.monotonic() < end and service.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as connection:
                connection.sendall(request)
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


def measure(row: Row, events: int, brokers: Mapping[str, Address]) -> dict[str, float]:
    """Start the row's service, apply its load, stop it, and return the figures."""
    port = free_port()
    events, warm_up = row.events or max(1, round(events * row.share)), round(WARM_UP * row.share)
    environment = QUIET | brokers[row.broker].environment(row.wire) | dict(row.environment)
    started = time.perf_counter()
    with process(*row.command(port), environment=environment) as service:
        wait_until_it_accepts(port, service, row.key)
        start_seconds = time.perf_counter() - started
        idle_mb = resident_mb(service.pid)
        load(port, row, warm_up)
        before = cpu_seconds(service.pid)
        with meanwhile(row, port) as upload:
            seen = load(port, row, events)
        if not row.uploads:
            seen["cpu_us"] = (cpu_seconds(service.pid) - before) / events * 1e6
        peak = peak_mb(service.pid)
        seen |= {"start_s": start_seconds, "idle_mb": idle_mb, "peak_mb": peak, "growth_mb": peak - idle_mb, **upload}
    output = service.stdout.read() if service.stdout else ""
    if output.startswith("{"):
        seen |= json.loads(output)
    if seen["refused"]:
        raise RuntimeError(f"{row.name}: {seen['refused']:g} requests for {events} events were not accepted")
    return seen


def post(port: int, form: Form, events: Sequence[bytes]) -> tuple[int, Any]:
    """Post events, and return the status and the decoded answer, which is None if it is no JSON."""
    connection = HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    headers = {"Content-Type": form.content_type, **({"Content-Encoding": form.coding} if form.coding else {})}
    try:
        connection.request("POST", form.path, form.join(events), headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if "json" in (answer.getheader("Content-Type") or "") else None
    finally:
        connection.close()


def over_tls(row: Row) -> bool:
    """Return whether a row's service talks TLS to its broker."""
    return row.broker in BROKERS and BROKERS[row.broker].tls


def to_check(rows: Iterable[Row]) -> Iterable[Row]:
    """Return the rows to check: each service once in each form, with and without TLS as it is measured.

    The floor does not validate. Telemetry and orderings change the message.
    """
    return {
        (*row.command(0), row.wire, over_tls(row), row.form): row
        for row in rows
        if (row.broker or row.form != SINGLE)
        and row.name != FLOOR
        and not row.environment
        and "--ordering" not in row.command(0)
    }.values()


async def check(row: Row) -> None:
    """Check that a row's service publishes complete events, says their ids, and refuses invalid ones.

    A complete event has all that was sent, an id and a time in its data, the user as the ordering key, and exactly two
    attributes: its type and its id. Those of a CloudEvent have more attributes.
    """
    form = FORMS[row.form]
    sent = [FIRST, body(1), body(2, 10_000)]
    requests = [sent[1:]] if form.events > 1 else [[event] for event in sent[1:]]
    invalid = [[INCOMPLETE], [UNKNOWN_FIELD]]
    port = free_port()

    def post_all(address: Address) -> list[tuple[int, Any]]:
        environment = QUIET | address.environment(row.wire)
        with process(*row.command(port), environment=environment) as service:
            wait_until_it_accepts(port, service)
            return [post(port, form, each) for each in (*requests, *invalid)]

    topics = sorted(load_catalog().topics)
    async with strict_pubsub(topics, project=PROJECT, tls=over_tls(row)) as server:
        address = Address(server.host, server.grpc_host, server.roots_file)
        answers = await asyncio.to_thread(post_all, address)
    statuses = [status for status, _ in answers]
    accepted = len(requests)
    if statuses[:accepted] != [202] * accepted or not all(400 <= status < 500 for status in statuses[accepted:]):
        raise RuntimeError(f"{row.name} answered {statuses}: the first {accepted} were to be accepted")
    if len(server.confirmed) != len(sent):
        raise RuntimeError(f"{row.name} published {len(server.confirmed)} messages for {len(sent)} events")
    receipts = receipts_in([answer for _, answer in answers[:accepted]], form)
    # The events of a list have different users, so they may be published in any order.
    published = {json.loads(message.data)["order_id"]: message for message in server.confirmed}
    for asked, receipt in zip(sent, [None, *receipts], strict=True):
        message = published[json.loads(asked)["order_id"]]
        data = json.loads(message.data)
        event_id, timestamp = data.pop("event_id"), data.pop("timestamp")
        attributes = {name: value for name, value in message.attributes.items() if not name.startswith("cloudevents_")}
        if (
            data != json.loads(asked)
            or datetime.fromisoformat(timestamp).tzinfo is None
            or message.ordering_key != data["user_id"]
            or attributes != {"event_type": "order.placed", "event_id": event_id}
            or (receipt is not None and (receipt["event_id"] != event_id or receipt.get("message_id", "1") == ""))
        ):
            raise RuntimeError(f"{row.name} published {message} for {asked!r}, and answered {receipt}")


def receipts_in(answers: Sequence[Any], form: Form) -> list[Any]:
    """Return what answers say about each of the two events. For lines (NDJSON), they say only how many there are."""
    if form.path == INGEST:
        return list(answers)
    (answer,) = answers
    if "ndjson" in form.content_type:
        return [None] * int(answer["accepted"])
    return list(answer["results"])


def library(users: int, broker: Address) -> dict[str, Any]:
    """Run library.py once."""
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.library", str(users)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=FOLDER.parent,
        env=os.environ | {"PUBSUB_EMULATOR_HOST": broker.rest, "PUBSUB_GRPC_HOST": broker.grpc},
    ).stdout
    result: dict[str, Any] = json.loads(output)
    return result


async def create_topics(host: str) -> None:
    """Create the topics that are missing on the emulator."""
    async with EmulatorTransport(project=PROJECT, host=host) as transport:
        await transport.create_topics(load_catalog().topics)


@contextmanager
def started(names: Iterable[str]) -> Iterator[dict[str, Address]]:
    """Run brokers, each in a process, until the end of the block, and give their addresses."""
    with ExitStack() as stack:
        addresses = {}
        for name in names:
            options = [str(BROKERS[name].latency), *(["tls"] if BROKERS[name].tls else [])]
            serves = stack.enter_context(process(sys.executable, "-m", "benchmarks.broker", *options, environment={}))
            assert serves.stdout is not None
            addresses[name] = Address(**json.loads(serves.stdout.readline()))
        yield addresses


def rows_of(section: Section, number: int) -> list[Row]:
    """Return the rows of a round. The order alternates, so that no row always comes first or after the same other."""
    rows = [row for row in section.rows if not row.rounds or number < row.rounds]
    return rows if number % 2 == 0 else rows[::-1]


def main() -> None:
    """Measure everything, and write the results."""
    everything = [*SECTIONS, LIBRARY, BODIES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=8000, help="events in each load; slow rows get fewer")
    parser.add_argument("--users", type=int, default=1_000_000, help="distinct users to publish for without HTTP")
    parser.add_argument("--only", nargs="+", choices=everything, help="what to run, instead of everything")
    parser.add_argument("--folder", type=Path, help="where to write the results; by default in benchmarks/")
    asked = parser.parse_args()
    chosen = asked.only or everything
    folder = asked.folder or (None if asked.only else FOLDER)
    sections = {key: section for key, section in SECTIONS.items() if key in chosen}
    rows = [row for section in sections.values() for row in section.rows]
    needed = {row.broker for row in rows} | ({"plain"} if LIBRARY in chosen else set())

    emulator = os.environ.get("PUBSUB_EMULATOR_HOST", "")
    if "emulator" in needed:
        if not emulator:
            parser.error("set PUBSUB_EMULATOR_HOST to an emulator's host:port; nox -s bench starts one")
        asyncio.run(create_topics(emulator))
    where = machine()
    with tempfile.TemporaryDirectory() as secrets:
        key_file = Path(secrets, "key.json")
        key_file.write_text(service_account(new_key()))
        os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(key_file)
        for row in to_check(rows):
            asyncio.run(check(row))
            print(f"{row.name} publishes complete events, {'over TLS' if over_tls(row) else 'plain'}", flush=True)
        results: dict[str, dict[str, Rounds]] = {
            key: {row.name: [] for row in section.rows} for key, section in sections.items()
        }
        libraries = []
        collecting = process(sys.executable, "-m", "benchmarks.collector", environment={})
        with started(name for name in BROKERS if name in needed) as brokers, collecting as collects:
            brokers |= {"": Address(), "emulator": Address(emulator, emulator)}
            assert collects.stdout is not None
            os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collects.stdout.readline().strip()
            for number in range(asked.rounds):
                for key, section in sections.items():
                    for row in rows_of(section, number):
                        seen = measure(row, asked.events, brokers)
                        results[key][row.name].append(seen)
                        took = f"{seen['cpu_us']:.0f} us" if "cpu_us" in seen else f"p99 {seen['p99_ms']:.1f} ms"
                        print(f"{number + 1}/{asked.rounds} {key}: {row.name}: {took}", flush=True)
                if LIBRARY in chosen:
                    libraries.append(library(asked.users if number == asked.rounds - 1 else 0, brokers["plain"]))
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
    )
    if BODIES in chosen:
        text += subprocess.run(
            [sys.executable, "-m", "benchmarks.bodies"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=FOLDER.parent,
            env=os.environ | QUIET,
        ).stdout
    print(text)
    if folder:
        (folder / "results.md").write_text(text)
        chart(results, folder / "results.png")


if __name__ == "__main__":
    main()
