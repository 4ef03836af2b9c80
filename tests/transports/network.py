"""A simulated network with a Pub/Sub server, in virtual time: what is sent arrives, or not, as a script says."""

import asyncio
import base64
import json
import socket
from collections.abc import Callable
from typing import Any

from attrs import define, field

from tests.transports.virtual import VirtualLoop

__all__ = ["CONNECTS", "FATES", "Network", "Sent", "SimulatedLoop"]

LATENCY = 0.005
"""Seconds from one end of a connection to the other."""

CONNECTS = ["open", "open slowly", "refuse", "hang"]


@define(eq=False)
class Sent:
    """A request to publish."""

    key: str
    numbers: list[int]
    connection: "Connection"
    answered: bool = False


@define
class Fate:
    """What becomes of a request: when the server takes it, what it answers, and how the connection goes on."""

    taken: float | None = 0.0
    """Seconds until the server has the messages; None if it never gets or accepts them."""

    answer: Callable[[bytes], bytes] = lambda answer: answer
    """Makes what is sent from the answer 200."""

    answered: float | None = 0.0
    """Seconds until it is sent; None if it is not."""

    ends: bool = False
    """Whether the server closes the connection after that."""

    silences: bool = False
    """Whether nothing gets through the connection any more, in either direction."""


def _error(code: int, status: str, headers: str = "") -> Callable[[bytes], bytes]:
    body = json.dumps({"error": {"code": code, "message": "scripted", "status": status}}).encode()
    return lambda _answer: f"HTTP/1.1 {code} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


FATES = {
    "ok": Fate(),
    "slow": Fate(answered=0.4),
    "too late": Fate(answered=1.5),
    "taken too late": Fate(taken=1.5, answered=None),
    "lost": Fate(taken=None, answered=None),
    "answer lost": Fate(answered=None),
    "silence": Fate(taken=None, answered=None, silences=True),
    "taken, then silence": Fate(answered=None, silences=True),
    "closed": Fate(taken=None, answered=None, ends=True),
    "taken, then closed": Fate(answered=None, ends=True),
    "half an answer": Fate(answer=lambda answer: answer[: len(answer) // 2], ends=True),
    "the last answer": Fate(answer=lambda answer: answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), ends=True),
    "two answers": Fate(answer=lambda answer: answer * 2),
    "no HTTP": Fate(taken=None, answer=lambda _: b"\x16\x03\x01 what is this?\r\n\r\n"),
    "a page": Fate(taken=None, answer=lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"),
    "unavailable": Fate(taken=None, answer=_error(503, "UNAVAILABLE")),
    "taken, yet unavailable": Fate(answer=_error(503, "UNAVAILABLE")),
    "over a quota": Fate(taken=None, answer=_error(429, "RESOURCE_EXHAUSTED", "Retry-After: 1\r\n")),
    "forbidden": Fate(taken=None, answer=_error(403, "PERMISSION_DENIED")),
    "invalid": Fate(taken=None, answer=_error(400, "INVALID_ARGUMENT")),
}


class Connection(asyncio.Transport):
    """The client's end of a connection, and the server behind it."""

    def __init__(self, network: "Network", protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._network = network
        self._protocol = protocol
        self._written = b""
        self.closed = False
        self.silent = False
        self.used = 0

    def write(self, data: Any) -> None:
        assert not self.closed
        self._written += data
        while (end := self._written.find(b"\r\n\r\n")) >= 0:
            head = self._written[:end].decode()
            length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0])
            if len(self._written) < end + 4 + length:
                return
            body, self._written = self._written[end + 4 : end + 4 + length], self._written[end + 4 + length :]
            self._network.requested(self, head.split(" ")[0], body)

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def abort(self) -> None:
        self._end(None)

    def receive(self, data: bytes) -> None:
        if not self.closed and not self.silent:
            self._protocol.data_received(data)

    def end(self) -> None:
        if not self.silent:
            self._end(ConnectionResetError("scripted"))

    def _end(self, error: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self._network.loop.call_soon(self._protocol.connection_lost, error)


@define(eq=False)
class Network:
    """Takes requests, and does with them what `fates` and `connects` say, the last first."""

    sending: Callable[[Sent], None]
    """Called with each request when it is sent."""

    taking: Callable[[int], None]
    """Called with the number of each message when the server has it."""

    loop: "SimulatedLoop" = field(init=False)
    fates: list[str] = field(factory=list)
    connects: list[str] = field(factory=list)
    connections: list[Connection] = field(factory=list)
    ids: dict[str, int] = field(factory=dict)
    """The number of the message with this id."""

    def open_connections(self) -> list[Connection]:
        """Return the connections that the client has not closed."""
        return [each for each in self.connections if not each.closed]

    def requested(self, connection: Connection, method: str, body: bytes) -> None:
        """Do what the script says with a request."""
        connection.used += 1
        fate = FATES[self.fates.pop() if self.fates else "ok"]
        messages = json.loads(body)["messages"] if method == "POST" else []
        numbers = [json.loads(base64.b64decode(each["data"]))["n"] for each in messages]
        sent = Sent(messages[0].get("orderingKey", "") if messages else "", numbers, connection)
        if numbers:
            self.sending(sent)
        if connection.silent:
            return
        if fate.silences:
            connection.silent = True
        if fate.taken is not None:
            for number in numbers:
                self.loop.call_later(LATENCY + fate.taken, self.taking, number)
        if fate.answered is not None:
            ids = [self._id(number) for number in numbers]
            told = json.dumps({"messageIds": ids} if numbers else {"name": "topic"}).encode()
            answer = fate.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told)
            self.loop.call_later(2 * LATENCY + fate.answered, self._answer, sent, answer)
        if fate.ends:
            self.loop.call_later(2 * LATENCY + (fate.answered or 0) + 0.0001, connection.end)

    def _id(self, number: int) -> str:
        message_id = f"m{len(self.ids)}"
        self.ids[message_id] = number
        return message_id

    def _answer(self, sent: Sent, answer: bytes) -> None:
        sent.answered = True
        sent.connection.receive(answer)

    async def connect(self) -> None:
        """Do what the script says with a connection."""
        outcome = self.connects.pop() if self.connects else "open"
        await asyncio.sleep({"open slowly": 0.7, "hang": 1000}.get(outcome, LATENCY))
        if outcome == "refuse":
            raise ConnectionRefusedError("scripted")


class SimulatedLoop(VirtualLoop):
    """An event loop whose connections are those of a simulated network."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network
        network.loop = self

    async def getaddrinfo(self, *_host: Any, **_options: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))]

    async def sock_connect(self, *_address: Any) -> None:
        await self._network.connect()

    async def create_connection(self, make: Any, *, sock: socket.socket, **_options: Any) -> Any:  # type: ignore[override]
        sock.close()
        protocol = make()
        connection = Connection(self._network, protocol)
        self._network.connections.append(connection)
        protocol.connection_made(connection)
        return connection, protocol
