"""Publishing with Google's generated asyncio client. Importing this module loads google and grpc."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib.metadata import version
from typing import Any
from urllib.parse import quote
from zlib import crc32

import grpc.aio
from google.api_core import exceptions as google
from google.pubsub_v1 import PublisherAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.types import PublishRequest, PublishResponse
from grpc import StatusCode

from pulsecart.errors import BrokerRefused, BrokerUnavailable, MessageRefused, PublishError
from pulsecart.limits import Limits
from pulsecart.message import MAX_MESSAGE_BYTES, Message
from pulsecart.ports import UNOBSERVED, Observer, Sending
from pulsecart.transports.keyed import Failure, KeyedQueues, Request
from pulsecart.transports.pubsub.tokens import Tokens

__all__ = ["Publisher", "insecure_channel", "secure_channel"]

# Failures that may be temporary.
_PASSING = frozenset(
    {
        StatusCode.ABORTED,
        StatusCode.CANCELLED,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.INTERNAL,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.UNAVAILABLE,
        StatusCode.UNKNOWN,
    }
)

_REFUSALS: dict[StatusCode, tuple[type[PublishError], str]] = {
    StatusCode.INVALID_ARGUMENT: (MessageRefused, "the broker rejects this message for the topic {}"),
    StatusCode.NOT_FOUND: (BrokerRefused, "the topic {} does not exist or may not be published to"),
    StatusCode.PERMISSION_DENIED: (BrokerRefused, "the topic {} does not exist or may not be published to"),
    StatusCode.UNAUTHENTICATED: (BrokerRefused, "the broker does not accept the credentials for the topic {}"),
}
_OTHER_FAILURE = BrokerUnavailable, "the broker failed to publish to the topic {}"

CHECK_SECONDS = 3.0
"""Maximum duration of a check in seconds. It is shorter than the timeout of most readiness probes."""

PROBE_SECONDS = 1.0
"""Seconds between two probes of the broker."""

PROBE_TIMEOUT = 2.0
"""Seconds that a probe waits for an answer."""

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 2.0
"""Maximum seconds to wait before the second attempt, and before any later one."""

COPIES = 3
"""How many copies of a message are in memory while it is published: itself, the request, and gRPC's buffer."""

DRAIN_SECONDS = 7.0
"""Maximum seconds to wait for messages in flight when the transport is closed."""

_Request = PublishRequest.pb()
_Response = PublishResponse.pb()

_CHANNEL_OPTIONS = [
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
]


def insecure_channel(host: str) -> grpc.aio.Channel:
    """Create a channel without encryption, in the running event loop."""
    return grpc.aio.insecure_channel(host, options=_CHANNEL_OPTIONS)


def secure_channel(endpoint: str, roots: bytes | None) -> grpc.aio.Channel:
    """Create a channel with TLS, in the running event loop. `roots` are PEM, or None for gRPC's own."""
    return grpc.aio.secure_channel(endpoint, grpc.ssl_channel_credentials(roots), options=_CHANNEL_OPTIONS)


