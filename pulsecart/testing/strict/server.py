"""The service behind both wires: its topics, rules, record and script."""

import asyncio
import re
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from pulsecart.testing.strict.faults import HTTP_STATUS, Fault, RawAnswer

if TYPE_CHECKING:
    import grpc

    from pulsecart.testing.strict.certificate import Certificate
    from pulsecart.testing.strict.connection import Connection
    from pulsecart.testing.strict.grpc import GrpcServer

__all__ = ["PublishRequest", "ReceivedMessage", "Reply", "StrictPubsub"]

RECEIVE_SECONDS = 10.0
"""Maximum seconds that `received` waits."""

MAX_MESSAGES = 1000
MAX_ATTRIBUTES = 100
MAX_ATTRIBUTE_KEY_BYTES = 256
MAX_ATTRIBUTE_VALUE_BYTES = 1024
MAX_ORDERING_KEY_BYTES = 1024

_TOPIC_ID = re.compile(r"(?!goog)[A-Za-z][\w.~+%-]{2,254}", re.ASCII)


# Structs, since they are made for each message, and benchmarks share the processor with this server.
class ReceivedMessage(msgspec.Struct, frozen=True):
    """A message of a publish request."""

    data: bytes
    attributes: dict[str, str]
    ordering_key: str


class PublishRequest(msgspec.Struct, frozen=True):
    """A publish request, as it arrived."""

    topic: str
    """The full name: projects/…/topics/…."""

    messages: Sequence[ReceivedMessage]

    headers: Mapping[str, str]
    """The HTTP headers or the gRPC metadata, with lower-case names."""

    peer: str
    """The client's address, as host:port."""

    connection: int
    """The number of the client's connection: 1, 2, …"""

    wire: Literal["rest", "grpc"]


Reply: TypeAlias = "str | grpc.StatusCode | list[str] | asyncio.Event | RawAnswer | None"
_Scripted: TypeAlias = "Reply | Callable[[PublishRequest], Reply]"


