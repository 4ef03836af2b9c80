"""The use case: bytes in, a receipt out, once the broker has the event."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

import attrs

from pulsecart.errors import InvalidEvent, MessageTooLarge, PublishError
from pulsecart.events import codec
from pulsecart.events.base import Event
from pulsecart.events.catalog import Catalog, load_catalog
from pulsecart.ids import new_event_id, trace_id_of
from pulsecart.message import MAX_MESSAGE_BYTES, Message, Prepared, Receipt
from pulsecart.ordering import Ordering
from pulsecart.ports import UNOBSERVED, Clock, IdFactory, Observer, Transport

__all__ = ["Producer"]


EventT = TypeVar("EventT", bound=Event)

_BY_USER: Mapping[str, Ordering] = {}


def _now() -> datetime:
    return datetime.now(UTC)


_fields: Callable[[type], tuple["attrs.Attribute[Any]", ...]] = cache(attrs.fields)


def _copy(event: EventT) -> EventT:
    """Return an event with the same values. To call its class would run the class's converters a second time."""
    if "event_type" not in type(event).__dict__:
        raise InvalidEvent(f"{type(event).__qualname__} is not declared: put @event('…', topic='…') above it.")
    copy = object.__new__(type(event))
    for attribute in _fields(type(event)):
        if hasattr(event, attribute.name):  # a field with init=False may not have been set
            object.__setattr__(copy, attribute.name, getattr(event, attribute.name))
    return copy


def _known_error(error: PublishError) -> type[PublishError]:
    """Return the class of ours that a transport's error is, or is derived from."""
    return next(cls for cls in type(error).__mro__ if cls.__module__ == PublishError.__module__)


class Producer:
    """Validates events, completes them, and publishes them through a transport.

    Keeps no state of its own: one instance serves any number of tasks of one event loop.
    """

    def __init__(  # noqa: PLR0913 (what a caller may replace)
        self,
        transport: Transport,
        *,
        catalog: Catalog | None = None,
        clock: Clock = _now,
        new_event_id: IdFactory = new_event_id,
        ordering: Mapping[str, Ordering] = _BY_USER,
        observer: Observer = UNOBSERVED,
    ) -> None:
        """Use a transport (already open, or opened later), and a catalog (default: `load_catalog()`).

        `ordering` is by topic; a topic that is not named is ordered by user.
        """
        self.catalog = load_catalog() if catalog is None else catalog
        self._transport = transport
        self._clock = clock
        self._new_event_id = new_event_id
        self._ordering = ordering
        self._observer = observer

    async def ingest(self, raw: bytes) -> Receipt:
        """Publish the event that a JSON object, in UTF-8, describes.

        Returns once the broker has confirmed. Raises an `EventError` if the event is at fault, and a `PublishError` if
        it could not be published.
        """
        prepared, raw = self.prepare(raw), b""  # the body is not kept while the broker is awaited
        return await self.publish(prepared)

    def prepare(self, source: bytes | Event) -> Prepared:
        """Validate, complete and encode an event: a JSON object in UTF-8, or one made in Python.

        An event made in Python is held to the same rules. Its class need not be in the catalog. Nothing is published,
        and what is returned keeps nothing of the source. Raises an `EventError` if the event is at fault.
        """
        event = None
        try:
            if isinstance(source, bytes):
                event = self.catalog.structure(codec.decode(source))
                self._complete(event)
                data = codec.encode(event)
            else:
                event = _copy(source)
                self._complete(event)
                data = codec.encode_made(event)
            return self._prepared(event, data)
        except Exception as error:
            event_type = getattr(error, "event_type", "") if event is None else event.event_type
            self._observer.rejected(event_type, error)
            raise

    async def publish(self, event: Event | Prepared) -> Receipt:
        """Publish an event made in Python, or what `prepare` has returned.

        Returns and raises as `ingest`.
        """
        prepared = event if isinstance(event, Prepared) else self.prepare(event)
        message = prepared.message
        publishing = self._observer.publishing(prepared)
        if publishing.attributes:
            message = attrs.evolve(message, attributes={**message.attributes, **publishing.attributes})
        try:
            message_id = await self._transport.publish(message)
        except PublishError as error:
            publishing.failed(error)
            if error.message is not None:
                raise
            known = _known_error(error)
            raise known(str(error), error.log_detail, message=message, error_type=error.error_type) from error
        except BaseException as error:
            publishing.failed(error)
            raise
        publishing.published(message_id)
        return Receipt(
            event_id=prepared.event_id,
            message_id=message_id,
            trace_id=trace_id_of(prepared.event_id),
            topic=message.topic,
            event_type=prepared.event_type,
            traceparent=message.attributes.get("traceparent", ""),
        )

    def _complete(self, event: Event) -> None:
        """Give an event that nobody else holds an id, and a timestamp in UTC. What the caller gave is kept."""
        timestamp = self._clock() if event.timestamp is None else event.timestamp
        object.__setattr__(event, "timestamp", timestamp.astimezone(UTC))
        if event.event_id is None:
            object.__setattr__(event, "event_id", self._new_event_id())

    def _prepared(self, event: Event, data: bytes) -> Prepared:
        assert event.event_id is not None  # for the type checker: _complete() gave it both
        assert event.timestamp is not None
        ordering = self._ordering.get(event.topic)
        message = Message(
            topic=event.topic,
            data=data,
            attributes={"event_type": event.event_type, "event_id": event.event_id},
            ordering_key=event.user_id if ordering is None else ordering(event.user_id),
        )
        size = message.size
        if size > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(message, size, MAX_MESSAGE_BYTES)
        return Prepared(
            event_id=event.event_id,
            event_type=event.event_type,
            timestamp=event.timestamp,
            message=message,
            size=size,
        )
