"""The guard: whatever a transport does, a publish ends in time, with a message id or a `PublishError`.

It is for transports of others, which may hang, raise anything, or return no message id. A transport that keeps the
deadline is used as it is; see `KeepsDeadline`.
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import suppress
from types import TracebackType, coroutine
from typing import Any, Self, TypeVar

from pulsecart.errors import BrokerUnavailable, Overloaded, PublishError, SettingsError, TransportClosed
from pulsecart.limits import Limits
from pulsecart.message import Message
from pulsecart.ports import TopicAdmin, Transport

__all__ = ["Guarded", "Late", "guarded", "within"]

GRACE = 0.2
"""Seconds after its time at which a call of a transport is cancelled, and then again until it is left. A transport that
keeps the deadline gets to say why it failed."""

OPEN_SECONDS = 30.0
"""Maximum seconds to open a transport."""

DRAIN_SECONDS = 7.0
"""Maximum seconds to wait for messages in flight, before a transport is closed."""

CLOSE_SECONDS = 2.0
"""Maximum seconds to close a transport after that. Cloud Run kills a process 10 seconds after SIGTERM."""

_DEFAULT = Limits()

_log = logging.getLogger("pulsecart.transports")

T = TypeVar("T")


class Late(Exception):
    """The time of a call is over."""


def guarded(transport: Transport, *, limits: Limits = _DEFAULT, name: str = "") -> Transport:
    """Return a transport that keeps the deadline: this one, if it does, otherwise one that watches over it.

    Of `limits`, `deadline` and `max_messages` apply. Log lines have `name`, by default that of the class.
    """
    return transport if _keeps_deadline(transport) else Guarded(transport, limits=limits, name=name)


def _keeps_deadline(transport: Transport) -> bool:
    for cls in type(transport).__mro__:
        if "keeps_deadline" in vars(cls):
            return bool(getattr(transport, "keeps_deadline"))  # noqa: B009 (most transports do not have it)
        if "publish" in vars(cls):
            return False  # what a base class declares is not true of a `publish` that replaces its own
    return False


class Guarded:
    """A transport that watches over another one.

    - A call that takes too long is cancelled, and left if it ignores that: `BrokerUnavailable`.
    - So does every exception that is not a `PublishError`, and a message id that is not a string or is empty. The log
      has an error with the name of the transport. It has neither the text of the exception nor the message, which
      could contain personal data.
    - `aclose` rejects further messages, and waits for those in flight before it closes the transport.
    """

    keeps_deadline = True

    def __init__(self, transport: Transport, *, limits: Limits = _DEFAULT, name: str = "") -> None:
        self._transport = transport
        self._limits = limits
        self._name = name or type(transport).__name__
        self._in_flight = 0
        self._room: dict[asyncio.Event, None] = {}  # who waits for room, first come first
        self._idle: asyncio.Event | None = None
        self._closed = False

    async def publish(self, message: Message) -> str:
        """Publish a message; see `Transport.publish`."""
        if self._closed:
            raise TransportClosed(f"the transport {self._name} is closed", message=message)
        if self._in_flight >= self._limits.max_messages:
            raise Overloaded(f"{self._in_flight:,} messages are in flight, as many as the limit", message=message)
        self._in_flight += 1
        try:
            return await within(self._limits.deadline, self._published(message))
        except (PublishError, asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise self._failure("publish", error, self._limits.deadline, message) from error
        finally:
            self._in_flight -= 1
            self._offer_room()
            if self._idle is not None and not self._in_flight:
                self._idle.set()

    def admit(self, message: Message) -> None:
        """Return None, so that `publish` is called; see `Admitting`. Only then is every message watched over."""

    async def room(self, message: Message) -> None:
        """Wait until fewer messages are in flight than the limit; see `Admitting`. Raises `TransportClosed`."""
        waiting = asyncio.Event()
        self._room[waiting] = None
        try:
            while not self._closed and self._in_flight >= self._limits.max_messages:
                waiting.clear()
                await waiting.wait()
        finally:
            del self._room[waiting]
            asyncio.get_running_loop().call_soon(self._offer_room)  # there may be room for the next one, too
        if self._closed:
            raise TransportClosed(f"the transport {self._name} is closed", message=message)

    async def check(self, topics: Iterable[str]) -> list[str]:
        """Return the topics that do not exist; see `Transport.check`."""
        return await self._ask("check topics", self._missing(topics), self._limits.deadline)

    async def create_topics(self, topics: Iterable[str]) -> None:
        """Create topics, if the transport can; see `TopicAdmin`."""
        if isinstance(self._transport, TopicAdmin):
            await self._ask("create topics", self._transport.create_topics(topics), self._limits.deadline)

    async def aclose(self) -> None:
        """Reject further messages, wait at most `DRAIN_SECONDS` for those in flight, and close the transport."""
        try:
            await self._drain()
        finally:
            await self._end(self._transport.aclose)

    async def __aenter__(self) -> Self:
        try:
            await within(OPEN_SECONDS, _call(self._transport.__aenter__))
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except Late as error:
            raise SettingsError([f"the transport {self._name} did not open within {OPEN_SECONDS:g} s"]) from error
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise SettingsError([f"the transport {self._name} failed to open: {said}"]) from error
        self._closed = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._drain()
        finally:
            await self._end(lambda: self._transport.__aexit__(kind, error, trace))

    async def _published(self, message: Message) -> str:
        message_id = await self._transport.publish(message)
        if not isinstance(message_id, str) or not message_id:
            returned = repr(message_id) if message_id == "" else type(message_id).__name__
            raise TypeError(f"publish() returned {returned} in place of a message id")
        return message_id

    async def _missing(self, topics: Iterable[str]) -> list[str]:
        missing = list(await self._transport.check(topics))
        if not all(isinstance(topic, str) for topic in missing):
            raise TypeError("check() did not return a list of topic names")
        return missing

    def _offer_room(self) -> None:
        """Wake the first of those that wait for room, if there is some."""
        if self._room and self._in_flight < self._limits.max_messages:
            next(iter(self._room)).set()

    async def _drain(self) -> None:
        self._closed = True
        for waiting in self._room:
            waiting.set()
        if self._in_flight:
            self._idle = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), DRAIN_SECONDS)

    async def _end(self, close: Callable[[], Awaitable[object]]) -> None:
        with suppress(PublishError):
            await self._ask("close", _call(close), CLOSE_SECONDS)

    async def _ask(self, what: str, work: Coroutine[Any, Any, T], seconds: float) -> T:
        try:
            return await within(seconds, work)
        except (PublishError, asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise self._failure(what, error, seconds) from error

    def _failure(
        self, what: str, error: BaseException, seconds: float, message: Message | None = None
    ) -> BrokerUnavailable:
        if isinstance(error, Late):
            _log.error("The transport %s did not %s within %g s", self._name, what, seconds)
            text = f"the transport did not {what} within {seconds:g} s"
            return BrokerUnavailable(text, message=message, error_type="TimeoutError")
        kind = type(error).__name__
        place = traceback.extract_tb(error.__traceback__)[-1]
        # An error that is raised here is about the transport's result, and has nothing of a message in its text.
        why = f"{kind}: {error}" if place.filename == __file__ else f"{kind} in {place.filename}, line {place.lineno}"
        _log.error("The transport %s failed to %s: %s", self._name, what, why)
        return BrokerUnavailable(f"the transport failed to {what} ({kind})", message=message, error_type=kind)


async def _call(function: Callable[[], Awaitable[T]]) -> T:
    return await function()


@coroutine
def within(seconds: float, work: Coroutine[Any, Any, T]) -> Generator[Any, None, T]:
    """Run a coroutine in the current task, and leave it when its time is over. Raises `Late`.

    It is continued step by step. A task of its own would cost an event several microseconds, and `asyncio.timeout`
    waits forever for what ignores that it is cancelled. What does not wait needs no alarm.
    """
    try:
        waiting = work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    except asyncio.CancelledError as error:
        raise RuntimeError("the transport has cancelled itself") from error
    continued = _continued(work, waiting, _Alarm(seconds + GRACE))
    del waiting  # its error would keep this frame, and the message, until the next garbage collection
    return (yield from continued)


def _continued(work: Coroutine[Any, Any, T], waiting: Any, alarm: "_Alarm") -> Generator[Any, None, T]:
    try:
        while True:
            try:
                if waiting is None or type(waiting) is asyncio.Future:
                    yield waiting
                else:
                    yield from _shielded(waiting)
            except BaseException as error:
                if alarm.rung > 1 and isinstance(error, asyncio.CancelledError):
                    with suppress(Exception, asyncio.CancelledError):
                        work.close()
                    raise
                waiting = None  # as above
                waiting = work.throw(error)
            else:
                waiting = work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    except asyncio.CancelledError as error:
        if alarm.caller_is_cancelled:
            raise
        if alarm.rung:
            raise Late from error
        raise RuntimeError("the transport has cancelled itself") from error
    finally:
        alarm.off()


def _shielded(waiting: "asyncio.Future[Any]") -> Generator[Any, None, None]:
    """Wait for a task, or for what gathers tasks, but not if it goes on although it is cancelled."""
    try:
        yield from asyncio.shield(waiting)
    except asyncio.CancelledError:
        waiting.cancel()
        raise
    finally:
        del waiting  # as above


class _Alarm:
    """Cancels the current task when its time is over, and then again after each `GRACE`."""

    __slots__ = ("_cancelled_before", "_loop", "_task", "_timer", "rung")

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None  # an event loop runs coroutines in tasks
        self._task = task
        self._cancelled_before = task.cancelling()
        self._loop = task.get_loop()
        self._timer = self._loop.call_later(seconds, self._ring)
        self.rung = 0

    @property
    def caller_is_cancelled(self) -> bool:
        """Whether the task was cancelled by others, too."""
        return self._task.cancelling() - self.rung > self._cancelled_before

    def _ring(self) -> None:
        self.rung += 1
        self._timer = self._loop.call_later(GRACE, self._ring)
        self._task.cancel()

    def off(self) -> None:
        """Set no more alarms, and undo the cancellations."""
        self._timer.cancel()
        for _ in range(self.rung):
            self._task.uncancel()
