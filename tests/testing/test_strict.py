"""The strict Pub/Sub server, called by httpx, sockets and Google's own client."""

import asyncio
import base64
import importlib
import json
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import uvloop
from google.api_core.exceptions import GoogleAPICallError
from google.pubsub_v1 import PublisherAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.types import PublishRequest as GooglesRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulsecart.testing import RawAnswer, ReceivedMessage, StrictPubsub, http_answer, strict_pubsub

pytestmark = pytest.mark.anyio

TOPIC = "projects/test/topics/orders"
PATH = f"/v1/{TOPIC}:publish"
HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}

Outcome = tuple[str, Any]
"""A canonical status and its message; or OK, and message ids or a topic's name."""


def message(data: bytes = b"x", ordering_key: str = "", **attributes: str) -> dict[str, Any]:
    return {"data": data, "ordering_key": ordering_key, "attributes": attributes}


def in_json(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "messages": [
            {
                "data": base64.b64encode(one["data"]).decode(),
                "orderingKey": one["ordering_key"],
                "attributes": one["attributes"],
            }
            for one in messages
        ]
    }


class Rest:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self.http = client

    async def publish(self, messages: list[dict[str, Any]], topic: str = TOPIC) -> Outcome:
        return outcome(await self.http.post(f"/v1/{topic}:publish", json=in_json(messages)), "messageIds")

    async def get_topic(self, topic: str) -> Outcome:
        return outcome(await self.http.get(f"/v1/{topic}"), "name")

    async def create_topic(self, topic: str) -> Outcome:
        return outcome(await self.http.put(f"/v1/{topic}", json={}), "name")


def outcome(answer: httpx.Response, member: str) -> Outcome:
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"
    if answer.status_code == 200:
        return "OK", answer.json()[member]
    error = answer.json()["error"]
    assert error["code"] == answer.status_code == HTTP_STATUS[error["status"]]
    return error["status"], error["message"]


class Grpc:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.client = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))

    async def publish(self, messages: list[dict[str, Any]], topic: str = TOPIC) -> Outcome:
        request = GooglesRequest(topic=topic, messages=messages)
        return await self.call(self.client.transport.publish, request, lambda answer: list(answer.message_ids))

    async def get_topic(self, topic: str) -> Outcome:
        return await self.call(self.client.get_topic, {"topic": topic}, lambda answer: answer.name)

    async def create_topic(self, topic: str) -> Outcome:
        return await self.call(self.client.create_topic, {"name": topic}, lambda answer: answer.name)

    async def call(self, method: Callable[..., Awaitable[Any]], request: Any, read: Callable[[Any], Any]) -> Outcome:
        try:
            return "OK", read(await method(request))
        except grpc.RpcError as error:
            return error.code().name, error.details()
        except GoogleAPICallError as error:
            return error.grpc_status_code.name, error.message


@asynccontextmanager
async def connected(server: StrictPubsub, wire: str) -> AsyncIterator[Rest | Grpc]:
    """Connect to a server: over REST, or gRPC on the port for both or on that for gRPC."""
    if wire == "rest":
        trust = ssl.create_default_context(cafile=server.roots_file) if server.roots else True
        async with httpx.AsyncClient(base_url=server.url, verify=trust) as client:
            yield Rest(client)
        return
    host = server.host if wire == "grpc, forwarded" else server.grpc_host
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    if server.roots:
        channel = grpc.aio.secure_channel(host, grpc.ssl_channel_credentials(server.roots), options)
    else:
        channel = grpc.aio.insecure_channel(host, options)
    async with channel:
        yield Grpc(channel)


WIRES = ["rest", "grpc", "grpc, forwarded"]


@pytest.fixture
async def server() -> AsyncIterator[StrictPubsub]:
    async with strict_pubsub(["orders"]) as running:
        yield running


@pytest.fixture(params=WIRES)
async def client(server, request) -> AsyncIterator[Rest | Grpc]:
    async with connected(server, request.param) as connection:
        yield connection


@pytest.fixture
async def http(server) -> AsyncIterator[httpx.AsyncClient]:
    async with connected(server, "rest") as connection:
        yield connection.http


@pytest.fixture
async def peer(server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*server.host.split(":"))
    yield reader, writer
    writer.close()


def raw_request(body: bytes, *headers: str) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


BODY = json.dumps(in_json([message()])).encode()


