"""Follows a topic, by a subscription of its own: what is published from now on.

https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.subscriptions
"""

import asyncio
import base64
import logging
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from pulsecart.errors import BrokerUnavailable, PulsecartError
from pulsecart.message import PublishedMessage
from pulsecart.transports.pubsub.api import Api
from pulsecart.transports.pubsub.sender import FIRST_BACKOFF, LONGEST_BACKOFF, TEMPORARY
from pulsecart.transports.pubsub.wire import WireError

__all__ = ["PULL_SECONDS", "Following", "FollowingError"]

CREATE_SECONDS = 10.0
"""Maximum seconds to create the subscription, with retries."""

DELETE_SECONDS = 5.0
"""Maximum seconds to delete it, with retries."""

PULL_SECONDS = 120.0
"""How many seconds the API's wire must wait for an answer: a pull is answered when there is a message, or after up to
90 seconds. Messages in an answer that nobody waits for come again only when the time to acknowledge them is over."""

QUIET_SECONDS = 0.2
"""Minimum seconds between two pulls of which the first was answered with nothing."""

MAX_MESSAGES = 100
"""Maximum number of messages in a pull."""

# The shortest times that there are for an unused subscription to expire, and for it to keep messages.
_OPTIONS = {
    "expirationPolicy": {"ttl": "86400s"},
    "messageRetentionDuration": "600s",
    "ackDeadlineSeconds": 60,
    "enableMessageOrdering": True,
}

_log = logging.getLogger("pulsecart")


class _Message(msgspec.Struct, rename="camel"):
    message_id: str
    data: str = ""
    """In base64."""
    ordering_key: str = ""
    attributes: dict[str, str] = {}


class _Received(msgspec.Struct, rename="camel"):
    ack_id: str
    message: _Message


class _Pulled(msgspec.Struct, rename="camel"):
    received_messages: list[_Received] = []


class FollowingError(PulsecartError):
    """The broker rejects a request, or does not answer in time. The message begins with the topic."""


class Following:
    """Follows a topic by a subscription that exists within `async with`. After a crash, it expires in a day.

    The wire of `api` must wait for answers for `PULL_SECONDS`.
    """

    def __init__(self, api: Api, project: str, topic: str) -> None:
        self._api = api
        self._topic = topic
        self.topic = f"projects/{project}/topics/{topic}"
        self.subscription = f"projects/{project}/subscriptions/pulsecart-tail-{secrets.token_hex(8)}"
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        until = self._loop.time() + CREATE_SECONDS
        try:
            # If it exists, the answer to an earlier attempt was lost.
            await self._call("PUT", "", {"topic": self.topic, **_OPTIONS}, until=until, done="ALREADY_EXISTS")
        except asyncio.CancelledError:
            await self.aclose()  # it may have been created
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Delete the subscription. If it cannot be deleted, that is logged."""
        try:
            await self._call("DELETE", until=self._loop.time() + DELETE_SECONDS, done="NOT_FOUND")
        except FollowingError as error:
            _log.warning("The subscription %s is not deleted, and expires in a day: %s", self.subscription, error)

    async def messages(self) -> AsyncIterator[Sequence[PublishedMessage]]:
        """Yield messages as they come, in order for each ordering key. Asking for the next ones acknowledges them.

        A message may come twice. Raises `FollowingError` if the subscription does not exist any more, or the broker
        rejects a request. While the broker is away, it is asked again and again.
        """
        while True:
            started = self._loop.time()
            answer = await self._call("POST", ":pull", {"maxMessages": MAX_MESSAGES}, done="DEADLINE_EXCEEDED")
            if received := msgspec.convert(answer, _Pulled).received_messages:
                yield [self._published(each.message) for each in received]
                await self._call("POST", ":acknowledge", {"ackIds": [each.ack_id for each in received]})
            else:
                await asyncio.sleep(started + QUIET_SECONDS - self._loop.time())

    def _published(self, message: _Message) -> PublishedMessage:
        return PublishedMessage(
            topic=self._topic,
            data=base64.b64decode(message.data),
            attributes=message.attributes,
            ordering_key=message.ordering_key,
            message_id=message.message_id,
        )

    async def _call(
        self, method: str, verb: str = "", body: Any = None, *, until: float | None = None, done: str = ""
    ) -> dict[str, Any]:
        """Send a request until it is answered or rejected, or until a time. The error `done` counts as an answer."""
        failure, backoff = "", FIRST_BACKOFF
        try:
            async with asyncio.timeout_at(until):
                while True:
                    known = failure
                    try:
                        return await self._api.call(method, self.subscription + verb, body)
                    except WireError as error:
                        if error.status == done:
                            return {}
                        failure = f"{error.status}: {error}"
                        if error.status not in TEMPORARY:
                            raise FollowingError(f"{self.topic}: {failure}") from None
                    except BrokerUnavailable as error:  # there is no token
                        failure = error.log_detail
                    if not known:
                        _log.warning("The broker does not answer, trying again: %s", failure)
                    await asyncio.sleep(random.uniform(0, backoff))  # noqa: S311
                    backoff = min(2 * backoff, LONGEST_BACKOFF)
        except TimeoutError:
            raise FollowingError(f"{self.topic}: {failure or 'no answer in time'}") from None
