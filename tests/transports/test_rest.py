"""The REST wire: its connections, requests and answers, on the strict server and on servers that misbehave."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from attrs import define
from google.oauth2.credentials import Credentials

from pulsecart import (
    Batching,
    BrokerRefused,
    BrokerUnavailable,
    Limits,
    Message,
    MessageRefused,
    Overloaded,
    Producer,
    PublishError,
    Receipt,
    unordered,
)
from pulsecart.events import OrderPlaced
from pulsecart.ports import Load, Unobserved
from pulsecart.testing import RawAnswer, StrictPubsub, http_answer, strict_pubsub
from pulsecart.testing.strict.certificate import Certificate, new_certificate
from pulsecart.transports import EmulatorTransport, PubSubTransport
from pulsecart.transports.pubsub.reachability import Reachability, keep_probing
from pulsecart.transports.pubsub.wire.dial import make_tls
from tests.google_login import token_endpoint
from tests.transports.messages import TOPICS, message

pytestmark = pytest.mark.anyio

PUBLISHED = b'{"messageIds":["1"]}'


@pytest.fixture
async def server() -> AsyncIterator[StrictPubsub]:
    async with strict_pubsub(TOPICS) as service:
        yield service


@pytest.fixture
async def secure_server() -> AsyncIterator[StrictPubsub]:
    async with strict_pubsub(TOPICS, tls=True) as service:
        yield service


class Watching(Unobserved):
    """Counts failed attempts, and reports the load."""

    def __init__(self) -> None:
        self.watched = []
        self.failed = []

    def watch(self, loaded):
        self.watched.append(loaded)

    def attempt_failed(self, error_type):
        self.failed.append(error_type)

    @property
    def connections(self) -> Load:
        return next(load for load in (each.load() for each in self.watched) if load.connections)


@pytest.fixture
def observer() -> Watching:
    return Watching()


@pytest.fixture
async def transport(server, observer) -> AsyncIterator[EmulatorTransport]:
    async with EmulatorTransport(project="test", host=server.host, observer=observer) as opened:
        yield opened


def pubsub(server: StrictPubsub, **options) -> PubSubTransport:
    options = {"endpoint": server.host, "roots": server.roots, "credentials": Credentials("token")} | options
    return PubSubTransport(project="test", **options)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_request_is_googles(secure_server):
    """The headers name the service's own timeout, the client, and the project that pays."""
    limits = Limits(deadline=4)
    credentials = Credentials("token", quota_project_id="who-pays")
    async with pubsub(secure_server, credentials=credentials, limits=limits) as transport:
        await transport.publish(message(1))
    headers = secure_server.metadata[0]
    assert headers["host"] == secure_server.host
    assert headers["x-server-timeout"] == "2.000"
    assert "pulsecart/" in headers["x-goog-api-client"]
    assert "gl-python/" in headers["x-goog-api-client"]
    assert headers["user-agent"].startswith("pulsecart/")
    assert headers["x-goog-user-project"] == "who-pays"
    assert headers["authorization"] == "Bearer token"


async def test_connection_is_used_again(server, transport):
    """Requests one after another share a connection."""
    for number in range(5):
        await transport.publish(message(number))
    assert dict(server.connections) == {1: 5}


async def test_connections_are_limited(server, observer):
    """Requests over the limit of connections wait for one, and metrics show it."""
    gate = asyncio.Event()
    server.script.extend([gate] * 2)
    async with EmulatorTransport(project="test", host=server.host, connections=2, observer=observer) as transport:
        tasks = [asyncio.create_task(transport.publish(message(n, f"user-{n}"))) for n in range(6)]
        await server.received(2)
        assert observer.connections == Load(connections=2, connections_in_use=2, connections_awaited=4)
        gate.set()
        await asyncio.gather(*tasks)
        assert observer.connections == Load(connections=2)
    assert len(server.connections) == 2


async def test_cancelled_publish_leaves_the_queue_for_a_connection(server):
    """If the transport is closed while requests wait for a connection, they fail, and all connections are closed."""
    server.script.append(asyncio.Event())
    transport = EmulatorTransport(project="test", host=server.host, connections=1)
    async with transport:
        tasks = [asyncio.create_task(transport.publish(message(n, f"user-{n}"))) for n in range(3)]
        await server.received(1)
        closing = asyncio.create_task(transport.aclose())
        await asyncio.sleep(0.01)
        closing.cancel()
        with suppress(asyncio.CancelledError):
            await closing
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, BrokerUnavailable) for result in results)
    await until(lambda: not server.open)