async def answer_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one answer: its status line, and its body, which must be one chunk."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(await reader.readuntil(b"\r\n"), 16)
        body = await reader.readexactly(size)
        assert await reader.readexactly(7) == b"\r\n0\r\n\r\n"
    return head.partition(b"\r\n")[0], body


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_publish_is_recorded_and_confirmed(server, client):
    """A publish request is answered with message ids, and recorded with its headers, peer and connection."""
    assert await client.publish([message(b"1", "u", a="b"), message(b"2", "u")]) == ("OK", ["1", "2"])
    assert await client.publish([message(b"3")]) == ("OK", ["3"])
    first, second = server.requests
    expected = [ReceivedMessage(b"1", {"a": "b"}, "u"), ReceivedMessage(b"2", {}, "u"), ReceivedMessage(b"3", {}, "")]
    assert server.messages == server.confirmed == expected
    assert (first.topic, first.wire) == (TOPIC, "rest" if isinstance(client, Rest) else "grpc")
    assert "user-agent" in first.headers
    assert server.metadata == [first.headers, second.headers]
    assert first.peer == second.peer
    assert server.peers == [first.peer, second.peer]
    assert first.peer.startswith("127.0.0.1:")
    assert server.connections == {first.connection: 2}
    assert server.most_in_flight == {"u": 1, "": 1}


async def test_wires_share_topics_and_message_ids(server):
    """Both wires publish to the same service."""
    async with connected(server, "rest") as rest, connected(server, "grpc") as direct:
        assert await rest.create_topic("projects/test/topics/more") == ("OK", "projects/test/topics/more")
        assert await direct.publish([message()], "projects/test/topics/more") == ("OK", ["1"])
        assert await rest.publish([message()]) == ("OK", ["2"])
    assert [request.wire for request in server.requests] == ["grpc", "rest"]
    assert [request.connection for request in server.requests] == [2, 1]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("tls", [False, True])
def test_server_runs_on_uvloop(wire, tls):
    """The server runs on uvloop too, with and without TLS."""

    async def publish() -> Outcome:
        async with strict_pubsub(["orders"], tls=tls) as server, connected(server, wire) as client:
            return await client.publish([message(b"x" * 1_000_000)])

    assert uvloop.run(publish()) == ("OK", ["1"])


RULES = {
    "no messages": ([], "INVALID_ARGUMENT", "message_count is too small"),
    "1001 messages": ([message()] * 1001, "INVALID_ARGUMENT", "message_count is too large. You passed 1001"),
    "two ordering keys": ([message(ordering_key="a"), message(ordering_key="b")], "FAILED_PRECONDITION", "same ord"),
    "ordering key and none": ([message(ordering_key="a"), message()], "FAILED_PRECONDITION", "same ordering key"),
    "empty message": ([message(b"", "key")], "INVALID_ARGUMENT", "is empty"),
    "ordering key": (
        [message(ordering_key="é" * 513)],
        "INVALID_ARGUMENT",
        "ordering_key is too large. You passed 1026",
    ),
    "attributes": ([message(**{f"a{n}": "" for n in range(101)})], "INVALID_ARGUMENT", "attributes is too large"),
    "attribute's name": ([message(**{"é" * 129: ""})], "INVALID_ARGUMENT", "attribute_key is too large"),
    "empty attribute's name": ([message(**{"": "x"})], "INVALID_ARGUMENT", "attribute_key is too small"),
    "attribute's value": ([message(a="é" * 513)], "INVALID_ARGUMENT", "attribute_value is too large"),
    "poison": ([message(b"a\0b")], "INVALID_ARGUMENT", "poison"),
}


@pytest.mark.parametrize(("messages", "status", "text"), RULES.values(), ids=RULES)
async def test_request_that_breaks_a_rule_is_rejected_whole(server, client, messages, status, text):
    """A request that breaks a rule of Pub/Sub gets its status, is recorded, and publishes nothing."""
    found = await client.publish(messages)
    assert found[0] == status
    assert text in found[1]
    assert len(server.requests) == 1
    assert server.confirmed == []


@pytest.mark.parametrize(
    "messages",
    [
        [message()] * 1000,
        [message(ordering_key="é" * 512)] * 2,
        [message(**{f"a{n}": "" for n in range(100)})],
        [message(b"", **{"é" * 128: "é" * 512})],
    ],
)
async def test_request_at_a_limit_is_published(server, client, messages):
    """A request that reaches a limit is published."""
    assert (await client.publish(messages))[0] == "OK"
    assert len(server.confirmed) == len(messages)


async def test_missing_topic_is_not_found(server, client):
    """A topic that does not exist is NOT_FOUND, to publish and to look up; others are looked up by name."""
    text = "Resource not found (resource=none)."
    assert await client.publish([message()], "projects/test/topics/none") == ("NOT_FOUND", text)
    assert await client.get_topic("projects/test/topics/none") == ("NOT_FOUND", text)
    assert await client.get_topic(TOPIC) == ("OK", TOPIC)


async def test_topic_is_created_once(server, client):
    """A topic is created, unless it exists or has an invalid name."""
    name = "projects/test/topics/new"
    assert await client.create_topic(name) == ("OK", name)
    assert server.topics == {TOPIC, name}
    assert (await client.create_topic(name))[0] == "ALREADY_EXISTS"
    for invalid in ("ab", "1abc", "google", "a b c", "x" * 256):
        assert (await client.create_topic(f"projects/test/topics/{invalid}"))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("status", HTTP_STATUS)
