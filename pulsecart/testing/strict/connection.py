"""A connection to the port for both wires: REST is answered, gRPC is forwarded."""

import asyncio
import binascii
import re
import socket
import ssl
import time
from collections import deque
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import unquote

import httptools
import msgspec

from pulsecart.testing.strict import admin
from pulsecart.testing.strict.faults import HTTP_STATUS, Fault, RawAnswer, error_body, http_answer
from pulsecart.testing.strict.server import PublishRequest, ReceivedMessage

if TYPE_CHECKING:
    from pulsecart.testing.strict.server import StrictPubsub

__all__ = ["accept"]

MAX_BODY_BYTES = 10_485_760
"""Maximum bytes of a request's body."""

_HTTP2 = b"PRI"
"""How each HTTP/2 connection begins (RFC 9113, section 3.4). No method of HTTP/1.1 begins like this."""

# As Google's front end answers. It sends no Content-Length.
_HEAD = (
    "HTTP/1.1 {}\r\n"
    "Content-Type: application/json; charset=UTF-8\r\n"
    "Vary: Origin, X-Origin, Referer\r\n"
    "Server: ESF\r\n"
    "Cache-Control: private\r\n"
    "Transfer-Encoding: chunked\r\n"
)
_OK = _HEAD.format("200 OK").encode()
_FAILED = {
    status: _HEAD.format(f"{code} {status.replace('_', ' ').title()}").encode() for status, code in HTTP_STATUS.items()
}

_TOPIC_PATH = re.compile(r"/v1/(?P<topic>projects/[^/]+/topics/[^/:]+)(?P<verb>:publish)?")
_TOPIC_FIELDS = {
    "name",
    "labels",
    "messageStoragePolicy",
    "kmsKeyName",
    "schemaSettings",
    "satisfiesPzs",
    "messageRetentionDuration",
    "state",
    "ingestionDataSourceSettings",
    "messageTransforms",
    "tags",
}


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """A message in JSON. ProtoJSON accepts both spellings of a name, and null for a missing value."""

    data: str | None = None
    attributes: dict[str, str] | None = None
    ordering_key: str | None = msgspec.field(default=None, name="orderingKey")
    ordering_key_too: str | None = msgspec.field(default=None, name="ordering_key")
    # The service assigns these, and ignores what a request says.
    message_id: str | None = msgspec.field(default=None, name="messageId")
    publish_time: str | None = msgspec.field(default=None, name="publishTime")


