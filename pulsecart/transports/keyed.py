"""Queues by key: order per topic and ordering key, for any transport.

A transport brings one function, which sends a request to its broker:

    class OwnTransport:
        async def __aenter__(self) -> Self:
            self._queues = KeyedQueues(self._send, Limits())
            return self

        async def publish(self, message: Message) -> str:
            return await self._queues.publish(message)

        async def _send(self, request: Request) -> list[str]:
            return [await self._stream.publish(message.data) for message in request.messages]

        async def aclose(self) -> None:
            await self._queues.drain(7)

Each topic and key has a queue, with one request in flight at a time. Messages that arrive during a request form the
next one, so bursts share requests without added latency, and order is kept. When a request fails for good, what waits
behind it on its key fails too, since it would overtake a retry; then the key continues. Messages without a key have no
order: they share up to `UNORDERED_REQUESTS` requests at a time, and one that hangs or fails does not affect the others.

Every message is confirmed or fails by its deadline, whatever the function does. A queue exists only while it has
messages, so memory does not grow with the number of keys that have been used.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain, takewhile
from typing import Any, Self

from attrs import Factory, define, evolve, frozen

from pulsecart.errors import Aborted, BrokerUnavailable, MessageRefused, Overloaded, PublishError, TransportClosed
from pulsecart.limits import Batching, Limits
from pulsecart.message import Message
from pulsecart.ports import UNOBSERVED, Load, Observer

__all__ = ["Failure", "KeyedQueues", "Request", "Send"]


@define
class Request:
    """Messages of one topic and ordering key that are sent together, in this order."""

    topic: str

    key: str
    """The ordering key; empty for messages without order."""

    messages: Sequence[Message]
    """At least one, and at most what `Batching` allows."""

    deadline: float
    """When the request must have ended, with all retries, in the time of the event loop."""

    observed: Sequence[Any]
    """The results of `Observer.current` for the messages that are observed; for `Observer.sending`."""


@frozen
class Failure:
    """Why a request was not confirmed. `kind` is `MessageRefused` if the broker rejects one of its messages.

    See `PublishError` for the other fields.
    """

    kind: type[PublishError]
    detail: str
    log_detail: str = ""
    error_type: str = ""
    retry_after: int | None = None
    """Seconds that callers are asked to wait; None for what is usual for `kind`."""

    @classmethod
    def of(cls, error: PublishError) -> Self:
        """Return the failure that an error describes."""
        # The class of a transport's own error may take other arguments.
        kind = next(base for base in type(error).__mro__ if base.__module__ == PublishError.__module__)
        return cls(kind, str(error), error.log_detail, error.error_type, error.retry_after)

    def error(self, message: Message) -> PublishError:
        """Return the error for a message of the request."""
        return self.kind(
            self.detail, self.log_detail, message=message, error_type=self.error_type, retry_after=self.retry_after
        )


Send = Callable[[Request], Awaitable[Sequence[str] | Failure]]
"""Sends a request once the broker can take it, and returns the message ids, one for each message and in their order.

If the broker does not confirm, it returns a `Failure` or raises a `PublishError`. After `MessageRefused` the messages
are sent again in halves, until the rejected one is alone. Anything else is final, so it retries what may pass. Any
other exception counts as `BrokerUnavailable` and is reported to the event loop's exception handler, except
`TimeoutError`. It is cancelled `GRACE` seconds after its deadline, and when `drain` gives up.
"""

UNORDERED_REQUESTS = 16
"""Maximum number of requests in flight for messages of one topic that have no ordering key."""

PATIENCE = 0.05
"""Seconds that a message without an ordering key waits for a request in flight, before another one is started."""

GRACE = 0.1
"""Seconds after its deadline at which a message fails although its request is not done, and that request is
cancelled. A `Send` that keeps the deadline gets to say why it failed."""

_NEARLY = 0.05
"""A message that fails at most this many seconds before its deadline counts as one that had its time."""

_DEFAULT = Batching()
_ENDED = Failure(BrokerUnavailable, "the transport was stopped before the broker confirmed")


@define(eq=False)
class _Entry:
    """A message whose caller is waiting for the broker's confirmation."""

    message: Message
    size: int
    admitted: float
    confirmed: "asyncio.Future[str]"
    observed: Any


