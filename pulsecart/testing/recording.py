"""A memory transport that tests ask what was published, and that can have an outage."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import attrs

from pulsecart.errors import BrokerUnavailable, PublishError
from pulsecart.events import Catalog, Event
from pulsecart.message import Message
from pulsecart.suggest import nearest
from pulsecart.testing.differences import differences, shown
from pulsecart.transports.memory import MemoryTransport

__all__ = ["RecordingTransport"]

EventT = TypeVar("EventT", bound=Event)

_KEPT, _KEPT_BYTES = 1_000_000, 1_000_000_000
"""How many messages and bytes are kept: more than a test publishes."""


@attrs.define
class _Failed:
    message: Message
    error: PublishError
    expected: bool


@attrs.define(eq=False)
class _Outage:
    error: type[PublishError]
    met: bool = False


class RecordingTransport(MemoryTransport):
    """Keeps what is published, for assertions about events. Threads with event loops of their own can share it.

        events = RecordingTransport()
        await Producer(events).publish(OrderPlaced(user_id="user-1", order_id="order-1", payload={}))
        events.assert_published(OrderPlaced, user_id="user-1")

    Its methods take an event class and the expected values of any of its fields. A number is equal to any number of the
    same value: a float to the decimal with its digits. A value may have its own `__eq__`, such as `unittest.mock.ANY`.
    """

    def __init__(self) -> None:
        super().__init__(keep=_KEPT, keep_bytes=_KEPT_BYTES)
        self._outages: list[_Outage] = []
        self._failed: list[_Failed] = []
        self._unmet = 0

    @property
    def keeps_deadline(self) -> bool:
        """True: nothing here waits."""
        return True

    async def publish(self, message: Message) -> str:
        """Keep a message and return its message id, or raise the error of an outage."""
        if self._outages:
            outage = self._outages[-1]
            outage.met = True
            refused = outage.error("the broker is away (an outage in a test)", message=message)
            self._failed.append(_Failed(message, refused, expected=True))
            raise refused
        try:
            return await super().publish(message)
        except PublishError as error:
            self._failed.append(_Failed(message, error, expected=False))
            raise

    def admit(self, message: Message) -> str | None:  # noqa: ARG002 (the port's signature)
        """Return None, so that `publish` is called."""
        return None

    def published(self, cls: type[EventT], /, **fields: Any) -> list[EventT]:
        """Return the published events of a class with these values, oldest first."""
        return _matching(_events(cls, fields, self.messages), fields)

    def assert_published(self, cls: type[EventT], /, **fields: Any) -> EventT:
        """Return the first published event of a class with these values.

        If there is none, the `AssertionError` shows what the most similar one has instead.
        """
        __tracebackhide__ = True
        if found := self.published(cls, **fields):
            return found[0]
        raise AssertionError(self._miss(cls, fields, "was published", self.messages))

    def assert_failed(self, cls: type[EventT], /, **fields: Any) -> EventT:
        """Return the first event of a class with these values that could not be published.

        All of these failures are expected then; see `assert_nothing_unexpected`.
        """
        __tracebackhide__ = True
        found: list[EventT] = []
        for each in self._failed:
            if matching := _matching(_events(cls, fields, [each.message]), fields):
                each.expected = True
                found += matching
        if found:
            return found[0]
        raise AssertionError(self._miss(cls, fields, "failed to be published", [each.message for each in self._failed]))

    async def wait_for(self, cls: type[EventT], /, *, timeout: float = 5.0, **fields: Any) -> EventT:  # noqa: ASYNC109
        """Return the first published event of a class with these values, as soon as there is one.

        Raises `AssertionError` after `timeout` seconds, as `assert_published` does.
        """
        __tracebackhide__ = True
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def listen(_message: Message) -> None:
            loop.call_soon_threadsafe(arrived.set)

        with self.listening(listen), suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not (found := self.published(cls, **fields)):
                    arrived.clear()
                    await arrived.wait()
                return found[0]
        raise AssertionError(self._miss(cls, fields, f"was published within {timeout:g} s", self.messages))

    def blocking_wait_for(self, cls: type[EventT], /, *, timeout: float = 5.0, **fields: Any) -> EventT:
        """Do the same as `wait_for` in a thread without an event loop, while other threads publish."""
        __tracebackhide__ = True
        if _in_event_loop():
            raise RuntimeError("blocking_wait_for() would block the event loop: use `await wait_for(…)`")
        end = time.monotonic() + timeout
        arrived = threading.Event()
        with self.listening(lambda _message: arrived.set()):
            while not (found := self.published(cls, **fields)):
                if not arrived.wait(max(0.0, end - time.monotonic())):
                    raise AssertionError(self._miss(cls, fields, f"was published within {timeout:g} s", self.messages))
                arrived.clear()
        return found[0]

    @contextmanager
    def outage(self, error: type[PublishError] = BrokerUnavailable) -> Iterator[None]:
        """Within the block, raise an error for each event, as in an outage of the broker.

            with events.outage():
                ...

        These failures are expected, and an outage in which nothing is published is not; see
        `assert_nothing_unexpected`.
        """
        if not (isinstance(error, type) and issubclass(error, PublishError)):
            raise TypeError(f"outage() takes a class, such as pulsecart.BrokerRefused, not {shown(error)}")
        outage = _Outage(error)
        self._outages.append(outage)
        try:
            yield
        finally:
            self._outages.remove(outage)
        self._unmet += not outage.met

    def assert_nothing_unexpected(self) -> None:
        """Check that publishing failed only in an outage, or as `assert_failed` expects, and each outage was noticed.

        The fixture `pulsecart_events` calls this after the test.
        """
        unexpected = [each for each in self._failed if not each.expected]
        if unexpected:
            lines = [f"  {_name(each.message)}: {type(each.error).__name__}: {each.error}" for each in unexpected[:10]]
            more = [f"  and {len(unexpected) - 10} more"] if len(unexpected) > 10 else []
            count = "an event" if len(unexpected) == 1 else f"{len(unexpected)} events"
            raise AssertionError(
                "\n".join([f"{count} could not be published, which the test does not expect:", *lines, *more])
            )
        if self._unmet:
            raise AssertionError("nothing was published in an outage(): its block tests nothing")

    def _miss(self, cls: type[EventT], fields: Mapping[str, Any], what: str, messages: Iterable[Message]) -> str:
        """Say that no event matches, and what the most similar one has instead."""
        values = ", ".join(f"{name}={shown(value)}" for name, value in fields.items())
        lines = [f"no {cls.__name__}{f' with {values}' if values else ''} {what}."]
        if events := _events(cls, fields, messages):
            ranked = [list(differences(fields, _values(event, fields))) for event in reversed(events)]
            lines[0] += f" The most similar of {len(events)} differs:" if len(events) > 1 else " There is one with:"
            lines += [f"  {line}" for line in min(ranked, key=len)]
        else:
            types = Counter(_name(message) for message in messages)
            others = ", ".join(f"{count} {name}" for name, count in types.items())
            lines[0] += f" Others are: {others}." if others else " Nothing is there."
        lines += [
            f"{_name(each.message)} failed: {type(each.error).__name__}: {each.error}" for each in self._failed[-3:]
        ]
        return "\n".join(lines)


def _events(cls: type[EventT], fields: Mapping[str, Any], messages: Iterable[Message]) -> list[EventT]:
    """Return the events of a class. Raises `TypeError` if `cls` is not an event class, or lacks one of these fields."""
    if not (isinstance(cls, type) and issubclass(cls, Event)):
        raise TypeError(f"an event class is expected, such as OrderPlaced, not {shown(cls)}")
    catalog = Catalog([cls])
    known = attrs.fields_dict(cls)
    for name in fields:
        if name not in known:
            hint = nearest(name, known) or f"; its fields are {', '.join(known)}"
            raise TypeError(f"{cls.__name__} has no field {name!r}{hint}")
    found = [message for message in messages if message.attributes.get("event_type") == cls.event_type]
    return [event for message in found if isinstance(event := catalog.read(message.data), cls)]


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _values(event: Event, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(event, name) for name in names}


def _matching(events: Iterable[EventT], fields: Mapping[str, Any]) -> list[EventT]:
    return [event for event in events if not any(differences(fields, _values(event, fields)))]


def _name(message: Message) -> str:
    return message.attributes.get("event_type") or f"message without event_type on {message.topic}"