async def test_idle_connection_is_closed(server, transport, monkeypatch):
    """A connection that is idle for too long is closed, one that is not stays open."""
    monkeypatch.setattr("pulsecart.transports.pubsub.wire.http.IDLE_SECONDS", 0.2)
    await asyncio.gather(*(transport.publish(message(n, f"user-{n}")) for n in range(3)))
    while len(server.open) > 1:
        await transport.publish(message(9))
        await asyncio.sleep(0.01)
    await until(lambda: not server.open)
    assert await transport.publish(message(9))


async def test_kept_connection_closed_by_the_server_costs_no_attempt(server, transport, observer):
    """A request that meets a closed connection is sent again at once, on a new connection."""
    await asyncio.gather(*(transport.publish(message(n, f"user-{n}")) for n in range(4)))
    known = set(server.connections)
    server.script.append(RawAnswer())
    assert await transport.publish(message(5))
    assert [request.connection in known for request in server.requests[-2:]] == [True, False]
    assert observer.failed == []


async def test_server_that_closes_each_connection_after_an_answer_gets_every_message(server, transport, observer):
    """Connections that the server closes after each answer cost no message and no attempt."""
    server.answers_per_connection = 1
    for number in range(10):
        await transport.publish(message(number))
    assert [m.data for m in server.confirmed] == [message(n).data for n in range(10)]
    assert observer.failed == []


async def test_new_connection_closed_without_an_answer_is_an_attempt(server, transport, observer):
    """If a new connection is closed too, the attempt has failed, and another is made after a pause."""
    await transport.publish(message(1))
    server.script.extend([RawAnswer(), RawAnswer()])
    assert await transport.publish(message(2))
    assert observer.failed == ["UNAVAILABLE"]


PAGE = b"<html><h1>Bad gateway of proxy-7.internal</h1>"


@pytest.mark.parametrize(
    ("answer", "logged"),
    [
        (http_answer(502, PAGE, {"Content-Type": "text/html"}), "HTTP 502, 46 bytes: b'<html><h1>Bad gateway"),
        (http_answer(302, headers={"Location": "https://login.internal/"}), "HTTP 302, 0 bytes: b''"),
        (http_answer(403, PAGE), "HTTP 403"),
        (http_answer(404, {"error": {"code": 404}}), "HTTP 404"),
        (http_answer(404, {"error": "proxy-7.internal"}), "HTTP 404"),
        (http_answer(200, PAGE), "HTTP 200"),
        (http_answer(200, {"messageIds": [1]}), "HTTP 200"),
        (http_answer(429, PAGE), "HTTP 429"),
        (http_answer(204), "HTTP 204"),
        (RawAnswer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + PUBLISHED[:10]), "b'{\"messageI'"),
        (RawAnswer(b"HTTP/1.1 200 OK\r\nContent-Le"), "closed after 27 bytes"),
        (RawAnswer(b"220 smtp.internal ready\r\n"), "it is not HTTP"),
        (http_answer(200, b" " * 2_000_000), "it has more than 1,"),
        (RawAnswer(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 0123456789\r\n" * 20_000), "it has more than "),
    ],
)
async def test_answer_of_something_else_is_an_outage(server, answer, logged):
    """What is not Pub/Sub's answer is retried, then BrokerUnavailable; its status and first bytes are only logged."""
    server.script.extend([answer] * 100)
    limits = Limits(deadline=1)
    async with EmulatorTransport(project="test", host=server.host, limits=limits) as transport:
        with pytest.raises(BrokerUnavailable, match="did not confirm within 1 s") as caught:
            await transport.publish(message(1))
    assert logged in caught.value.log_detail
    assert "internal" not in str(caught.value)
    assert server.confirmed == []


async def test_last_attempt_cut_short_does_not_hide_the_failure(server, observer):
    """If the deadline ends an attempt early, the error is that of the one before it. Observers get that of each."""
    server.script.extend([http_answer(429, PAGE, {"Retry-After": "1"}), asyncio.Event()])
    limits = Limits(deadline=1.5)
    async with EmulatorTransport(project="test", host=server.host, limits=limits, observer=observer) as transport:
        with pytest.raises(BrokerUnavailable) as caught:
            await transport.publish(message(1))
    assert len(server.requests) == 2
    assert observer.failed == ["RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"]
    assert "HTTP 429" in caught.value.log_detail


async def test_errors_are_told_apart_by_status_name(server, transport):
    """HTTP 400 is a rejected message or a failed precondition: the status name decides."""
    error = {"code": 400, "message": "m", "status": "INVALID_ARGUMENT"}
    server.script.append(http_answer(400, {"error": error}))
    with pytest.raises(MessageRefused):
        await transport.publish(message(1))
    server.script.append(http_answer(400, {"error": error | {"status": "FAILED_PRECONDITION"}}))
    with pytest.raises(BrokerUnavailable):
        await transport.publish(message(1))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + PUBLISHED,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n" + PUBLISHED + b"\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + PUBLISHED,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 20\r\n\r\n" + PUBLISHED,
    ],
)
async def test_every_form_of_answer_is_read(server, transport, answer):
    """Interim answers, chunks, and an answer that ends with its connection are read."""
    server.script.append(RawAnswer(answer))
    assert await transport.publish(message(1)) == "1"
    assert await transport.publish(message(2)) == "1"
    assert len(server.connections) == 2