async def test_script_fails_request_with_status(server, client, status):
    """A status in the script, as a name or as gRPC's, fails one request each."""
    server.script.extend([status, grpc.StatusCode[status]])
    for _ in range(2):
        assert await client.publish([message()]) == (status, "as the script says")
    assert await client.publish([message()]) == ("OK", ["1"])
    assert len(server.requests) == 3


async def test_script_returns_message_ids(server, client):
    """A list in the script is the answer, and nothing is published."""
    server.script.append(["7", "8"])
    assert await client.publish([message()]) == ("OK", ["7", "8"])
    assert server.confirmed == []


async def test_script_holds_request_back(server, client):
    """An event in the script holds a request back; others of its key are counted as in flight with it."""
    gate = asyncio.Event()
    server.script.extend([gate, None])
    held = asyncio.create_task(client.publish([message(ordering_key="u")]))
    await server.received(1)
    assert await client.publish([message(ordering_key="u")]) == ("OK", ["1"])
    assert (server.in_flight["u"], server.most_in_flight) == (1, {"u": 2})
    gate.set()
    assert await held == ("OK", ["2"])
    assert server.in_flight["u"] == 0


async def test_script_calls_function(server, client):
    """A function in the script gets the request, and returns the reply."""
    server.script.append(lambda request: "ABORTED" if request.messages[0].data == b"x" else None)
    assert (await client.publish([message(b"x")]))[0] == "ABORTED"


async def test_request_that_is_given_up_is_not_published(server, client):
    """A request whose client has gone is not published, and no longer in flight."""
    gate = asyncio.Event()
    server.script.append(gate)
    request = asyncio.create_task(client.publish([message(ordering_key="u")]))
    await server.received(1)
    request.cancel()
    await until(lambda: not server.in_flight["u"])
    gate.set()
    assert await client.publish([message(b"next")]) == ("OK", ["1"])


async def test_request_is_confirmed_late(server, client):
    """A function can keep a request that gets no answer, and publish it after its retry."""
    kept = []

    def late(request):
        kept.append(request)
        return asyncio.Event()

    server.script.append(late)
    request = asyncio.create_task(client.publish([message(b"late")]))
    await server.received(1)
    request.cancel()
    await client.publish([message(b"retry")])
    assert server.confirm(kept[0]) == ["2"]
    assert [one.data for one in server.confirmed] == [b"retry", b"late"]


async def test_latency_delays_normal_answers(server, client):
    """Normal answers take the latency, others do not."""
    await client.get_topic(TOPIC)
    server.latency = 0.2
    server.script.append("ABORTED")
    clock = asyncio.get_running_loop().time
    start = clock()
    assert (await client.publish([message()]))[0] == "ABORTED"
    assert clock() - start < 0.2
    start = clock()
    assert (await client.publish([message()]))[0] == "OK"
    assert clock() - start >= 0.2


@pytest.mark.parametrize("wire", WIRES)
async def test_latency_of_some_connections(server, wire):
    """A function gives the latency of each request, such as for half of the connections."""
    server.latency = lambda request: 30.0 if request.connection == 1 else 0.0
    async with connected(server, wire) as slow, connected(server, wire) as quick:
        waiting = asyncio.create_task(slow.publish([message(b"slow")]))
        await server.received(1)
        async with asyncio.timeout(10):
            await quick.publish([message(b"quick")])
        assert not waiting.done()
        waiting.cancel()
    assert [one.data for one in server.confirmed] == [b"quick"]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("call", [lambda client: client.publish([message()]), lambda client: client.get_topic(TOPIC)])
async def test_silent_connection_gets_no_answer(server, wire, call):
    """The connections that exist can be made silent, to publishes and look-ups, while new ones are answered."""
    async with connected(server, wire) as old, connected(server, wire) as new:
        await old.publish([message()])
        server.silent.update(server.connections)
        waiting = asyncio.create_task(call(old))
        await until(lambda: server.connections[1] == 2)
        assert (await call(new))[0] == "OK"
        assert not waiting.done()
        waiting.cancel()
    assert [request.connection for request in server.requests] in ([1], [1, 2])


async def test_look_up_fails_while_publishes_work(server, client):
    """`look_up` is the reply to every look-up, as long as it is set."""
    server.look_up = "PERMISSION_DENIED"
    for _ in range(2):
        assert (await client.get_topic(TOPIC))[0] == "PERMISSION_DENIED"
    assert (await client.create_topic("projects/test/topics/new"))[0] == "PERMISSION_DENIED"
    assert (await client.publish([message()]))[0] == "OK"
    server.look_up = gate = asyncio.Event()
    waiting = asyncio.create_task(client.get_topic(TOPIC))
    await until(lambda: sum(server.connections.values()) >= 4)
    gate.set()
    assert (await waiting)[0] == "OK"


