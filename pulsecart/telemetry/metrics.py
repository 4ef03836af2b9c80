"""Metrics, by OpenTelemetry's conventions if there is one, and what an operator needs to see at a glance.

Durations are recorded as things happen. All else is counted in plain dictionaries and read when it is collected, in
the exporter's thread. No attribute has a value that a caller can choose: an unknown event type is `_OTHER`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, Literal
from weakref import WeakSet

from attrs import frozen
from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, set_span_in_context

from pulsecart.ports import Load, Loaded
from pulsecart.telemetry.durations import BOUNDS, Durations

__all__ = [
    "DURATIONS",
    "OBSERVED",
    "OTHER",
    "Observed",
    "are_on",
    "batch_ended",
    "event_ended",
    "expose",
    "request_ended",
    "send_ended",
    "tabulate",
    "watch",
]

OTHER = "_OTHER"
"""In place of an event type that the catalog does not have (OpenTelemetry's own word for it)."""

_meter = metrics.get_meter("pulsecart", version("pulsecart"))


@cache
def _request_attributes(method: str, route: str, scheme: str, status: int) -> Mapping[str, str | int]:
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "http.response.status_code": status,
        "url.scheme": scheme,
    }
    if route:
        attributes["http.route"] = route
    return attributes | ({"error.type": str(status)} if status >= 500 else {})


@cache
def _send_attributes(topic: str, server: tuple[str, int], error: str) -> Mapping[str, str | int]:
    attributes: dict[str, str | int] = {
        "messaging.system": "gcp_pubsub",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
        "server.address": server[0],
        "server.port": server[1],
    }
    return attributes | ({"error.type": error} if error else {})


_request_durations = Durations(
    "http.server.request.duration", "From a request's head to its answer.", _request_attributes
)
_send_durations = Durations(
    "messaging.client.operation.duration", "A request to the broker, with its retries.", _send_attributes
)
DURATIONS = (_request_durations, _send_durations)


_Record = Callable[[float, tuple[Any, ...], Span], None]


def _instrument(durations: Durations) -> _Record:
    """Return what records durations in a histogram of the SDK."""
    histogram = _meter.create_histogram(
        durations.name, "s", durations.description, explicit_bucket_boundaries_advisory=BOUNDS
    )

    def record(seconds: float, key: tuple[Any, ...], span: Span) -> None:
        histogram.record(seconds, durations.attributes(*key), set_span_in_context(span, Context()))

    return record


_in_sdk = tuple(map(_instrument, DURATIONS))
_record_request, _record_send = _in_sdk
_tabulated = _exposed = False


def tabulate() -> None:
    """Record durations in our tables from now on, which `durations.exported` exports, and not in the SDK."""
    global _tabulated  # noqa: PLW0603
    _tabulated = True
    _choose()


def expose() -> None:
    """Record everything in our tables from now on, for a reader in this process, and in the SDK as before."""
    global _exposed  # noqa: PLW0603
    _exposed = True
    _choose()


def _choose() -> None:
    global _record_request, _record_send
    _record_request, _record_send = map(_recorder, DURATIONS, _in_sdk)


def _recorder(durations: Durations, in_sdk: _Record) -> _Record:
    return durations.record if _tabulated else _in_both(durations, in_sdk) if _exposed else in_sdk


def _in_both(durations: Durations, in_sdk: _Record) -> _Record:
    def record(seconds: float, key: tuple[Any, ...], span: Span) -> None:
        durations.record(seconds, key, span)
        in_sdk(seconds, key, span)

    return record


_events: Counter[tuple[str, str, str, str]] = Counter()
_examples: dict[tuple[str, str, str, str], str] = {}
_sent: Counter[tuple[str, tuple[str, int], str]] = Counter()
_requests: Counter[tuple[str, str]] = Counter()
_batches: Counter[str] = Counter()


def are_on() -> bool:
    """Return whether a MeterProvider has been set, or this process is read by other means."""
    # The API's stand-in has no public name.
    return _exposed or not type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics")


MOST_SOURCES = 200
"""How many names of sources are label values; others, of files that change often, are `_OTHER`."""

_sources: set[str] = {""}


def event_ended(event_type: str, outcome: str, error: str = "", source: str = "", event_id: str = "") -> None:
    """Count an event by type, outcome (`published`, `refused`, `failed`, `abandoned`), kind of error and source.

    Its id is kept as an example of such events.
    """
    if source not in _sources:
        if len(_sources) > MOST_SOURCES:
            source = OTHER
        _sources.add(source)
    key = event_type, outcome, error, source
    _events[key] += 1
    if event_id:
        _examples[key] = event_id


def request_ended(  # noqa: PLR0913, PLR0917 (a request's attributes)
    method: str, route: str, scheme: str, status: int, seconds: float, span: Span
) -> None:
    """Record an HTTP request, its answer and its span."""
    _record_request(seconds, (method, route, scheme, status), span)