class StrictPubsub:
    """Records every publish request, in order, and replies to it as `script` says.

    A reply in the script is one of:

    - None: the normal answer, after `latency` seconds
    - a canonical status such as "UNAVAILABLE", or a `grpc.StatusCode`: the request fails with it
    - a list of message ids: the answer has these, and nothing is published
    - an `asyncio.Event`: the normal answer, once it is set; never, if it is never set
    - a `RawAnswer`, which `http_answer` makes too: these bytes, or a closed connection
    - a function: it is called with the `PublishRequest` and returns one of these

    Each request takes one reply. While the script is empty, the reply is None. A request that its client gives up is
    not published; to publish it all the same, later than its retry, let a function keep it and `confirm` it.
    """

    def __init__(
        self, project: str, topics: Iterable[str], grpc_port: int = 0, certificate: "Certificate | None" = None
    ) -> None:
        self.topics: set[str] = {f"projects/{project}/topics/{topic}" for topic in topics}
        """The full names of the topics that exist."""
        self.subscriptions: dict[str, dict[str, Any]] = {}
        """The subscriptions that exist, by their full names, as REST has them."""
        self.policies: dict[str, dict[str, Any]] = {}
        """The IAM policies of topics and subscriptions, by full name."""
        self.denied: set[str] = set()
        """The permissions that clients lack, such as pubsub.topics.publish."""
        self.clock_offset = 0.0
        """How many seconds the server's clock, which the header Date shows, is ahead."""
        self.script: deque[_Scripted] = deque()
        """The replies to the next publish requests."""
        self.latency: float | Callable[[PublishRequest], float] = 0.0
        """Seconds before each normal answer, or a function that returns them:
        `lambda request: request.connection % 2` makes half of the connections slow."""
        self.poison = b"\0"
        """A request fails with INVALID_ARGUMENT if the data of a message contains these bytes."""
        self.look_up: Reply = None
        """The reply to every request that looks up or creates a topic."""
        self.silent: set[int] = set()
        """The numbers of connections that get no more answers: `server.silent.update(server.connections)` silences
        all that exist, and new ones work."""
        self.answers_per_connection: int | None = None
        """A REST connection is closed without notice after so many answers."""
        self.handshake_delay = 0.0
        """Seconds before the TLS handshake of a connection to `host`."""

        self.host = ""
        """The address for REST and gRPC, as host:port."""
        self.requests: list[PublishRequest] = []
        """The publish requests that arrived, also those that failed later. One that is malformed or too large for its
        wire does not arrive."""
        self.confirmed: list[ReceivedMessage] = []
        """The messages that were published, in order."""
        self.in_flight: Counter[str] = Counter()
        """How many requests of an ordering key are being answered."""
        self.most_in_flight: dict[str, int] = {}
        """The most that there were at any time."""
        self.connections: Counter[int] = Counter()
        """How many requests each connection has had, by its number."""
        self.open: dict[int, Connection] = {}
        """The connections to `host` that are open, by number, also those that have not finished their handshake."""
        self.defects: list[Exception] = []
        """What the script raised. `strict_pubsub` raises the first one at its end."""

        self.certificate = certificate
        self.numbers: dict[str, int] = {}
        self.policy_changes = 0
        self._grpc_port = grpc_port
        self._arrived = asyncio.Event()
        self._published = 0
        self._connected = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The base URL for REST."""
        return f"{'https' if self.certificate else 'http'}://{self.host}"

    @property
    def grpc_host(self) -> str:
        """The address that serves gRPC only, as host:port.

        The first access loads grpc and starts this server; it must come from the event loop. `host` forwards gRPC to
        it.
        """
        return self._grpc.host

    @property
    def roots(self) -> bytes:
        """The certificate that clients must trust, as PEM; empty without TLS."""
        return self.certificate.chain if self.certificate else b""

    @property
    def roots_file(self) -> str:
        """The path of a file with `roots`, which exists until the server ends; empty without TLS."""
        return self.certificate.chain_file if self.certificate else ""

    @property
    def messages(self) -> list[ReceivedMessage]:
        """The messages of all requests, in order."""
        return [message for request in self.requests for message in request.messages]

    @property
    def metadata(self) -> list[Mapping[str, str]]:
        """The headers of each publish request."""
        return [request.headers for request in self.requests]

    @property
    def peers(self) -> list[str]:
        """The client's address of each publish request."""
        return [request.peer for request in self.requests]

    async def received(self, count: int) -> None:
        """Wait until this many publish requests have arrived; raise TimeoutError after RECEIVE_SECONDS."""
        async with asyncio.timeout(RECEIVE_SECONDS):
            while len(self.requests) < count:
                self._arrived.clear()
                await self._arrived.wait()

    def confirm(self, request: PublishRequest) -> list[str]:
        """Publish the messages of a request, and return their ids. Raises the `Fault` of the rule that they break."""
        self.require("pubsub.topics.publish")
        if request.topic not in self.topics:
            raise _not_found(request.topic)
        if any(self.poison in message.data for message in request.messages):
            raise Fault("INVALID_ARGUMENT", "a message is poison")
        _check_rules(request.messages)
        first = self._published + 1
        self._published += len(request.messages)
        self.confirmed += request.messages
        return [str(number) for number in range(first, self._published + 1)]

    # What the wires call.

    def new_connection(self) -> int:
        """Return the number of a connection that a client has opened."""
        self._connected += 1
        self.connections[self._connected] = 0
        return self._connected

    async def publish(self, request: PublishRequest) -> list[str]:
        """Record a request, reply as the script says, and return the message ids or raise a Fault."""
        await self._count(request.connection)
        key = request.messages[0].ordering_key if request.messages else ""
        self.requests.append(request)
        self._arrived.set()
        self.in_flight[key] += 1
        self.most_in_flight[key] = max(self.most_in_flight.get(key, 0), self.in_flight[key])
        try:
            ids = await self._follow(self.script.popleft() if self.script else None, request)
            return self.confirm(request) if ids is None else ids
        finally:
            self.in_flight[key] -= 1

    async def find_topic(self, name: str, connection: int) -> None:
        """Raise a Fault if a topic does not exist, or `look_up` says so."""
        await self._count(connection)
        await self._follow(self.look_up)
        self.require("pubsub.topics.get")
        if name not in self.topics:
            raise _not_found(name)

    async def create_topic(self, name: str, connection: int) -> None:
        """Create a topic, or raise a Fault."""
        await self._count(connection)
        await self._follow(self.look_up)
        self.require("pubsub.topics.create")
        if not _TOPIC_ID.fullmatch(_short(name)):
            raise Fault("INVALID_ARGUMENT", f"Invalid [topics] name: (name={name})")
        if name in self.topics:
            raise Fault("ALREADY_EXISTS", f"Resource already exists in the project (resource={_short(name)}).")
        self.topics.add(name)

    def require(self, permission: str) -> None:
        """Raise a Fault if clients lack a permission."""
        if permission in self.denied:
            raise Fault("PERMISSION_DENIED", "User not authorized to perform this action.")

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run a coroutine until it ends or the server does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def start_grpc(self) -> int:
        """Start serving gRPC, unless it has started, and return the port of 127.0.0.1 that serves it without TLS."""
        await asyncio.shield(self._grpc.started)
        return self._grpc.plain_port

    async def aclose(self) -> None:
        """End all connections."""
        if "_grpc" in vars(self):
            await self._grpc.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self.open.values():
            connection.abort()

    @cached_property
    def _grpc(self) -> "GrpcServer":
        from pulsecart.testing.strict.grpc import GrpcServer

        return GrpcServer(self, self._grpc_port)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self.defects.append(error)

    async def _count(self, connection: int) -> None:
        """Count a request. Never return if its connection is silent."""
        self.connections[connection] += 1
        if connection in self.silent:
            await asyncio.Event().wait()

    async def _follow(self, reply: _Scripted, request: PublishRequest | None = None) -> list[str] | None:
        """Wait or fail as a reply says, and return the message ids that it gives. Look-ups have no publish request."""
        try:
            if request is not None and callable(reply):
                reply = reply(request)
            if request is not None and reply is None and self.latency:
                await asyncio.sleep(self.latency(request) if callable(self.latency) else self.latency)
            fault = _fault(reply)
        except Exception as error:
            self.defects.append(error)
            raise Fault("INTERNAL", f"the script raised {error!r}") from error
        if fault is not None:
            raise fault
        if isinstance(reply, asyncio.Event):
            await reply.wait()
        return reply if isinstance(reply, list) else None


