"""The producer: validates, completes, encodes and publishes events."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

import attrs

from pulsecart.errors import EventTypeNotAllowed, InvalidEvent, MessageTooLarge, PublishError
from pulsecart.events import codec
from pulsecart.events.base import Event, id_of
from pulsecart.events.catalog import Catalog, load_catalog
from pulsecart.guard import guarded
from pulsecart.ids import new_event_id
from pulsecart.limits import Limits
from pulsecart.many import WINDOW, Outcome, failure_of, message_of, publish_many, receipt_of
from pulsecart.message import REST_LIMIT, Message, Prepared, Receipt, SizeLimit
from pulsecart.ordering import Ordering
from pulsecart.ports import UNOBSERVED, Caller, Clock, IdFactory, Observer, Transport

__all__ = ["Producer"]


EventT = TypeVar("EventT", bound=Event)

Source = bytes | dict[str, Any] | Event | Prepared | Exception
"""What `publish_many` takes."""

_BY_USER: Mapping[str, Ordering] = {}
_DEFAULT = Limits()
_NONE: Mapping[str, str] = {}


def _now() -> datetime:
    return datetime.now(UTC)


_fields: Callable[[type], tuple["attrs.Attribute[Any]", ...]] = cache(attrs.fields)


def _copy(event: EventT) -> EventT:
    """Return a copy of an event. It does not call the class, which would run the converters a second time."""
    if "event_type" not in type(event).__dict__:
        raise InvalidEvent(f"{type(event).__qualname__} is not declared: put @event('…', topic='…') above it.")
    copy = object.__new__(type(event))
    for attribute in _fields(type(event)):
        if hasattr(event, attribute.name):  # a field with init=False may not have been set
            object.__setattr__(copy, attribute.name, getattr(event, attribute.name))
    return copy


async def _one_by_one(events: Iterable[Source]) -> AsyncIterator[Source]:
    for event in events:
        yield event


class Producer:
    """Validates events, completes them, and publishes them through a transport.

    It has no state, so any number of tasks of one event loop can share an instance.
    """

    def __init__(  # noqa: PLR0913 (all of it can be replaced)
        self,
        transport: Transport,
        *,
        catalog: Catalog | None = None,
        clock: Clock = _now,
        new_event_id: IdFactory = new_event_id,
        ordering: Mapping[str, Ordering] = _BY_USER,
        size_limit: SizeLimit = REST_LIMIT,
        limits: Limits = _DEFAULT,
        observer: Observer = UNOBSERVED,
    ) -> None:
        """Use a transport, which may be opened later, and a catalog (default: `load_catalog()`).

        `ordering` maps topics to orderings; other topics are ordered by user. `size_limit` is that of the API that
        the transport uses. `limits` are those of the guard, if the transport needs one: see `pulsecart.guard`.
        """
        self.catalog = load_catalog() if catalog is None else catalog
        self._transport = guarded(transport, limits=limits)
        self._clock = clock
        self._new_event_id = new_event_id
        self._ordering = ordering
        self._size_limit = size_limit
        self._observer = observer

    async def ingest(self, raw: bytes) -> Receipt:
        """Publish an event from a JSON object in UTF-8.

        Returns when the broker has confirmed it. Raises an `EventError` if the event is invalid, and a `PublishError`
        if it could not be published.
        """
        prepared, raw = self.prepare(raw), b""  # so that the body is freed while waiting for the broker
        return await self.publish(prepared)

    def prepare(
        self,
        source: bytes | dict[str, Any] | Event,
        *,
        caller: Caller | None = None,
        new_event_id: Callable[[Event], str] | None = None,
        attributes: Mapping[str, str] = _NONE,
    ) -> Prepared:
        """Validate, complete and encode an event: a JSON object in UTF-8, a decoded one, or an instance of its class.

        The same rules apply to all. The class of an instance need not be in the catalog. Nothing is published, and the
        result keeps no reference to the source. `caller` is who has sent the event, if that is known. `new_event_id`
        replaces the producer's own, and is given the event that lacks an id. `attributes` are added to those of the
        message. Raises an `EventError` if the event is invalid, or if the caller may not send its type.
        """
        event = None
        try:
            if isinstance(source, bytes):
                source = codec.decode(source)
            if caller is not None:
                self._authorise(caller, source)
            event = self.catalog.structure(source) if isinstance(source, dict) else _copy(source)
            self._complete(event, new_event_id)
            data = codec.encode(event) if isinstance(source, codec.Document) else codec.encode_made(event)
            if caller is not None:
                attributes = {**attributes, "source": caller.name}
            return self._prepared(event, data, attributes)
        except Exception as error:
            event_type = getattr(error, "event_type", "") if event is None else event.event_type
            self._observer.rejected(event_type, error, "" if caller is None else caller.name)
            raise

    async def publish(self, event: Event | Prepared) -> Receipt:
        """Publish an instance of an event class, or the result of `prepare`.

        Returns and raises the same as `ingest`.
        """
        prepared = event if isinstance(event, Prepared) else self.prepare(event)
        publishing = self._observer.publishing(prepared)
        message = message_of(prepared, publishing)
        try:
            message_id = await self._transport.publish(message)
        except PublishError as error:
            publishing.failed(error)
            failure = failure_of(error, message)
            if failure is error:
                raise
            raise failure from error
        except BaseException as error:
            publishing.failed(error)
            raise
        publishing.published(message_id)
        return receipt_of(prepared, message, message_id)

    def publish_many(
        self,
        events: Iterable[Source] | AsyncIterable[Source],
        *,
        stops_if_refused: bool = False,
        window: Callable[[], int] = lambda: WINDOW,
    ) -> AsyncGenerator[Outcome, None]:
        """Publish events, and yield how each ended, in the order of the events: its `Receipt`, or its error.

            async for outcome in producer.publish_many(events):
                if isinstance(outcome, PublishError) and outcome.retryable: ...

        The events are what `prepare` takes, results of `prepare`, or exceptions, which are passed on in their place. At
        most 1,000 events and 2 MB are on their way at a time; the next event is taken when there is room, so that any
        number of events takes constant memory. Each has the whole deadline from the moment at which it is sent. When
        the generator is closed early, events that are on their way may still be published.

        Events of one topic and ordering key are published in the given order. If one fails with a retryable error, the
        later ones are not sent and end with `Aborted`, so that publishing again what has failed keeps the order. An
        event that is invalid, or that raises an unexpected exception, does not affect others.

        With `stops_if_refused`, the first error with which the transport refuses to take a message at all, because it
        is closed or knows that the broker is away, is raised after the outcomes of the events before it. `window` is
        asked before each event how many others may be on their way, instead of 1,000.
        """
        source = events if isinstance(events, AsyncIterable) else _one_by_one(events)
        return publish_many(
            source,
            self._prepared_or_error,
            self._transport,
            self._observer,
            stops_if_refused=stops_if_refused,
            window=window,
        )

    def _prepared_or_error(self, event: Source) -> Prepared | Exception:
        if isinstance(event, (Prepared, Exception)):
            return event
        try:
            return self.prepare(event)
        except Exception as error:  # noqa: BLE001 (the code of a class can raise anything)
            return error

    def _complete(self, event: Event, new_event_id: Callable[[Event], str] | None) -> None:
        """Set the event id and the timestamp if the caller has not, and convert the timestamp to UTC, in place."""
        timestamp = self._clock() if event.timestamp is None else event.timestamp
        object.__setattr__(event, "timestamp", timestamp.astimezone(UTC))
        if event.event_id is None:
            event_id = self._new_event_id() if new_event_id is None else new_event_id(event)
            object.__setattr__(event, "event_id", event_id)

    def _authorise(self, caller: Caller, source: dict[str, Any] | Event) -> None:
        """Raise `EventTypeNotAllowed`, before the fields are looked at, if the caller may not send this known type."""
        event_type: Any
        if isinstance(source, dict):
            event_type, event_id = source.get("event_type"), id_of(source)
            is_known = isinstance(event_type, str) and event_type in self.catalog.event_types
        else:
            event_type, event_id = getattr(source, "event_type", ""), source.event_id
            is_known = bool(event_type)
        if is_known and not caller.may_send(event_type):
            detail = f"The source of this request may not send {event_type!r} events."
            raise EventTypeNotAllowed(detail, event_type=event_type, event_id=event_id)

    def _prepared(self, event: Event, data: bytes, more_attributes: Mapping[str, str]) -> Prepared:
        assert event.event_id is not None  # for the type checker: _complete() has set both
        assert event.timestamp is not None
        attributes = {"event_type": event.event_type, "event_id": event.event_id, **more_attributes}
        ordering = self._ordering.get(event.topic)
        message = Message(
            topic=event.topic,
            data=data,
            attributes=attributes,
            ordering_key=event.user_id if ordering is None else ordering(event.user_id),
        )
        size, limit = message.size, self._size_limit
        if size > limit.total or len(data) > limit.data:
            raise MessageTooLarge(message, size, limit)
        return Prepared(
            event_id=event.event_id,
            event_type=event.event_type,
            timestamp=event.timestamp,
            message=message,
            size=size,
        )
