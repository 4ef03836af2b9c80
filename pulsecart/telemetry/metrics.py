"""Metrics, by OpenTelemetry's conventions if there is one, and what an operator needs to see at a glance.

Durations are recorded as things happen. All else is counted in plain dictionaries and read when it is collected, in
the exporter's thread. No attribute has a value that a caller can choose: an unknown event type is `_OTHER`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, set_span_in_context

from pulsecart.ports import Load, Loaded
from pulsecart.telemetry.durations import BOUNDS, Durations

__all__ = [
    "DURATIONS",
    "OTHER",
    "are_on",
    "batch_ended",
    "event_ended",
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


def _instrument(durations: Durations) -> Callable[[float, tuple[Any, ...], Span], None]:
    """Return what records durations in a histogram of the SDK."""
    histogram = _meter.create_histogram(
        durations.name, "s", durations.description, explicit_bucket_boundaries_advisory=BOUNDS
    )

    def record(seconds: float, key: tuple[Any, ...], span: Span) -> None:
        histogram.record(seconds, durations.attributes(*key), set_span_in_context(span, Context()))

    return record


_record_request, _record_send = map(_instrument, DURATIONS)


def tabulate() -> None:
    """Record durations in our tables from now on, which `durations.exported` exports, and not in the SDK."""
    global _record_request, _record_send
    _record_request, _record_send = _request_durations.record, _send_durations.record


_events: Counter[tuple[str, str, str, str]] = Counter()
_sent: Counter[tuple[str, tuple[str, int], str]] = Counter()
_requests: Counter[tuple[str, str]] = Counter()
_batches: Counter[str] = Counter()


def are_on() -> bool:
    """Return whether a MeterProvider has been set."""
    # The API's stand-in has no public name.
    return not type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics")


MOST_SOURCES = 200
"""How many names of sources are label values; others, of files that change often, are `_OTHER`."""

_sources: set[str] = {""}


def event_ended(event_type: str, outcome: str, error: str = "", source: str = "") -> None:
    """Count an event by type, outcome (`published`, `refused`, `failed`, `abandoned`), kind of error and source."""
    if source not in _sources:
        if len(_sources) > MOST_SOURCES:
            source = OTHER
        _sources.add(source)
    _events[event_type, outcome, error, source] += 1


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


Callback = Callable[[CallbackOptions], Iterable[Observation]]


def _observe_events(_options: CallbackOptions) -> Iterator[Observation]:
    for (event_type, outcome, error, source), count in dict(_events).items():
        attributes = {"cloudevents.event_type": event_type, "pulsecart.outcome": outcome}
        others = {"error.type": error, "pulsecart.source": source}
        yield Observation(count, attributes | {name: value for name, value in others.items() if value})


def _observe_sent(_options: CallbackOptions) -> Iterator[Observation]:
    for (topic, server, error), count in dict(_sent).items():
        yield Observation(count, _send_attributes(topic, server, error))


def _observe_requests(_options: CallbackOptions) -> Iterator[Observation]:
    for (topic, size), count in dict(_requests).items():
        yield Observation(count, {"messaging.destination.name": topic, "pulsecart.batch.size": size})


def _sum_of(read: Callable[[Load], float], attributes: Mapping[str, str] | None = None) -> Callback:
    return lambda _options: [Observation(sum(read(loaded.load()) for loaded in list(_loaded)), attributes)]


def _observe_batches(_options: CallbackOptions) -> Iterator[Observation]:
    for size, count in dict(_batches).items():
        yield Observation(count, {"pulsecart.batch.size": size})


def _oldest_age(_options: CallbackOptions) -> list[Observation]:
    return [Observation(max((loaded.load().oldest_age for loaded in list(_loaded)), default=0.0))]


_meter.create_observable_counter("pulsecart.events", [_observe_events], "{event}", "Events by type and outcome.")
_meter.create_observable_counter(
    "messaging.client.sent.messages", [_observe_sent], "{message}", "Messages sent to the broker, and how it ended."
)
_meter.create_observable_counter(
    "pulsecart.requests", [_observe_requests], "{request}", "Requests to the broker, by how many messages they carried."
)
_meter.create_observable_counter(
    "pulsecart.batches", [_observe_batches], "{batch}", "Batches of callers, by how many events they had."
)
_meter.create_observable_gauge(
    "pulsecart.messages.in_flight",
    [_sum_of(lambda load: load.messages)],
    "{message}",
    "Messages not confirmed yet, waiting ones included.",
)
_meter.create_observable_gauge("pulsecart.bytes.in_flight", [_sum_of(lambda load: load.bytes)], "By", "Their bytes.")
_meter.create_observable_gauge(
    "pulsecart.messages.waiting",
    [_sum_of(lambda load: load.waiting)],
    "{message}",
    "Messages that wait for their key's turn.",
)
_meter.create_observable_gauge(
    "pulsecart.oldest_message.age", [_oldest_age], "s", "How long the oldest unconfirmed message has waited."
)
_meter.create_observable_gauge(
    "pulsecart.connections",
    [
        _sum_of(lambda load: load.connections - load.connections_in_use, {"state": "idle"}),
        _sum_of(lambda load: load.connections_in_use, {"state": "used"}),
    ],
    "{connection}",
    "Connections to the broker. On the gRPC wire, where a connection carries many requests, all are idle.",
)
_meter.create_observable_gauge(
    "pulsecart.connections.awaited",
    [_sum_of(lambda load: load.connections_awaited)],
    "{request}",
    "Requests that wait for a connection to the broker.",
)
