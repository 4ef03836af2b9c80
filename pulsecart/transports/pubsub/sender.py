"""Sends requests, with retries until they are confirmed or rejected, or their deadline is reached."""

import asyncio
import random
from collections.abc import Sequence
from math import ceil

from pulsecart.errors import BrokerRefused, BrokerUnavailable, MessageRefused, PublishError
from pulsecart.ports import Observer, Sending
from pulsecart.transports.keyed import Failure, Request
from pulsecart.transports.pubsub.admin import Admin
from pulsecart.transports.pubsub.attempts import Attempts
from pulsecart.transports.pubsub.wire import Wire, WireError

__all__ = ["Sender"]

# Failures that may be temporary (https://cloud.google.com/pubsub/docs/reference/error-codes).
TEMPORARY = frozenset(
    {"ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"}
)

_REFUSALS: dict[str, tuple[type[PublishError], str]] = {
    "INVALID_ARGUMENT": (MessageRefused, "the broker rejects this message for the topic {}"),
    "NOT_FOUND": (BrokerRefused, "the topic {} does not exist or may not be published to"),
    "PERMISSION_DENIED": (BrokerRefused, "the topic {} does not exist or may not be published to"),
    "UNAUTHENTICATED": (BrokerRefused, "the broker does not accept the credentials for the topic {}"),
}
_OTHER_FAILURE = BrokerUnavailable, "the broker failed to publish to the topic {}"

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 2.0
"""Maximum seconds to wait before the second attempt, and before any later one."""


class Sender:
    """Sends requests over a wire."""

    def __init__(  # noqa: PLR0913 (the parts and options of the publisher)
        self,
        wire: Wire,
        attempts: Attempts,
        admin: Admin,
        *,
        server: tuple[str, int],
        deadline: float,
        creates_topics: bool,
        observer: Observer,
    ) -> None:
        self._wire = wire
        self._attempts = attempts
        self._admin = admin
        self._server = server
        self._deadline = deadline
        self._creates_topics = creates_topics
        self._observer = observer
        self._loop = asyncio.get_running_loop()

    async def send(self, request: Request) -> Sequence[str] | Failure:
        """Send a request; see `keyed.Send`."""
        sending = self._observer.sending(request.topic, len(request.messages), request.observed, self._server)
        error_type = "CancelledError"
        try:
            sent = await self._send(request, sending)
            error_type = sent.error_type if isinstance(sent, Failure) else ""
        finally:
            sending.ended(error_type)
        return sent

    async def _send(self, request: Request, sending: Sending) -> Sequence[str] | Failure:
        topic, key, messages, deadline = request.topic, request.key, request.messages, request.deadline
        path = self._admin.path(topic)
        publish = self._wire.publish
        backoff = FIRST_BACKOFF
        failure = None
        missing = False
        while deadline > self._loop.time():
            wait = random.uniform(0, backoff)  # noqa: S311
            try:
                if missing:
                    await self._admin.create([topic])
                return await self._attempts.make(
                    lambda metadata: publish(path, key, messages, deadline, metadata), deadline
                )
            except BrokerUnavailable as error:  # there is no token, or the topic could not be created
                current = Failure(BrokerUnavailable, str(error), error.log_detail, error.error_type)
            except WireError as error:
                current = _failure(error, topic, self._admin.described(topic))
                missing = self._creates_topics and error.status == "NOT_FOUND"
                if not missing and error.status not in TEMPORARY:
                    return current
                if error.retry_after and self._loop.time() + error.retry_after >= deadline:
                    return current
                wait = max(wait, error.retry_after)
            # An attempt that the deadline has cut short says less than the one before it.
            failure = current if failure is None or self._loop.time() < deadline else failure
            sending.attempt_failed(current.error_type)
            await asyncio.sleep(min(wait, max(0, deadline - self._loop.time())))
            backoff = min(2 * backoff, LONGEST_BACKOFF)
        last = failure or Failure(BrokerUnavailable, "no attempt was left", error_type="BrokerUnavailable")
        text = f"the broker did not confirm within {self._deadline:g} s; last: "
        log_detail = f"{text}{last.log_detail or last.detail}"
        return Failure(BrokerUnavailable, f"{text}{last.detail}", log_detail, last.error_type)


def _failure(error: WireError, topic: str, described: str) -> Failure:
    """Describe why an attempt failed: in our words for the caller, in the broker's for the log."""
    kind, text = _REFUSALS.get(error.status, _OTHER_FAILURE)
    log_detail = f"topic {described}: {error.status}: {error}"
    retry_after = ceil(error.retry_after) or None
    return Failure(kind, f"{text.format(topic)} ({error.status})", log_detail, error.status, retry_after)
