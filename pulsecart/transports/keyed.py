"""Queues by key: a queue for each topic and ordering key, with one request in flight at a time.

Messages that arrive during a request form the next one, so bursts share requests without added latency, and
order is kept. A queue exists only while it has messages waiting or in flight, so memory does not grow with the
number of keys that have been used.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from attrs import Factory, define, frozen

from pulsecart.errors import BrokerRefused, BrokerUnavailable, MessageRefused, Overloaded, PublishError, TransportClosed
from pulsecart.limits import Batching, Limits
from pulsecart.message import Message
from pulsecart.ports import UNOBSERVED, Load, Observer

__all__ = ["Failure", "KeyedQueues", "Send"]


@frozen
class Failure:
    """Why a request was not confirmed. `kind` is `MessageRefused` if the broker rejects one of its messages."""

    kind: type[PublishError]
    detail: str
    log_detail: str = ""
    error_type: str = ""
    retry_after: int | None = None
    """Seconds that callers are asked to wait; None for what is usual for `kind`."""

    def error(self, message: Message) -> PublishError:
        """Return the error for a message of the request."""
        return self.kind(
            self.detail, self.log_detail, message=message, error_type=self.error_type, retry_after=self.retry_after
        )


Send = Callable[[str, str, Sequence[Message], Sequence[Any], float], Awaitable[Sequence[str] | Failure]]
"""Sends messages of one topic and ordering key in one request, by a deadline in the time of the event loop.

