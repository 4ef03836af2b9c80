import asyncio
import io
import json
import logging
import os
import pty
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import structlog

from pulsecart import BrokerRefused, BrokerUnavailable, Message, trace_id_of
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import logs
from pulsecart.transports import MemoryTransport
from tests.serving import serving

pytestmark = pytest.mark.anyio

SECRET = "no-line-may-have-this"


@pytest.fixture(autouse=True)
def _configured():
    logs.configure("info", "shop")
    yield
    structlog.reset_defaults()


@pytest.fixture
def lines(capsys):
    """Return the lines written since the last call."""

    def read():
        assert logs.flush()
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    return read


@asynccontextmanager
async def posting(transport, **settings):
    app = create_app(Settings(transport="memory", **settings), transport=transport)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with app.router.lifespan_context(app), client:

        async def post(body):
            return await client.post("/events/ingest", content=body, headers={"Content-Type": "application/json"})

        yield post


async def outage(_message: Message) -> None:
    raise BrokerUnavailable("the broker is away")


async def test_a_published_event_is_one_line(lines, order_json):
    """With its ids, type, topic and duration, and the event's trace where Cloud Logging looks for it."""
    async with posting(MemoryTransport()) as post:
        answer = (await post(order_json(user_id=SECRET, payload={SECRET: SECRET}))).json()
    (line,) = lines()
    assert line.pop("time").endswith("+00:00")
    assert 0 <= line.pop("duration_ms") < 10_000
    assert line == {
        "severity": "INFO",
        "message": "event published",
        "outcome": "published",
        "event_id": answer["event_id"],
        "event_type": "order.placed",
        "topic": "pulsecart.commerce-events",
        "message_id": answer["message_id"],
        "logging.googleapis.com/trace": f"projects/shop/traces/{answer['trace_id']}",
    }


async def test_a_traced_event_names_its_span(lines, spans, order_json):
    """Where tracing is on, the line has the span and whether it is sampled."""
    async with posting(MemoryTransport()) as post:
        await post(order_json())
    (line,), create = lines(), spans.one("create")
    assert line["logging.googleapis.com/trace"] == f"projects/shop/traces/{create.context.trace_id:032x}"
    assert line["logging.googleapis.com/spanId"] == f"{create.context.span_id:016x}"
    assert line["logging.googleapis.com/trace_sampled"] is True


async def test_a_refused_event_names_the_problem(lines, order_json):
    """A caller's fault is a line with the problem's code, and nothing that the caller wrote."""
    async with posting(MemoryTransport()) as post:
        for body in (order_json(user_id=SECRET, order_id=""), order_json(event_type=SECRET), SECRET.encode()):
            await post(body)
    found = lines()
    assert [(line["severity"], line["outcome"], line["problem"], line.get("event_type")) for line in found] == [
        ("INFO", "refused", "invalid-event", "order.placed"),
        ("INFO", "refused", "unknown-event-type", None),
        ("INFO", "refused", "malformed-body", None),
    ]
    assert SECRET not in json.dumps(found)


async def test_a_failed_event_can_be_found_again(lines, order_json):
    """An outage is a warning with the event's id, topic and trace, and the reason."""
    async with posting(MemoryTransport(outage)) as post:
        await post(order_json(event_id="mine"))
    (line,) = lines()
    assert (line["severity"], line["outcome"], line["problem"]) == ("WARNING", "failed", "broker-unavailable")
    assert (line["event_id"], line["topic"], line["detail"]) == (
        "mine",
        "pulsecart.commerce-events",
        "the broker is away",
    )
    assert line["logging.googleapis.com/trace"].endswith(trace_id_of("mine"))


async def test_a_flood_of_failures_is_the_first_and_then_counts(lines, order_json, monkeypatch):
    """Of a kind the first is logged, and then how many there were; at the end what was not said yet."""
    monkeypatch.setattr(logs, "FLOOD_SECONDS", 0.2)
    async with posting(MemoryTransport(outage)) as post:
        for _ in range(50):
            await post(order_json())
        counted = []
        async with asyncio.timeout(20):
            while sum(line.get("repeated", 1) for line in counted) < 50:
                counted += lines()
                await asyncio.sleep(0.02)
        assert len(counted) < 50
        assert "repeated" not in counted[0]
        await asyncio.sleep(0.5)  # the flood is over
        assert lines() == []
        monkeypatch.setattr(logs, "FLOOD_SECONDS", 60)
        for _ in range(3):
            await post(order_json())
    first, *rest = lines()
    assert "repeated" not in first
    assert sum(line["repeated"] for line in rest) == 2


