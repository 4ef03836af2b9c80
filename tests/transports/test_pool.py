"""The pool of HTTP connections, on connections that a test makes, so that everything can happen in the same moment."""

import asyncio
from collections.abc import Callable

import pytest

from pulsecart.ports import Load
from pulsecart.transports.pubsub.wire.dial import Endpoint
from pulsecart.transports.pubsub.wire.http import Answer, ConnectFailed, Pool, ResponseFailed

pytestmark = pytest.mark.anyio

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class FakeConnection(asyncio.Transport):
    """A connection whose server is the test."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.closing = False
        self.written: list[bytes] = []
        protocol.connection_made(self)

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def answer(self) -> None:
        self.protocol.data_received(ANSWER)


class Network:
    """Makes connections; `dialling` is what dials, before each connection is made."""

    def __init__(self) -> None:
        self.connections: list[FakeConnection] = []
        self.dialling: Callable[[], object] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()

    def lose_the_newest(self) -> None:
        self.connections[-1].abort()

    async def dial(self, _endpoint: Endpoint, make: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        await self.gate.wait()
        self.dialling()
        self.connections.append(FakeConnection(make()))
        return self.connections[-1].protocol


@pytest.fixture
def network(monkeypatch) -> Network:
    made = Network()
    monkeypatch.setattr("pulsecart.transports.pubsub.wire.http.dial", made.dial)
    return made


def request(pool: Pool, seconds: float = 5) -> "asyncio.Task[Answer]":
    deadline = asyncio.get_running_loop().time() + seconds
    return asyncio.create_task(pool.request([b"GET / HTTP/1.1\r\n\r\n"], deadline, seconds))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def busy(pool: Pool, network: Network) -> "tuple[FakeConnection, asyncio.Task[Answer], asyncio.Task[Answer]]":
    """Return a pool's only connection, the request that uses it, and one that waits for it."""
    first = request(pool)
    await until(lambda: network.connections and network.connections[0].written)
    second = request(pool)
    await until(lambda: pool.load().connections_awaited)
    return network.connections[0], first, second


async def test_connection_given_to_a_cancelled_request_is_given_to_the_next(network):
    """A request that is cancelled in the moment in which it gets a connection does not take it away."""
    pool = Pool(Endpoint(host="h", port=80), 1)
    connection, first, second = await busy(pool, network)
    connection.answer()
    first.add_done_callback(lambda _: None)
    await until(lambda: not pool.load().connections_awaited)  # the second request has it, but has not run yet
    second.cancel()
    assert (await first).body == b"ok"
    with pytest.raises(asyncio.CancelledError):
        await second
    third = request(pool)
    await until(lambda: len(connection.written) == 2)
    connection.answer()
    assert (await third).status == 200
    await pool.aclose()


async def test_connection_lost_before_it_is_used_is_replaced(network):
    """A connection that closes between its release and its next request is not written to."""
    pool = Pool(Endpoint(host="h", port=80), 1)
    connection, first, second = await busy(pool, network)
    connection.answer()
    await until(lambda: not pool.load().connections_awaited)
    connection.abort()
    assert (await first).status == 200
    await until(lambda: len(network.connections) == 2 and network.connections[1].written)
    assert len(connection.written) == 1
    network.connections[1].answer()
    assert (await second).status == 200
    await pool.aclose()


async def test_two_lost_connections_in_succession_fail_the_request(network):
    """A request is repeated at once only once."""
    pool = Pool(Endpoint(host="h", port=80), 1)
    connection, first, second = await busy(pool, network)
    connection.answer()
    await until(lambda: not pool.load().connections_awaited)
    connection.abort()
    await first

    def lose_the_next() -> None:
        asyncio.get_running_loop().call_soon(network.lose_the_newest)

    network.dialling = lose_the_next
    with pytest.raises(ResponseFailed):
        await second
    await pool.aclose()


async def test_connection_that_is_closed_at_once_fails_its_request(network):
    """A connection that closes as soon as it is established is not used."""
    pool = Pool(Endpoint(host="h", port=80), 1)

    class Closed(FakeConnection):
        def is_closing(self) -> bool:
            return True

    async def dial(_endpoint: Endpoint, make: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        return Closed(make()).protocol

    network.dial = dial
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pulsecart.transports.pubsub.wire.http.dial", dial)
        with pytest.raises(ConnectFailed, match="cannot connect to h: the connection was closed at once"):
            await request(pool)


async def test_failure_to_connect_when_nobody_waits_any_more(network):
    """A connection that fails after its request has given up fails no other request."""
    pool = Pool(Endpoint(host="h", port=80), 1)
    network.gate.clear()

    def fail() -> None:
        raise OSError("unreachable")

    network.dialling = fail
    with pytest.raises(ConnectFailed, match="no connection became free in time"):
        await request(pool, 0.05)
    network.gate.set()
    await asyncio.sleep(0)
    with pytest.raises(ConnectFailed, match="cannot connect to h: unreachable"):
        await request(pool)
    assert pool.load() == Load()


async def test_error_without_text_is_named(network):
    """A failure to connect always says something."""

    def fail() -> None:
        raise TimeoutError

    network.dialling = fail
    with pytest.raises(ConnectFailed, match="cannot connect to h: TimeoutError"):
        await request(Pool(Endpoint(host="h", port=80), 1))


async def test_close_fails_all_requests(network):
    """Closing fails requests in flight and those that wait; later ones fail too."""
    pool = Pool(Endpoint(host="h", port=80), 2)
    used = request(pool)
    await until(lambda: network.connections and network.connections[0].written)
    network.connections[0].answer()
    await used
    in_flight = request(pool)
    await until(lambda: len(network.connections[0].written) == 2)
    network.gate.clear()
    waiting = request(pool)
    await until(lambda: pool.load().connections_awaited)
    await pool.aclose()
    for failed in (in_flight, waiting, request(pool)):
        with pytest.raises(ConnectFailed, match="the transport is closed"):
            await failed


async def test_close_does_not_wait_for_a_connection_that_does_not_close(network, monkeypatch):
    """A connection whose end is never reported does not hold up closing."""
    monkeypatch.setattr("pulsecart.transports.pubsub.wire.http.CLOSE_SECONDS", 0.05)
    pool = Pool(Endpoint(host="h", port=80), 1)
    used = request(pool)
    await until(lambda: network.connections and network.connections[0].written)
    network.connections[0].answer()
    await used
    network.connections[0].closing = True  # abort() has no effect any more
    async with asyncio.timeout(5):
        await pool.aclose()
