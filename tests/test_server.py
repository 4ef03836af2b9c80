"""What the server adds to HTTP: over raw sockets, what is no good; and how answers are written."""

import asyncio
import json
import socket
from contextlib import suppress

import pytest
import uvicorn
from uvicorn.server import ServerState

from pulsecart.app import create_app
from pulsecart.server import HttpProtocol
from pulsecart.settings import Settings
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
        "one length twice",
        "length and chunks",
        "a chunk of no size",
        "a chunk below zero",
        "a length below zero",
        "a length beyond all",
        "a null in a value",
        "a null in a name",
        "a folded header",
        "a tunnel",
        "another version",
        "TLS",
    ],
)
def test_what_is_no_http_is_a_problem(served, request_):
    """A request that could be read in two ways, or in none, is answered 400 as any other problem, and ends there."""
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
def test_a_head_without_end_is_cut(served, head):
    """A head is refused once it is larger than a limit, which is stated, and takes no more memory than that."""
    before = served.peak_memory_mb
    status, headers, body = exchange(served, head)
    assert (status, headers["connection"]) == (431, "close")
    assert json.loads(body)["type"] == "head-too-large"
    assert "65,536" in json.loads(body)["detail"]
    assert served.peak_memory_mb - before < 20


def test_a_head_in_small_pieces_within_the_limit_is_read(served):
    """What counts is the size of a head, not in how many pieces it comes; and each head counts anew."""
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


def test_percent_encoding_and_odd_headers_are_no_fault(served):
    """What HTTP allows is taken: a path spelled otherwise, headers that are no ASCII, `Expect: 100-continue`."""
    encoded = START.replace(b"/events/ingest", b"/events/%69ngest")
    assert exchange(served, encoded + LENGTH + b"\r\n" + BODY)[0] == 202
    assert exchange(served, START + b"X-A: \xff\xfe\r\ntraceparent: \xff\r\n" + LENGTH + b"\r\n" + BODY)[0] == 202
    status, _, _ = exchange(served, START.replace(b"ingest", b"%zz%00%ff") + LENGTH + b"\r\n" + BODY)
    assert status == 404


class Wire(asyncio.Transport):
    """Keeps what is written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = asyncio.Event()

    def write(self, data: bytes) -> None:
        assert not self.is_closing()
        self.writes.append(data)

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
async def connect():
    """Return a function that makes a connection to the application, with nothing between them but `Wire`."""
    config = uvicorn.Config(create_app(Settings(transport="memory")), http=HttpProtocol, log_config=None)
    config.load()
    protocols = []

    def connect() -> tuple[HttpProtocol, Wire]:
        protocol, wire = HttpProtocol(config, ServerState(), {}), Wire()
        protocols.append(protocol)
        protocol.connection_made(wire)
        return protocol, wire

    yield connect
    for protocol in protocols:
        protocol.connection_lost(None)


async def answered(protocol: HttpProtocol, wire: Wire) -> None:
    """Send a request, and wait for its answer."""
    protocol.data_received(START + LENGTH + b"\r\n" + BODY)
    while not wire.writes:
        await asyncio.sleep(0)


async def test_an_answer_is_one_write(connect):
    """An answer's head and body go to the kernel together, and before the connection is closed."""
    protocol, wire = connect()
    protocol.data_received(START + LENGTH + b"Connection: close\r\n\r\n" + BODY)
    async with asyncio.timeout(10):
        await wire.closed.wait()
    (answer,) = wire.writes
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert answer.endswith(b"}")