async def test_answer_that_was_not_asked_for_ends_the_connection(server, transport):
    """Bytes after an answer, or on an idle connection, are never taken for the next answer."""
    unasked = http_answer(200, {"messageIds": ["unasked"]}).data
    asked = http_answer(200, {"messageIds": ["asked"]}).data
    server.script.append(RawAnswer(asked + unasked, close=False))
    assert await transport.publish(message(1)) == "asked"
    assert await transport.publish(message(2)) == "1"


async def test_bytes_on_an_idle_connection_end_it():
    """What a server sends unasked, such as a 408 for an idle connection, is not the answer to the next request."""
    unasked = http_answer(408, b"too late").data
    async with plain_server(after=unasked) as served, EmulatorTransport(project="test", host=served.host) as transport:
        assert await transport.publish(message(1)) == "1"
        await until(lambda: not served.open)
        assert await transport.publish(message(2)) == "1"
    assert served.connections == 2


@define
class Plain:
    """A server that confirms every request, then sends the bytes `after`."""

    host: str = ""
    connections: int = 0
    open: int = 0


@asynccontextmanager
async def plain_server(address: str = "127.0.0.1", port: int = 0, after: bytes = b"") -> AsyncIterator[Plain]:
    served = Plain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        served.open += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + PUBLISHED)
                await asyncio.sleep(0.05)  # so that it comes after the answer
                writer.write(after)
        served.open -= 1
        writer.close()

    listener = await asyncio.start_server(serve, address, port)
    async with listener:
        served.host = f"{address}:{listener.sockets[0].getsockname()[1]}"
        yield served


async def test_retry_after_is_waited_for(server):
    """With Retry-After, the next attempt is made then, or not at all if that is after the deadline."""
    limits = Limits(deadline=2)
    async with EmulatorTransport(project="test", host=server.host, limits=limits) as transport:
        clock = asyncio.get_running_loop().time
        server.script.append(http_answer(429, b"slow down", {"Retry-After": "1"}))
        started = clock()
        assert await transport.publish(message(1))
        assert clock() - started >= 1
        server.script.append(http_answer(429, b"slow down", {"Retry-After": "30"}))
        started = clock()
        with pytest.raises(BrokerUnavailable, match="RESOURCE_EXHAUSTED") as caught:
            await transport.publish(message(2))
        assert clock() - started < 1
        assert caught.value.retry_after == 30
        server.script.append(http_answer(503, b"", {"Retry-After": "Wed, 25 Nov 2026 07:28:00 GMT"}))
        assert await transport.publish(message(3))


async def test_batch_over_the_limit_of_an_encoded_request_is_split(server):
    """Messages that fit into a request, but not in base64, are published in several, in order."""
    limits = Limits(batching={TOPICS[0]: Batching(max_bytes=10_000_000)})
    large = [Message(topic=TOPICS[0], data=b"%d" % n * 3_000_000, attributes={}, ordering_key="u") for n in range(4)]
    gate = asyncio.Event()
    server.script.append(gate)
    async with EmulatorTransport(project="test", host=server.host, limits=limits) as transport:
        tasks = [asyncio.create_task(transport.publish(each)) for each in large]
        await server.received(1)
        gate.set()
        await asyncio.gather(*tasks)
    assert [m.data[:1] for m in server.confirmed] == [b"0", b"1", b"2", b"3"]


