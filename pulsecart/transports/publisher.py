"""Publishing through Google's generated asyncio client. Importing this module loads google and grpc."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import grpc.aio
from google.api_core import exceptions as google
from google.api_core.retry import AsyncRetry, if_exception_type
from google.pubsub_v1 import PublisherAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.types import PublishRequest, PubsubMessage

from pulsecart.errors import BrokerRefused, BrokerUnavailable, MessageRefused, PublishError, TransportClosed
from pulsecart.message import MAX_MESSAGE_BYTES, Message
from pulsecart.transports.turns import Turns

__all__ = ["Publisher", "open_emulator"]

# Whatever may pass by itself; the same list for every method, instead of the client's own defaults.
_PASSING = (
    google.Aborted,
    google.Cancelled,
    google.DeadlineExceeded,
    google.InternalServerError,
    google.ResourceExhausted,
    google.ServiceUnavailable,
    google.Unknown,
)

_ERRORS: tuple[tuple[type[google.GoogleAPICallError], type[PublishError]], ...] = (
    (google.InvalidArgument, MessageRefused),
    (google.NotFound, BrokerRefused),
    (google.PermissionDenied, BrokerRefused),
    (google.Unauthenticated, BrokerRefused),
)

CHECK_SECONDS = 3.0
"""How long a check may take in all. It is shorter than the patience of a usual readiness probe."""


def open_emulator(host: str, *, project: str, deadline: float) -> "Publisher":
    """Open a channel to an emulator, without encryption or credentials, in the running event loop."""
    channel = grpc.aio.insecure_channel(host, options=[("grpc.max_send_message_length", 2 * MAX_MESSAGE_BYTES)])
    client = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
    return Publisher(client, project=project, deadline=deadline)


class Publisher:
    """Publishes to the topics of one project: one request in flight per topic and ordering key.

    `deadline` is in seconds, from the call of `publish` to the broker's confirmation, waiting for
    the key's turn and retries included.
    """

    def __init__(self, client: PublisherAsyncClient, *, project: str, deadline: float) -> None:
        self._client = client
        self._project = project
        self._deadline = deadline
        self._turns = Turns()

    async def publish(self, message: Message) -> str:
        """Publish one message; see `Transport.publish`."""
        request = PublishRequest(
            topic=self._path(message.topic),
            messages=[
                PubsubMessage(data=message.data, attributes=dict(message.attributes), ordering_key=message.ordering_key)
            ],
        )
        failures: list[Exception] = []
        retry = AsyncRetry(
            predicate=if_exception_type(*_PASSING),
            initial=0.1,
            maximum=2.0,
            timeout=None,  # ours, below, counts the wait for the turn too
            on_error=failures.append,
        )
        try:
            async with asyncio.timeout(self._deadline):
                async with self._turns.of(message):
                    response = await self._client.publish(request, retry=retry, timeout=self._deadline)
        except TimeoutError:
            last = f"; its last answer was {failures[-1]}" if failures else ""
            raise BrokerUnavailable(f"the broker did not confirm within {self._deadline:g} s{last}") from None
        except google.GoogleAPICallError as error:
            raise _publish_error(error, message.topic) from error
        except (grpc.aio.UsageError, asyncio.CancelledError):
            # A channel that is closed cancels its calls; that is not the caller giving up.
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            raise TransportClosed("the transport was closed before the broker confirmed") from None
        if len(response.message_ids) != 1:
            raise BrokerUnavailable(f"the broker returned {len(response.message_ids)} message ids for one message")
        return response.message_ids[0]

    async def check(self, topics: Iterable[str]) -> list[str]:
        """Return the topics that are missing; see `Transport.check`."""
        topics = list(topics)
        async with _answer():
            found = await asyncio.gather(*map(self._exists, topics))
        return [topic for topic, there in zip(topics, found, strict=True) if not there]

    async def _exists(self, topic: str) -> bool:
        try:
            await self._client.get_topic(topic=self._path(topic), retry=None, timeout=CHECK_SECONDS)
        except google.NotFound:
            return False
        except google.PermissionDenied:
            return True  # the broker answered; roles/pubsub.publisher may publish, but not look
        return True

    async def create_topics(self, topics: Iterable[str]) -> None:
        """Create topics. One that is there already is left as it is. Raises `BrokerUnavailable`."""
        async with _answer():
            for topic in topics:
                with suppress(google.AlreadyExists):
                    await self._client.create_topic(name=self._path(topic), retry=None, timeout=CHECK_SECONDS)

    async def aclose(self) -> None:
        """Close the channel."""
        await self._client.transport.close()  # type: ignore[no-untyped-call]

    def _path(self, topic: str) -> str:
        return f"projects/{self._project}/topics/{topic}"


@asynccontextmanager
async def _answer() -> AsyncIterator[None]:
    """Turn whatever keeps the broker from answering a question into `BrokerUnavailable`."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            yield
    except TimeoutError:
        raise BrokerUnavailable(f"the broker did not answer within {CHECK_SECONDS:g} s") from None
    except google.GoogleAPICallError as error:
        raise BrokerUnavailable(str(error)) from error


def _publish_error(error: google.GoogleAPICallError, topic: str) -> PublishError:
    for kind, ours in _ERRORS:
        if isinstance(error, kind):
            return ours(f"topic {topic}: {error}")
    return BrokerUnavailable(f"topic {topic}: {error}")