The fourth argument has the results of `Observer.current` for the messages that are observed. Returns the message ids,
one for each message, or a `Failure`.
"""

UNORDERED_REQUESTS = 16
"""Maximum number of requests in flight for messages of one topic that have no ordering key."""


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
    waiting: deque[_Entry] = Factory(deque)
    waiting_bytes: int = 0
    requests: int = 0
    full: asyncio.Event = Factory(asyncio.Event)

    def add(self, entry: _Entry) -> None:
        self.waiting.append(entry)
        self.waiting_bytes += entry.size
        if self.is_full:
            self.full.set()

    @property
    def is_full(self) -> bool:
        """Whether the waiting messages fill the next request."""
        return len(self.waiting) >= self.batching.max_messages or self.waiting_bytes >= self.batching.max_bytes

    async def linger(self) -> None:
        """Wait for more messages, until `max_latency` has passed for the oldest or a request is full."""
        if not self.batching.max_latency or self.is_full:
            return
        self.full.clear()
        try:
            async with asyncio.timeout_at(self.waiting[0].admitted + self.batching.max_latency):
                await self.full.wait()
        except TimeoutError:
            pass

    def take(self) -> list[_Entry]:
        """Remove and return the messages of the next request. One larger than `max_bytes` is sent alone."""
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
        entries = list(self.waiting)
        self.waiting.clear()
        self.waiting_bytes = 0
        return entries


class KeyedQueues:
    """Publishes messages with `send`, in order for each topic and ordering key, within limits."""

    def __init__(self, send: Send, limits: Limits, *, copies: int = 1, observer: Observer = UNOBSERVED) -> None:
        self._send = send
        self._limits = limits
        self._copies = copies
        self._observer = observer
        self._queues: dict[tuple[str, str], _Queue] = {}
        self._outstanding: dict[_Entry, None] = {}  # in the order of admission
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
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

        Raises `TransportClosed` or `Overloaded`. It is not a coroutine, which would cost time for each message.
        """
        if self._closed:
            raise TransportClosed("the transport is closed", message=message)
        size = message.size
        limits = self._limits
        count, held = len(self._outstanding), (self._bytes + size) * self._copies
        # A single message may exceed the limit of bytes: otherwise it could never be published.
        if count >= limits.max_messages or (held > limits.max_bytes and count):
            raise Overloaded(
                f"{count:,} messages of {self._bytes:,} bytes are in flight; "
                f"the limits are {limits.max_messages:,} messages and {limits.max_bytes // self._copies:,} bytes",
                message=message,
            )
        loop = self._loop
        entry = _Entry(message, size, loop.time(), loop.create_future(), self._observer.current())
        self._outstanding[entry] = None
        self._bytes += size
        address = (message.topic, message.ordering_key)
        queue = self._queues.get(address)
        if queue is None:
            queue = self._queues[address] = _Queue(*address, limits.batching.get(message.topic, _DEFAULT))
        queue.add(entry)
        if not queue.requests or (not queue.key and queue.is_full and queue.requests < UNORDERED_REQUESTS):
            self._start(queue)
        return entry.confirmed

    async def drain(self, seconds: float) -> None:
        """Reject further messages and wait for those outstanding. After `seconds`, fail the rest."""
        self._closed = True
        for queue in self._queues.values():
            queue.full.set()  # stop waiting for a full batch: no more messages will arrive
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _start(self, queue: _Queue) -> None:
        queue.requests += 1
        # In an empty context: the first caller's span and log fields do not apply to the messages of others.
        task = asyncio.create_task(self._serve(queue), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            asyncio.get_running_loop().call_exception_handler(
                {"message": "unexpected exception while publishing", "exception": error}
            )

    async def _serve(self, queue: _Queue) -> None:
        try:
            while queue.waiting:
                if not self._closed:
                    await queue.linger()
                batch = queue.take()
                self._observer.waited(_observed(batch), len(batch))
                await self._deliver(queue, batch)
        finally:
            queue.requests -= 1
            if not queue.requests:
                self._fail(queue.take_all(), _ENDED)  # empty, unless this task was cancelled
                del self._queues[queue.topic, queue.key]

    async def _deliver(self, queue: _Queue, batch: list[_Entry]) -> None:
        """Send a batch. If a message is rejected, find it by halving the batch, and send the others in order."""
        parts = [batch]
        try:
            while parts:
                part = parts[-1] = self._wanted(parts[-1])
                if part and (failure := await self._deliver_part(queue, part)):
                    if failure.kind is MessageRefused and len(part) > 1:
                        half = len(part) // 2
                        parts[-1:] = [part[half:], part[:half]]
                        continue
                    self._fail(part, failure)
                    if failure.kind is not MessageRefused:
                        # Later messages fail too: if sent, they would overtake the failed ones in case of a retry.
                        for behind in [*reversed(parts[:-1]), *self._waiting_behind(queue, failure)]:
                            self._fail(behind, failure)
                        return
                parts.pop()
        except BaseException:
            for left in reversed(parts):
                self._fail(left, _ENDED)
            raise

    async def _deliver_part(self, queue: _Queue, part: list[_Entry]) -> Failure | None:
        """Send one request, and resolve the futures of its messages. Return the failure, if any."""
        messages = [entry.message for entry in part]
        deadline = part[0].admitted + self._limits.deadline
        sent = await self._send(queue.topic, queue.key, messages, _observed(part), deadline)
        if isinstance(sent, Failure):
            return sent
        for entry, message_id in zip(part, sent, strict=True):
            self._release(entry)
            if not entry.confirmed.done():
                entry.confirmed.set_result(message_id)
        return None

    def _waiting_behind(self, queue: _Queue, failure: Failure) -> list[list[_Entry]]:
        """Remove and return the messages that fail too: those of this queue, or of all queues of a rejected topic."""
        queues = [queue]
        if failure.kind is BrokerRefused:
            queues = [other for other in self._queues.values() if other.topic == queue.topic]
        return [other.take_all() for other in queues]

    def _wanted(self, entries: Iterable[_Entry]) -> list[_Entry]:
        """Return the entries whose callers have not cancelled them, and release the others."""
        wanted = []
        for entry in entries:
            if entry.confirmed.done():
                self._release(entry)
            else:
                wanted.append(entry)
        return wanted

    def _fail(self, entries: Iterable[_Entry], failure: Failure) -> None:
        for entry in entries:
            self._release(entry)
            if not entry.confirmed.done():
                entry.confirmed.set_exception(failure.error(entry.message))

    def _release(self, entry: _Entry) -> None:
        del self._outstanding[entry]
        self._bytes -= entry.size


def _observed(entries: Iterable[_Entry]) -> list[Any]:
    return [entry.observed for entry in entries if entry.observed is not None]
