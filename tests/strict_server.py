"""A Pub/Sub publisher service in this process, over real gRPC. It is stricter than the emulator, like production."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.pubsub_v1.types import GetTopicRequest, PublishRequest, PublishResponse, Topic

MAX_REQUEST_BYTES = 10_000_000

# Without proto-plus wrappers, which would make the server the slowest part of a benchmark.
_Request = PublishRequest.pb()
_Response = PublishResponse.pb()


class StrictServer:
    """Records every publish request, in order. `script` has the replies to the next calls.

    A reply is a gRPC status to fail with, message ids to return, an event to wait for before answering,
    or None to answer at once. While the script is empty, requests are answered after `latency` seconds.
    """

    def __init__(self) -> None:
        self.topics: set[str] = set()
        self.latency = 0.0
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        """The metadata of each publish request."""
        self.peers: list[str] = []
        """The peer address of each publish request."""
        self.confirmed: list[Any] = []
        """The messages that were published, in order."""
        self.script: deque[grpc.StatusCode | asyncio.Event | list[str] | None] = deque()
        self.poison = b"\0"
        """A request is rejected if the data of a message contains these bytes."""
        self.look_up: grpc.StatusCode | asyncio.Event | None = None
        self.in_flight: dict[str, int] = {}
        self.most_in_flight: dict[str, int] = {}
        self.arrived = asyncio.Condition()
        self.host = ""
        """The address that it listens on, as host:port."""
        self._published = 0

    @property
    def messages(self) -> list[Any]:
        return [message for request in self.requests for message in request.messages]

    async def received(self, count: int) -> None:
        """Wait until this many publish requests have arrived."""
        async with asyncio.timeout(10), self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= count)

    async def _publish(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        key = request.messages[0].ordering_key
        self.in_flight[key] = self.in_flight.get(key, 0) + 1
        self.most_in_flight[key] = max(self.most_in_flight.get(key, 0), self.in_flight[key])
        try:
            return await self._reply(request, context)
        finally:
            self.in_flight[key] -= 1

    async def _reply(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async with self.arrived:
            self.requests.append(request)
            self.metadata.append({name: str(value) for name, value in context.invocation_metadata() or ()})
            self.peers.append(context.peer())
            self.arrived.notify_all()
        reply = self.script.popleft() if self.script else None
        if isinstance(reply, grpc.StatusCode):
            await context.abort(reply, "as the test's script says")
        if isinstance(reply, list):
            return _Response(message_ids=reply)
        if isinstance(reply, asyncio.Event):
            await reply.wait()
        elif self.latency:
            await asyncio.sleep(self.latency)
        if request.topic not in self.topics:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Topic not found: {request.topic}")
        if any(self.poison in message.data for message in request.messages):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a message is poison")
        if fault := _breaks_a_rule(request):
            await context.abort(*fault)
        first = self._published + 1
        self._published += len(request.messages)
        self.confirmed += request.messages
        return _Response(message_ids=[str(number) for number in range(first, self._published + 1)])

    async def _get_topic(self, request: GetTopicRequest, context: grpc.aio.ServicerContext) -> Topic:
        if isinstance(self.look_up, asyncio.Event):
            await self.look_up.wait()
        elif self.look_up is not None:
            await context.abort(self.look_up, "as the test says")
        if request.topic not in self.topics:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Topic not found: {request.topic}")
        return Topic(name=request.topic)

    async def _create_topic(self, request: Topic, context: grpc.aio.ServicerContext) -> Topic:
        if isinstance(self.look_up, asyncio.Event):
            await self.look_up.wait()
        if request.name in self.topics:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"Topic exists: {request.name}")
        self.topics.add(request.name)
        return request


def _breaks_a_rule(request: Any) -> tuple[grpc.StatusCode, str] | None:
    if len({message.ordering_key for message in request.messages}) > 1:
        return grpc.StatusCode.FAILED_PRECONDITION, "messages of different ordering keys in one request"
    if len(request.messages) > 1000 or request.ByteSize() > MAX_REQUEST_BYTES:
        return grpc.StatusCode.INVALID_ARGUMENT, "the request is too large"
    for message in request.messages:
        values = [message.ordering_key, *message.attributes.values()]
        if len(message.attributes) > 100 or max(len(value.encode()) for value in values) > 1024:
            return grpc.StatusCode.INVALID_ARGUMENT, "an attribute or the ordering key is too large"
        if any(not key or len(key.encode()) > 256 for key in message.attributes):
            return grpc.StatusCode.INVALID_ARGUMENT, "an attribute's key is empty or too large"
    return None


@asynccontextmanager
async def strict_server(
    topics: list[str], *, project: str = "test", port: int = 0, certificate: tuple[bytes, bytes] | None = None
) -> AsyncIterator[StrictServer]:
    """Serve on loopback, with TLS if a certificate is given as its key and chain, both PEM."""
    service = StrictServer()
    service.topics = {f"projects/{project}/topics/{topic}" for topic in topics}
    methods = {
        "Publish": (service._publish, _Request.FromString, _Response.SerializeToString),
        "GetTopic": (service._get_topic, GetTopicRequest.deserialize, Topic.serialize),
        "CreateTopic": (service._create_topic, Topic.deserialize, Topic.serialize),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(method, request_deserializer=read, response_serializer=write)
        for name, (method, read, write) in methods.items()
    }
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 * MAX_REQUEST_BYTES)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", handlers)])
    if certificate:
        port = server.add_secure_port(f"localhost:{port}", grpc.ssl_server_credentials([certificate]))
        service.host = f"localhost:{port}"
    else:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        service.host = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield service
    finally:
        await server.stop(None)
