"""The protocol class on real sockets, with test applications and low limits."""

import asyncio
import contextvars
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from attrs import Factory, define
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from pulsecart.serve.protocol import ConnectionLimits, HttpProtocol

pytestmark = pytest.mark.anyio

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"


@define
class Echo:
    """Answers each request with what it has received."""

    started: int = 0
    scopes: list[Any] = Factory(list)
    disconnects: asyncio.Event = Factory(asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.started += 1
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects.set()
                return
            body += message["body"]
            more = message["more_body"]
        headers = [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]]
        answer = {"path": scope["path"], "method": scope["method"], "body": body.decode(), "headers": headers}
        await respond(send, json.dumps(answer).encode())


async def respond(send: Any, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    sized = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, sized]})
    await send({"type": "http.response.body", "body": body})


class Client:
    """A connection that sends bytes and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(10):
            status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(status.split()[1]), headers, body

    async def echo(self) -> Any:
        status, _, body = await self.answer()
        assert status == 200
        return json.loads(body)

    async def problem(self, status: int, type_: str) -> Any:
        found, headers, body = await self.answer()
        document = json.loads(body)
        assert (found, document["status"], document["type"]) == (status, status, type_)
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        return document

    async def closed(self) -> bool:
        """Wait until the server has closed the connection, with nothing more to read."""
        try:
            async with asyncio.timeout(10):
                return await self.reader.read() == b""
        except ConnectionError:
            return True


@define
class Running:
    state: ServerState
    connect: Callable[[], Awaitable[Client]]


@asynccontextmanager
async def running(app: Any, *, keep_alive: float = 5, root_path: str = "", **limits: float) -> AsyncIterator[Running]:
    """Serve an application on a free port of this event loop."""
    config = uvicorn.Config(app, log_config=None, timeout_keep_alive=keep_alive, root_path=root_path)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    bounds = ConnectionLimits(**limits)
    server = await loop.create_server(lambda: HttpProtocol(config, state, {"a": 1}, limits=bounds), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients: list[Client] = []

    async def connect() -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", port, limit=2**20))
        clients.append(client)
        return client

    try:
        yield Running(state, connect)
    finally:
        for client in clients:
            client.writer.transport.abort()
            with suppress(OSError):
                await client.writer.wait_closed()
        server.close()
        for task in list(state.tasks):
            task.cancel()
        await until(lambda: not state.connections)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_request_in_any_pieces():
    """However the bytes are split, a request with a body of either kind is read the same."""
    requests = [
        GET,
        POST + b"Content-Length: 5\r\n\r\nhello",
        CHUNKED + b"X-A: b\r\n\r\n3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nX-Trailer: t\r\n\r\n",
    ]
    stream = b"".join(requests)
    async with running(Echo()) as service:
        for cut in range(1, len(stream)):
            client = await service.connect()
            client.writer.write(stream[:cut])
            await asyncio.sleep(0)
            client.writer.write(stream[cut:])
            answers = [await client.echo() for _ in requests]
            assert [answer["body"] for answer in answers] == ["", "hello", "hello"]
            assert [name for name, _ in answers[2]["headers"]] == ["host", "transfer-encoding", "x-a"]
            client.writer.close()


@given(st.lists(st.sampled_from([b"G", b"L", b"C", b"E"]), max_size=8), st.lists(st.integers(1, 60), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_requests_in_any_pieces(kinds, cuts):
    """Any sequence of requests, cut anywhere, is answered in order and completely."""
    shapes = {
        b"G": GET,
        b"L": POST + b"Content-Length: 4\r\n\r\nbody",
        b"C": CHUNKED + b"\r\n4\r\nbody\r\n0\r\n\r\n",
        b"E": b"\r\n" + CHUNKED + b"\r\n0\r\nA: b\r\nC: d\r\n\r\n",
    }
    bodies = {b"G": "", b"L": "body", b"C": "body", b"E": ""}

    async def exchange() -> list[str]:
        async with running(Echo()) as service:
            client = await service.connect()
            stream = b"".join(shapes[kind] for kind in kinds) + CLOSE
            for cut in cuts:
                client.writer.write(stream[:cut])
                stream = stream[cut:]
                await asyncio.sleep(0)
            client.writer.write(stream)
            found = [(await client.echo())["body"] for _ in kinds]
            assert (await client.echo())["path"] == "/last"
            assert await client.closed()
            return found

    assert asyncio.run(exchange()) == [bodies[kind] for kind in kinds]


async def test_trailers_are_not_headers():
    """Trailers never reach the application, in whichever packets they arrive."""
    app = Echo()
    async with running(app) as service:
        client = await service.connect()
        client.writer.write(CHUNKED + b"\r\n1\r\nx\r\n0\r\nContent-Type: evil\r\nX: y\r\n\r\n")
        await client.echo()
        client.writer.write(CHUNKED + b"\r\n1\r\nx\r\n0\r\n")
        await until(lambda: app.started == 2)
        client.writer.write(b"Content-Type: evil\r\n\r\n")
        await client.echo()
    assert [name for scope in app.scopes for name, _ in scope["headers"]] == [b"host", b"transfer-encoding"] * 2


@pytest.mark.parametrize("flood", [b"a:\r\n", b"a: b", b"\xff"], ids=["lines", "one line", "bytes"])
async def test_trailers_over_limit_are_431(flood):
    """Trailers over the limit close the connection, also if they are a single line without an end."""
    async with running(Echo(), trailer_bytes=1000) as service:
        client = await service.connect()
        client.writer.write(CHUNKED + b"\r\n1\r\nx\r\n0\r\n" + flood * 3000)
        assert "1,000 bytes" in (await client.problem(431, "head-too-large"))["detail"]
        assert await client.closed()


async def test_chunk_extension_over_limit_is_431():
    """An endless chunk extension is not read."""
    async with running(Echo(), trailer_bytes=1000) as service:
        client = await service.connect()
        client.writer.write(CHUNKED + b"\r\n1;a=" + b"b" * 2000)
        await client.problem(431, "head-too-large")


async def test_malformed_chunk_after_answer_began_closes():
    """If an answer has begun, a malformed rest of the request only closes the connection."""

    async def early(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async with running(early) as service:
        client = await service.connect()
        client.writer.write(CHUNKED + b"\r\n")
        assert (await client.reader.readuntil(b"ab")).endswith(b"\r\n\r\nab")
        client.writer.write(b"no size\r\n")
        assert await client.closed()


async def test_pipelined_requests_are_answered_in_order():
    """500 requests sent at once are answered 500 times, in order."""
    async with running(Echo()) as service:
        client = await service.connect()
        client.writer.write(b"".join(GET.replace(b"/a", b"/%d" % number) for number in range(500)))
        paths = [(await client.echo())["path"] for _ in range(500)]
    assert paths == [f"/{number}" for number in range(500)]


async def test_pipelined_requests_wait_unparsed():
    """While a request is answered, those behind it are not started, whatever is sent."""
    gate = asyncio.Event()
    started = 0

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal started
        started += 1
        await gate.wait()
        await respond(send, b"")

    async with running(slow) as service:
        client = await service.connect()
        client.writer.write(GET * 1_000_000)
        await until(lambda: started)
        # More than the socket buffers hold: the service has stopped reading.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.writer.drain()
        assert started == 1
        assert len(service.state.tasks) == 1
        gate.set()
        assert (await client.answer())[0] == 200


async def test_client_that_does_not_read_is_disconnected():
    """A client that does not read its answers pauses the application for a limited time, then is disconnected."""
    ended = asyncio.Event()

    async def large(_scope: Any, _receive: Any, send: Any) -> None:
        try:
            await respond(send, b"x" * 10_000_000)
            await send({"type": "http.response.body"})
        except RuntimeError:
            pass
        finally:
            ended.set()

    async with running(large, write_seconds=0.2) as service:
        client = await service.connect()
        client.writer.transport.pause_reading()
        client.writer.write(GET)
        await until(lambda: service.state.connections)
        await until(lambda: not service.state.connections)
        assert ended.is_set()


async def test_streamed_answer_waits_for_client():
    """An application that streams faster than the client reads is paused, and continues when the client reads."""
    sent = 0

    async def stream(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"20000000")]})
        for number in range(200):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": number < 199})
            sent += 1

    async with running(stream) as service:
        client = await service.connect()
        client.writer.transport.pause_reading()
        client.writer.write(GET)
        await until(lambda: sent)
        await asyncio.sleep(0.1)
        assert sent < 200
        client.writer.transport.resume_reading()
        assert len((await client.answer())[2]) == 20_000_000


async def test_stream_to_a_client_that_never_reads_ends():
    """An application that streams to a client that never reads continues when the connection has been closed."""
    ended = asyncio.Event()

    async def stream(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        ended.set()

    async with running(stream, write_seconds=0.2) as service:
        client = await service.connect()
        client.writer.transport.pause_reading()
        client.writer.write(GET)
        async with asyncio.timeout(10):
            await ended.wait()
        assert not service.state.connections


@pytest.mark.parametrize("request_", [GET, CLOSE], ids=["kept", "closed"])
async def test_client_that_reads_late_gets_everything(request_):
    """A large answer that is read late, but in time, is complete; then the connection continues, or is closed."""

    async def large(scope: Any, _receive: Any, send: Any) -> None:
        await respond(send, b"x" * 20_000_000 if scope["path"] in {"/a", "/last"} else b"small")

    async with running(large, keep_alive=0.2) as service:
        client = await service.connect()
        client.writer.transport.pause_reading()
        client.writer.write(request_)
        await until(lambda: service.state.total_requests)
        await asyncio.sleep(0.3)  # longer than an idle connection is kept
        client.writer.transport.resume_reading()
        assert len((await client.answer())[2]) == 20_000_000
        if request_ is GET:
            client.writer.write(GET.replace(b"/a", b"/b"))
            assert (await client.answer())[2] == b"small"
        assert await client.closed()


async def test_timeout_starts_with_each_request():
    """Earlier waiting times close neither a connection with a request in progress nor one used since."""

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.sleep(0.2)
        await respond(send, b"ok")

    async with running(slow, head_seconds=0.1, keep_alive=0.5) as service:
        client = await service.connect()
        for _ in range(4):
            client.writer.write(GET)
            assert (await client.answer())[2] == b"ok"
            await asyncio.sleep(0.05)


async def test_application_that_waits_before_another_request():
    """If an application waits for its client to disconnect, the next request is still not read."""
    scopes = []

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await receive()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await receive()
        assert len(scopes) == (2 if scope["path"] == "/last" else 1)
        await respond(send, b"ok")

    async with running(waits) as service:
        client = await service.connect()
        client.writer.write(GET + CLOSE)
        assert [(await client.answer())[2] for _ in range(2)] == [b"ok", b"ok"]


async def test_application_that_waits_does_not_make_the_service_read_ahead():
    """However often an application asks for more of a complete request, what follows stays in the socket."""
    done = asyncio.Event()

    async def asks(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(1000):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await receive()
        done.set()
        await respond(send, b"ok")

    async with running(asks) as service:
        client = await service.connect()
        client.writer.write(GET * 1_500_000)
        async with asyncio.timeout(10):
            await done.wait()
        # The socket buffers hold some; a read for each question would have taken it all.
        assert client.writer.transport.get_write_buffer_size() > 20_000_000


async def test_request_waits_until_the_answer_before_it_is_read():
    """A client that does not read an answer does not have its next request processed."""
    app_calls = 0

    async def large(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal app_calls
        app_calls += 1
        await respond(send, b"x" * 20_000_000)

    async with running(large) as service:
        client = await service.connect()
        client.writer.transport.pause_reading()
        client.writer.write(GET * 2)
        await until(lambda: service.state.total_requests)
        await asyncio.sleep(0.1)
        assert app_calls == 1
        client.writer.transport.resume_reading()
        for _ in range(2):
            assert len((await client.answer())[2]) == 20_000_000


async def test_unix_socket(tmp_path):
    """On a Unix socket the scope has the server's path, and no client."""
    app = Echo()
    config = uvicorn.Config(app, log_config=None)
    config.load()
    path = str(tmp_path / "s")
    server = await asyncio.get_running_loop().create_unix_server(lambda: HttpProtocol(config, ServerState(), {}), path)
    client = Client(*await asyncio.open_unix_connection(path))
    client.writer.write(CLOSE)
    await client.echo()
    assert await client.closed()
    client.writer.close()
    server.close()
    assert (app.scopes[0]["server"], app.scopes[0]["client"]) == ((path, None), None)


