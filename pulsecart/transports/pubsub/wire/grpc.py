"""The gRPC wire: Google's generated client. Importing this module loads google and grpc."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any
from urllib.parse import quote
from zlib import crc32

try:
    import grpc.aio
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
    from google.pubsub_v1.types import GetTopicRequest, PublishRequest, PublishResponse, Topic
    from grpc import ChannelConnectivity, StatusCode
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the gRPC wire needs {error.name}: pip install 'pulsecart[grpc]'", name=error.name
    ) from error

from pulsecart.message import MAX_MESSAGE_BYTES, Message
from pulsecart.ports import Load
from pulsecart.transports.pubsub.wire import Metadata, WireError

__all__ = ["Dial", "GrpcWire", "insecure", "secure"]

CHANNELS = 4
"""The number of channels: Google's front end accepts about 100 concurrent requests on a connection.

Each ordering key always uses the same channel."""

RECONNECT_SECONDS = 0.2
"""Minimum seconds between two attempts to connect a channel."""

_Request = PublishRequest.pb()
_Response = PublishResponse.pb()

# gRPC itself gives these statuses to a call that it could not complete. All others come from the server.
_LOCAL = frozenset({StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED, StatusCode.UNKNOWN})

_OPTIONS = [
    ("grpc.primary_user_agent", f"pulsecart/{version('pulsecart')}"),
    ("grpc.max_send_message_length", 2 * MAX_MESSAGE_BYTES),
    # Otherwise channels to the same address would share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    # By default gRPC waits up to two minutes before it tries to connect again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name this limits an attempt to connect. With TLS that takes two round trips, of up to 3 s each.
    ("grpc.min_reconnect_backoff_ms", 8000),
    ("grpc.keepalive_time_ms", 30_000),
    # The sender retries. gRPC's own retries meet a connection that the server is closing again and again, without a
    # pause or a limit: that takes hundreds of megabytes and blocks the process.
    ("grpc.enable_retries", 0),
]

Dial = Callable[[], grpc.aio.Channel]
"""Creates a channel, in the running event loop."""


def insecure(address: str) -> Dial:
    """Return what creates channels without encryption."""
    return lambda: grpc.aio.insecure_channel(address, options=_OPTIONS)


def secure(
    endpoint: str,
    *,
    address: str = "",
    roots: bytes | None = None,
    certificate: bytes | None = None,
    key: bytes | None = None,
) -> Dial:
    """Return what creates channels with TLS to an endpoint, or to another address for it.

    `roots` are PEM; the default is gRPC's own. `certificate` and `key` are a client's, as PEM.
    """
    credentials = grpc.ssl_channel_credentials(roots, key, certificate)
    options = list(_OPTIONS)
    if address:
        options += [
            ("grpc.ssl_target_name_override", endpoint.rpartition(":")[0]),
            ("grpc.default_authority", endpoint.rpartition(":")[0]),
        ]
    return lambda: grpc.aio.secure_channel(address or endpoint, credentials, options=options)


class _Channel:
    """A channel with its stubs."""

    def __init__(self, dial: Dial) -> None:
        self.channel = dial()
        self.publish: grpc.aio.UnaryUnaryMultiCallable[bytes, Any] = self.channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",  # requests are bytes: see _request()
            response_deserializer=_Response.FromString,
        )
        self.alive_at = asyncio.get_running_loop().time()
        """When the server last answered, in the time of the event loop."""


class GrpcWire:
    """Sends requests over channels, and waits `timeout` seconds for each answer."""

    copies = 3  # the message, the request, and gRPC's buffer
    batch_keys = 32

    def __init__(self, dial: Dial, *, timeout: float) -> None:
        self._dial = dial
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._channels = [_Channel(dial) for _ in range(CHANNELS)]
        self._closing: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    async def publish(
        self, topic: str, key: str, messages: Sequence[Message], deadline: float, metadata: Metadata
    ) -> Sequence[str]:
        """Publish messages that share an ordering key; see `Wire.publish`."""
        request = _request(topic, key, messages)
        # A key always uses the same channel; messages without a key use any.
        index = crc32(key.encode()) % CHANNELS if key else random.randrange(CHANNELS)  # noqa: S311
        stub = self._channels[index].publish
        response = await self._call(index, stub, request, deadline, (_routing("topic", topic), *metadata))
        return list(response.message_ids)

    async def get_topic(self, topic: str, deadline: float, metadata: Metadata) -> None:
        """Look up a topic; see `Wire.get_topic`."""
        stub = PublisherGrpcAsyncIOTransport(channel=self._channels[0].channel).get_topic
        await self._call(0, stub, GetTopicRequest(topic=topic), deadline, (_routing("topic", topic), *metadata))

    async def create_topic(self, topic: str, deadline: float, metadata: Metadata) -> None:
        """Create a topic; see `Wire.create_topic`."""
        stub = PublisherGrpcAsyncIOTransport(channel=self._channels[0].channel).create_topic
        await self._call(0, stub, Topic(name=topic), deadline, (_routing("name", topic), *metadata))

    async def _call(
        self, index: int, stub: Callable[..., Awaitable[Any]], request: object, deadline: float, metadata: Metadata
    ) -> Any:
        channel = self._channels[index]
        connected = channel.channel.get_state() is ChannelConnectivity.READY
        started = self._loop.time()
        try:
            answer = await stub(request, timeout=min(self._timeout, max(0, deadline - started)), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            status = error.code()
            answered = status not in _LOCAL
            if answered:
                channel.alive_at = self._loop.time()
            elif status is StatusCode.DEADLINE_EXCEEDED:
                if connected:  # otherwise connecting may have taken most of the time
                    self._replace_suspects(self._channels, started)
            elif status is StatusCode.UNAVAILABLE:
                # gRPC lets calls fail until it tries to connect again. A new channel connects at once.
                self._replace_suspects([channel], self._loop.time() - RECONNECT_SECONDS)
            raise WireError(status.name, str(error.details()), answered=answered) from None
        channel.alive_at = self._loop.time()
        return answer

    def _replace_suspects(self, suspects: Sequence[_Channel], since: float) -> None:
        """Replace channels on which nothing has been answered since then: the network may have silenced them.

        gRPC would wait for a silent connection until the operating system gives it up. A channel that is connecting is
        left alone: its handshake may take longer than an attempt.
        """
        for index, channel in enumerate(self._channels):
            connecting = channel.channel.get_state() is ChannelConnectivity.CONNECTING
            if channel in suspects and channel.alive_at < since and not connecting:
                self._channels[index] = _Channel(self._dial)
                # Requests that are in flight on it end within their timeout.
                closing = asyncio.create_task(channel.channel.close(self._timeout))
                self._closing[closing] = channel.channel
                closing.add_done_callback(self._closing.pop)

    def load(self) -> Load:
        """Return how the connections are used: there is one for each channel, for any number of requests."""
        return Load(connections=CHANNELS)

    async def aclose(self) -> None:
        """Close all channels."""
        for channel in [*self._closing.values(), *(each.channel for each in self._channels)]:
            await channel.close()
        await asyncio.gather(*self._closing, return_exceptions=True)


def _request(topic: str, key: str, messages: Sequence[Message]) -> bytes:
    """Return a serialized request. gRPC would keep a protobuf message, one more copy, until the broker answers."""
    request = _Request(topic=topic)
    add = request.messages.add
    for message in messages:
        attributes = add(data=message.data, ordering_key=key).attributes
        for name, value in message.attributes.items():
            attributes[name] = value  # a third faster than update()
    serialized: bytes = request.SerializeToString()
    return serialized


@cache
def _routing(parameter: str, topic: str) -> tuple[str, str]:
    """Return the header that Google's front end uses to route a request."""
    return "x-goog-request-params", f"{parameter}={quote(topic, safe='')}"
