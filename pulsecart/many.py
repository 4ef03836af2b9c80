"""Many events at a time: in order for each key, within a window, and without a task for each event.

The events of one key are sent in the order in which they are given. After a retryable failure the later events of the
key are not sent: they would overtake a retry. All other events are not affected.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from time import perf_counter
from typing import TypeVar

from attrs import evolve, frozen

from pulsecart.errors import Aborted, Overloaded, PublishError
from pulsecart.ids import trace_id_of
from pulsecart.message import Message, Prepared, Receipt
from pulsecart.ports import Admitting, Observer, Publishing, Transport

__all__ = [
    "TURN_SECONDS",
    "WINDOW",
    "WINDOW_BYTES",
    "Outcome",
    "failure_of",
    "message_of",
    "publish_many",
    "receipt_of",
]

WINDOW = 1000
"""Maximum number of events of one call that are published and not confirmed, or wait for an earlier one."""

WINDOW_BYTES = 2_000_000
"""Maximum bytes of their messages. A single message may exceed it."""

TURN_SECONDS = 0.0003
"""For how long events are prepared before other tasks have their turn."""

T = TypeVar("T")

Outcome = Receipt | Exception
"""How an event ended: a `Receipt`, a `PublishError`, or what else was raised for it."""


def message_of(prepared: Prepared, publishing: Publishing) -> Message:
    """Return the message of an event, with the attributes of its observer."""
    if not publishing.attributes:
        return prepared.message
    attributes = {**prepared.message.attributes, **publishing.attributes}
    return evolve(prepared.message, attributes=attributes)


def receipt_of(prepared: Prepared, message: Message, message_id: str) -> Receipt:
    """Return the receipt of a published event."""
    return Receipt(
        event_id=prepared.event_id,
        message_id=message_id,
        trace_id=trace_id_of(prepared.event_id),
        topic=message.topic,
        event_type=prepared.event_type,
        traceparent=message.attributes.get("traceparent", ""),
    )


def failure_of(error: PublishError, message: Message) -> PublishError:
    """Return a transport's error with the message that was not published."""
    if error.message is not None:
        return error
    # The class, or the nearest base class that is defined in `pulsecart.errors`: others may have other arguments.
    known: type[PublishError] = next(cls for cls in type(error).__mro__ if cls.__module__ == PublishError.__module__)
    return known(
        str(error), error.log_detail, message=message, error_type=error.error_type, retry_after=error.retry_after
    )


async def publish_many(  # noqa: PLR0913 (what a producer has, and how it goes on)
    events: AsyncIterable[T],
    prepare: Callable[[T], Prepared | Exception],
    transport: Transport,
    observer: Observer,
    *,
    stops_if_refused: bool,
    window: Callable[[], int],
) -> AsyncGenerator[Outcome, None]:
    """Publish events, and yield how each ended; see `Producer.publish_many`."""
    batch = _Batch(transport, observer)
    waiting: deque[_OnItsWay | Outcome] = deque()
    turn = perf_counter()
    try:
        async for event in events:
            if perf_counter() - turn > TURN_SECONDS:
                await asyncio.sleep(0)
                turn = perf_counter()
            prepared = prepare(event)
            sent = prepared if isinstance(prepared, Exception) else await batch.send(prepared)
            if batch.refused is not None and stops_if_refused:
                break
            if not waiting and not isinstance(sent, _OnItsWay):
                yield sent
                continue
            waiting.append(sent)
            while waiting and (batch.knows(waiting[0]) or len(waiting) > window() or batch.bytes > WINDOW_BYTES):
                yield await batch.outcome(waiting.popleft())
        while waiting:
            yield await batch.outcome(waiting.popleft())
    finally:
        for each in waiting:
            batch.abandon(each)
    if batch.refused is not None and stops_if_refused:
        raise batch.refused


Lane = tuple[str, str]
"""A topic and an ordering key."""


@frozen
class _OnItsWay:
    prepared: Prepared
    message: Message
    publishing: Publishing
    confirmed: "asyncio.Future[str]"

    @property
    def lane(self) -> Lane:
        return self.message.topic, self.message.ordering_key


