"""Metrics, by OpenTelemetry's conventions where there is one, and what an operator needs to see at a glance.

Two histograms are recorded as things happen. All else is counted in plain dictionaries and read when it is collected,
by the exporter's thread. No attribute has a value that a caller can choose: an unknown event type is `_OTHER`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from pulsecart.ports import Load, Loaded

__all__ = ["OTHER", "are_on", "event_ended", "request_ended", "send_ended", "watch"]

OTHER = "_OTHER"
"""In place of an event type that the catalog does not have (OpenTelemetry's own word for it)."""

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

_meter = metrics.get_meter("pulsecart", version("pulsecart"))
_request_duration = _meter.create_histogram(
    "http.server.request.duration",
    "s",
    "From a request's head to its answer.",
    explicit_bucket_boundaries_advisory=_BUCKETS,
)
_send_duration = _meter.create_histogram(
    "messaging.client.operation.duration",
    "s",
    "A request to the broker, with its retries.",
    explicit_bucket_boundaries_advisory=_BUCKETS,
)

_events: Counter[tuple[str, str, str]] = Counter()
_sent: Counter[tuple[str, tuple[str, int], str]] = Counter()
_requests: Counter[tuple[str, str]] = Counter()


def are_on() -> bool:
    """Return whether anybody has set a MeterProvider."""
    # The API's stand-in has no public name.
    return not type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics")


def event_ended(event_type: str, outcome: str, error: str = "") -> None:
    """Count an event: its type, `published`, `refused`, `failed` or `abandoned`, and what kind of error it was."""
    _events[event_type, outcome, error] += 1


def request_ended(method: str, route: str, scheme: str, status: int, seconds: float) -> None:
    """Record an HTTP request and its answer."""
    _request_duration.record(seconds, _request_attributes(method, route, scheme, status))


def send_ended(topic: str, count: int, server: tuple[str, int], seconds: float, error: str = "") -> None:
    """Record a request with `count` messages to the broker, and what kind of error it ended with."""
    _send_duration.record(seconds, _send_attributes(topic, server, error))
    _sent[topic, server, error] += count
    _requests[topic, _size_class(count)] += 1


_loaded: WeakSet[Loaded] = WeakSet()


def watch(loaded: Loaded) -> None:
    """Show what this holds, as long as it lives."""
    _loaded.add(loaded)


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


_SIZES = ((1, "1"), (10, "2-10"), (100, "11-100"))


def _size_class(count: int) -> str:
    return next((name for most, name in _SIZES if count <= most), "101-1000")


Callback = Callable[[CallbackOptions], Iterable[Observation]]


def _observe_events(_options: CallbackOptions) -> Iterator[Observation]:
    for (event_type, outcome, error), count in dict(_events).items():
        attributes = {"cloudevents.event_type": event_type, "pulsecart.outcome": outcome}
        yield Observation(count, attributes | ({"error.type": error} if error else {}))


def _observe_sent(_options: CallbackOptions) -> Iterator[Observation]:
    for (topic, server, error), count in dict(_sent).items():
        yield Observation(count, _send_attributes(topic, server, error))


def _observe_requests(_options: CallbackOptions) -> Iterator[Observation]:
    for (topic, size), count in dict(_requests).items():
        yield Observation(count, {"messaging.destination.name": topic, "pulsecart.batch.size": size})


def _sum_of(read: Callable[[Load], float]) -> Callback:
    return lambda _options: [Observation(sum(read(loaded.load()) for loaded in list(_loaded)))]


def _oldest_age(_options: CallbackOptions) -> list[Observation]:
    return [Observation(max((loaded.load().oldest_age for loaded in list(_loaded)), default=0.0))]


_meter.create_observable_counter("pulsecart.events", [_observe_events], "{event}", "Events by type and outcome.")
_meter.create_observable_counter(
    "messaging.client.sent.messages", [_observe_sent], "{message}", "Messages sent to the broker, and how it ended."
)
_meter.create_observable_counter(
    "pulsecart.requests", [_observe_requests], "{request}", "Requests to the broker, by how many messages they carried."
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