@define(eq=False)
class _Queue:
    topic: str
    key: str
    batching: Batching
    messages: int = 0
    """The number of messages waiting or in flight."""
    bytes: int = 0
    waiting: deque[_Entry] = Factory(deque)
    waiting_bytes: int = 0
    halves: list[list[_Entry]] = Factory(list)
    """Parts of a rejected request, the next one last. They are sent before what waits."""
    serving: dict["asyncio.Task[None]", list[_Entry]] = Factory(dict)
    """The tasks that send requests, and what each has in flight."""
    full: asyncio.Event | None = None
    relief: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether the waiting messages fill the next request."""
        return len(self.waiting) >= self.batching.max_messages or self.waiting_bytes >= self.batching.max_bytes

    async def linger(self) -> None:
        """Wait for more messages, until `max_latency` has passed for the oldest or a request is full."""
        self.full = self.full or asyncio.Event()
        self.full.clear()
        try:
            async with asyncio.timeout_at(self.waiting[0].admitted + self.batching.max_latency):
                await self.full.wait()
        except TimeoutError:
            pass

    def take(self) -> list[_Entry]:
        """Remove and return the messages of the next request. One larger than `max_bytes` is sent alone.

        Halves are sent before it.
        """
        if len(self.waiting) <= self.batching.max_messages and self.waiting_bytes <= self.batching.max_bytes:
            return self.take_all()  # there are no halves
        batch: list[_Entry] = []
        size = 0
        while self.waiting and len(batch) < self.batching.max_messages:
            if batch and size + self.waiting[0].size > self.batching.max_bytes:
                break
            entry = self.waiting.popleft()
            self.waiting_bytes -= entry.size
            size += entry.size
            batch.append(entry)
        return batch

    def take_all(self) -> list[_Entry]:
        """Remove and return everything that is to be sent, in order."""
        entries = [*chain(*reversed(self.halves)), *self.waiting] if self.halves else list(self.waiting)
        self.halves.clear()
        self.waiting.clear()
        self.waiting_bytes = 0
        return entries


class KeyedQueues:
    """Publishes messages with `send`, in order for each topic and ordering key, within limits.

    It is made in the running event loop, and ends with `drain`. `copies` is how many copies of a message are in memory
    while `send` sends it, itself included; `Limits.max_bytes` counts all of them.
    """

    def __init__(self, send: Send, limits: Limits, *, copies: int = 1, observer: Observer = UNOBSERVED) -> None:
        self._send = send
        self._limits = limits
        self._max_bytes = limits.max_bytes // copies
        self._observer = observer
        self._queues: dict[tuple[str, str], _Queue] = {}
        self._outstanding: dict[_Entry, None] = {}  # in the order of admission, which is that of the deadlines
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._room: dict[asyncio.Event, Message] = {}  # who waits for room, first come first
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        observer.watch(self)

    def load(self) -> Load:
        """Return what is currently held. Can be called from any thread."""
        entries, queues = list(self._outstanding), list(self._queues.values())
        return Load(
            messages=len(entries),
            bytes=self._bytes,
            waiting=sum(len(queue.waiting) for queue in queues),
            oldest_age=self._loop.time() - entries[0].admitted if entries else 0.0,
        )

    @property
    def oldest(self) -> float | None:
        """When the oldest outstanding message was admitted, in the time of the event loop; None if there is none."""
        return next(iter(self._outstanding)).admitted if self._outstanding else None

    def publish(self, message: Message) -> "asyncio.Future[str]":
        """Admit a message. The future returned yields its message id, or raises a `PublishError`.

        Raises `TransportClosed`, or `Overloaded` if there is no room: see `Limits`. It is not a coroutine, which would
        cost time for each message.
        """
        if self._closed:
            raise TransportClosed("the transport is closed", message=message)
        size = message.size
        address = (message.topic, message.ordering_key)
        queue = self._queues.get(address)
        if refusal := self._refusal(queue, size):
            raise Overloaded(refusal, message=message)
        loop = self._loop
        now = loop.time()
        entry = _Entry(message, size, now, loop.create_future(), self._observer.current())
        if queue is None:
            queue = self._queues[address] = _Queue(*address, self._limits.batching.get(message.topic, _DEFAULT))
        self._outstanding[entry] = None
        self._bytes += size
        queue.messages += 1
        queue.bytes += size
        queue.waiting.append(entry)
        queue.waiting_bytes += size
        if self._alarm is None:
            self._alarm = loop.call_at(now + self._limits.deadline + GRACE, self._fail_overdue)
        if not queue.serving:
            self._start(queue)
        else:
            if queue.full is not None and queue.is_full:
                queue.full.set()
            if not queue.key:
                if len(queue.serving) < UNORDERED_REQUESTS and queue.is_full:
                    self._start(queue)
                if queue.relief is None:
                    self._relieve(queue)
        return entry.confirmed

    async def room(self, message: Message) -> None:
        """Wait until a message can be admitted, instead of `Overloaded`. Raises `TransportClosed`.

        A `publish` of it that follows directly, without an `await` between them, succeeds:

            await queues.room(message)
            confirmed = queues.publish(message)

        Those that wait take turns, in the order of their calls. A `publish` that does not wait may take the room first.
        """
        size = message.size
        address = (message.topic, message.ordering_key)
        waiting = asyncio.Event()
        self._room[waiting] = message
        try:
            while not self._closed and self._refusal(self._queues.get(address), size):
                waiting.clear()
                await waiting.wait()
        finally:
            del self._room[waiting]
            if self._room:
                self._loop.call_soon(self._offer_room)  # this one may leave room for the next
        if self._closed:
            raise TransportClosed("the transport is closed", message=message)

    async def drain(self, seconds: float) -> None:
        """Reject further messages and wait for those outstanding. After `seconds`, or if cancelled, fail the rest."""
        self._closed = True
        for event in chain(self._room, (queue.full for queue in self._queues.values() if queue.full)):
            event.set()  # no more messages will arrive, and there will be no room
        end = self._loop.time() + seconds
        try:
            while self._tasks and (left := end - self._loop.time()) > 0:
                await asyncio.wait(self._tasks, timeout=left)
        finally:
            for queue in list(self._queues.values()):
                self._fail(queue, self._abandon(queue), _ENDED)
            if self._alarm is not None:
                self._alarm.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE)  # those that were cancelled

    def _refusal(self, queue: _Queue | None, size: int) -> str:
        """Return why a message of this size cannot be admitted to a queue; empty if it can."""
        count, limits = len(self._outstanding), self._limits
        free, free_bytes = limits.max_messages - count, self._max_bytes - self._bytes
        # A message over the limit of bytes needs only some of it free: otherwise it might never be admitted.
        if free <= 0 or (count and size > free_bytes and (free_bytes <= 0 or size <= self._max_bytes)):
            return (
                f"{count:,} messages of {self._bytes:,} bytes are in flight; "
                f"the limits are {limits.max_messages:,} messages and {self._max_bytes:,} bytes"
            )
        if queue is not None and (queue.messages > free or queue.bytes > free_bytes):
            return (
                f"{queue.messages:,} messages of {queue.bytes:,} bytes "
                f"{'of one ordering key' if queue.key else 'without an ordering key'} are in flight; "
                f"the share is as much as is free for all: {free:,} messages and {free_bytes:,} bytes"
            )
        return ""

    def _offer_room(self) -> None:
        """Wake the first of those that wait for room, and for whose message there is some."""
        for waiting, message in self._room.items():
            if not self._refusal(self._queues.get((message.topic, message.ordering_key)), message.size):
                waiting.set()
                return

    def _start(self, queue: _Queue) -> None:
        # In an empty context: the first caller's span and log fields do not apply to the messages of others.
        task = self._loop.create_task(self._serve(queue), context=contextvars.Context())
        queue.serving[task] = []
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _relieve(self, queue: _Queue) -> None:
        """Start another request for a queue without a key, if what waits has waited long enough."""
        queue.relief = None
        if queue.halves or queue.waiting:
            oldest = (queue.halves[-1] if queue.halves else queue.waiting)[0]
            now, due = self._loop.time(), oldest.admitted + queue.batching.max_latency + PATIENCE
            if due <= now:
                if len(queue.serving) < UNORDERED_REQUESTS:
                    self._start(queue)
                due = now + PATIENCE
            queue.relief = self._loop.call_at(due, self._relieve, queue)

    async def _serve(self, queue: _Queue) -> None:
        """Send what a queue has, one request after the other, until nothing is left."""
        task = asyncio.current_task()
        assert task is not None
        part: list[_Entry] = []
        try:
            while queue.waiting or queue.halves:
                if queue.batching.max_latency and not (queue.halves or queue.is_full or self._closed):
                    await queue.linger()
                if queue.halves:
                    part = self._wanted(queue, queue.halves.pop())
                else:
                    part = self._wanted(queue, queue.take())
                    try:
                        self._observer.waited(_observed(part), len(part))
                    except Exception as error:  # noqa: BLE001 (whatever an observer raises, the messages are sent)
                        self._report("the observer failed", error)
                if part:
                    queue.serving[task] = part
                    sent = await self._request(queue, part)
                    if task not in queue.serving:
                        return  # `send` has ignored that it was cancelled; its messages have failed
                    self._conclude(queue, part, sent)
        except BaseException:
            self._fail(queue, part, _ENDED)
            if queue.serving.keys() == {task}:
                self._fail(queue, queue.take_all(), _ENDED)
            raise
        finally:
            if queue.serving.pop(task, None) is not None:
                self._left(queue)

    def _left(self, queue: _Queue) -> None:
        """Remove a queue that nobody serves, or serve it again if it has messages."""
        if queue.serving:
            return
        if queue.waiting or queue.halves:
            self._start(queue)
        else:
            self._remove(queue)

    def _remove(self, queue: _Queue) -> None:
        del self._queues[queue.topic, queue.key]
        if queue.relief is not None:
            queue.relief.cancel()

    def _abandon(self, queue: _Queue) -> list[_Entry]:
        """Remove a queue, and cancel its requests. Return its messages, oldest first for each request."""
        entries = [*chain(*queue.serving.values()), *queue.take_all()]
        for task in queue.serving:
            task.cancel()
        queue.serving.clear()
        self._remove(queue)
        return entries

    async def _request(self, queue: _Queue, part: list[_Entry]) -> Sequence[str] | Failure:
        """Send one request. Return one message id for each message, or why it failed."""
        messages = [entry.message for entry in part]
        # With order, a message that has failed ends the request. Without, those that remain have their own time.
        deadline = part[0 if queue.key else -1].admitted + self._limits.deadline
        try:
            sent = await self._send(Request(queue.topic, queue.key, messages, deadline, _observed(part)))
            return sent if isinstance(sent, Failure) else _checked(sent, len(part))
        except PublishError as error:
            return Failure.of(error)
        except TimeoutError as error:
            return Failure(BrokerUnavailable, "the broker did not answer in time", "", type(error).__name__)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return _unexpected(queue, error)  # something in `send` was cancelled, not this task
        except Exception as error:  # noqa: BLE001 (any transport may be plugged in here)
            name = getattr(self._send, "__qualname__", type(self._send).__name__)
            self._report(f"{name} failed to publish to the topic {queue.topic}", error)
            return _unexpected(queue, error)

    def _conclude(self, queue: _Queue, part: list[_Entry], sent: Sequence[str] | Failure) -> None:
        """Resolve the futures of a request, or send a rejected one again in halves."""
        if not isinstance(sent, Failure):
            for entry, message_id in zip(part, sent, strict=True):
                if not entry.confirmed.done():
                    entry.confirmed.set_result(message_id)
            self._release(queue, part)
        elif sent.kind is MessageRefused and len(part) > 1:
            half = len(part) // 2
            queue.halves += [part[half:], part[:half]]
            if not queue.key and queue.relief is None:
                self._relieve(queue)
        elif sent.kind is MessageRefused or not queue.key:
            self._fail(queue, part, sent)
        else:
            self._fail_for_good(queue, part, queue.take_all(), sent)

    def _fail_for_good(self, queue: _Queue, part: list[_Entry], behind: list[_Entry], failure: Failure) -> None:
        """Fail a request of a key, and what is behind it: if sent, it would overtake the others in case of a retry.

        If the time of the oldest message is over, that of the others may not be, and they fail for its failure.
        """
        over = self._loop.time() - self._limits.deadline + _NEARLY
        if part[0].admitted <= over:
            in_time = [entry for entry in part if entry.admitted > over]
            part, behind = part[: len(part) - len(in_time)], in_time + behind
        self._fail(queue, part, failure)
        text = "an earlier event of the same key failed while this one waited"
        log_detail = f"{text}: {failure.log_detail or failure.detail}"
        self._fail(queue, behind, evolve(failure, kind=Aborted, detail=text, log_detail=log_detail))

    def _fail_overdue(self) -> None:
        """Fail the messages whose deadline is over although `send` has not returned. Set the next alarm."""
        over = self._loop.time() - self._limits.deadline - GRACE
        for entry in list(takewhile(lambda entry: entry.admitted <= over, self._outstanding)):
            queue = self._queues.get((entry.message.topic, entry.message.ordering_key))
            if queue is None or entry not in self._outstanding:
                continue  # it failed with an earlier one of its key
            if queue.key:
                self._fail_for_good(queue, self._abandon(queue), [], self._late)
                continue
            self._fail(queue, [entry], self._late)
            for task, part in list(queue.serving.items()):
                if task.done() or (part and part[-1] is entry):
                    del queue.serving[task]
                    task.cancel()
                    self._left(queue)
        oldest = self.oldest
        self._alarm = (
            None if oldest is None else self._loop.call_at(oldest + self._limits.deadline + GRACE, self._fail_overdue)
        )

    @property
    def _late(self) -> Failure:
        return Failure(BrokerUnavailable, f"the broker did not confirm within {self._limits.deadline:g} s")

    def _wanted(self, queue: _Queue, entries: list[_Entry]) -> list[_Entry]:
        """Return the entries that are not done, and release those whose callers have cancelled them."""
        wanted = [entry for entry in entries if not entry.confirmed.done()]
        if len(wanted) < len(entries):
            self._release(queue, [entry for entry in entries if entry.confirmed.done()])
        return wanted

    def _fail(self, queue: _Queue, entries: Iterable[_Entry], failure: Failure) -> None:
        for entry in entries:
            if not entry.confirmed.done():
                entry.confirmed.set_exception(failure.error(entry.message))
        self._release(queue, entries)

    def _release(self, queue: _Queue, entries: Iterable[_Entry]) -> None:
        """Count messages of a queue as no longer held. Those released before are skipped."""
        count = size = 0
        for entry in entries:
            if entry in self._outstanding:
                del self._outstanding[entry]
                count += 1
                size += entry.size
        self._bytes -= size
        queue.messages -= count
        queue.bytes -= size
        if self._room:
            self._offer_room()

    def _report(self, text: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": f"{text} ({type(error).__name__})", "exception": error})


def _observed(entries: Iterable[_Entry]) -> list[Any]:
    return [entry.observed for entry in entries if entry.observed is not None]


def _checked(ids: Sequence[str], count: int) -> Sequence[str] | Failure:
    """Return the message ids of a request, or a `Failure` if there is not one for each message."""
    if isinstance(ids, str):
        raise TypeError("a list of message ids was expected, not a str")
    if len(ids) != count:
        return Failure(BrokerUnavailable, f"the broker returned {len(ids)} message ids for {count}")
    for message_id in ids:
        if not message_id or not isinstance(message_id, str):
            return Failure(BrokerUnavailable, "the broker returned no message id")
    return ids


def _unexpected(queue: _Queue, error: BaseException) -> Failure:
    name = type(error).__name__
    return Failure(BrokerUnavailable, f"the transport failed to publish to the topic {queue.topic} ({name})", "", name)
