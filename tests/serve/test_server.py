"""`pulsecart serve` over raw sockets: requests that are not valid HTTP, and signals."""

import json
import os
import resource
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.serving import serving

BODY = b'{"event_type":"order.placed","user_id":"u","order_id":"o","payload":{}}'
START = b"POST /events/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(cwd=tmp_path_factory.mktemp("served")) as service:
        yield service


def exchange(served, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and return the first answer: status, headers and body."""
    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with suppress(ConnectionError):  # answered, and closed, before all was sent
            connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        while len(body) < int(headers["content-length"]):
            body += connection.recv(65536)
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize(
    "request_",
    [
        START + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY,
        START + LENGTH + LENGTH + b"\r\n" + BODY,
        START + LENGTH + CHUNKED + b"\r\n0\r\n\r\n",
        START + CHUNKED + b"\r\nZZ\r\n" + BODY,
        START + CHUNKED + b"\r\n-5\r\n" + BODY,
        START + b"Content-Length: -5\r\n\r\n" + BODY,
        START + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
        START + b"X-A: a\x00b\r\n" + LENGTH + b"\r\n" + BODY,
        START + b"X\x00A: ab\r\n" + LENGTH + b"\r\n" + BODY,
        START + b"X-A: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY,
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01" * 50,
    ],
    ids=[
        "two lengths",
        "same length twice",
        "length and chunks",
        "chunk size is not a number",
        "negative chunk size",
        "negative length",
        "huge length",
        "null byte in a value",
        "null byte in a name",
        "folded header",
        "CONNECT",
        "unknown version",
        "TLS",
    ],
)
def test_invalid_http_is_400(served, request_):
    """A request that is invalid or ambiguous gets a problem document, and the connection is closed."""
    status, headers, body = exchange(served, request_)
    assert (status, headers["connection"]) == (400, "close")
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["type"] == "malformed-request"
    assert b"Traceback" not in body


@pytest.mark.parametrize(
    "head",
    [START + b"X-A: " + b"a" * 2_000_000, START + b"X-A: a\r\n" * 200_000, b"POST /" + b"a" * 2_000_000],
    ids=["one header", "many headers", "the path"],
)
def test_endless_head_is_431(served, head):
    """A head over the limit is rejected with the limit, and takes no more memory than that."""
    before = served.peak_memory_mb
    status, headers, body = exchange(served, head)
    assert (status, headers["connection"]) == (431, "close")
    assert json.loads(body)["type"] == "head-too-large"
    assert "65,536" in json.loads(body)["detail"]
    assert served.peak_memory_mb - before < 20


def test_head_within_limit_in_small_pieces_is_read(served):
    """The size of each head counts, not the number of pieces in which it arrives."""
    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(3):
            connection.sendall(START)
            for _ in range(40):
                connection.sendall(b"X-A: " + b"a" * 1000 + b"\r\n")
            connection.sendall(LENGTH + b"\r\n" + BODY)
            received = b""
            while b"trace_id" not in received:
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 202")


def test_percent_encoding_and_non_ascii_headers_are_accepted(served):
    """Paths may be percent-encoded, and headers may contain bytes that are not ASCII."""
    encoded = START.replace(b"/events/ingest", b"/events/%69ngest")
    assert exchange(served, encoded + LENGTH + b"\r\n" + BODY)[0] == 202
    assert exchange(served, START + b"X-A: \xff\xfe\r\ntraceparent: \xff\r\n" + LENGTH + b"\r\n" + BODY)[0] == 202
    status, _, _ = exchange(served, START.replace(b"ingest", b"%zz%00%ff") + LENGTH + b"\r\n" + BODY)
    assert status == 404


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM])
def test_signal_drains(tmp_path, number):
    """SIGTERM, SIGHUP and SIGQUIT drain the service and end it with status 0."""
    with serving(cwd=tmp_path) as service:
        service.tell_to_stop(number)
        assert service.wait() == 0
    assert "Application shutdown complete" in service.output


def test_stalled_body_at_shutdown_is_503(tmp_path):
    """A request whose body does not arrive is answered at the end of the grace period, without a traceback."""
    with (
        serving("--body-timeout", "60", cwd=tmp_path) as service,
        socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=30) as connection,
    ):
        connection.sendall(START + LENGTH + b"\r\n{")
        connection.sendall(b'"event')
        wait_for_request(service)
        service.tell_to_stop()
        answer = connection.recv(65536)
        assert service.wait() == 0
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"type":"shutting-down"' in answer
    assert "Traceback" not in service.output


def wait_for_request(service) -> None:
    """Wait until the service has read what was sent before: it answers what was sent later."""
    assert exchange(service, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200


def test_workers_stop_with_their_supervisor(tmp_path):
    """Workers whose supervisor is killed stop too."""
    options = ("--workers", "2", "--transport", "emulator", "--emulator-host", "127.0.0.1:1")
    with serving(*options, cwd=tmp_path) as service:
        workers = service.children()
        service.tell_to_stop(signal.SIGKILL)
        service.wait()
        end = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < end
            time.sleep(0.05)


def test_limit_of_open_files_is_raised(tmp_path):
    """The process may open enough files for its connections, if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with serving("--max-connections", "1000", cwd=tmp_path) as service:
            limits = Path(f"/proc/{service.pid}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert limits.partition("Max open files")[2].split()[0] == "1200"


LEAVING = """
import os
from attrs import field, frozen
from pulsecart import Event, event

def leave(_event, _field, value):
    if value == "now":
        os._exit(7)

@event("worker.leaves", topic="workers")
@frozen(kw_only=True)
class Leaves(Event):
    when: str = field(validator=leave)
"""


def test_death_of_a_worker_is_a_warning_with_its_reason(tmp_path):
    """A worker that dies is replaced, and the log says by which signal or exit status it ended."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    options = ("--workers", "2", "--transport", "emulator", "--emulator-host", "127.0.0.1:1", "--events", "leaving")
    with serving(*options, cwd=tmp_path) as served:

        def wait_for_warning(said: str) -> None:
            end = time.monotonic() + 30
            while not any('"WARNING"' in line and said in line for line in served.output.splitlines()):
                assert time.monotonic() < end, served.output
                time.sleep(0.05)

        def workers() -> list[int]:
            commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in served.children()}
            return [pid for pid, line in commands.items() if b"spawn_main" in line]

        for number, reason in (
            (signal.SIGKILL, "it was killed by SIGKILL: by the kernel if memory ran out"),
            (signal.SIGABRT, "it was killed by SIGABRT"),
            (40, "it was killed by signal 40"),
        ):
            pid = workers()[0]
            os.kill(pid, number)
            wait_for_warning(f"worker {pid} has died and was replaced: {reason}")
        port = int(served.url.rpartition(":")[2])
        body = b'{"event_type":"worker.leaves","user_id":"u","when":"now","payload":{}}'
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(START + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_for_warning("has died and was replaced: it ended with the exit status 7")
        assert served.stop() == 0


HANGING = """
import asyncio, threading
from pulsecart.transports import MemoryTransport

class Hanging(MemoryTransport):
    def __init__(self, config):
        super().__init__()

    async def publish(self, message):
        return await asyncio.to_thread(threading.Event().wait)
"""


def publish_to_hanging(url: str) -> None:
    body = b'{"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {}}'
    answer = httpx.post(f"{url}/events/ingest", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["type"] == "broker-unavailable"


def test_thread_that_hangs_does_not_keep_the_process(tmp_path):
    """A thread of a transport cannot be cancelled: the process says so, and ends without it."""
    (tmp_path / "hanging.py").write_text(HANGING)
    with serving("--transport", "hanging:Hanging", "--publish-deadline", "0.5", cwd=tmp_path) as served:
        publish_to_hanging(served.url)
        assert served.stop() == 0
        assert "The process ends although threads are still running" in served.output


def test_thread_that_hangs_does_not_keep_a_process_whose_log_is_full(tmp_path):
    """The same if nobody reads the log, so that a line more would wait for ever."""
    (tmp_path / "hanging.py").write_text(HANGING)
    with serving("--transport", "hanging:Hanging", "--publish-deadline", "0.5", cwd=tmp_path) as served:
        publish_to_hanging(served.url)
        served.fill_pipe()
        served.tell_to_stop()
        end = time.monotonic() + 30
        while not os.waitid(os.P_PID, served.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            assert time.monotonic() < end, "the process does not end"
            time.sleep(0.05)