async def test_abandoned_stream_ends():
    """An application that streams gets no error when the client has disconnected, and its task ends."""
    ended = asyncio.Event()

    async def stream(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"x"})
        ended.set()

    async with running(stream) as service:
        client = await service.connect()
        client.writer.write(GET)
        await client.reader.readuntil(b"\r\n\r\n")
        client.writer.transport.abort()
        async with asyncio.timeout(10):
            await ended.wait()


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_offer_to_upgrade_is_ignored_in_any_pieces(method):
    """Java's client offers HTTP/2 with every request: the request is read as if it did not."""
    offer = method.encode() + b" /b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    bodies = [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
    stream = b"".join(offer + body for body in bodies) + GET
    async with running(Echo()) as service:
        for cut in range(1, len(stream), 7):
            client = await service.connect()
            client.writer.write(stream[:cut])
            await asyncio.sleep(0)
            client.writer.write(stream[cut:])
            assert [(await client.echo())["body"] for _ in range(3)] == ["hello", "hello", ""]
            client.writer.close()


async def test_half_closed_client_gets_its_answers():
    """A client that closes its sending side after its requests still gets every answer."""
    async with running(Echo()) as service:
        client = await service.connect()
        client.writer.write(GET * 3 + POST + b"Content-Length: 2\r\n\r\nok")
        client.writer.write_eof()
        assert [(await client.echo())["body"] for _ in range(4)] == ["", "", "", "ok"]
        assert await client.closed()