def _fault(reply: _Scripted) -> Fault | None:
    """Return the fault that a reply stands for. Raise ValueError for what is no reply."""
    if reply is None or isinstance(reply, list | asyncio.Event):
        return None
    if isinstance(reply, RawAnswer):
        return Fault("UNAVAILABLE", "the connection broke", reply)
    status = reply if isinstance(reply, str) else getattr(reply, "name", "")
    if status not in HTTP_STATUS:
        raise ValueError(f"{reply!r} is no reply; a status is one of {', '.join(HTTP_STATUS)}")
    return Fault(status, "as the script says")


def _check_rules(messages: Sequence[ReceivedMessage]) -> None:
    """Raise the fault that Pub/Sub answers (https://cloud.google.com/pubsub/quotas#resource_limits)."""
    _check_count("message_count", len(messages), 1, MAX_MESSAGES)
    for message in messages:
        if message.ordering_key != messages[0].ordering_key:
            raise Fault(
                "FAILED_PRECONDITION",
                "In a single publish request, all messages must have no ordering key or they must all have the same "
                "ordering key.",
            )
        if not message.data and not message.attributes:
            raise Fault(
                "INVALID_ARGUMENT",
                "One or more messages in the publish request is empty. Each message must contain either non-empty "
                "data, or at least one attribute.",
            )
        _check_count("ordering_key", len(message.ordering_key.encode()), 0, MAX_ORDERING_KEY_BYTES)
        _check_count("attributes", len(message.attributes), 0, MAX_ATTRIBUTES)
        for name, value in message.attributes.items():
            _check_count("attribute_key", len(name.encode()), 1, MAX_ATTRIBUTE_KEY_BYTES)
            _check_count("attribute_value", len(value.encode()), 0, MAX_ATTRIBUTE_VALUE_BYTES)


def _check_count(what: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        size, bound, limit = ("small", "minimum", least) if count < least else ("large", "maximum", most)
        raise Fault(
            "INVALID_ARGUMENT",
            f"The value for {what} is too {size}. You passed {count} in the request, but the {bound} value is {limit}.",
        )


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _not_found(name: str) -> Fault:
    return Fault("NOT_FOUND", f"Resource not found (resource={_short(name)}).")