async def test_received_has_a_time_limit(server, monkeypatch):
    """received() raises TimeoutError if too few requests arrive."""
    monkeypatch.setattr("pulsecart.testing.strict.server.RECEIVE_SECONDS", 0.05)
    with pytest.raises(TimeoutError):
        await server.received(1)


def broken(_request):
    raise ZeroDivisionError("a mistake in a test")


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("reply", "latency", "error"),
    [
        ("UNAVAILIBLE", 0.0, ValueError),
        (7, 0.0, ValueError),
        (broken, 0.0, ZeroDivisionError),
        (lambda _: "busy", 0.0, ValueError),
        (None, broken, ZeroDivisionError),
    ],
)
async def test_mistake_in_script_is_raised_at_the_end(wire, reply, latency, error):
    """A mistake in the script fails the request as INTERNAL, and is raised at the end of the block."""

    async def test() -> None:
        async with strict_pubsub(["orders"]) as server, connected(server, wire) as client:
            server.script.append(reply)
            server.latency = latency
            status, text = await client.publish([message()])
            assert status == "INTERNAL"
            assert error.__name__ in text

    with pytest.raises(error):
        await test()


async def test_mistake_in_script_does_not_hide_a_failed_test():
    """An exception of the block is raised, not that of the script."""

    async def test() -> None:
        async with strict_pubsub(["orders"]) as server, connected(server, "rest") as client:
            server.script.append(broken)
            await client.publish([message()])
            raise LookupError

    with pytest.raises(LookupError):
        await test()


# Faults of REST connections


async def test_http_answer_is_sent_as_it_is(server, http):
    """An HTTP answer in the script is sent as it is: a proxy's page, a redirect, a limit on the rate."""
    server.script.extend(
        [
            http_answer(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}),
            http_answer(302, headers={"Location": "https://login.example.com/"}),
            http_answer(429, {"error": {"code": 429}}, {"Retry-After": "3"}),
            http_answer(599),
        ]
    )
    page, redirect, limited, odd = [await http.post(PATH, content=b"{}", headers=JSON) for _ in range(4)]
    assert (page.status_code, page.text, page.headers["content-type"]) == (502, "<html>Bad gateway</html>", "text/html")
    assert (redirect.status_code, redirect.headers["location"]) == (302, "https://login.example.com/")
    assert (limited.status_code, limited.json(), limited.headers["retry-after"]) == (429, {"error": {"code": 429}}, "3")
    assert limited.headers["content-type"] == "application/json; charset=UTF-8"
    assert (odd.status_code, odd.text) == (599, "")
    assert server.connections == {1: 4}


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "data", [b"", b"\x16\x03\x01\0garbage", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"HTTP/1."]
)
async def test_raw_answer_closes_the_connection(server, peer, data):
    """Any bytes can be the answer, after which the connection closes."""
    reader, writer = peer
    server.script.append(RawAnswer(data))
    writer.write(raw_request(BODY))
    async with asyncio.timeout(10):
        assert await reader.read() == data
    assert server.confirmed == []
    await until(lambda: not server.open)


@pytest.mark.parametrize("wire", ["grpc", "grpc, forwarded"])
async def test_raw_answer_is_unavailable_over_grpc(server, wire):
    """A raw answer fails a gRPC request as a broken connection does."""
    server.script.append(RawAnswer())
    async with connected(server, wire) as client:
        assert await client.publish([message()]) == ("UNAVAILABLE", "the connection broke")


async def test_connection_closes_after_some_answers(server, peer):
    """A connection is closed without notice after `answers_per_connection` answers."""
    server.answers_per_connection = 2
    reader, writer = peer
    for number in (b"1", b"2"):
        writer.write(raw_request(BODY))
        assert await answer_of(reader) == (b"HTTP/1.1 200 OK", b'{"messageIds":["%b"]}' % number)
    async with asyncio.timeout(10):
        assert await reader.read() == b""


async def test_open_connections_are_listed(server, peer):
    """`open` has the connections that are open now, `connections` all that there were."""
    await until(lambda: set(server.open) == {1})
    peer[1].close()
    await until(lambda: not server.open)
    assert server.connections == {1: 0}


# Requests over REST


@pytest.mark.parametrize(
    ("sent", "data"),
    [
        ("-_8=", b"\xfb\xff"),
        ("+/8=", b"\xfb\xff"),
        ("+/8", b"\xfb\xff"),
        ("-_8", b"\xfb\xff"),
    ],
)
async def test_base64_of_both_alphabets(server, http, sent, data):
    """Data may use either alphabet of base64, with or without padding."""
    answer = await http.post(PATH, json={"messages": [{"data": sent}]})
    assert answer.status_code == 200
    assert server.confirmed == [ReceivedMessage(data, {}, "")]