def send_ended(  # noqa: PLR0913, PLR0917 (a request's attributes)
    topic: str, count: int, server: tuple[str, int], seconds: float, error: str, span: Span
) -> None:
    """Record a request with `count` messages to the broker, the kind of error it ended with, and its span."""
    _record_send(seconds, (topic, server, error), span)
    _sent[topic, server, error] += count
    _requests[topic, _size_class(count)] += 1


def batch_ended(size: int) -> None:
    """Count a batch of callers by the number of its events."""
    _batches[_size_class(size)] += 1


_loaded: WeakSet[Loaded] = WeakSet()


def watch(loaded: Loaded) -> None:
    """Observe what this holds, as long as it lives."""
    _loaded.add(loaded)


_SIZES = ((0, "0"), (1, "1"), (10, "2-10"), (100, "11-100"), (1000, "101-1000"), (10_000, "1001-10000"))


def _size_class(count: int) -> str:
    return next((name for most, name in _SIZES if count <= most), "more")


Attributes = Mapping[str, str | int]


@frozen
class Observed:
    """What is counted here, and read when it is collected."""

    kind: Literal["counter", "gauge"]
    name: str
    unit: str
    description: str
    read: Callable[[], Iterable[tuple[float, Attributes, str]]]
    """Returns the value of each attribute set, and the id of an event as an example, or an empty string."""


def _read_events() -> Iterator[tuple[float, Attributes, str]]:
    for key, count in dict(_events).items():
        event_type, outcome, error, source = key
        attributes = {"cloudevents.event_type": event_type, "pulsecart.outcome": outcome}
        others = {"error.type": error, "pulsecart.source": source}
        yield count, attributes | {name: value for name, value in others.items() if value}, _examples.get(key, "")


def _read_sent() -> Iterator[tuple[float, Attributes, str]]:
    for (topic, server, error), count in dict(_sent).items():
        yield count, _send_attributes(topic, server, error), ""


def _read_requests() -> Iterator[tuple[float, Attributes, str]]:
    for (topic, size), count in dict(_requests).items():
        yield count, {"messaging.destination.name": topic, "pulsecart.batch.size": size}, ""


def _read_batches() -> Iterator[tuple[float, Attributes, str]]:
    for size, count in dict(_batches).items():
        yield count, {"pulsecart.batch.size": size}, ""


def _sum_of(read: Callable[[Load], float]) -> Callable[[], list[tuple[float, Attributes, str]]]:
    return lambda: [(sum(read(loaded.load()) for loaded in list(_loaded)), {}, "")]


def _oldest_age() -> list[tuple[float, Attributes, str]]:
    return [(max((loaded.load().oldest_age for loaded in list(_loaded)), default=0.0), {}, "")]


def _connections() -> list[tuple[float, Attributes, str]]:
    loads = [loaded.load() for loaded in list(_loaded)]
    used = sum(load.connections_in_use for load in loads)
    return [(sum(load.connections for load in loads) - used, {"state": "idle"}, ""), (used, {"state": "used"}, "")]


OBSERVED = (
    Observed("counter", "pulsecart.events", "{event}", "Events by type and outcome.", _read_events),
    Observed(
        "counter",
        "messaging.client.sent.messages",
        "{message}",
        "Messages sent to the broker, and how it ended.",
        _read_sent,
    ),
    Observed(
        "counter",
        "pulsecart.requests",
        "{request}",
        "Requests to the broker, by how many messages they carried.",
        _read_requests,
    ),
    Observed(
        "counter", "pulsecart.batches", "{batch}", "Batches of callers, by how many events they had.", _read_batches
    ),
    Observed(
        "gauge",
        "pulsecart.messages.in_flight",
        "{message}",
        "Messages not confirmed yet, waiting ones included.",
        _sum_of(lambda load: load.messages),
    ),
    Observed("gauge", "pulsecart.bytes.in_flight", "By", "Their bytes.", _sum_of(lambda load: load.bytes)),
    Observed(
        "gauge",
        "pulsecart.messages.waiting",
        "{message}",
        "Messages that wait for their key's turn.",
        _sum_of(lambda load: load.waiting),
    ),
    Observed(
        "gauge",
        "pulsecart.oldest_message.age",
        "s",
        "How long the oldest unconfirmed message has waited.",
        _oldest_age,
    ),
    Observed(
        "gauge",
        "pulsecart.connections",
        "{connection}",
        "Connections to the broker. On the gRPC wire, where a connection carries many requests, all are idle.",
        _connections,
    ),
    Observed(
        "gauge",
        "pulsecart.connections.awaited",
        "{request}",
        "Requests that wait for a connection to the broker.",
        _sum_of(lambda load: load.connections_awaited),
    ),
)


def _register(observed: Observed) -> None:
    """Let the SDK read it, too."""

    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for value, attributes, _example in observed.read():
            yield Observation(value, attributes)

    counter, gauge = _meter.create_observable_counter, _meter.create_observable_gauge
    create = counter if observed.kind == "counter" else gauge
    create(observed.name, [observe], observed.unit, observed.description)


for _each in OBSERVED:
    _register(_each)