async def test_what_is_awaited_in_between_is_not_held_back(connect):
    """The go-ahead for a body that the caller asks for (`Expect: 100-continue`) is sent before the body has come."""
    protocol, wire = connect()
    protocol.data_received(START + LENGTH + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        while not wire.writes:
            await asyncio.sleep(0)
        assert wire.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
        protocol.data_received(BODY)
        await wire.closed.wait()
    assert wire.writes[1].startswith(b"HTTP/1.1 202 ")


async def test_a_head_that_does_not_end_in_time_is_408(connect, monkeypatch):
    """A connection whose head trickles is answered 408 and closed, though a piece comes again and again."""
    monkeypatch.setattr("pulsecart.server.HEAD_SECONDS", 0.05)
    protocol, wire = connect()
    async with asyncio.timeout(10):
        protocol.data_received(START)
        while not wire.is_closing():
            protocol.data_received(b"X-A: a\r\n")
            await asyncio.sleep(0.01)
    (answer,) = wire.writes
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"type":"request-timeout"' in answer


async def test_a_second_head_that_does_not_end_in_time_is_408(connect, monkeypatch):
    """On a connection that has been used, a head that has begun is waited for no longer than the first."""
    monkeypatch.setattr("pulsecart.server.HEAD_SECONDS", 0.05)
    protocol, wire = connect()
    async with asyncio.timeout(10):
        await answered(protocol, wire)
        protocol.data_received(START)
        await wire.closed.wait()
    assert [answer.split(b" ", 2)[1] for answer in wire.writes] == [b"202", b"408"]


async def test_a_connection_that_says_nothing_is_closed(connect, monkeypatch):
    """A connection on which nothing comes is closed without a word."""
    monkeypatch.setattr("pulsecart.server.HEAD_SECONDS", 0.05)
    _, wire = connect()
    async with asyncio.timeout(10):
        await wire.closed.wait()
    assert wire.writes == []


async def test_a_connection_that_says_nothing_more_is_closed(connect, monkeypatch):
    """A blank line after an answer is no request, and does not keep the connection for ever."""
    monkeypatch.setattr("pulsecart.server.HEAD_SECONDS", 0.05)
    protocol, wire = connect()
    async with asyncio.timeout(10):
        await answered(protocol, wire)
        protocol.data_received(b"\r\n")
        await wire.closed.wait()
    assert len(wire.writes) == 1


@pytest.mark.parametrize(
    "second", [b"no http\r\n\r\n", b"GET / HTTP/1.1\r\nX-A: " + b"a" * 70_000], ids=["no http", "a head without end"]
)
async def test_what_comes_behind_a_request_does_not_take_its_answer(connect, second):
    """A request is answered though what follows it on the connection is no good; then the connection is closed."""
    protocol, wire = connect()
    protocol.data_received(START + LENGTH + b"\r\n" + BODY + second[:20])
    protocol.data_received(second[20:])
    async with asyncio.timeout(10):
        await wire.closed.wait()
    (answer,) = wire.writes
    assert answer.startswith(b"HTTP/1.1 202 ")


async def test_the_end_of_a_body_is_no_part_of_the_next_head(connect):
    """A head that begins where a large body ends is not taken for a large one."""
    protocol, wire = connect()
    body = BODY.replace(b"{}", b'{"x":"%b"}' % (b"x" * 100_000))
    request = START + b"Content-Length: %d\r\n\r\n" % len(body) + body
    protocol.data_received(request[:1000])
    protocol.data_received(request[1000:] + START)
    protocol.data_received(LENGTH + b"Connection: close\r\n\r\n" + BODY)
    async with asyncio.timeout(10):
        await wire.closed.wait()
    assert [answer.split(b" ", 2)[1] for answer in wire.writes] == [b"202", b"202"]


async def test_an_answer_to_nobody_is_dropped(connect):
    """Where the connection is lost in the step in which an answer is written, nothing is written any more."""
    protocol, wire = connect()
    protocol.data_received(START + LENGTH + b"\r\n" + BODY)
    async with asyncio.timeout(10):
        while not protocol.cycle.response_complete:
            await asyncio.sleep(0)
            if protocol.cycle.response_complete:
                wire.close()
        await asyncio.sleep(0)
    assert wire.writes == []