async def test_fields_in_snake_case_and_null(server, http):
    """Fields may be in snake case, null, or such as only the service sets."""
    sent = {"data": None, "attributes": {"a": "b"}, "ordering_key": "u", "messageId": "7", "publishTime": None}
    assert (await http.post(PATH, json={"messages": [sent]})).json() == {"messageIds": ["1"]}
    assert server.confirmed == [ReceivedMessage(b"", {"a": "b"}, "u")]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "message_count is too small"),
        (b"{}", "message_count is too small"),
        (b'{"messages":null}', "message_count is too small"),
        (b"{", "Invalid JSON payload received."),
        (b"[]", "Invalid JSON payload received."),
        (b"{}x", "Invalid JSON payload received."),
        (b'{"messages":[{"data":"\xff"}]}', "Invalid JSON payload received."),
        (b'{"messages":[{"data":"eA==","key":"u"}]}', "unknown field `key`"),
        (b'{"message":[]}', "unknown field `message`"),
        (b'{"messages":[{"data":7}]}', "`$.messages[0].data`"),
        (b'{"messages":[{"attributes":{"a":1}}]}', "`$.messages[0].attributes[...]`"),
        (b'{"messages":[{"data":"eA"},{"data":"e"}]}', "Invalid value at 'messages[1].data' (TYPE_BYTES), Base64"),
        (b'{"messages":[{"data":"e A="}]}', 'Base64 decoding failed for "e A="'),
        (b'{"messages":[{"data":"\\u00e9"}]}', "Base64 decoding failed"),
    ],
)
async def test_body_that_is_no_publish_request_is_rejected(server, http, body, text):
    """JSON that is malformed, has unknown fields or wrong values is INVALID_ARGUMENT."""
    status, found = outcome(await http.post(PATH, content=body, headers=JSON), "")
    assert status == "INVALID_ARGUMENT"
    assert text in found
    assert server.confirmed == []


@pytest.mark.parametrize(
    ("headers", "name"),
    [({}, "''"), ({"Content-Type": "text/plain"}, "'text/plain'"), ({"Content-Type": "application/jsonl"}, "jsonl")],
)
async def test_other_content_type_is_rejected(server, http, headers, name):
    """A body that is not declared as JSON is INVALID_ARGUMENT."""
    status, text = outcome(await http.post(PATH, content=BODY, headers=headers), "")
    assert status == "INVALID_ARGUMENT"
    assert name in text
    assert server.requests == []


async def test_content_type_may_have_parameters(http):
    """The content type's parameters and case do not matter."""
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert (await http.post(PATH, content=BODY, headers=headers)).status_code == 200


async def test_body_over_limit_is_rejected(server, http):
    """A body of 10,485,760 bytes is published, one byte more is INVALID_ARGUMENT with Google's message."""
    start, end = b'{"messages":[{"data":"', b'"}]}'
    room = 10_485_760 - len(start) - len(end)
    body = start + b"e" * (room - room % 4) + end + b" " * (room % 4)
    assert (await http.post(PATH, content=body, headers=JSON)).status_code == 200
    found = outcome(await http.post(PATH, content=body + b" ", headers=JSON), "")
    assert found == ("INVALID_ARGUMENT", "Request payload size exceeds the limit: 10485760 bytes.")
    assert len(server.requests) == 1


@pytest.mark.parametrize("wire", ["grpc", "grpc, forwarded"])
async def test_grpc_request_over_limit_is_rejected(server, wire):
    """A gRPC request of 10,000,000 bytes is published, one byte more is INVALID_ARGUMENT."""
    size = 10_000_000
    while GooglesRequest.pb(GooglesRequest(topic=TOPIC, messages=[message(b"x" * size)])).ByteSize() > 10_000_000:
        size -= 1
    async with connected(server, wire) as client:
        assert (await client.publish([message(b"x" * size)]))[0] == "OK"
        status, text = await client.publish([message(b"x" * (size + 1))])
    assert status == "INVALID_ARGUMENT"
    assert "request_size is too large. You passed 10000001" in text
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", f"/v1/{TOPIC}"),
        ("POST", f"/v1/{TOPIC}:pull"),
        ("GET", PATH),
        ("DELETE", f"/v1/{TOPIC}"),
        ("GET", "/v1/projects/test/topics"),
        ("POST", "/v1/projects/test"),
        ("DELETE", "/v1/projects/test/subscriptions/mailer"),
        ("PUT", f"/v1/{TOPIC}:getIamPolicy"),
    ],
)
async def test_unknown_path_is_a_page_of_the_front_end(http, method, path):
    """What is no method of the API gets an answer in HTML, as from Google's front end."""
    answer = await http.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=UTF-8")
    assert "not found" in answer.text