async def test_message_over_the_limit_is_rejected_before_it_is_sent(server, transport):
    """A message that no request can hold is rejected without being sent, and the log names the gRPC wire."""
    large = Message(topic=TOPICS[0], data=b"x" * 8_000_000, attributes={}, ordering_key="u")
    with pytest.raises(MessageRefused) as caught:
        await transport.publish(large)
    assert "the limit of Pub/Sub's REST API is 10,485,760" in caught.value.log_detail
    assert "PULSECART_WIRE=grpc" in caught.value.log_detail
    assert server.requests == []


async def test_connections_are_opened_a_few_at_a_time(secure_server):
    """A burst does not make more than eight TLS handshakes at a time."""
    secure_server.handshake_delay = 0.2
    async with pubsub(secure_server) as transport:
        tasks = [asyncio.create_task(transport.publish(message(n, f"user-{n}"))) for n in range(30)]
        await until(lambda: secure_server.open)
        assert len(secure_server.open) <= 8
        await asyncio.gather(*tasks)
    assert 8 < len(secure_server.connections) <= 30


async def test_connection_closed_in_the_handshake_is_an_outage(server):
    """A server that accepts connections and closes them at once is BrokerUnavailable at the deadline."""

    async def close(_reader, writer):
        writer.close()

    listener = await asyncio.start_server(close, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, EmulatorTransport(project="test", host=f"127.0.0.1:{port}", limits=Limits(deadline=0.5)) as t:
        with pytest.raises(BrokerUnavailable, match="did not confirm"):
            await t.publish(message(1))


async def test_session_is_resumed(tmp_path):
    """A second TLS connection resumes the session of the first."""
    certificate = new_certificate(str(tmp_path))
    async with tls_server(context_of(certificate)) as (port, seen):
        transport = PubSubTransport(
            project="test",
            endpoint=f"localhost:{port}",
            roots=certificate.chain,
            credentials=Credentials("token"),
        )
        async with transport:
            await transport.publish(message(1))
            await transport.publish(message(2))
    assert [each.session_reused for each in seen] == [False, True]
    assert {each.version() for each in seen} == {"TLSv1.3"}


async def test_client_certificate_is_presented(tmp_path):
    """With mutual TLS the server gets the client's certificate; without it the connection fails."""
    certificate = new_certificate(str(tmp_path))
    context = context_of(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate.chain_file)
    async with tls_server(context) as (port, seen):

        def connect(**options) -> PubSubTransport:
            return PubSubTransport(
                project="test",
                endpoint=f"localhost:{port}",
                roots=certificate.chain,
                credentials=Credentials("token"),
                limits=Limits(deadline=1),
                **options,
            )

        async with connect(
            client_certificate=Path(certificate.chain_file), client_key=Path(certificate.key_file)
        ) as transport:
            await transport.publish(message(1))
        assert seen[-1].getpeercert()["subject"] == ((("commonName", "localhost"),),)
        async with connect() as transport:
            with pytest.raises(BrokerUnavailable):
                await transport.publish(message(1))


def context_of(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain_file, certificate.key_file)
    return context


@asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[ssl.SSLObject]]]:
    """Confirm a request on each connection, then close it; list the connections' TLS objects."""
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("ssl_object"))
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 20\r\n\r\n" + PUBLISHED)
            await writer.drain()
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield listener.sockets[0].getsockname()[1], seen


@pytest.mark.parametrize("wire", ["rest", "grpc"])
async def test_address_can_differ_from_the_name(secure_server, wire):
    """Connections go to another address, and the server name and Host stay the endpoint's."""
    transport = pubsub(secure_server, endpoint="localhost:443", connect_to=secure_server.host, wire=wire)
    async with transport:
        await transport.publish(message(1))
    headers = secure_server.metadata[0]
    assert wire == "grpc" or headers["host"] == "localhost"


async def test_endpoint_of_another_name_is_not_trusted(secure_server):
    """Nothing is sent to a server whose certificate has another name."""
    limits = Limits(deadline=0.5)
    transport = pubsub(secure_server, endpoint="pubsub.test:443", connect_to=secure_server.host, limits=limits)
    async with transport:
        with pytest.raises(BrokerUnavailable) as caught:
            await transport.publish(message(1))
    assert "ertificate" in caught.value.log_detail
    assert secure_server.requests == []