async def test_failures_behind_a_count_are_counted_too(lines, order_json, monkeypatch):
    """In a flood that goes on, a failure right behind a count is not logged at once, but with the next count."""
    monkeypatch.setattr(logs, "FLOOD_SECONDS", 2)
    async with posting(MemoryTransport(outage)) as post:
        found = []
        for _ in range(3):
            await post(order_json())
        async with asyncio.timeout(20):
            while len(found) < 2:
                found += lines()
                await asyncio.sleep(0.02)
        await post(order_json())
        assert lines() == []
    assert [line.get("repeated") for line in [*found, *lines()]] == [None, 2, 1]


async def test_failures_while_a_count_is_late_are_in_it(lines, monkeypatch):
    """Failures that come when a count is due, but the event loop has been busy, are part of that count."""
    monkeypatch.setattr(logs, "FLOOD_SECONDS", 0)
    log = logs.EventLog()
    for _ in range(4):
        log.failed("warning", "failed", "broker-unavailable", 0.0)
    found = []
    async with asyncio.timeout(20):
        while len(found) < 2:
            await asyncio.sleep(0)
            found += lines()
    assert [line.get("repeated") for line in found] == [None, 3]


async def test_what_was_flushed_is_not_counted_again(lines, monkeypatch):
    """A count that is due after a flush holds only the failures since."""
    monkeypatch.setattr(logs, "FLOOD_SECONDS", 0)
    log = logs.EventLog()
    for _ in range(4):
        log.failed("warning", "failed", "broker-unavailable", 0.0)
    log.flush()
    log.flush()
    log.failed("warning", "failed", "broker-unavailable", 0.0)
    found = lines()
    async with asyncio.timeout(20):
        while len(found) < 3:
            await asyncio.sleep(0)
            found += lines()
    assert [line.get("repeated") for line in found] == [None, 3, 1]


async def test_a_refusal_for_good_is_an_error_in_the_midst_of_an_outage(lines, order_json):
    """A failure that an operator must fix is logged at once, in the midst of failures that end without them."""
    errors = [BrokerUnavailable("away"), BrokerRefused("no such topic"), BrokerRefused("no such topic")]

    async def fail(_message: Message) -> None:
        raise errors.pop(0)

    async with posting(MemoryTransport(fail)) as post:
        for _ in range(3):
            await post(order_json())
    assert [(line["severity"], line["error_type"], line.get("repeated")) for line in lines()] == [
        ("WARNING", "BrokerUnavailable", None),
        ("ERROR", "BrokerRefused", None),
        ("ERROR", "BrokerRefused", 1),
    ]


@pytest.mark.parametrize("personal_data", ["false", "true"])
async def test_a_defect_is_logged_without_what_the_caller_wrote(lines, order_json, personal_data):
    """A defect is logged with its traceback; its message, which may repeat a value, only where that is allowed."""
    body = order_json(event_type="defective", order_id=..., code=SECRET)
    async with posting(MemoryTransport(), personal_data=personal_data, events=("tests.http.defective",)) as post:
        for _ in range(3):
            assert (await post(body)).status_code == 500
    first, count = lines()
    assert (first["severity"], first["problem"], first["error_type"]) == ("ERROR", "internal-error", "RuntimeError")
    assert "in fail" in first["exception"]
    assert (SECRET in json.dumps([first, count])) is (personal_data == "true")
    assert count["repeated"] == 2


async def test_where_no_line_can_be_written_events_are_published(lines, order_json, monkeypatch):
    """A full disk, or a standard error that is closed, fails no event; the lines are counted."""

    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    for stream in (Full(), None):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            async with posting(MemoryTransport()) as post:
                assert (await post(order_json())).status_code == 202
    async with posting(MemoryTransport()) as post:
        assert (await post(order_json())).status_code == 202
    published, count = lines()
    assert published["message"] == "event published"
    assert (count["severity"], count["dropped"]) == ("WARNING", 2)


def test_a_flood_of_the_servers_own_warnings_is_counted(monkeypatch):
    """Of one line of code one warning passes in a while, and the next says how many were left out; infos all pass."""
    flood = logs.Flood()
    clock = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(logs, "MOST_KINDS", 3)

    def passes(level: int, line: int = 1, text: str = "no HTTP") -> str | None:
        record = logging.LogRecord("uvicorn.error", level, __file__, line, text, None, None)
        return record.getMessage() if flood.filter(record) else None

    assert [passes(logging.WARNING) for _ in range(4)] == ["no HTTP", None, None, None]
    assert passes(logging.WARNING, line=2) == "no HTTP"
    assert [passes(logging.INFO) for _ in range(2)] == ["no HTTP"] * 2
    clock[0] = 10.0
    assert passes(logging.WARNING) == "no HTTP (and 3 more like it)"
    for line in range(100):
        passes(logging.WARNING, line=line)
    assert passes(logging.WARNING, line=0) == "no HTTP"  # only the newest kinds are remembered