class Publisher:
    """Publishes to the topics of one project.

    Messages are queued by key and sent in requests, whose results show whether the broker can be reached. The first
    channel is for checks and topic administration, the others are for publishing.
    """

    def __init__(  # noqa: PLR0913 (the transports set different ones)
        self,
        channels: Sequence[grpc.aio.Channel],
        *,
        project: str,
        address: str,
        limits: Limits,
        tokens: Tokens | None = None,
        creates_topics: bool = False,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._channels = channels
        self._tokens = tokens
        self._deadline = limits.deadline
        self._admin = _Admin(channels[0], project, tokens)
        self._reachability = _Reachability(self._admin, channels[1:])
        sender = _Sender(
            channels[1:],
            self._admin,
            self._reachability,
            address=address,
            deadline=limits.deadline,
            creates_topics=creates_topics,
            observer=observer,
        )
        self._queues = KeyedQueues(sender.send, limits, copies=COPIES, observer=observer)
        self._loop = asyncio.get_running_loop()

    def publish(self, message: Message) -> "asyncio.Future[str]":
        """Admit a message; see `KeyedQueues.publish`."""
        if away := self._reachability.away:
            raise away.error(message)
        return self._queues.publish(message)

    async def room(self, message: Message) -> None:
        """Wait until there is room for a message; see `KeyedQueues.room`."""
        await self._queues.room(message)

    async def check(self, topics: Iterable[str]) -> list[str]:
        """Return the topics that are missing; see `Transport.check`."""
        topics = list(topics)
        self._reachability.topic = topics[0] if topics else self._reachability.topic
        if away := self._reachability.away:
            raise BrokerUnavailable(away.detail, away.log_detail, error_type=away.error_type)
        if self._queues.oldest is not None and (age := self._loop.time() - self._queues.oldest) > self._deadline / 2:
            raise BrokerUnavailable(f"the oldest message has waited for {age:.1f} s")
        async with _answer(CHECK_SECONDS):
            found = await asyncio.gather(*map(self._admin.exists, topics))
        return [topic for topic, there in zip(topics, found, strict=True) if not there]

    async def create_topics(self, topics: Iterable[str]) -> None:
        """Create topics; existing ones are not changed. Raises `BrokerUnavailable`."""
        await self._admin.create(topics)

    async def aclose(self) -> None:
        """Reject further messages, wait at most `DRAIN_SECONDS` for those in flight, and close the channels."""
        await self._queues.drain(DRAIN_SECONDS)
        await self._reachability.aclose()
        if self._tokens is not None:
            await self._tokens.aclose()
        for channel in self._channels:
            await channel.close()


class _Admin:
    """Checks for topics, and creates them.

    The generated client has its own channel, because it adds an interceptor to it. With the wrapping of messages, that
    would make each publish call 10 % slower.
    """

    def __init__(self, channel: grpc.aio.Channel, project: str, tokens: Tokens | None) -> None:
        self._client = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
        self._project = project
        self._tokens = tokens

    def authorization(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata that authorizes a call. Raises `BrokerUnavailable` if there is no valid token."""
        return self._tokens.metadata if self._tokens else ()

    def path(self, topic: str) -> str:
        """Return the full name of a topic."""
        return f"projects/{self._project}/topics/{topic}"

    async def exists(self, topic: str) -> bool:
        """Return whether a topic exists. Without permission to read it, it counts as existing."""
        try:
            await self._client.get_topic(
                topic=self.path(topic), retry=None, timeout=CHECK_SECONDS, metadata=self.authorization()
            )
        except google.NotFound:
            return False
        except google.PermissionDenied:
            return True  # the broker has answered; roles/pubsub.publisher may publish to topics, but not read them
        return True

    async def create(self, topics: Iterable[str]) -> None:
        """Create missing topics. Raises `BrokerUnavailable`."""
        async with _answer(CHECK_SECONDS):
            for topic in topics:
                with suppress(google.AlreadyExists):
                    await self._client.create_topic(
                        name=self.path(topic), retry=None, timeout=CHECK_SECONDS, metadata=self.authorization()
                    )


class _Reachability:
    """Knows whether the broker can be reached. It sends probes, to detect an outage and its end without traffic."""

    def __init__(self, admin: _Admin, channels: Sequence[grpc.aio.Channel]) -> None:
        self._admin = admin
        self._channels = channels
        self._loop = asyncio.get_running_loop()
        self.away: Failure | None = None
        """The reason while the broker cannot be reached, otherwise None."""
        self.confirmed_at = self._loop.time()
        """When the broker last confirmed a request."""
        self.topic = "pulsecart-probe"
        """The topic that probes ask for. It need not exist: NOT_FOUND is an answer too."""
        self._suspicion = asyncio.Event()
        self._probing = asyncio.create_task(self._probe())

    def confirmed(self) -> None:
        """Note that the broker has confirmed a request."""
        self.confirmed_at = self._loop.time()

    def unconfirmed(self, since: float) -> None:
        """Note that a request started at `since` was not confirmed. If no other was either, send a probe at once."""
        if self.confirmed_at < since:
            self._suspicion.set()

    async def aclose(self) -> None:
        """Stop sending probes."""
        self._probing.cancel()
        await asyncio.gather(self._probing, return_exceptions=True)

    async def _probe(self) -> None:
        misses = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._suspicion.wait()
                    misses += 1
            self._suspicion.clear()
            try:
                async with _answer(PROBE_TIMEOUT):
                    await self._admin.exists(self.topic)
                    if self.away:
                        # The channels for publishing have their own connections, which may not be established yet.
                        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
            except BrokerUnavailable as error:
                misses += 1
                # A single missed answer is not an outage, nor is one while requests are still confirmed.
                if misses > 1 and self._loop.time() - self.confirmed_at > PROBE_TIMEOUT:
                    self.away = _because("the broker cannot be reached: ", _failure_of(error))
            else:
                misses = 0
                self.away = None


class _Sender:
    """Sends requests over channels, with retries."""

    def __init__(  # noqa: PLR0913 (the parts and options of the publisher)
        self,
        channels: Sequence[grpc.aio.Channel],
        admin: _Admin,
        reachability: _Reachability,
        *,
        address: str,
        deadline: float,
        creates_topics: bool,
        observer: Observer,
    ) -> None:
        self._stubs: list[grpc.aio.UnaryUnaryMultiCallable[bytes, Any]] = [
            channel.unary_unary(
                "/google.pubsub.v1.Publisher/Publish",  # requests are bytes: see _request()
                response_deserializer=_Response.FromString,
            )
            for channel in channels
        ]
        self._admin = admin
        self._reachability = reachability
        host, _, port = address.rpartition(":")
        self._server = host.strip("[]"), int(port)
        self._deadline = deadline
        # Half of the deadline, so that after a lost answer there is time for a second attempt.
        self._attempt_timeout = deadline / 2
        self._creates_topics = creates_topics
        self._observer = observer
        self._loop = asyncio.get_running_loop()

    async def send(self, request: Request) -> Sequence[str] | Failure:
        """Send a request, with retries until it is confirmed or rejected, or the deadline is reached.

        See `keyed.Send`.
        """
        sending = self._observer.sending(request.topic, len(request.messages), request.observed, self._server)
        error_type = "CancelledError"
        try:
            sent = await self._send(request.topic, request.key, request.messages, sending, request.deadline)
            error_type = sent.error_type if isinstance(sent, Failure) else ""
        finally:
            sending.ended(error_type)
        return sent

    async def _send(
        self, topic: str, key: str, messages: Sequence[Message], sending: Sending, deadline: float
    ) -> Sequence[str] | Failure:
        path = self._admin.path(topic)
        routing = _routing(path)
        # A key always uses the same channel; messages without a key use any.
        stub = self._stubs[crc32(key.encode()) % len(self._stubs)] if key else random.choice(self._stubs)  # noqa: S311
        started = self._loop.time()
        backoff = FIRST_BACKOFF
        failure = None
        missing = False
        while (left := deadline - self._loop.time()) > 0:
            try:
                if missing:
                    await self._admin.create([topic])
                metadata = (routing, *self._admin.authorization())
                request = _request(path, key, messages)
                response = await stub(request, timeout=min(left, self._attempt_timeout), metadata=metadata)
            except BrokerUnavailable as error:
                failure = _failure_of(error)  # no token, or the topic could not be created; this may be temporary
            except grpc.aio.AioRpcError as error:
                failure = _failure(error, topic)
                missing = self._creates_topics and error.code() is StatusCode.NOT_FOUND
                if not missing and error.code() not in _PASSING:
                    return failure
            else:
                self._reachability.confirmed()
                if len(response.message_ids) != len(messages):
                    count = len(response.message_ids)
                    return Failure(
                        BrokerUnavailable,
                        f"the broker returned {count} message ids for {len(messages)}",
                        error_type="BrokerUnavailable",
                    )
                return list(response.message_ids)
            sending.attempt_failed(failure.error_type)
            await asyncio.sleep(min(random.uniform(0, backoff), max(0, deadline - self._loop.time())))  # noqa: S311
            backoff = min(2 * backoff, LONGEST_BACKOFF)
        self._reachability.unconfirmed(started)
        last = failure or Failure(BrokerUnavailable, "no attempt was left", error_type="BrokerUnavailable")
        return _because(f"the broker did not confirm within {self._deadline:g} s; last: ", last)


def _request(path: str, key: str, messages: Sequence[Message]) -> bytes:
    """Return a serialized request. gRPC would keep a protobuf message, one more copy, until the broker answers."""
    request = _Request(topic=path)
    add = request.messages.add
    for message in messages:
        attributes = add(data=message.data, ordering_key=key).attributes
        for name, value in message.attributes.items():
            attributes[name] = value  # a third faster than update()
    serialized: bytes = request.SerializeToString()
    return serialized


def _failure(error: grpc.aio.AioRpcError, topic: str) -> Failure:
    """Describe why a call failed: in our words for the caller, in the broker's for the log."""
    status = error.code()
    kind, text = _REFUSALS.get(status, _OTHER_FAILURE)
    log_detail = f"topic {topic}: {status.name}: {error.details()}"
    return Failure(kind, f"{text.format(topic)} ({status.name})", log_detail, status.name)


def _failure_of(error: BrokerUnavailable) -> Failure:
    return Failure(BrokerUnavailable, str(error), error.log_detail, error.error_type)


def _because(text: str, cause: Failure) -> Failure:
    log_detail = f"{text}{cause.log_detail or cause.detail}"
    return Failure(BrokerUnavailable, f"{text}{cause.detail}", log_detail, cause.error_type)


@cache
def _routing(path: str) -> tuple[str, str]:
    """Return the header that Google's front end uses to route a request."""
    return "x-goog-request-params", f"topic={quote(path, safe='')}"


@asynccontextmanager
async def _answer(seconds: float) -> AsyncIterator[None]:
    """Raise `BrokerUnavailable` for a timeout or an error of the broker in the block."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise BrokerUnavailable(f"the broker did not answer within {seconds:g} s") from None
    except google.GoogleAPIError as error:
        status = getattr(error, "grpc_status_code", None)
        name = status.name if status else type(error).__name__
        raise BrokerUnavailable(f"the broker did not answer ({name})", str(error)) from error