class _Publish(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[_Message] | None = None


_decode_publish = msgspec.json.Decoder(_Publish).decode
_decode_topic = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def accept(server: "StrictPubsub", listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """Accept connections, with TLS if there is a context."""
    while True:
        accepted, (host, port) = await asyncio.get_running_loop().sock_accept(listener)
        server.spawn(_greet(Connection(server, f"{host}:{port}"), accepted, context))


async def _greet(connection: "Connection", accepted: socket.socket, context: ssl.SSLContext | None) -> None:
    try:
        if context is not None:
            await asyncio.sleep(connection.server.handshake_delay)
    except asyncio.CancelledError:
        accepted.close()
        raise
    loop = asyncio.get_running_loop()
    try:
        await loop.connect_accepted_socket(lambda: connection, accepted, ssl=context)
    except OSError as error:  # the client has gone, or does not trust the certificate
        connection.connection_lost(error)


class _Call(NamedTuple):
    """A request as HTTP has it. The body is None if it is too large."""

    method: bytes
    url: bytes
    headers: dict[str, str]
    body: bytes | None
    keep_alive: bool


class Connection(asyncio.Protocol):
    """Reads requests with httptools, and answers them one after another."""

    def __init__(self, server: "StrictPubsub", peer: str) -> None:
        self.server = server
        self._peer = peer
        self._number = server.new_connection()
        server.open[self._number] = self
        self._transport: asyncio.Transport | None = None
        self._opening: bytes | None = b""
        self._parser = httptools.HttpRequestParser(self)
        self._calls: deque[_Call] = deque()
        self._work: asyncio.Task[None] | None = None
        self._answers = 0
        self.on_message_begin()

    def abort(self) -> None:
        """Close the connection at once, if it is ready."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self.server.open.pop(self._number, None)
        if self._work is not None:
            self._work.cancel()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if self._opening is not None:
            self._opening += data
            if len(self._opening) < len(_HTTP2):
                return
            data, self._opening = self._opening, None
            if data.startswith(_HTTP2):
                self._transport.pause_reading()
                self.server.spawn(self._forward(self._transport, data))
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._send(self._page(400, "Your client has issued a malformed or illegal request.", close=True))

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self._send(RawAnswer(b"HTTP/1.1 100 Continue\r\n\r\n", close=False))

    def on_body(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= MAX_BODY_BYTES:
            self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        body = b"".join(self._chunks) if self._size <= MAX_BODY_BYTES else None
        method, keep_alive = self._parser.get_method(), self._parser.should_keep_alive()
        self._calls.append(_Call(method, self._url, self._headers, body, keep_alive))
        if self._work is None:
            self._work = self.server.spawn(self._answer_calls())

    async def _answer_calls(self) -> None:
        while self._calls:
            call = self._calls.popleft()
            answer = await self._answer(call)
            self._answers += 1
            if not call.keep_alive or self._answers == self.server.answers_per_connection:
                answer = RawAnswer(answer.data, close=True)
            self._send(answer)
        self._work = None

    def _send(self, answer: RawAnswer) -> None:
        assert self._transport is not None
        self._transport.write(answer.data)
        if answer.close:
            self._calls.clear()
            self._transport.close()

    async def _answer(self, call: _Call) -> RawAnswer:
        name, verb = _route(call.url)
        try:
            match call.method, verb:
                case b"POST", ":publish":
                    if not {"content-length", "transfer-encoding"} & call.headers.keys():
                        return self._page(411, "POST requests require a Content-length header.", close=True)
                    messages = _read_messages(_json(call))
                    request = PublishRequest(name, messages, call.headers, self._peer, self._number, "rest")
                    answer: dict[str, Any] = {"messageIds": await self.server.publish(request)}
                case b"GET", "":
                    await self.server.find_topic(name, self._number)
                    answer = {"name": name}
                case b"PUT", "":
                    answer = _read_topic(_json(call)) | {"name": name}
                    await self.server.create_topic(name, self._number)
                case _:
                    path, _, query = call.url.decode("latin-1").partition("?")
                    found = admin.answer(self.server, call.method.decode(), unquote(path), query, lambda: _json(call))
                    if found is None:
                        return self._page(404, "The requested URL was not found on this server.")
                    answer = found
        except Fault as fault:
            if fault.raw is not None:
                return fault.raw
            return self._json_answer(_FAILED[fault.status], error_body(fault.status, fault.message))
        return self._json_answer(_OK, msgspec.json.encode(answer))

    def _page(self, status: int, text: str, *, close: bool = False) -> RawAnswer:
        """Return an answer of Google's front end, which is not in JSON."""
        page = f"<!DOCTYPE html><html lang=en><title>Error {status}</title><p><b>{status}.</b> {text}</html>"
        headers = {"Content-Type": "text/html; charset=UTF-8", "Date": self._date().decode()}
        return http_answer(status, page.encode(), headers, close=close)

    def _date(self) -> bytes:
        return _http_date(int(time.time() + self.server.clock_offset))

    def _json_answer(self, head: bytes, body: bytes) -> RawAnswer:
        return RawAnswer(
            b"%bDate: %b\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (head, self._date(), len(body), body), close=False
        )

    async def _forward(self, client: asyncio.Transport, data: bytes) -> None:
        """Connect the client with the gRPC server, and give it what the client has sent."""
        try:
            port = await self.server.start_grpc()
        except ModuleNotFoundError:
            client.abort()
            raise
        loop = asyncio.get_running_loop()
        try:
            grpc, _ = await loop.create_connection(lambda: _Pipe(client), "127.0.0.1", port)
        except OSError:  # the gRPC server has just ended
            client.abort()
            return
        self.server.numbers["{}:{}".format(*grpc.get_extra_info("sockname"))] = self._number
        grpc.write(data)
        client.set_protocol(_Pipe(grpc, self))
        client.resume_reading()


class _Pipe(asyncio.Protocol):
    """Writes what it receives to another transport."""

    def __init__(self, other: asyncio.Transport, connection: Connection | None = None) -> None:
        self._other = other
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        self._other.write(data)

    # Coverage excludes these two: whether a side reads too slowly is up to the kernel and the gRPC server's threads.
    def pause_writing(self) -> None:  # pragma: no cover
        self._other.pause_reading()

    def resume_writing(self) -> None:  # pragma: no cover
        self._other.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._other.close()
        if self._connection is not None:
            self._connection.connection_lost(error)


@lru_cache(maxsize=1000)
def _route(url: bytes) -> tuple[str, str]:
    """Return the topic of a URL, and what follows it: ":publish" or nothing. "?" stands for an unknown path."""
    found = _TOPIC_PATH.fullmatch(unquote(url.partition(b"?")[0].decode("latin-1")))
    return (found["topic"], found["verb"] or "") if found else ("", "?")


def _json(call: _Call) -> bytes:
    """Return the body of a request, which must be JSON."""
    if call.body is None:
        raise Fault("INVALID_ARGUMENT", f"Request payload size exceeds the limit: {MAX_BODY_BYTES} bytes.")
    media_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Fault("INVALID_ARGUMENT", f"The Content-Type must be application/json, not {media_type!r}.")
    return call.body


def _read_messages(body: bytes) -> list[ReceivedMessage]:
    """Decode the body of a publish request."""
    try:
        messages = _decode_publish(body or b"{}").messages or []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Fault("INVALID_ARGUMENT", f"Invalid JSON payload received. {error}") from error
    return [
        ReceivedMessage(
            _decode_base64(message.data or "", number),
            message.attributes or {},
            message.ordering_key or message.ordering_key_too or "",
        )
        for number, message in enumerate(messages)
    ]


def _read_topic(body: bytes) -> dict[str, Any]:
    """Decode the body of a request that creates a topic, which may be empty."""
    try:
        topic = _decode_topic(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Fault("INVALID_ARGUMENT", f"Invalid JSON payload received. {error}") from error
    if unknown := topic.keys() - _TOPIC_FIELDS:
        field = min(unknown)
        raise Fault("INVALID_ARGUMENT", f"Invalid JSON payload received. Unknown name {field!r}: Cannot find field.")
    return topic


def _decode_base64(text: str, number: int) -> bytes:
    """Decode either alphabet, with or without padding, as ProtoJSON does."""
    standard = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return binascii.a2b_base64(standard + "=" * (-len(standard) % 4), strict_mode=True)
    except ValueError as error:
        what = f"Invalid value at 'messages[{number}].data' (TYPE_BYTES), Base64 decoding failed for"
        raise Fault("INVALID_ARGUMENT", f'{what} "{text[:50]}"') from error


@lru_cache(maxsize=2)
def _http_date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()