SUBSCRIPTION = "projects/test/subscriptions/mailer"


async def ask(http, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    answer = await http.request(method, f"/v1/{path}", json=body)
    return answer.status_code, answer.json() if answer.status_code == 200 else answer.json()["error"]["status"]


@pytest.mark.parametrize(
    ("path", "change", "status"),
    [
        (SUBSCRIPTION, {}, 200),
        (SUBSCRIPTION, {"topic": "projects/test/topics/none"}, 404),
        (SUBSCRIPTION, {"filter": "a" * 257}, 400),
        (SUBSCRIPTION, {"deadLetterPolicy": {"deadLetterTopic": "projects/test/topics/none"}}, 404),
        (SUBSCRIPTION, {"deadLetterPolicy": {"deadLetterTopic": TOPIC, "maxDeliveryAttempts": 101}}, 400),
        (SUBSCRIPTION, {"order": True}, 400),
        ("projects/test/subscriptions/a", {}, 400),
    ],
)
async def test_subscription_follows_the_rules(http, path, change, status):
    """A subscription's name, topics, filter and dead letters are checked, and what is unknown is rejected."""
    assert (await ask(http, "PUT", path, {"topic": TOPIC} | change))[0] == status


async def test_subscription_is_created_once_and_changed_by_a_mask(http):
    """Creating it twice is ALREADY_EXISTS; only what the mask names changes, and not what is fixed."""
    assert await ask(http, "GET", SUBSCRIPTION) == (404, "NOT_FOUND")
    assert (await ask(http, "PUT", SUBSCRIPTION, {"topic": TOPIC, "filter": "attributes:a"}))[0] == 200
    assert await ask(http, "PUT", SUBSCRIPTION, {"topic": TOPIC}) == (409, "ALREADY_EXISTS")
    change = {"ackDeadlineSeconds": 60, "labels": {"a": "b"}, "filter": ""}
    for mask, status in (("", 400), ("filter", 400), ("ackDeadlineSeconds", 200)):
        body = {"subscription": change, "updateMask": mask}
        assert (await ask(http, "PATCH", SUBSCRIPTION, body))[0] == status
    assert (await ask(http, "GET", SUBSCRIPTION))[1] == {
        "name": SUBSCRIPTION,
        "topic": TOPIC,
        "filter": "attributes:a",
        "ackDeadlineSeconds": 60,
    }


@pytest.mark.parametrize("body", [b"{", b"[]"])
async def test_subscription_must_be_a_json_object(http, body):
    """Another body is INVALID_ARGUMENT."""
    assert (await http.put(f"/v1/{SUBSCRIPTION}", content=body, headers=JSON)).status_code == 400


async def test_policies_have_etags_and_versions(server, http):
    """Somebody else's change is not overwritten, and conditions neither shown to nor removed by older clients."""
    etag = (await ask(http, "GET", f"{TOPIC}:getIamPolicy"))[1]["etag"]
    conditional = {"role": "roles/pubsub.publisher", "members": ["user:a@x"], "condition": {"expression": "true"}}
    policy = {"etag": etag, "version": 3, "bindings": [conditional]}
    assert (await ask(http, "POST", f"{TOPIC}:setIamPolicy", {"policy": policy}))[0] == 200
    assert await ask(http, "POST", f"{TOPIC}:setIamPolicy", {"policy": policy}) == (409, "ABORTED")
    assert await ask(http, "POST", f"{TOPIC}:setIamPolicy", {"policy": {}}) == (400, "INVALID_ARGUMENT")
    assert "bindings" not in (await ask(http, "GET", f"{TOPIC}:getIamPolicy"))[1]
    shown = await ask(http, "GET", f"{TOPIC}:getIamPolicy?options.requestedPolicyVersion=3")
    assert shown[1]["bindings"] == [conditional]


async def test_denied_permissions(server, http):
    """What clients lack is denied, and told when they ask."""
    server.denied |= {"pubsub.topics.publish", "resourcemanager.projects.get"}
    body = {"permissions": ["pubsub.topics.get", "pubsub.topics.publish"]}
    tested = await ask(http, "POST", f"{TOPIC}:testIamPermissions", body)
    assert tested == (200, {"permissions": ["pubsub.topics.get"]})
    assert await ask(http, "POST", f"{TOPIC}:publish", in_json([message()])) == (403, "PERMISSION_DENIED")
    assert await ask(http, "GET", "projects/test") == (403, "PERMISSION_DENIED")


async def test_clock_of_the_server(server, http):
    """Answers have a Date, which can be wrong."""
    server.clock_offset = 3600
    date = parsedate_to_datetime((await http.get(f"/v1/{TOPIC}")).headers["date"])
    assert 3590 < date.timestamp() - time.time() < 3610


async def test_path_may_be_quoted_and_have_a_query(http):
    """The path may be percent-encoded, and parameters are ignored."""
    answer = await http.post("/v1/projects/test/topics/%6Frders:publish?alt=json", json=in_json([message()]))
    assert answer.json() == {"messageIds": ["1"]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200),
        (b'{"labels":{"team":"shop"},"messageRetentionDuration":"600s"}', 200),
        (b'{"label":{}}', 400),
        (b"[]", 400),
        (b"{", 400),
    ],
)
async def test_body_of_a_new_topic(http, body, status):
    """A topic's body may be empty or have a topic's fields; they are in the answer."""
    answer = await http.put("/v1/projects/test/topics/new", content=body, headers=JSON)
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == json.loads(body or b"{}") | {"name": "projects/test/topics/new"}


