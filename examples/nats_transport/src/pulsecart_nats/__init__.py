"""A transport of pulsecart to NATS JetStream.

    pip install ./examples/nats_transport
    pulsecart serve --transport nats --transport-options url=nats://127.0.0.1:4222

Each topic is a subject, which a stream must keep; in development missing streams are created. A stream keeps the order
of a user's messages, and drops a message whose event id it has seen within its duplicate window: by default, two
minutes.
"""

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, MaxPayloadError
from nats.js import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from pulsecart import BrokerRefused, BrokerUnavailable, Limits, Message, MessageRefused, Observer, TransportClosed
from pulsecart.ports import UNOBSERVED
from pulsecart.transports import Failure, KeyedQueues, Request, TransportConfig

__all__ = ["NatsTransport", "from_config", "read"]

DRAIN_SECONDS = 7.0
RETRY_SECONDS = 0.1
OPEN_SECONDS = 5.0

_KEY = "Pulsecart-Key"
_ATTRIBUTE = "Pulsecart-Attribute-"

_log = logging.getLogger("pulsecart_nats")


class NatsTransport:
    """Publishes to JetStream at `url`, which may be several addresses separated by spaces."""

    def __init__(self, url: str, *, limits: Limits | None = None, observer: Observer = UNOBSERVED) -> None:
        self._urls = url.split()
        self._limits = limits or Limits()
        self._observer = observer
        server = urlsplit(self._urls[0])
        self._server = (server.hostname or "", server.port or 4222)
        self._client: Client | None = None
        self._queues: KeyedQueues | None = None

    async def publish(self, message: Message) -> str:
        """Publish a message. Its id is the name of the stream and the number of the message in it."""
        if self._queues is None:
            raise TransportClosed("the NATS transport is not open")
        return await self._queues.publish(message)

    async def check(self, topics: Iterable[str]) -> list[str]:
        """Return the topics that no stream keeps."""
        try:
            return [topic for topic in topics if not await self._exists(topic)]
        except (Error, OSError) as error:
            raise BrokerUnavailable(f"JetStream did not answer ({type(error).__name__})", str(error)) from error

    async def create_topics(self, topics: Iterable[str]) -> None:
        """Create a stream for each topic."""
        try:
            for topic in topics:
                await self._open().add_stream(name=topic.replace(".", "_"), subjects=[topic])
        except (Error, OSError) as error:
            raise BrokerUnavailable(f"the streams were not created ({type(error).__name__})", str(error)) from error

    async def aclose(self) -> None:
        """Wait for messages in flight, and close the connection."""
        queues, self._queues = self._queues, None
        if queues is None or self._client is None:
            return  # it is not open, or about to be closed
        try:
            await queues.drain(DRAIN_SECONDS)
        finally:
            await self._client.close()

    async def __aenter__(self) -> Self:
        client = Client()
        try:
            # Without a limit of attempts, which a restart needs, it also tries for ever to connect at first.
            async with asyncio.timeout(OPEN_SECONDS):
                await client.connect(
                    self._urls,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RETRY_SECONDS,  # type: ignore[arg-type] # part of a second works, too
                    error_cb=_log_error,
                )
        except TimeoutError as error:
            await client.close()
            host, port = self._server
            raise ConnectionError(f"NATS does not answer at {host}:{port}") from error
        self._client = client
        self._queues = KeyedQueues(self._send, self._limits, observer=self._observer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self) -> JetStreamContext:
        if self._queues is None or self._client is None:
            raise TransportClosed("the NATS transport is not open")
        if not self._client.is_connected:
            raise BrokerUnavailable("NATS is not connected")
        return self._client.jetstream()

    async def _exists(self, topic: str) -> bool:
        try:
            await self._open().find_stream_name_by_subject(topic)
        except NotFoundError:
            return False
        return True

    async def _send(self, request: Request) -> list[str] | Failure:
        """Publish the messages of a request one after the other, so that none overtakes one that fails."""
        sending = self._observer.sending(request.topic, len(request.messages), request.observed, self._server)
        ids: list[str] = []
        for message in request.messages:
            sent = await self._confirmed(message, request.deadline)
            if isinstance(sent, Failure):
                sending.ended(sent.error_type)
                return sent
            ids.append(sent)
        sending.ended("")
        return ids

    async def _confirmed(self, message: Message, deadline: float) -> str | Failure:
        """Publish a message, again and again until the deadline. JetStream drops what it has seen before."""
        assert self._client is not None  # requests end before the connection is closed
        stream = self._client.jetstream()
        clock = asyncio.get_running_loop().time
        failure = Failure(BrokerUnavailable, "NATS is not connected", "", "NotConnected")
        headers = _headers(message)
        while (left := deadline - clock()) > 0:
            try:
                if self._client.is_connected:  # else it would be kept, and sent when nobody waits for it
                    timeout = min(left, self._limits.attempt_timeout)
                    ack = await stream.publish(message.topic, message.data, timeout=timeout, headers=headers)
                    return f"{ack.stream}:{ack.seq}"
            except MaxPayloadError:
                text = f"the message is larger than the {self._client.max_payload:,} bytes that NATS takes"
                return Failure(MessageRefused, text, "", "MaxPayloadError")
            except NoStreamResponseError:  # it may also be that the server has just started
                failure = Failure(BrokerRefused, f"no stream keeps the subject {message.topic}", "", "NoStream")
            except APIError as error:
                text = "JetStream did not keep the message"
                failure = Failure(BrokerUnavailable, text, f"{text}: {error.description}", f"{error.err_code}")
            except (Error, OSError) as error:
                name = type(error).__name__
                failure = Failure(BrokerUnavailable, f"JetStream did not confirm ({name})", str(error), name)
            await asyncio.sleep(min(RETRY_SECONDS, max(deadline - clock(), 0)))
        return failure


def from_config(config: TransportConfig) -> NatsTransport:
    """Return the transport `nats`. Its only option is `url`."""
    config.allow_options("url")
    url = config.options.get("url", "nats://127.0.0.1:4222")
    return NatsTransport(url, limits=config.limits, observer=config.observer)


def read(message: Msg) -> Message:
    """Return the message of pulsecart that a consumer has received."""
    headers = message.headers or {}
    return Message(
        topic=message.subject,
        data=message.data,
        attributes={
            name.removeprefix(_ATTRIBUTE): unquote(value)
            for name, value in headers.items()
            if name.startswith(_ATTRIBUTE)
        },
        ordering_key=unquote(headers.get(_KEY, "")),
    )


def _headers(message: Message) -> dict[str, str]:
    """Return the headers of a message. Values are percent-encoded: NATS strips spaces, and lines must not break."""
    attributes = {f"{_ATTRIBUTE}{name}": quote(value) for name, value in message.attributes.items()}
    # https://docs.nats.io/using-nats/developer/develop_jetstream/model_deep_dive#message-deduplication
    event_id = {"Nats-Msg-Id": quote(message.attributes["event_id"])} if "event_id" in message.attributes else {}
    return {**attributes, **event_id, _KEY: quote(message.ordering_key)}


async def _log_error(error: Exception) -> None:
    _log.warning("NATS: %s", type(error).__name__)