def test_a_level_of_another_librarys_own_is_no_fault():
    """A record of level 35, whatever it is called, is a line."""
    record = logging.LogRecord("x", 35, __file__, 1, "it is so", None, None)
    assert json.loads(logs.formatter("shop").format(record))["severity"] == "DEFAULT"


@pytest.fixture
def handler():
    """Return the service's handler for Python's own logging."""
    handler = logs.Handler()
    handler.setFormatter(logs.formatter("shop"))
    return handler


def test_a_traceback_of_the_servers_own_is_in_its_line(lines, handler):
    """A line of Python's own logging has the same form, and the traceback in it."""
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, __file__, 1, "it %s", ("failed",), sys.exc_info())
    handler.handle(record)
    (line,) = lines()
    assert (line["severity"], line["message"]) == ("ERROR", "it failed")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


def test_a_record_that_cannot_be_formatted_is_an_error_in_the_log(lines, handler):
    """A library's faulty call is named, with its traceback, in a line like all others."""
    handler.handle(logging.LogRecord("library", logging.INFO, "library.py", 7, "%d", ("one",), None))
    (line,) = lines()
    assert line["severity"] == "ERROR"
    assert line["message"] == "The log record of library.py:7 could not be formatted"
    assert "TypeError" in line["exception"]


def test_every_line_of_the_service_is_json(tmp_path):
    """The banner, the server's own lines and events: one form."""
    with serving(cwd=tmp_path) as served:
        assert httpx.post(f"{served.url}/events/ingest", json={}).status_code == 400
        served.stop()
    found = [json.loads(line) for line in served.output.splitlines()]
    assert len(found) > 5
    assert all({"severity", "time", "message"} <= set(line) for line in found)


def test_at_warning_events_are_not_logged(tmp_path):
    """The level holds for events and for the server's own lines."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=os.environ | {"PULSECART_LOG_LEVEL": "warning"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert process.stderr == ""


PROGRAM = """
from starlette.testclient import TestClient
from pulsecart.app import create_app
with TestClient(create_app()) as client:
    order = {"event_type": "order.placed", "user_id": "u", "order_id": "o", "payload": {}, "event_id": "\\x1b[2J"}
    assert client.post("/events/ingest", json=order).status_code == 202