async def test_post_without_length_is_411(peer):
    """POST without a length gets 411 and the connection closes."""
    reader, writer = peer
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 411 Length Required\r\n")


@pytest.mark.parametrize(
    "sent", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost : x\r\nA\x00: b\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n"]
)
async def test_what_is_no_http_is_400(peer, sent):
    """What is no HTTP/1.1 request gets 400, and the connection closes."""
    reader, writer = peer
    writer.write(sent)
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_request_in_single_bytes(server, peer):
    """A request may arrive byte by byte."""
    reader, writer = peer
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in raw_request(BODY):
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert await answer_of(reader) == (b"HTTP/1.1 200 OK", b'{"messageIds":["1"]}')


async def test_pipelined_requests_are_answered_in_order(server, peer):
    """Requests that arrive before an answer are answered in order."""
    reader, writer = peer
    gate = asyncio.Event()
    server.script.append(gate)
    writer.write(raw_request(BODY) * 2)
    await server.received(1)
    writer.write(raw_request(BODY))
    gate.set()
    assert [(await answer_of(reader))[1] for _ in range(3)] == [b'{"messageIds":["%d"]}' % n for n in (1, 2, 3)]


async def test_connection_close_is_obeyed(peer):
    """The connection closes after an answer if the client asks for it."""
    reader, writer = peer
    writer.write(raw_request(BODY, "Connection: close"))
    assert (await answer_of(reader))[0] == b"HTTP/1.1 200 OK"
    async with asyncio.timeout(10):
        assert await reader.read() == b""


async def test_expected_continue_is_sent(peer):
    """A client that waits for 100 (Continue) gets it before it sends the body."""
    reader, writer = peer
    request = raw_request(BODY, "Expect: 100-continue")
    writer.write(request.removesuffix(BODY))
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    assert (await answer_of(reader))[0] == b"HTTP/1.1 200 OK"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1), st.dictionaries(texts.filter(bool), texts, max_size=3)), min_size=1))
async def test_messages_arrive_unchanged(messages):
    """Whatever bytes and texts messages have, they arrive unchanged."""
    async with strict_pubsub(["orders"]) as server, connected(server, "rest") as client:
        server.poison = b"no data has this"
        sent = [{"data": data, "ordering_key": "k", "attributes": attributes} for data, attributes in messages]
        assert (await client.publish(sent))[0] == "OK"
    assert server.confirmed == [ReceivedMessage(data, attributes, "k") for data, attributes in messages]


# TLS


@pytest.fixture
async def secure() -> AsyncIterator[StrictPubsub]:
    async with strict_pubsub(["orders"], tls=True) as running:
        yield running


@pytest.mark.parametrize("wire", WIRES)
async def test_tls_with_trusted_certificate(secure, wire):
    """Both wires have TLS, with a certificate for localhost that `roots` and `roots_file` verify."""
    async with connected(secure, wire) as client:
        assert await client.publish([message(b"x" * 1_000_000)]) == ("OK", ["1"])
    assert await asyncio.to_thread(Path(secure.roots_file).read_bytes) == secure.roots
    assert secure.host.startswith("localhost:")


async def test_tls_by_address(secure):
    """The certificate is valid for 127.0.0.1 too."""
    trust = ssl.create_default_context(cadata=secure.roots.decode())
    async with httpx.AsyncClient(verify=trust) as client:
        answer = await client.get(f"{secure.url.replace('localhost', '127.0.0.1')}/v1/{TOPIC}")
    assert answer.json() == {"name": TOPIC}


async def test_client_that_does_not_trust_the_certificate(secure):
    """A handshake that fails leaves no connection open."""
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get(f"{secure.url}/v1/{TOPIC}")
    await until(lambda: not secure.open)
    assert secure.requests == []


async def test_roots_are_empty_without_tls(server):
    """Without TLS there is nothing to trust."""
    assert (server.roots, server.roots_file, server.url) == (b"", "", f"http://{server.host}")


