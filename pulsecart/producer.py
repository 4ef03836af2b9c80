"""The use case: bytes in, a receipt out, once the broker has the event."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

import attrs

from pulsecart.errors import EventError, InvalidEvent, MessageRefused, MessageTooLarge, PublishError
from pulsecart.events import codec
from pulsecart.events.base import MAX_ID_BYTES, Event
from pulsecart.events.catalog import Catalog, load_catalog
from pulsecart.ids import new_event_id, trace_id_of
from pulsecart.message import MAX_MESSAGE_BYTES, Message, Prepared, Receipt
from pulsecart.ordering import Ordering, by_user
from pulsecart.ports import Clock, IdFactory, Transport
from pulsecart.telemetry import metrics, tracing

__all__ = ["Producer"]


EventT = TypeVar("EventT", bound=Event)

_BY_USER: Mapping[str, Ordering] = {}


def _now() -> datetime:
    return datetime.now(UTC)


_fields: Callable[[type], tuple["attrs.Attribute[Any]", ...]] = cache(attrs.fields)


def _copy(event: EventT) -> EventT:
    """Return an event with the same values. To make it anew would run its class's converters a second time."""
    copy = object.__new__(type(event))
    for attribute in _fields(type(event)):
        object.__setattr__(copy, attribute.name, getattr(event, attribute.name))
    return copy


def _count_failure(event_type: str, error: BaseException) -> str:
    """Count an event that was not published, by whose fault it was, and return what went wrong, in one word of few."""
    error_type = error.error_type if isinstance(error, PublishError) else type(error).__name__
    if isinstance(error, (EventError, MessageRefused)):
        outcome = "refused"
    else:
        outcome = "failed" if isinstance(error, Exception) else "abandoned"
    metrics.event_ended(event_type, outcome, error_type)
    return error_type


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
        traces_keys: bool = False,
    ) -> None:
        """Use a transport (already open, or opened later), and a catalog (default: `load_catalog()`).

        `ordering` is by topic; a topic that is not named is ordered by user. With `traces_keys` the ordering key,
        which may be personal data, is an attribute of the event's span.
        """
        self.catalog = load_catalog() if catalog is None else catalog
        self._transport = transport
        self._clock = clock
        self._new_event_id = new_event_id
        self._ordering = ordering
        self._traces_keys = traces_keys

    async def ingest(self, raw: bytes) -> Receipt:
        """Publish the event that a JSON object, in UTF-8, describes.

        Returns once the broker has confirmed. Raises an `EventError` where the event is at fault,
        and a `PublishError` where it could not be published.
        """
        # The body is not kept while the broker is awaited.
        prepared, raw = self.prepare(raw), b""
        return await self.publish(prepared)

    def prepare(self, source: bytes | Event) -> Prepared:
        """Validate, complete and encode an event: a JSON object in UTF-8, or one made in Python.

        An event made in Python is held to the same rules. Its class need not be in the catalog. Nothing is published,
        and what is returned keeps nothing of the source. Raises an `EventError` where the event is at fault.
        """
        return self._prepare_body(source) if isinstance(source, bytes) else self._prepare_event(source)

    async def publish(self, event: Event | Prepared) -> Receipt:
        """Publish an event made in Python, or what `prepare` has returned.

        Returns and raises as `ingest`.
        """
        return await self._publish(event if isinstance(event, Prepared) else self.prepare(event))

    def _prepare_body(self, raw: bytes) -> Prepared:
        document: dict[str, Any] = {}
        try:
            document = codec.decode(raw)
            event = self.catalog.structure(document)
            self._enrich(event)
            data = codec.encode(event)
        except Exception as error:
            self._count_unmade(document, error)
            raise
        return self._prepared(event, data)

    def _prepare_event(self, event: Event) -> Prepared:
        if "event_type" not in type(event).__dict__:
            raise InvalidEvent(f"{type(event).__qualname__} is not declared: put @event('…', topic='…') above it.")
        event = _copy(event)
        self._enrich(event)
        try:
            data = codec.encode_made(event)
        except Exception as error:
            _count_failure(event.event_type, error)
            raise
        return self._prepared(event, data)

    def _count_unmade(self, document: dict[str, Any], error: Exception) -> None:
        """Count a body that no event was made of, and note what is known of it, as far as it is sound."""
        event_type, event_id = document.get("event_type"), document.get("event_id")
        known = isinstance(event_type, str) and event_type in self.catalog.event_types
        if isinstance(error, EventError):
            error.event_type = str(event_type) if known else ""
            error.event_id = event_id if isinstance(event_id, str) and len(event_id.encode()) <= MAX_ID_BYTES else None
        _count_failure(str(event_type) if known else metrics.OTHER, error)

    def _enrich(self, event: Event) -> None:
        """Give an event that nobody else holds an id, and a timestamp in UTC. What the caller gave is kept."""
        timestamp = self._clock() if event.timestamp is None else event.timestamp
        object.__setattr__(event, "timestamp", timestamp.astimezone(UTC))
        if event.event_id is None:
            object.__setattr__(event, "event_id", self._new_event_id())

    def _prepared(self, event: Event, data: bytes) -> Prepared:
        assert event.event_id is not None  # for the type checker: _enrich() gave it both
        assert event.timestamp is not None
        message = Message(
            topic=event.topic,
            data=data,
            attributes={"event_type": event.event_type, "event_id": event.event_id},
            ordering_key=self._ordering.get(event.topic, by_user)(event.user_id),
        )
        size = message.size
        if size > MAX_MESSAGE_BYTES:
            error = MessageTooLarge(size, MAX_MESSAGE_BYTES)
            error.event_id, error.event_type, error.topic = event.event_id, event.event_type, event.topic
            _count_failure(event.event_type, error)
            raise error
        return Prepared(
            event_id=event.event_id,
            event_type=event.event_type,
            timestamp=event.timestamp,
            message=message,
            size=size,
        )

    async def _publish(self, prepared: Prepared) -> Receipt:
        message = prepared.message
        span = tracing.start_create(prepared, message.ordering_key if self._traces_keys else "")
        context = span.get_span_context()
        if traced := tracing.propagated(context):
            message = attrs.evolve(message, attributes={**message.attributes, **traced})
        try:
            with tracing.within_span(span):
                message_id = await self._transport.publish(message)
        except BaseException as error:
            if isinstance(error, PublishError):
                error.event_id, error.event_type = prepared.event_id, prepared.event_type
                error.topic, error.timestamp = message.topic, prepared.timestamp
                error.traceparent = tracing.traceparent(context)
            tracing.fail(span, _count_failure(prepared.event_type, error))
            span.end()
            raise
        metrics.event_ended(prepared.event_type, "published")
        span.set_attribute("messaging.message.id", message_id)
        span.end()
        return Receipt(
            event_id=prepared.event_id,
            message_id=message_id,
            trace_id=trace_id_of(prepared.event_id),
            topic=message.topic,
            event_type=prepared.event_type,
            traceparent=tracing.traceparent(context),
        )
