"""The public names of the core, which `pulsecart` has as well. They are listed here only."""

from pulsecart.errors import (
    Aborted,
    BrokerRefused,
    BrokerUnavailable,
    DefinitionError,
    EventError,
    EventTypeNotAllowed,
    Fault,
    InvalidEvent,
    MalformedBody,
    MessageRefused,
    MessageTooLarge,
    MissingEventType,
    Overloaded,
    PublishError,
    PulsecartError,
    SettingsError,
    TransportClosed,
    UnknownEventType,
)
from pulsecart.events import Catalog, Event, event, load_catalog
from pulsecart.ids import new_event_id, trace_id_of
from pulsecart.limits import Batching, Limits
from pulsecart.message import GRPC_LIMIT, REST_LIMIT, Message, Prepared, Receipt, SizeLimit
from pulsecart.ordering import Ordering, by_user, in_shards, unordered
from pulsecart.ports import Caller, Clock, IdFactory, Observer, Transport
from pulsecart.producer import Producer
from pulsecart.sync import SyncProducer

__all__ = [
    "GRPC_LIMIT",
    "REST_LIMIT",
    "Aborted",
    "Batching",
    "BrokerRefused",
    "BrokerUnavailable",
    "Caller",
    "Catalog",
    "Clock",
    "DefinitionError",
    "Event",
    "EventError",
    "EventTypeNotAllowed",
    "Fault",
    "IdFactory",
    "InvalidEvent",
    "Limits",
    "MalformedBody",
    "Message",
    "MessageRefused",
    "MessageTooLarge",
    "MissingEventType",
    "Observer",
    "Ordering",
    "Overloaded",
    "Prepared",
    "Producer",
    "PublishError",
    "PulsecartError",
    "Receipt",
    "SettingsError",
    "SizeLimit",
    "SyncProducer",
    "Transport",
    "TransportClosed",
    "UnknownEventType",
    "by_user",
    "event",
    "in_shards",
    "load_catalog",
    "new_event_id",
    "trace_id_of",
    "unordered",
]