async def test_handshake_can_be_slow(secure):
    """`handshake_delay` delays handshakes; those that wait for theirs are open connections."""
    secure.handshake_delay = 0.3
    clock = asyncio.get_running_loop().time
    start = clock()
    async with connected(secure, "rest") as client:
        waiting = asyncio.create_task(client.get_topic(TOPIC))
        await until(lambda: len(secure.open) == 1)
        assert (await waiting)[0] == "OK"
        assert clock() - start >= 0.3
        secure.handshake_delay = 30
        assert (await client.get_topic(TOPIC))[0] == "OK"


async def test_client_that_leaves_during_the_handshake(secure):
    """A client may leave before its handshake ends."""
    secure.handshake_delay = 0.1
    _, writer = await asyncio.open_connection("127.0.0.1", int(secure.host.partition(":")[2]))
    await until(lambda: secure.open)
    writer.transport.abort()
    await until(lambda: not secure.open)


async def test_server_ends_while_clients_wait():
    """The server ends while a handshake, a request and a gRPC call wait."""
    async with AsyncExitStack() as clients:
        async with strict_pubsub(["orders"], tls=True) as server:
            calls = []
            for wire in WIRES:
                client = await clients.enter_async_context(connected(server, wire))
                calls.append(asyncio.create_task(client.publish([message()])))
            server.script.extend([asyncio.Event()] * len(WIRES))
            await server.received(len(WIRES))
            server.handshake_delay = 30
            _, writer = await asyncio.open_connection("127.0.0.1", int(server.host.partition(":")[2]))
            await until(lambda: len(server.open) == 3)
        rest, *others = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(rest, httpx.RemoteProtocolError | httpx.ReadError)
        assert [status for status, _ in others] == ["UNAVAILABLE"] * 2
        writer.close()


# gRPC


async def test_ports_can_be_chosen():
    """Both ports can be chosen; one that is taken is an error."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = first.getsockname()[1], second.getsockname()[1]
    async with strict_pubsub(["orders"], port=ports[0], grpc_port=ports[1]) as server:
        assert (server.host, server.grpc_host) == (f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
        with pytest.raises(OSError, match="Address already in use"):
            await strict_pubsub([], port=ports[0]).__aenter__()
        with pytest.raises(RuntimeError, match="Failed to bind"):
            await strict_pubsub([], grpc_port=ports[1]).__aenter__()


async def test_topics_are_no_single_name():
    """A single topic's name in place of a list is an error, not a topic for each letter."""
    with pytest.raises(TypeError, match=r"such as \['orders'\]"):
        await strict_pubsub("orders").__aenter__()


async def test_server_ends_while_grpc_starts():
    """The server may end before its gRPC part has started."""
    async with strict_pubsub([]) as server:
        host = server.grpc_host
    with socket.create_server(("127.0.0.1", int(host.partition(":")[2]))):
        pass


@pytest.mark.parametrize("options", [{}, {"tls": True}])
async def test_many_clients_connect_at_once(options):
    """A burst of clients gets its answers."""

    async def publish(server: StrictPubsub) -> Outcome:
        async with connected(server, "rest") as client:
            return await client.publish([message()])

    async with strict_pubsub(["orders"], **options) as server, asyncio.timeout(30):
        found = await asyncio.gather(*(publish(server) for _ in range(50)))
    assert sorted(int(number) for _, (number,) in found) == list(range(1, 51))


@pytest.fixture
def without(monkeypatch) -> Callable[[str, str], None]:
    """Make a package appear to be missing to a module of the server."""

    def remove(package: str, module: str) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield remove
    for module in ("pulsecart.testing.strict.grpc", "pulsecart.testing.strict.certificate"):
        sys.modules.pop(module, None)
        monkeypatch.undo()
        importlib.import_module(module)


async def test_grpc_needs_googles_client(without):
    """Without google-cloud-pubsub REST works, and the first use of gRPC says what to install."""
    without("grpc", "pulsecart.testing.strict.grpc")

    async def test() -> None:
        async with strict_pubsub(["orders"]) as server:
            async with connected(server, "rest") as client:
                assert (await client.publish([message()]))[0] == "OK"
            with pytest.raises(ModuleNotFoundError, match="pip install google-cloud-pubsub"):
                _ = server.grpc_host
            _, writer = await asyncio.open_connection(*server.host.split(":"))
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            await until(lambda: server.defects)
            await until(lambda: not server.open)
            writer.close()

    with pytest.raises(ModuleNotFoundError, match="pip install google-cloud-pubsub"):
        await test()


async def test_tls_needs_cryptography(without):
    """Without cryptography, TLS says what to install."""
    without("cryptography", "pulsecart.testing.strict.certificate")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pulsecart\[testing\]'"):
        await strict_pubsub([], tls=True).__aenter__()