class TestProxy:
    """CONNECT through the proxy that HTTPS_PROXY names."""

    @pytest.fixture(autouse=True)
    def _no_proxies(self, monkeypatch):
        for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)

    @pytest.fixture
    async def heads(self, monkeypatch) -> AsyncIterator[list[bytes]]:
        """Run a proxy that demands credentials, and list the heads of the requests that it gets."""
        seen: list[bytes] = []
        async with connect_proxy(seen) as port:
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@127.0.0.1:{port}")
            yield seen

    async def test_requests_go_through_the_proxy(self, secure_server, heads):
        async with pubsub(secure_server) as transport:
            assert await transport.publish(message(1))
        assert heads[0].startswith(b"CONNECT %b HTTP/1.1\r\n" % secure_server.host.encode())
        assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in heads[0]

    async def test_no_proxy_is_honoured(self, secure_server, heads, monkeypatch):
        monkeypatch.setenv("NO_PROXY", "localhost")
        async with pubsub(secure_server) as transport:
            assert await transport.publish(message(1))
        assert heads == []

    @pytest.mark.parametrize("user", ["", "wrong:password@"])
    async def test_refusal_of_the_proxy_is_logged(self, secure_server, heads, monkeypatch, user):
        import os

        host = os.environ["HTTPS_PROXY"].rpartition("@")[2]
        monkeypatch.setenv("HTTPS_PROXY", f"http://{user}{host}")
        async with pubsub(secure_server, limits=Limits(deadline=0.5)) as transport:
            with pytest.raises(BrokerUnavailable) as caught:
                await transport.publish(message(1))
        assert "refused to CONNECT: 'HTTP/1.1 407" in caught.value.log_detail
        assert "password" not in caught.value.log_detail

    async def test_proxy_that_says_nothing_is_logged(self, secure_server, monkeypatch):
        async def close(_reader, writer):
            writer.close()

        listener = await asyncio.start_server(close, "127.0.0.1", 0)
        async with listener:
            monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{listener.sockets[0].getsockname()[1]}")
            async with pubsub(secure_server, limits=Limits(deadline=0.5)) as transport:
                with pytest.raises(BrokerUnavailable) as caught:
                    await transport.publish(message(1))
        assert "no answer to CONNECT" in caught.value.log_detail or "reset" in caught.value.log_detail

    async def test_endless_head_of_the_proxy_is_an_error(self, secure_server, monkeypatch):
        async def talk(_reader, writer):
            with suppress(ConnectionError):
                for _ in range(10_000):
                    writer.write(b"HTTP/1.1 200 OK" * 1000)
                    await writer.drain()
            writer.close()

        listener = await asyncio.start_server(talk, "127.0.0.1", 0)
        async with listener:
            monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{listener.sockets[0].getsockname()[1]}")
            async with pubsub(secure_server, limits=Limits(deadline=0.5)) as transport:
                with pytest.raises(BrokerUnavailable) as caught:
                    await transport.publish(message(1))
        assert "no answer to CONNECT" in caught.value.log_detail

    async def test_proxy_with_tls_is_an_error_at_startup(self, secure_server, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "https://user:password@proxy:3128")
        with pytest.raises(ValueError, match="HTTPS_PROXY must be http://host:port, not https://proxy") as caught:
            await pubsub(secure_server).__aenter__()
        assert "password" not in str(caught.value)


@asynccontextmanager
async def connect_proxy(heads: list[bytes]) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        if b"Basic dXNlcjpwQHNz" not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            writer.close()
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
        finally:
            target.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]


@pytest.mark.parametrize("wire", ["rest", "grpc"])
class TestSilentConnections:
    """Connections that stay open and carry no more bytes, while new ones work."""

    async def test_all_connections(self, server, wire):
        """Messages in flight are sent again on new connections, and later ones do not meet the silent ones."""
        limits = Limits(deadline=2)
        async with EmulatorTransport(project="test", host=server.host, wire=wire, limits=limits) as transport:
            await asyncio.gather(*(transport.publish(message(n, f"user-{n}")) for n in range(10)))
            server.silent.update(server.connections)
            assert await asyncio.gather(*(transport.publish(message(n, f"user-{n}")) for n in range(5)))
            clock = asyncio.get_running_loop().time
            started = clock()
            await asyncio.gather(*(transport.publish(message(n, f"user-{n}")) for n in range(10)))
            assert clock() - started < 0.9  # less than the time of an attempt

    async def test_one_connection(self, server, wire):
        """Other connections are used meanwhile, and the broker does not count as away."""
        limits = Limits(deadline=2)
        async with EmulatorTransport(project="test", host=server.host, wire=wire, limits=limits) as transport:
            await asyncio.gather(*(transport.publish(message(n, f"user-{n}")) for n in range(10)))
            server.silent.add(max(server.connections, key=server.connections.__getitem__))
            publishing = [asyncio.create_task(transport.publish(message(n, f"user-{n}"))) for n in range(20)]
            await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
            assert await transport.check([]) == []
            await asyncio.gather(*publishing)


