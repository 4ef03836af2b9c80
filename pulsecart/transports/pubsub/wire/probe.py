"""Asks a server for anything, on a connection made like the REST wire's, to see how that goes."""

import asyncio
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.parser import BytesHeaderParser
from email.utils import parsedate_to_datetime
from typing import cast

from attrs import frozen

from pulsecart.transports.pubsub.wire.dial import Endpoint, dial

__all__ = ["Probed", "probe"]

ANSWER_SECONDS = 5.0
MAX_HEAD_BYTES = 65_536


@frozen
class Probed:
    """A connection and the first answer on it."""

    connected_in: float
    """How many seconds it took to connect, TLS included."""

    tls: str
    """The version of TLS; empty without."""

    expires: datetime | None
    """When the server's certificate expires."""

    clock_offset: float | None
    """How many seconds the server's clock is ahead, to about a second; None if it does not tell the time."""


class _Answer(asyncio.Protocol):
    """Collects the head of an answer."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" in self._received or len(self._received) > MAX_HEAD_BYTES:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        with suppress(asyncio.InvalidStateError):  # the head was complete before
            self.head.set_result(self._received)


async def probe(endpoint: Endpoint) -> Probed:
    """Connect and send a request. Raises `OSError`, which `TimeoutError` is, if there is no answer."""
    started = time.monotonic()
    answer = await dial(endpoint, _Answer)
    connected_in = time.monotonic() - started
    try:
        asked = time.time()
        answer.transport.write(f"GET / HTTP/1.1\r\nHost: {endpoint.authority}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(ANSWER_SECONDS):
            head = await answer.head
        answered = time.time()
        tls = answer.transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert() if tls else None
    finally:
        answer.transport.abort()
    if not head.startswith(b"HTTP/"):
        raise ConnectionError(f"the answer is not HTTP: {head[:100]!r}")
    return Probed(
        connected_in,
        tls.version() if tls else "",
        datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC) if certificate else None,
        _offset(head, asked, answered),
    )


def _offset(head: bytes, asked: float, answered: float) -> float | None:
    """Return by how much a Date is before or after all times at which it can have been written."""
    try:
        date = parsedate_to_datetime(BytesHeaderParser().parsebytes(head.partition(b"\r\n")[2])["Date"]).timestamp()
    except (TypeError, ValueError):  # it is missing, or no date
        return None
    if date > answered:
        return date - answered
    return min(0.0, date + 1 - asked)  # a Date has whole seconds
