"""The producer: validates, completes, encodes and publishes events."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

import attrs

from pulsecart.errors import EventTypeNotAllowed, InvalidEvent, MessageTooLarge, PublishError
from pulsecart.events import codec
from pulsecart.events.base import Event
from pulsecart.events.catalog import Catalog, load_catalog
from pulsecart.guard import guarded
from pulsecart.ids import new_event_id, trace_id_of
from pulsecart.limits import Limits
from pulsecart.message import REST_LIMIT, Message, Prepared, Receipt, SizeLimit
from pulsecart.ordering import Ordering
from pulsecart.ports import UNOBSERVED, Caller, Clock, IdFactory, Observer, Transport

__all__ = ["Producer"]


EventT = TypeVar("EventT", bound=Event)

_BY_USER: Mapping[str, Ordering] = {}
_DEFAULT = Limits()


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


def _known_error(error: PublishError) -> type[PublishError]:
    """Return the class of a transport's error, or the nearest base class that is defined in `pulsecart.errors`."""
    return next(cls for cls in type(error).__mro__ if cls.__module__ == PublishError.__module__)


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

    def prepare(self, source: bytes | dict[str, Any] | Event, *, caller: Caller | None = None) -> Prepared:
        """Validate, complete and encode an event: a JSON object in UTF-8, a decoded one, or an instance of its class.

        The same rules apply to all. The class of an instance need not be in the catalog. Nothing is published, and the
        result keeps no reference to the source. `caller` is who has sent the event, if that is known. Raises an
        `EventError` if the event is invalid, or if the caller may not send its type.
        """
        event = None
        try:
            if isinstance(source, bytes):
                event = self.catalog.structure(codec.decode(source))
                self._complete(event)
                data = codec.encode(event)
            else:
                event = self.catalog.structure(source) if isinstance(source, dict) else _copy(source)
                self._complete(event)
                data = codec.encode_made(event)
            return self._prepared(event, data, caller)
        except Exception as error:
            event_type = getattr(error, "event_type", "") if event is None else event.event_type
            self._observer.rejected(event_type, error, "" if caller is None else caller.name)
            raise

    async def publish(self, event: Event | Prepared) -> Receipt:
        """Publish an instance of an event class, or the result of `prepare`.

        Returns and raises the same as `ingest`.
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
            raise known(
                str(error),
                error.log_detail,
                message=message,
                error_type=error.error_type,
                retry_after=error.retry_after,
            ) from error
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
        """Set the event id and the timestamp if the caller has not, and convert the timestamp to UTC, in place."""
        timestamp = self._clock() if event.timestamp is None else event.timestamp
        object.__setattr__(event, "timestamp", timestamp.astimezone(UTC))
        if event.event_id is None:
            object.__setattr__(event, "event_id", self._new_event_id())

    def _prepared(self, event: Event, data: bytes, caller: Caller | None) -> Prepared:
        assert event.event_id is not None  # for the type checker: _complete() has set both
        assert event.timestamp is not None
        attributes = {"event_type": event.event_type, "event_id": event.event_id}
        if caller is not None:
            if not caller.may_send(event.event_type):
                detail = f"The source of this request may not send {event.event_type!r} events."
                raise EventTypeNotAllowed(detail, event_type=event.event_type, event_id=event.event_id)
            attributes["source"] = caller.name
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
