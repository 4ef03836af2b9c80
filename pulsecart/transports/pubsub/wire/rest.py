"""The REST wire: Pub/Sub's JSON API over keep-alive HTTP/1.1 (https://cloud.google.com/pubsub/docs/reference/rest)."""

import platform
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import msgspec

from pulsecart.message import Message
from pulsecart.ports import Load
from pulsecart.transports.pubsub.wire import Metadata, WireError
from pulsecart.transports.pubsub.wire.dial import Endpoint
from pulsecart.transports.pubsub.wire.http import MAX_ANSWER_BYTES, Answer, ConnectFailed, Pool, ResponseFailed

__all__ = ["RestWire"]

MAX_REQUEST_BYTES = 10_485_760
"""Maximum bytes of an encoded request: "Request payload size exceeds the limit: 10485760 bytes."."""

_JOINED_BYTES = 65_536
"""A request up to this size is written in one piece, which takes less time than two."""

_SHOWN_BYTES = 200
"""How many bytes of an answer that is not Pub/Sub's are logged."""

_VERSION = version("pulsecart")
_CLIENT = f"gl-python/{platform.python_version()} pulsecart/{_VERSION}"


class _Published(msgspec.Struct):
    messageIds: list[str] = []  # noqa: N815 (the API's name)


class _Error(msgspec.Struct):
    code: int
    message: str = ""
    status: str = ""


class _Failed(msgspec.Struct):
    error: _Error


_encoder = msgspec.json.Encoder()
_published = msgspec.json.Decoder(_Published)
_failed = msgspec.json.Decoder(_Failed)


class RestWire:
    """Sends requests over at most `connections` connections, and waits `timeout` seconds for each answer."""

    copies = 4  # the message, its request in base64, and the part that waits to be sent, encrypted

    def __init__(
        self, endpoint: Endpoint, *, connections: int, timeout: float, max_answer: int = MAX_ANSWER_BYTES
    ) -> None:
        self.batch_keys = max(1, connections // 2)
        self._timeout = timeout
        self._pool = Pool(endpoint, connections, max_answer=max_answer)
        self._common = (
            f"Host: {endpoint.authority}\r\n"
            f"User-Agent: pulsecart/{_VERSION}\r\n"
            f"x-goog-api-client: {_CLIENT}\r\n"
            "Accept: application/json\r\n"
            "Content-Type: application/json\r\n"
            f"X-Server-Timeout: {timeout:.3f}\r\n"
        )
        self._heads: dict[str, bytes] = {}
        self._metadata: Metadata = ()

    async def publish(
        self, topic: str, key: str, messages: Sequence[Message], deadline: float, metadata: Metadata
    ) -> Sequence[str]:
        """Publish messages that share an ordering key; see `Wire.publish`."""
        encoded = [
            {"data": message.data, "attributes": message.attributes, "orderingKey": key}
            if key
            else {"data": message.data, "attributes": message.attributes}
            for message in messages
        ]
        body = _encoder.encode({"messages": encoded})
        if len(body) > MAX_REQUEST_BYTES:
            raise WireError(
                "INVALID_ARGUMENT",
                f"the encoded request has {len(body):,} bytes; the limit of Pub/Sub's REST API is "
                f"{MAX_REQUEST_BYTES:,}; PULSECART_WIRE=grpc takes 10,000,000 bytes without encoding",
                answered=None,
            )
        answer = await self._request("POST", f"{topic}:publish", body, deadline, metadata)
        try:
            return _published.decode(answer.body).messageIds
        except msgspec.MsgspecError:
            raise _foreign(answer) from None

    async def get_topic(self, topic: str, deadline: float, metadata: Metadata) -> None:
        """Look up a topic; see `Wire.get_topic`."""
        _object(await self._request("GET", topic, b"", deadline, metadata))

    async def create_topic(self, topic: str, deadline: float, metadata: Metadata) -> None:
        """Create a topic; see `Wire.create_topic`."""
        _object(await self._request("PUT", topic, b"{}", deadline, metadata))

    async def call(  # noqa: PLR0913, PLR0917 (a request)
        self, method: str, path: str, query: str, body: Any, deadline: float, metadata: Metadata
    ) -> dict[str, Any]:
        """Send a request of an administrator, and return its answer. Raises `WireError`."""
        content = b"" if body is None else _encoder.encode(body)
        return _object(await self._request(method, path, content, deadline, metadata, query))

    def load(self) -> Load:
        """Return how the connections are used."""
        return self._pool.load()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def _request(  # noqa: PLR0913, PLR0917 (a request)
        self, method: str, path: str, body: bytes, deadline: float, metadata: Metadata, query: str = ""
    ) -> Answer:
        """Send a request, and return its answer if it is a success."""
        head = b"%bContent-Length: %d\r\n\r\n" % (self._head(method, path, metadata, query), len(body))
        request = [head + body] if len(body) <= _JOINED_BYTES else [head, body]
        try:
            answer = await self._pool.request(request, deadline, self._timeout)
        except (ConnectFailed, ResponseFailed) as error:
            raise WireError("UNAVAILABLE", str(error), answered=False) from None
        except TimeoutError:
            raise WireError("DEADLINE_EXCEEDED", f"no answer within {self._timeout:g} s", answered=False) from None
        if answer.status != HTTPStatus.OK:
            raise _error(answer)
        return answer

    def _head(self, method: str, path: str, metadata: Metadata, query: str) -> bytes:
        """Return the part of the head that stays the same until a token is renewed."""
        if metadata is not self._metadata:
            self._metadata = metadata
            self._heads.clear()
        line = f"{method} {path}?{query}" if query else f"{method} {path}"
        head = self._heads.get(line)
        if head is None:
            authorization = "".join(f"{name}: {value}\r\n" for name, value in metadata)
            target = f"/v1/{quote(path, safe='/:')}{'?' * bool(query)}{query}"
            head = f"{method} {target} HTTP/1.1\r\n{self._common}{authorization}".encode("latin-1")
            self._heads[line] = head
        return head


def _object(answer: Answer) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise _foreign(answer) from None


def _error(answer: Answer) -> WireError:
    """Return the error of an answer, by its status name: HTTP's codes are ambiguous."""
    try:
        error = _failed.decode(answer.body).error
    except msgspec.MsgspecError:
        return _foreign(answer)
    if not error.status:
        return _foreign(answer)
    return WireError(error.status, error.message, answered=True, retry_after=_seconds(answer.retry_after))


def _foreign(answer: Answer) -> WireError:
    """Return the error for an answer that is not Pub/Sub's, for example a proxy's page."""
    status = "RESOURCE_EXHAUSTED" if answer.status == HTTPStatus.TOO_MANY_REQUESTS else "UNAVAILABLE"
    shown = answer.body[:_SHOWN_BYTES]
    detail = f"the answer is not Pub/Sub's: HTTP {answer.status}, {len(answer.body):,} bytes: {shown!r}"
    return WireError(status, detail, answered=False, retry_after=_seconds(answer.retry_after))


def _seconds(retry_after: str) -> float:
    """Return the seconds of a Retry-After header; 0 if it is missing, or a date."""
    return float(retry_after[:10]) if retry_after.isdecimal() and retry_after.isascii() else 0.0