async def test_slow_handshake_succeeds(secure_server):
    """A TLS handshake that takes a second succeeds."""
    secure_server.handshake_delay = 1.0
    async with pubsub(secure_server) as transport:
        assert await transport.publish(message(1))


# With gRPC, several attempts share a connection, so one that comes too late for an attempt is not lost.
@pytest.mark.parametrize(("wire", "latency"), [("rest", 0.0), ("grpc", 0.0), ("grpc", 0.3)])
async def test_handshake_slower_than_an_attempt_succeeds(secure_server, wire, latency):
    """Attempts that time out end neither a handshake that takes longer nor its connection: a later attempt uses it."""
    secure_server.handshake_delay = 0.8
    secure_server.latency = latency
    async with pubsub(secure_server, wire=wire, limits=Limits(deadline=1)) as transport, asyncio.timeout(10):
        published = ""
        while not published:
            with suppress(BrokerUnavailable):
                published = await transport.publish(message(1))


async def test_address_of_a_name_is_looked_up_for_each_connection(server, monkeypatch):
    """When a host name gets another address, new connections go there."""
    loop = asyncio.get_running_loop()
    look_up, address, asked = loop.getaddrinfo, ["127.0.0.1"], []

    async def getaddrinfo(host, port, **options):
        asked.append(host)
        return await look_up(address[0], port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    server.answers_per_connection = 1
    port = int(server.host.rpartition(":")[2])
    async with (
        plain_server("127.0.0.2", port) as elsewhere,
        EmulatorTransport(project="test", host=f"pubsub.test:{port}") as transport,
    ):
        await transport.publish(message(1))
        address[0] = "127.0.0.2"
        await transport.publish(message(2))
    assert set(asked) == {"pubsub.test"}
    assert (len(server.requests), elsewhere.connections) == (1, 1)


def test_options_that_cannot_work_are_found_before_opening(tmp_path: Path, monkeypatch):
    """Certificates that cannot be read and an unusable proxy are named together."""
    from pulsecart import SettingsError

    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy:1080")
    broken = tmp_path / "certificate.pem"
    broken.write_text("nothing")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    transport = PubSubTransport(project="test", client_certificate=broken)
    with pytest.raises(SettingsError, match="certificates for Pub/Sub cannot be used") as caught:
        transport.require()
    assert "HTTPS_PROXY must be http://host:port" in str(caught.value)
    assert "Application Default Credentials" in str(caught.value)
    monkeypatch.delenv("HTTPS_PROXY")
    PubSubTransport(project="test", credentials=Credentials("token")).require()


async def test_grpc_wire_without_its_package_names_the_extra(monkeypatch):
    """Opening a transport on the gRPC wire without Google's client says how to install it."""
    monkeypatch.setitem(sys.modules, "google.pubsub_v1.services.publisher.transports", None)
    monkeypatch.delitem(sys.modules, "pulsecart.transports.pubsub.wire.grpc", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pulsecart\[grpc\]'"):
        await EmulatorTransport(project="test", host="127.0.0.1:1", wire="grpc").__aenter__()


async def test_next_address_is_tried(server, monkeypatch):
    """If nothing listens at the first address of a name, the next one is used."""
    loop = asyncio.get_running_loop()
    look_up = loop.getaddrinfo

    async def getaddrinfo(_host, port, **options):
        return [found for address in ("127.0.0.3", "127.0.0.1") for found in await look_up(address, port, **options)]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    host = f"pubsub.test:{server.host.rpartition(':')[2]}"
    async with EmulatorTransport(project="test", host=host) as transport:
        assert await transport.publish(message(1))


async def test_system_certificates_are_trusted(secure_server, monkeypatch):
    """Without roots, the system's are trusted, which SSL_CERT_FILE replaces."""
    limits = Limits(deadline=0.5)
    async with pubsub(secure_server, roots=None, limits=limits) as transport:
        with pytest.raises(BrokerUnavailable):
            await transport.publish(message(1))
    monkeypatch.setenv("SSL_CERT_FILE", secure_server.roots_file)
    async with pubsub(secure_server, roots=None) as transport:
        assert await transport.publish(message(1))


def test_old_versions_of_tls_are_refused():
    """TLS 1.2 is the oldest version."""
    assert make_tls().minimum_version is ssl.TLSVersion.TLSv1_2


async def test_quota_of_look_ups_does_not_stop_publishing(server, monkeypatch):
    """If looking up topics fails with any answer, the broker is there, and topics count as existing."""
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.PROBE_SECONDS", 0.02)
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.QUIET_SECONDS", 0.02)
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.AWAY_SECONDS", 0.02)
    for answer in ("RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INTERNAL"):
        server.look_up = answer
        async with EmulatorTransport(project="test", host=server.host) as transport:
            before = sum(server.connections.values())
            await until(lambda seen=before: sum(server.connections.values()) > seen + 5)  # probes
            assert await transport.check([]) == []
            assert await transport.publish(message(1))
            if answer != "INTERNAL":
                assert await transport.check(TOPICS) == []


async def test_page_of_a_proxy_is_no_topic(server, transport):
    """A check that gets a page instead of a topic raises BrokerUnavailable."""
    for page in (http_answer(200, PAGE), http_answer(404, PAGE)):
        server.look_up = page
        with pytest.raises(BrokerUnavailable) as caught:
            await transport.check(TOPICS)
        assert "proxy-7.internal" in caught.value.log_detail


async def test_grpc_connections_are_counted_and_closed(server, observer, monkeypatch):
    """On the gRPC wire the load has the channels; one that is being replaced is closed with the transport."""
    monkeypatch.setattr("pulsecart.transports.pubsub.publisher.DRAIN_SECONDS", 0.05)
    limits = Limits(deadline=60)
    transport = EmulatorTransport(project="test", host=server.host, wire="grpc", limits=limits, observer=observer)
    async with transport:
        assert observer.connections == Load(connections=4)
        await transport.check(TOPICS)  # a channel that has not connected yet would not be replaced
        monkeypatch.setattr("pulsecart.transports.pubsub.admin.CHECK_SECONDS", 0.1)
        server.script.append(asyncio.Event())
        waiting = asyncio.create_task(transport.publish(message(1)))
        await server.received(1)
        server.look_up = asyncio.Event()
        with pytest.raises(BrokerUnavailable):
            await transport.check(TOPICS)
    with pytest.raises(BrokerUnavailable):
        await waiting


async def test_failed_opening_leaves_nothing_behind(secure_server, monkeypatch):
    """If opening fails after the token was fetched, its renewal ends, and the transport can be opened again."""

    class Failing(Unobserved):
        def watch(self, loaded):
            raise RuntimeError("the observer fails")

    before = asyncio.all_tasks()
    with pytest.raises(RuntimeError, match="the observer fails"):
        await pubsub(secure_server, observer=Failing()).__aenter__()
    await until(lambda: asyncio.all_tasks() == before)


async def test_message_that_is_refused_for_lack_of_room_is_not_the_one_that_is_tried(server, monkeypatch):
    """While the broker is away, one message at a time is tried; one that is refused does not count."""
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.AWAY_SECONDS", 0.05)
    monkeypatch.setattr("pulsecart.transports.pubsub.admin.CHECK_SECONDS", 0.1)
    async with EmulatorTransport(project="test", host=server.host, limits=Limits(max_messages=1)) as transport:
        server.look_up, gate = asyncio.Event(), asyncio.Event()
        server.script.append(gate)
        first = asyncio.create_task(transport.publish(message(1)))
        await server.received(1)
        with suppress(BrokerUnavailable):
            await transport.check(TOPICS)
        with suppress(BrokerUnavailable):
            await transport.check(TOPICS)
        with pytest.raises(BrokerUnavailable, match="cannot be reached"):
            await transport.check([])
        for number in (2, 3):
            with pytest.raises(Overloaded):
                await transport.publish(message(number, f"user-{number}"))
        gate.set()
        assert await first
        assert await transport.check([]) == []


async def test_probing_survives_an_unexpected_exception(caplog, monkeypatch):
    """A defect in a probe is logged, and probes go on."""
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.PROBE_SECONDS", 0)
    monkeypatch.setattr("pulsecart.transports.pubsub.reachability.QUIET_SECONDS", 0)
    probes = iter([RuntimeError("a defect"), BrokerUnavailable("away")])
    reachability = Reachability()
    third = asyncio.Event()

    async def probe() -> None:
        for error in probes:
            raise error
        third.set()

    probing = asyncio.create_task(keep_probing(reachability, probe, lambda: True))
    await asyncio.wait_for(third.wait(), 5)
    probing.cancel()
    assert [record.exc_info[1].args for record in caplog.records] == [("a defect",)]


async def test_rejected_token_is_renewed_and_the_request_sent_again(secure_server):
    """After UNAUTHENTICATED the message is published with a new token, and callers notice nothing."""
    with token_endpoint(lifetime=3600) as endpoint:
        credentials = Credentials(None, refresh_token="r", token_uri=endpoint.url, client_id="c", client_secret="s")
        async with pubsub(secure_server, credentials=credentials) as transport:
            await transport.publish(message(1))
            secure_server.script.append("UNAUTHENTICATED")
            assert await transport.publish(message(2))
            secure_server.look_up = None
    assert [headers["authorization"] for headers in secure_server.metadata] == [
        "Bearer token-1",
        "Bearer token-1",
        "Bearer token-2",
    ]


async def test_token_that_cannot_be_renewed_in_time_is_the_brokers_refusal(secure_server):
    """If a new token does not come before the deadline, the error says that the credentials are not accepted."""
    with token_endpoint(lifetime=3600) as endpoint:
        credentials = Credentials(None, refresh_token="r", token_uri=endpoint.url, client_id="c", client_secret="s")
        async with pubsub(secure_server, credentials=credentials, limits=Limits(deadline=0.5)) as transport:
            await transport.publish(message(1))
            endpoint.answering.clear()
            secure_server.script.append("UNAUTHENTICATED")
            with pytest.raises(BrokerRefused, match="does not accept the credentials"):
                await transport.publish(message(2))
            endpoint.answering.set()


@pytest.mark.parametrize("wire", ["rest", "grpc"])
async def test_upload_leaves_connections_for_single_events(server, wire):
    """A batch of many users has requests of at most half of the connections in flight; a single event gets another."""
    gate = asyncio.Event()
    limit = 4 if wire == "rest" else 32
    server.script.extend([gate] * limit)
    async with EmulatorTransport(project="test", host=server.host, wire=wire, connections=8) as transport:
        producer = Producer(transport, ordering={})
        events = [OrderPlaced(user_id=f"user-{n}", order_id="o", payload={}) for n in range(limit + 20)]
        server.topics.add("projects/test/topics/pulsecart.commerce-events")

        async def upload() -> list[object]:
            return [outcome async for outcome in producer.publish_many(events)]

        uploading = asyncio.create_task(upload())
        await server.received(limit)
        assert await producer.publish(OrderPlaced(user_id="single", order_id="o", payload={}))
        assert len(server.requests) == limit + 1
        gate.set()
        assert [type(outcome) for outcome in await uploading] == [Receipt] * len(events)


async def test_upload_that_waits_for_its_turn_ends_with_the_transport(server, monkeypatch):
    """Closing the transport ends an upload that waits, and nothing waits for ever."""
    monkeypatch.setattr("pulsecart.transports.pubsub.publisher.DRAIN_SECONDS", 0.05)
    server.script.append(asyncio.Event())
    server.topics.add("projects/test/topics/pulsecart.commerce-events")
    async with EmulatorTransport(project="test", host=server.host, connections=2) as transport:
        producer = Producer(transport)
        events = [OrderPlaced(user_id=f"user-{n}", order_id="o", payload={}) for n in range(5)]

        async def upload() -> list[object]:
            return [outcome async for outcome in producer.publish_many(events)]

        uploading = asyncio.create_task(upload())
        await server.received(1)
    assert [isinstance(outcome, PublishError) for outcome in await uploading] == [True] * 5


async def test_upload_without_order_is_published(server):
    """Messages of a batch without an ordering key do not wait for a key's turn."""
    server.topics.add("projects/test/topics/pulsecart.commerce-events")
    async with EmulatorTransport(project="test", host=server.host, connections=2) as transport:
        producer = Producer(transport, ordering={"pulsecart.commerce-events": unordered})
        events = [OrderPlaced(user_id=f"user-{n}", order_id="o", payload={}) for n in range(50)]
        assert [type(outcome) async for outcome in producer.publish_many(events)] == [Receipt] * 50
    assert {m.ordering_key for m in server.confirmed} == {""}
