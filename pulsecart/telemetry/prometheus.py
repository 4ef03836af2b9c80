"""Metrics for Prometheus, on a port of their own. Importing this module loads prometheus_client.

The names and labels are those that OpenTelemetry's metrics have in Prometheus
(https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/), so a dashboard works with both.
They are read from the tables of `metrics` and `durations`, which need no SDK. A scraper that asks for OpenMetrics also
gets exemplars: event ids on the counter of events, trace ids on durations.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import accumulate
from math import inf

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from pulsecart.errors import SettingsError
from pulsecart.telemetry import metrics
from pulsecart.telemetry.durations import BOUNDS, Durations

__all__ = ["exposed"]

MAX_EXAMPLE = 100
"""Maximum characters of an event id in an exemplar, whose labels may have 128."""

_UNITS = {"s": "_seconds"}


@contextmanager
def exposed(host: str, port: int) -> Iterator[None]:
    """Serve the metrics of this process during the block, in threads. Raises `SettingsError` if the port is taken."""
    registry = CollectorRegistry()
    registry.register(_Tables())
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsError(
            [f"metrics cannot be served on {host}:{port} (PULSECART_METRICS_PORT): {error.strerror}"]
        ) from None
    metrics.expose()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Tables(Collector):
    def collect(self) -> Iterator[Metric]:
        info = Metric("pulsecart_info", "The version of pulsecart.", "gauge")
        info.add_sample("pulsecart_info", {"version": version("pulsecart")}, 1)
        yield info
        yield from map(_observed, metrics.OBSERVED)
        yield from map(_durations, metrics.DURATIONS)


def _observed(observed: metrics.Observed) -> Metric:
    name = _name(observed.name) + _UNITS.get(observed.unit, "")
    metric = Metric(name, observed.description, observed.kind)
    suffix = "_total" if observed.kind == "counter" else ""
    for value, attributes, event_id in observed.read():
        exemplar = Exemplar({"event_id": event_id}, 1) if 0 < len(event_id) <= MAX_EXAMPLE else None
        metric.add_sample(name + suffix, _labels(attributes), value, exemplar=exemplar)
    return metric


def _durations(durations: Durations) -> Metric:
    name = f"{_name(durations.name)}_seconds"
    metric = Metric(name, durations.description, "histogram")
    for attributes, series in durations.snapshot():
        labels = _labels(attributes)
        for index, (bound, count) in enumerate(zip((*BOUNDS, inf), accumulate(series.counts), strict=True)):
            found = series.exemplars.get(index)
            exemplar = None
            if found is not None:
                ids = {"trace_id": f"{found.span.trace_id:032x}", "span_id": f"{found.span.span_id:016x}"}
                exemplar = Exemplar(ids, found.seconds, found.time_ns / 1e9)
            metric.add_sample(f"{name}_bucket", labels | {"le": _bound(bound)}, count, exemplar=exemplar)
        metric.add_sample(f"{name}_count", labels, sum(series.counts))
        metric.add_sample(f"{name}_sum", labels, series.sum)
    return metric


def _bound(bound: float) -> str:
    return "+Inf" if bound == inf else str(float(bound))


def _name(name: str) -> str:
    return name.replace(".", "_")


def _labels(attributes: Mapping[str, str | int]) -> dict[str, str]:
    return {_name(name): str(value) for name, value in attributes.items()}