"""


def test_on_a_terminal_lines_are_for_people(tmp_path):
    """Where the standard error is a terminal, lines are coloured text, not JSON."""
    terminal, stderr = pty.openpty()
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROGRAM], cwd=tmp_path, stderr=stderr) as process:
        os.close(stderr)
        written = b""
        while True:
            try:
                chunk = os.read(terminal, 4096)
            except OSError:  # how a terminal ends
                break
            if not chunk:
                break
            written += chunk
        assert process.wait(60) == 0
    os.close(terminal)
    (line,) = written.decode().splitlines()
    assert "\x1b[" in line
    assert "\x1b[2J" not in line  # what the caller wrote does not steer the terminal
    assert "published" in line
    assert not line.startswith("{")


@contextmanager
def unread(*arguments, cwd, stderr, shell='exec "$@"', **environment):
    """Run the service with a standard error that is not read, and return its process and address once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pulsecart", "serve", "--port", str(port), *arguments]
    environment = os.environ | environment
    with subprocess.Popen(["sh", "-c", shell, "sh", *command], cwd=cwd, stderr=stderr, env=environment) as process:
        try:
            wait_until(lambda: process.poll() is not None or answers(port))
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def post_many(url: str, body: bytes, count: int) -> None:
    """Post this many events, a hundred at a time, and expect each to be published."""
    request = (
        b"POST /events/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    )
    host, port = httpx.URL(url).host, httpx.URL(url).port
    with socket.create_connection((host, port), timeout=30) as connection, connection.makefile("rb") as answers:
        for _ in range(count // 100):
            connection.sendall(request % (len(body), body) * 100)
            for _ in range(100):
                assert answers.readline() == b"HTTP/1.1 202 Accepted\r\n"
                length = 0
                while (header := answers.readline()) != b"\r\n":
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.partition(b":")[2])
                assert answers.read(length)


def test_a_pipe_that_is_not_read_holds_nothing_up(tmp_path, order_json):
    """Thousands of events and a probe are answered; when the pipe is read again, the dropped lines are counted."""
    with serving(cwd=tmp_path) as served:
        served.pause_reading()
        post_many(served.url, order_json(), 12_000)
        assert httpx.get(f"{served.url}/health").status_code == 200
        served.read_on()
        wait_until(lambda: "log lines were dropped" in served.output)
        post_many(served.url, order_json(), 100)
        assert served.stop() == 0
    found = [json.loads(line) for line in served.output.splitlines()]
    (count,) = [line for line in found if "dropped" in line]
    published = [line for line in found if line["message"] == "event published"]
    assert count["severity"] == "WARNING"
    assert count["message"].startswith(f"{count['dropped']:,} log lines were dropped: ")
    assert len(published) + count["dropped"] == 12_100
    assert found.index(published[-100]) > found.index(count) > found.index(published[-101])


@pytest.mark.parametrize(("workers", "signals"), [(1, 1), (1, 2), (2, 1)])
def test_sigterm_ends_a_service_whose_log_is_not_read(tmp_path, workers, signals):
    """With a pipe that was full from the start the service starts, and ends in time, also on repeated signals."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writes, bytes(4096))
    os.set_blocking(writes, True)
    options = ("--workers", str(workers), "--project", "shop", "--emulator-host", "127.0.0.1:1")
    try:
        with unread(*options, cwd=tmp_path, stderr=writes) as (process, _url):
            start = time.monotonic()
            process.terminate()
            while signals > 1 and process.poll() is None:
                time.sleep(0.01)
                process.terminate()
            assert process.wait(30) == 0
            assert time.monotonic() - start < 10
    finally:
        os.close(reads)
        os.close(writes)


@pytest.mark.parametrize("fault", ["closed", "closed pipe", "full disk"])
def test_where_lines_cannot_be_written_events_are_published(tmp_path, order_json, fault):
    """Without a standard error, and with one that fails, the service starts, answers and ends well."""
    reads, closed_pipe = os.pipe()
    os.close(reads)
    with os.fdopen(closed_pipe, "w"), Path("/dev/full").open("w") as full:
        stderr = full if fault == "full disk" else closed_pipe
        shell = 'exec "$@" 2>&-' if fault == "closed" else 'exec "$@"'
        with unread(cwd=tmp_path, stderr=stderr, shell=shell) as (process, url):
            post_many(url, order_json(), 1_000)
            process.terminate()
            assert process.wait(30) == 0


def test_the_last_lines_of_workers_are_written(tmp_path):
    """Each worker's lines arrive to the last, though a worker ends by a signal."""
    options = ("--workers", "2", "--project", "shop", "--emulator-host", "127.0.0.1:1")
    with serving(*options, cwd=tmp_path) as served:
        wait_until(lambda: served.output.count("startup complete") == 2)
        assert served.stop() == 0
    found = [json.loads(line)["message"] for line in served.output.splitlines()]
    assert len([message for message in found if message.startswith("Finished server process")]) == 2


def test_under_another_server_the_lines_of_events_are_written(tmp_path, order_json):
    """A server that runs the application factory, and ends by a signal, loses no line of an event."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "pulsecart.app:create_app", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Uvicorn running on " in line:
                break
        url = line.partition("Uvicorn running on ")[2].split()[0]
        post_many(url, order_json(), 500)
        process.terminate()
        assert process.stderr.read().count('"message":"event published"') == 500


def test_warnings_and_ignored_exceptions_are_lines_of_the_log(tmp_path):
    """What Python itself would write to the standard error goes the way of all other lines."""
    (tmp_path / "warehouse.py").write_text(NOISY_EVENTS)
    event = {"event_type": "stock.counted", "user_id": "u", "payload": {}, "count": 3}
    with serving(cwd=tmp_path, PULSECART_EVENTS="warehouse", PYTHONWARNINGS="default") as served:
        assert httpx.post(f"{served.url}/events/ingest", json=event).status_code == 202
        served.stop()
    found = [json.loads(line) for line in served.output.splitlines()]
    (warning,) = [line for line in found if "a warning" in line["message"]]
    (ignored,) = [line for line in found if "Exception ignored in" in line["message"]]
    assert (warning["severity"], ignored["severity"]) == ("WARNING", "ERROR")
    assert ignored["exception"].endswith("ValueError: an error")


NOISY_EVENTS = """
import warnings
from attrs import field, frozen
from pulsecart import Event, event

class Noisy:
    def __del__(self):
        raise ValueError("an error")

def make_noise(_event, _field, _value):
    warnings.warn("a warning")
    Noisy()

@event("stock.counted", topic="warehouse")
@frozen(kw_only=True)
class StockCounted(Event):
    count: int = field(validator=make_noise)
"""


def test_a_forked_process_has_its_own_queue(tmp_path):
    """After a fork each line is written once, by the process that logged it."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = [json.loads(line)["message"] for line in process.stderr.splitlines()]
    assert sorted(found) == sorted([f"parent {n}" for n in range(200)] + ["child"])


FORKING = """
import os, sys, structlog
from pulsecart.telemetry import logs
logs.configure("info", "shop")
log = structlog.get_logger()
for number in range(200):
    log.info(f"parent {number}")
if child := os.fork():
    sys.exit(os.waitpid(child, 0)[1])
log.info("child")
"""