class _Batch:
    """What one call has sent, by topic and ordering key."""

    def __init__(self, transport: Transport, observer: Observer) -> None:
        self._transport = transport
        self._admitting = transport if isinstance(transport, Admitting) else None
        self._observer = observer
        self._last: dict[Lane, asyncio.Future[str]] = {}
        """The last message of each lane that may not be confirmed yet."""
        self._failed: set[Lane] = set()
        self.bytes = 0
        """The bytes of the messages that are on their way."""
        self.refused: PublishError | None = None
        """The last error with which the transport refused to take a message, if it may take it later."""

    async def send(self, prepared: Prepared) -> _OnItsWay | Outcome:
        """Hand a message to the transport, as soon as there is room."""
        publishing = self._observer.publishing(prepared)
        message = message_of(prepared, publishing)
        try:
            sent = self._admit(message)
            while sent is None:
                assert self._admitting is not None  # for the type checker: only its rooms can be full
                await self._admitting.room(message)
                sent = self._admit(message)
        except PublishError as error:
            publishing.failed(error)
            if error.retryable and message.ordering_key:
                self._failed.add((message.topic, message.ordering_key))
            if error.retryable and not isinstance(error, Aborted):
                self.refused = failure_of(error, message)
            return failure_of(error, message)
        except BaseException as error:
            publishing.failed(error)
            if isinstance(error, Exception):
                return error
            raise
        publishing.admitted()
        if isinstance(sent, str):
            publishing.published(sent)
            return receipt_of(prepared, message, sent)
        self.bytes += prepared.size
        if message.ordering_key:
            self._last[message.topic, message.ordering_key] = sent
        return _OnItsWay(prepared, message, publishing, sent)

    def _admit(self, message: Message) -> "asyncio.Future[str] | str | None":
        """Hand a message to the transport. Return None if there is no room."""
        before = None
        if message.ordering_key:
            lane = message.topic, message.ordering_key
            before = self._last.get(lane)
            if before is not None and before.done() and _holds_up(before):
                self._failed.add(lane)
            if lane in self._failed:
                raise _aborted(message)
        if self._admitting is not None:
            try:
                sent = self._admitting.admit(message)
            except Overloaded:
                return None
            if sent is not None:
                return sent
        return asyncio.create_task(self._publish_after(before, message))

    async def _publish_after(self, before: "asyncio.Future[str] | None", message: Message) -> str:
        if before is not None:
            await asyncio.wait([before])
            if _holds_up(before):
                raise _aborted(message)
        if self._admitting is not None:
            await self._admitting.room(message)
        return await self._transport.publish(message)

    def knows(self, sent: _OnItsWay | Outcome) -> bool:
        """Return whether the outcome of an event is known."""
        return not isinstance(sent, _OnItsWay) or sent.confirmed.done()

    async def outcome(self, sent: _OnItsWay | Outcome) -> Outcome:
        """Wait until the outcome of an event is known, and return it."""
        if not isinstance(sent, _OnItsWay):
            return sent
        self.bytes -= sent.prepared.size
        try:
            message_id = await sent.confirmed
        except BaseException as error:
            sent.publishing.failed(error)
            if not isinstance(error, Exception):
                raise
            if not isinstance(error, PublishError):
                return error
            if error.retryable:
                self._failed.add(sent.lane)
            # Its traceback would keep this frame, and the message, until the next garbage collection.
            return failure_of(error.with_traceback(None), sent.message)
        finally:
            if self._last.get(sent.lane) is sent.confirmed:
                del self._last[sent.lane]
        sent.publishing.published(message_id)
        return receipt_of(sent.prepared, sent.message, message_id)

    def abandon(self, sent: _OnItsWay | Outcome) -> None:
        """Do not publish a message that nobody waits for any more, if that is still possible."""
        if isinstance(sent, _OnItsWay):
            if not sent.confirmed.cancel():
                sent.confirmed.exception()  # it counts as retrieved
            sent.publishing.failed(asyncio.CancelledError())


def _holds_up(before: "asyncio.Future[str]") -> bool:
    """Return whether a message has failed so that those behind it on its lane are not to be sent."""
    error = None if before.cancelled() else before.exception()
    return before.cancelled() or (isinstance(error, PublishError) and error.retryable)


def _aborted(message: Message) -> Aborted:
    return Aborted("an earlier event of the same ordering key failed, so this one was not sent", message=message)
