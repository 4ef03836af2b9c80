"""A subscription of its own: what is published to a topic from now on. It is pulled by REST, which needs no extra.

https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.subscriptions
"""

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from pulsecart.errors import BrokerUnavailable, PulsecartError
from pulsecart.transports.pubsub.attempts import Attempts
from pulsecart.transports.pubsub.reachability import Reachability
from pulsecart.transports.pubsub.sender import FIRST_BACKOFF, LONGEST_BACKOFF, TEMPORARY
from pulsecart.transports.pubsub.wire import Metadata, WireError
from pulsecart.transports.pubsub.wire.dial import Endpoint
from pulsecart.transports.pubsub.wire.rest import RestWire

if TYPE_CHECKING:
    from pulsecart.transports.pubsub.tokens import Tokens

__all__ = ["Received", "Subscription", "SubscriptionError"]

CREATE_SECONDS = 10.0
"""Maximum seconds to create the subscription, with retries."""

DELETE_SECONDS = 5.0
"""Maximum seconds to delete it, with retries."""

PULL_SECONDS = 90.0
"""Seconds to wait for the answer to a pull, which Pub/Sub gives when there is a message, or after some time."""

QUIET_SECONDS = 0.2
"""Minimum seconds between two pulls of which the first was answered with nothing."""

MAX_MESSAGES = 100
"""Maximum number of messages in a pull."""

MAX_ANSWER_BYTES = 64_000_000

# The least time after which an unused subscription expires, the least time for which it keeps messages, and the most
# time to acknowledge them.
_OPTIONS = {
    "expirationPolicy": {"ttl": "86400s"},
    "messageRetentionDuration": "600s",
    "ackDeadlineSeconds": 600,
    "enableMessageOrdering": True,
}

_log = logging.getLogger("pulsecart")


class Message(msgspec.Struct, rename="camel"):
    """A message. Its data is in base64."""

    message_id: str
    data: str = ""
    ordering_key: str = ""
    attributes: dict[str, str] = {}


class Received(msgspec.Struct, rename="camel"):
    """A message, and the id to acknowledge it with."""

    ack_id: str
    message: Message


class _Pulled(msgspec.Struct, rename="camel"):
    received_messages: list[Received] = []


_pulled = msgspec.json.Decoder(_Pulled)


class SubscriptionError(PulsecartError):
    """The broker rejects the subscription, or does not answer."""


class Subscription:
    """Follows a topic, given by its full name, by a subscription that exists within `async with`.

    After a crash, it expires in a day.
    """

    def __init__(self, endpoint: Endpoint, topic: str, *, tokens: "Tokens | None" = None) -> None:
        self._topic = topic
        project = "/".join(topic.split("/")[:2])
        self.name = f"{project}/subscriptions/pulsecart-tail-{secrets.token_hex(8)}"
        self._wire = RestWire(endpoint, connections=2, timeout=PULL_SECONDS, max_answer=MAX_ANSWER_BYTES)
        self._attempts = Attempts(tokens, Reachability())
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        until = self._loop.time() + CREATE_SECONDS
        try:
            # If it exists, the answer to an earlier attempt was lost.
            await self._call("PUT", self.name, {"topic": self._topic, **_OPTIONS}, until=until, done="ALREADY_EXISTS")
        except SubscriptionError:
            await self._wire.aclose()
            raise
        except BaseException:
            await self.aclose()  # it may have been created
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Delete the subscription, and close the connections. If it cannot be deleted, that is logged."""
        until = self._loop.time() + DELETE_SECONDS
        try:
            await self._call("DELETE", self.name, None, until=until, done="NOT_FOUND")
        except SubscriptionError as error:
            _log.warning("The subscription %s is not deleted, and expires in a day: %s", self.name, error)
        finally:
            await self._wire.aclose()

    async def messages(self) -> AsyncIterator[Sequence[Received]]:
        """Yield messages as they come, in order for each ordering key. Asking for the next ones acknowledges them.

        Raises `SubscriptionError` if the subscription does not exist any more, or the broker rejects a request. While
        the broker is away, it is asked again and again.
        """
        while True:
            started = self._loop.time()
            answer = await self._call("POST", f"{self.name}:pull", {"maxMessages": MAX_MESSAGES}, until=None)
            if received := _pulled.decode(answer).received_messages:
                yield received
                ids = [each.ack_id for each in received]
                await self._call("POST", f"{self.name}:acknowledge", {"ackIds": ids}, until=None)
            else:
                await asyncio.sleep(started + QUIET_SECONDS - self._loop.time())

    async def _call(self, method: str, path: str, body: Any, *, until: float | None = None, done: str = "") -> bytes:
        """Send a request until it is answered or rejected, or until a time. The error `done` counts as an answer."""
        encoded = b"" if body is None else msgspec.json.encode(body)
        failure, backoff = "", FIRST_BACKOFF

        async def request(metadata: Metadata) -> bytes:
            deadline = self._loop.time() + PULL_SECONDS
            return (await self._wire.request(method, path, encoded, deadline, metadata)).body

        try:
            async with asyncio.timeout_at(until):
                while True:
                    known = failure
                    try:
                        return await self._attempts.make(request, self._loop.time() + PULL_SECONDS)
                    except WireError as error:
                        if error.status == done or (error.status == "DEADLINE_EXCEEDED" and path.endswith(":pull")):
                            return b"{}"
                        failure = f"{error.status}: {error}"
                        if error.status not in TEMPORARY:
                            raise SubscriptionError(f"{self._topic}: {failure}") from None
                    except BrokerUnavailable as error:  # there is no token
                        failure = error.log_detail
                    if not known:
                        _log.warning("The broker does not answer, trying again: %s", failure)
                    await asyncio.sleep(random.uniform(0, backoff))  # noqa: S311
                    backoff = min(2 * backoff, LONGEST_BACKOFF)
        except TimeoutError:
            raise SubscriptionError(f"{self._topic}: {failure or 'no answer in time'}") from None