async def test_half_closed_client_during_a_request():
    """An application that waits for more receives a disconnect; its answer is still delivered."""

    async def waits(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await respond(send, b"bye")

    async with running(waits) as service:
        client = await service.connect()
        client.writer.write(GET)
        await until(lambda: service.state.tasks)
        client.writer.write_eof()
        assert (await client.answer())[2] == b"bye"
        assert await client.closed()


@pytest.mark.parametrize("part", [b"", b"GET /", POST + b"Content-Length: 5\r\n\r\nhe", CHUNKED + b"\r\n5\r\nhe"])
async def test_end_of_input_within_a_request_closes(part):
    """If the rest of a request cannot arrive, the connection is closed and the application receives a disconnect."""
    app = Echo()
    async with running(app) as service:
        client = await service.connect()
        client.writer.write(part)
        client.writer.write_eof()
        assert await client.closed()
        await until(lambda: app.disconnects.is_set() or not app.started)


async def test_early_answer_reaches_a_client_that_keeps_sending():
    """An answer before the end of the body closes the connection, but only after the client could read it."""

    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await respond(send, b"no", 413)

    async with running(refuse) as service:
        client = await service.connect()
        client.writer.write(POST + b"Content-Length: 5000000\r\n\r\n")
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (413, "close")
        client.writer.write(b"x" * 5_000_000)
        await client.writer.drain()
        assert await client.closed()


@pytest.mark.parametrize(
    "limits", [{"linger_bytes": 1000, "linger_seconds": 60}, {"linger_seconds": 0.1}], ids=["bytes", "seconds"]
)
async def test_rest_of_a_rejected_body_is_limited(limits):
    """The rest of a body that is not needed is read within limits of bytes and time."""

    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await respond(send, b"no", 413)

    async with running(refuse, **limits) as service:
        client = await service.connect()
        client.writer.write(POST + b"Content-Length: 99000000\r\n\r\n")
        await client.answer()
        client.writer.write(b"x" * 2000)
        assert await client.closed()


async def unwelcome(_scope: Any, _receive: Any, send: Any) -> None:
    await respond(send, b"no", 401, (b"Connection", b"close"))


@pytest.mark.parametrize("head", [POST + b"Content-Length: 99000000\r\n\r\n", CHUNKED + b"\r\nfffffff\r\n"])
async def test_nothing_is_read_after_connection_close(head):
    """After an early answer that says Connection: close, the client cannot push bytes, and does not stay."""
    size = 60_000_000
    async with running(unwelcome, linger_seconds=1, keep_alive=60) as service:
        client = await service.connect()
        client.writer.write(head + b"x" * size)
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (401, "close")
        started = asyncio.get_running_loop().time()
        left = size
        while service.state.connections:
            left = client.writer.transport.get_write_buffer_size() or left
            assert asyncio.get_running_loop().time() - started < 10
            await asyncio.sleep(0.01)
        assert left > size / 2  # what is missing is in the buffers of the two sockets
        assert await client.closed()


async def test_unwelcome_connection_gives_way_to_another():
    """A connection whose body is not read counts as idle: many of them do not keep others out."""
    async with running(unwelcome, linger_seconds=60, max_connections=1) as service:
        first = await service.connect()
        first.writer.write(POST + b"Content-Length: 100\r\n\r\n")
        assert (await first.answer())[0] == 401
        second = await service.connect()
        second.writer.write(GET)
        assert (await second.answer())[0] == 401
        assert await first.closed()


async def test_body_is_read_as_fast_as_the_application_receives_it():
    """While the application does not receive, only a fixed amount of a body is buffered."""
    gate = asyncio.Event()
    sizes: list[int] = []

    async def slow(_scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            await gate.wait()
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await respond(send, b"")

    async with running(slow) as service:
        client = await service.connect()
        client.writer.write(POST + b"Content-Length: 20000000\r\n\r\n" + b"x" * 20_000_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.writer.drain()
        gate.set()
        assert (await client.answer())[0] == 200
    assert sum(sizes) == 20_000_000
    assert max(sizes) < 200_000


async def test_continue_is_sent_when_the_body_is_received():
    """100 Continue is sent when the application receives the body, and only then."""
    async with running(Echo()) as service:
        client = await service.connect()
        client.writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        async with asyncio.timeout(10):
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(b"ok")
        assert (await client.echo())["body"] == "ok"
        client.writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nok")
        assert (await client.echo())["body"] == "ok"


async def test_head_over_limit_is_431():
    """A head is limited in bytes, in however many pieces it arrives; one within the limit is read."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n"
    async with running(Echo(), head_bytes=1000) as service:
        fits = head % (b"a" * (1000 - len(head) + 2))
        for request in (fits, fits.replace(b"a", b"aa", 1), b"GET /" + b"a" * 2000):
            client = await service.connect()
            client.writer.write(request)
            if request is fits:
                await client.echo()
            else:
                assert "1,000 bytes" in (await client.problem(431, "head-too-large"))["detail"]


async def test_slow_head_is_408():
    """A head that arrives too slowly is answered 408, on a new connection and on a used one."""
    async with running(Echo(), head_seconds=0.1) as service:
        for used in (False, True):
            client = await service.connect()
            if used:
                client.writer.write(GET)
                await client.echo()
            client.writer.write(b"GET / HTTP/1.1\r\n")
            await client.problem(408, "request-timeout")
            assert await client.closed()


async def test_silent_connection_is_closed():
    """A connection without data, or with empty lines only, is closed without an answer."""
    async with running(Echo(), head_seconds=0.1, keep_alive=0.1) as service:
        for first in (b"", b"\r\n\r\n", GET, GET + b"\r\n"):
            client = await service.connect()
            client.writer.write(first)
            if GET in first:
                await client.echo()
            assert await client.closed()


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://a/\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX : a\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNKED + b"\r\nno size\r\n",
        CHUNKED + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"\r\n1\r\nxy\r\n0\r\n\r\n",
        CHUNKED + b"\r\n0\r\nno trailer\r\n\r\n",
    ],
)
async def test_malformed_request_is_400(request_):
    """Invalid HTTP is answered with a problem, and the connection is closed."""
    async with running(Echo()) as service:
        client = await service.connect()
        client.writer.write(request_)
        await client.problem(400, "malformed-request")
        assert await client.closed()


@pytest.mark.parametrize("head", ["1.1\r\n", "1.1\r\nHost: x\r\nhost: x\r\n", "1.0\r\nHost: x\r\nHost: y\r\n"])
async def test_other_than_one_host_is_400(head):
    """HTTP/1.1 requires one Host header, and two are wrong in any version; the answer says so."""
    async with running(Echo()) as service:
        client = await service.connect()
        client.writer.write(f"GET / HTTP/{head}\r\n".encode())
        document = await client.problem(400, "malformed-request")
        assert "one Host header" in document["detail"]
        assert await client.closed()


@pytest.mark.parametrize("second", [b"no http\r\n\r\n", b"\x16\x03"], ids=["text", "bytes"])
async def test_malformed_request_does_not_affect_the_previous_one(second):
    """A request is answered even if the following data on the connection is malformed."""
    async with running(Echo()) as service:
        client = await service.connect()
        client.writer.write(GET + second)
        await client.echo()
        await client.problem(400, "malformed-request")


async def test_target_in_absolute_form():
    """A request target may be a whole URL, with percent-encoding and a query; the scope has its parts."""
    app = Echo()
    async with running(app) as service:
        client = await service.connect()
        client.writer.write(b"GET http://shop/a%20b?c=d HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.echo())["path"] == "/a b"
        client.writer.write(b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.echo()
    scope = app.scopes[0]
    assert (scope["raw_path"], scope["query_string"]) == (b"/a%20b", b"c=d")
    assert (scope["type"], scope["scheme"], scope["http_version"], scope["state"]) == ("http", "http", "1.1", {"a": 1})
    assert scope["client"][0] == scope["server"][0] == "127.0.0.1"


async def test_root_path_is_prepended_to_the_path():
    """Behind a proxy that strips a prefix, the scope has the whole path."""
    app = Echo()
    async with running(app, root_path="/shop") as service:
        client = await service.connect()
        client.writer.write(GET)
        await client.echo()
    assert (app.scopes[0]["path"], app.scopes[0]["raw_path"]) == ("/shop/a", b"/shop/a")


@pytest.mark.parametrize("body", [b"\r\n", b"Content-Length: 2\r\n\r\nok"], ids=["no body", "body"])
async def test_connection_close_is_respected(body):
    """A client that sends Connection: close gets it in the answer, after which the connection is closed."""
    async with running(Echo(), keep_alive=60) as service:
        client = await service.connect()
        client.writer.write(POST + b"Connection: close\r\n" + body)
        assert (await client.answer())[1]["connection"] == "close"
        assert await client.closed()


async def test_http_10_connection_is_closed():
    """HTTP/1.0 has one request per connection."""
    async with running(Echo()) as service:
        client = await service.connect()
        client.writer.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        _, headers, _ = await client.answer()
        assert headers["connection"] == "close"
        assert await client.closed()


async def test_answers_without_a_body():
    """HEAD, 204 and 304 have no body, and the next answer follows."""

    async def empty(scope: Any, _receive: Any, send: Any) -> None:
        if scope["method"] == "HEAD":
            await respond(send, b"12345")
        else:
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})

    async with running(empty) as service:
        client = await service.connect()
        client.writer.write(GET.replace(b"GET", b"HEAD") + GET)
        async with asyncio.timeout(10):
            assert b"content-length: 5" in await client.reader.readuntil(b"\r\n\r\n")
        status, headers, _ = await client.answer()
        assert (status, "transfer-encoding" in headers) == (204, False)


async def test_streamed_answer_is_chunked():
    """An answer of unknown length is chunked, and its head is sent before its first part."""
    gate = asyncio.Event()

    async def stream(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": [(b"transfer-encoding", b"chunked")]})
        await gate.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        await send({"type": "http.response.body"})

    async with running(stream) as service:
        client = await service.connect()
        client.writer.write(GET)
        _, headers, _ = await client.answer()
        assert headers["transfer-encoding"] == "chunked"
        gate.set()
        async with asyncio.timeout(10):
            assert await client.reader.readuntil(b"0\r\n\r\n") == b"5\r\nhello\r\n0\r\n\r\n"


async def crash(_scope: Any, _receive: Any, _send: Any) -> None:
    raise ZeroDivisionError


async def say_nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    pass


async def inject(_scope: Any, _receive: Any, send: Any) -> None:
    await respond(send, b"", 200, (b"x", b"a\r\nset-cookie: b"))


async def send_twice(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.body"})


@pytest.mark.parametrize("app", [crash, say_nothing, inject, send_twice])
async def test_failing_application_is_500(app, caplog):
    """Any error of an application before its answer is a problem for the caller, and is logged."""
    async with running(app) as service:
        client = await service.connect()
        client.writer.write(GET)
        document = await client.problem(500, "internal-error")
        assert "Traceback" not in document["detail"]
        assert await client.closed()
    assert "The application" in caplog.text


async def too_long(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ab", "more_body": True})
    await send({"type": "http.response.body", "body": b"cd"})


async def too_short(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ab", "more_body": True})
    await send({"type": "http.response.body"})


async def unfinished(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ab", "more_body": True})


async def start_and_crash(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    raise ZeroDivisionError


async def test_failure_before_the_first_byte_is_500():
    """An application that fails when it has announced an answer, but sent nothing of it, is answered for."""
    async with running(start_and_crash) as service:
        client = await service.connect()
        client.writer.write(GET)
        await client.problem(500, "internal-error")


async def test_problem_for_head_has_no_body():
    """A HEAD request that fails has the headers of the problem only."""
    async with running(crash) as service:
        client = await service.connect()
        client.writer.write(GET.replace(b"GET", b"HEAD"))
        async with asyncio.timeout(10):
            received = await client.reader.read()
    assert received.startswith(b"HTTP/1.1 500 ")
    assert received.endswith(b"\r\n\r\n")


async def test_http_10_has_neither_chunks_nor_continue():
    """An answer of unknown length to HTTP/1.0 ends with the connection; Expect is ignored."""

    async def stream(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"hel", "more_body": True})
        await send({"type": "http.response.body", "body": b"lo"})

    async with running(stream) as service:
        client = await service.connect()
        client.writer.write(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        await until(lambda: service.state.tasks)
        client.writer.write(b"ok")
        async with asyncio.timeout(10):
            head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head
    assert body == b"hello"


@pytest.mark.parametrize("app", [too_long, too_short, unfinished])
async def test_invalid_answer_is_truncated(app, caplog):
    """If an answer becomes invalid after it has begun, the client sees that its end is missing."""
    async with running(app) as service:
        client = await service.connect()
        client.writer.write(GET)
        async with asyncio.timeout(10):
            received = await client.reader.read()
        assert received.endswith(b"\r\n\r\nab")
    assert "The application" in caplog.text


async def test_error_after_the_answer_is_only_logged(caplog):
    """An exception of the application after its answer does not affect the connection."""

    async def late(_scope: Any, _receive: Any, send: Any) -> None:
        await respond(send, b"ok")
        raise ZeroDivisionError

    async with running(late) as service:
        client = await service.connect()
        client.writer.write(GET * 2)
        assert [(await client.answer())[2] for _ in range(2)] == [b"ok", b"ok"]
        await until(lambda: caplog.text.count("ZeroDivisionError") >= 2)


async def test_too_many_connections_close_the_longest_idle_one():
    """At the limit, the connection that has been idle longest is closed for a new one."""
    async with running(Echo(), max_connections=3) as service:
        clients = [await service.connect() for _ in range(3)]
        for client in clients:
            client.writer.write(GET)
            await client.echo()
        clients[0].writer.write(GET)
        await clients[0].echo()
        newcomer = await service.connect()
        newcomer.writer.write(GET)
        await newcomer.echo()
        assert await clients[1].closed()
        for client in (clients[0], clients[2]):
            client.writer.write(GET)
            await client.echo()


async def test_idle_connection_with_an_unread_answer_is_evicted_at_once():
    """Connections that make room do not stay because their clients do not read: the limit holds."""

    async def large(_scope: Any, _receive: Any, send: Any) -> None:
        await respond(send, b"x" * 8_000_000)

    async with running(large, max_connections=3) as service:
        for number in range(8):
            client = await service.connect()
            client.writer.transport.pause_reading()
            client.writer.write(GET)
            await until(lambda number=number: service.state.total_requests > number)
            await until(lambda: len(service.state.connections) <= 3)


async def test_pipelined_client_that_does_not_read_is_closed():
    """A client that sends request after request and reads nothing is cut off, even between two answers."""

    async def medium(_scope: Any, _receive: Any, send: Any) -> None:
        await respond(send, b"x" * 50_000)

    async with running(medium, write_seconds=0.3, keep_alive=60) as service:
        client = await service.connect()
        client.writer.transport.pause_reading()
        client.writer.write(GET * 5000)
        await until(lambda: service.state.total_requests)
        await until(lambda: not service.state.connections)


async def test_context_of_a_request_does_not_reach_the_next():
    """What an application sets in its context is not seen by later requests of the connection."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    async def setting(scope: Any, receive: Any, send: Any) -> None:
        seen.append(variable.get())
        variable.set(scope["path"])
        while (await receive())["more_body"]:
            pass
        await respond(send, b"ok")

    async with running(setting) as service:
        client = await service.connect()
        for _ in range(2):
            client.writer.write(POST + b"Content-Length: 400000\r\n\r\n" + b"x" * 400_000 + GET)
            for _ in range(2):
                await client.answer()
    assert seen == ["none"] * 4


async def test_two_tasks_may_receive():
    """Two tasks of an application that wait for the body are both woken."""

    async def both(_scope: Any, receive: Any, send: Any) -> None:
        async with asyncio.timeout(5):
            kinds = [message["type"] for message in await asyncio.gather(receive(), receive())]
        await respond(send, " ".join(sorted(kinds)).encode())

    async with running(both) as service:
        client = await service.connect()
        client.writer.write(POST + b"Content-Length: 2\r\n\r\n")
        await until(lambda: service.state.tasks)
        client.writer.write(b"ok")
        await asyncio.sleep(0.05)
        client.writer.write_eof()
        assert (await client.answer())[2] == b"http.disconnect http.request"


async def test_lingering_connection_is_closed_although_its_answer_was_read_late():
    """An early large answer that is read slowly does not turn the rest of the body into an idle connection."""

    async def early(_scope: Any, _receive: Any, send: Any) -> None:
        await respond(send, b"x" * 8_000_000)

    async with running(early, linger_seconds=0.3, keep_alive=60) as service:
        client = await service.connect()
        client.writer.transport.pause_reading()
        client.writer.write(POST + b"Content-Length: 100\r\n\r\n")
        await until(lambda: service.state.total_requests)
        client.writer.transport.resume_reading()
        assert len((await client.answer())[2]) == 8_000_000
        assert await client.closed()


async def test_too_many_busy_connections_are_503():
    """If all connections have a request in progress, a new one gets a 503."""
    gate = asyncio.Event()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        await gate.wait()
        await respond(send, b"ok")

    async with running(slow, max_connections=2) as service:
        busy = [await service.connect() for _ in range(2)]
        for client in busy:
            client.writer.write(GET)
        await until(lambda: len(service.state.tasks) == 2)
        newcomer = await service.connect()
        _, headers, body = await newcomer.answer()
        assert (json.loads(body)["type"], headers["retry-after"]) == ("overloaded", "1")
        assert await newcomer.closed()
        gate.set()
        assert [(await client.answer())[2] for client in busy] == [b"ok", b"ok"]


async def test_shutdown_finishes_requests_in_progress():
    """A server that stops closes idle connections at once, and busy ones after their answer."""
    gate = asyncio.Event()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        await gate.wait()
        await respond(send, b"ok")

    async with running(slow) as service:
        idle, busy = await service.connect(), await service.connect()
        busy.writer.write(GET)
        await until(lambda: service.state.tasks)
        for connection in list(service.state.connections):
            connection.shutdown()
        assert await idle.closed()
        gate.set()
        status, headers, _ = await busy.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await busy.closed()


async def test_cancelled_request_is_503(caplog):
    """A request that the server cancels after its grace period is answered, and logs no error."""
    caplog.set_level(logging.WARNING)

    async def slow(_scope: Any, _receive: Any, _send: Any) -> None:
        await asyncio.Event().wait()

    async with running(slow) as service:
        client = await service.connect()
        client.writer.write(POST + b"Content-Length: 5\r\n\r\nhe")
        await until(lambda: service.state.tasks)
        for task in list(service.state.tasks):
            task.cancel()
        await client.problem(503, "shutting-down")
        assert await client.closed()
    assert caplog.text == ""
