"""Our tables of durations, held against the SDK's own histogram."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags

from pulsecart.telemetry.durations import BOUNDS, Durations, exported

TEMPORALITIES = [AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE]


class Keeping(MetricExporter):
    """Keeps the metrics of the last export, by name."""

    def __init__(self, temporality: AggregationTemporality) -> None:
        super().__init__(preferred_temporality={Histogram: temporality})
        self.metrics = {}
        self.scopes = []

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        (resource,) = metrics_data.resource_metrics
        self.scopes = [scope.scope.name for scope in resource.scope_metrics]
        self.metrics = {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **kwargs):
        pass


def make_durations() -> Durations:
    return Durations("ours", "In our table.", lambda route: {"http.route": route})


def exporting(durations: Durations, temporality: AggregationTemporality) -> tuple[MeterProvider, Keeping]:
    """Return a provider that exports them when it is flushed."""
    exporter = Keeping(temporality)
    exported(exporter, "pulsecart", [durations], delta=temporality is AggregationTemporality.DELTA)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=math.inf)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    for scope in ("pulsecart", "host"):
        provider.get_meter(scope).create_observable_gauge(f"{scope}_gauge", [lambda _options: [Observation(1)]])
    return provider, exporter


def span(number: int, *, sampled: bool = True) -> NonRecordingSpan:
    return NonRecordingSpan(SpanContext(number, number, is_remote=False, trace_flags=TraceFlags(int(sampled))))


SECONDS = st.floats(0, 20) | st.sampled_from(BOUNDS)
RECORD = st.tuples(SECONDS, st.sampled_from(["/a", "/b"]), st.booleans())


@pytest.mark.parametrize("temporality", TEMPORALITIES)
@given(exports=st.lists(st.lists(RECORD, max_size=20), max_size=4))
def test_export_equals_that_of_the_sdks_histogram(temporality, exports):
    """Counts, bounds, sums, extremes, attributes and exemplars are the same in every export of a series."""
    ours = make_durations()
    provider, exporter = exporting(ours, temporality)
    theirs = provider.get_meter("pulsecart").create_histogram(
        "theirs", "s", "In the SDK.", explicit_bucket_boundaries_advisory=BOUNDS
    )
    number = 0
    for records in exports:
        for seconds, route, sampled in records:
            number += 1
            current = span(number, sampled=sampled)
            ours.record(seconds, (route,), current)
            theirs.record(seconds, {"http.route": route}, trace.set_span_in_context(current, Context()))
        provider.force_flush()
        assert points(exporter, "ours") == points(exporter, "theirs")


def points(exporter: Keeping, name: str) -> list[object]:
    """Return the points of a histogram as plain values, without times, in the order of their routes."""
    if name not in exporter.metrics:
        return []
    metric = exporter.metrics[name]
    return [
        (
            metric.unit,
            metric.data.aggregation_temporality,
            dict(point.attributes),
            (point.count, point.sum, point.min, point.max),
            tuple(point.bucket_counts),
            tuple(point.explicit_bounds),
            [(one.value, one.trace_id, one.span_id, one.filtered_attributes) for one in point.exemplars],
        )
        for point in sorted(metric.data.data_points, key=lambda point: point.attributes["http.route"])
    ]


@pytest.mark.parametrize("temporality", TEMPORALITIES)
def test_times_of_a_point_fit_the_temporality(temporality):
    """A delta starts where the last one ended; a cumulative point always starts at the beginning."""
    durations = make_durations()
    provider, exporter = exporting(durations, temporality)
    found = []
    for _ in range(2):
        durations.record(0.1, ("/a",), INVALID_SPAN)
        provider.force_flush()
        found += exporter.metrics["ours"].data.data_points
    first, second = found
    assert first.start_time_unix_nano <= first.time_unix_nano < second.time_unix_nano
    delta = temporality is AggregationTemporality.DELTA
    start = first.time_unix_nano if delta else first.start_time_unix_nano
    assert (second.start_time_unix_nano, second.count) == (start, 1 if delta else 2)


def test_only_the_scope_of_the_durations_gets_them():
    """The metrics of others are exported as they were."""
    durations = make_durations()
    durations.record(0.1, ("/a",), INVALID_SPAN)
    provider, exporter = exporting(durations, AggregationTemporality.DELTA)
    provider.force_flush()
    assert sorted(exporter.metrics) == ["host_gauge", "ours", "pulsecart_gauge"]
    assert sorted(exporter.scopes) == ["host", "pulsecart"]


def test_every_reader_gets_every_measurement():
    """What one exporter has taken, others and a snapshot still have, earlier measurements included."""
    durations = make_durations()
    durations.record(0.1, ("/a",), span(1))
    delta, cumulative = durations.reader(delta=True), durations.reader(delta=False)
    durations.record(3, ("/a",), span(2))

    def counts(found) -> list[int]:
        return [sum(series.counts) for _attributes, series in found]

    assert [counts(read()) for read in (delta, cumulative)] == [[2], [2]]
    assert [counts(read()) for read in (delta, cumulative)] == [[], [2]]
    durations.record(0.2, ("/b",), span(3))
    assert [counts(read()) for read in (cumulative, delta)] == [[2, 1], [1]]
    (attributes, series), _ = durations.snapshot()
    assert (attributes, series.min, series.max, series.sum) == ({"http.route": "/a"}, 0.1, 3, 3.1)
    assert [one.span.trace_id for one in series.exemplars.values()] == [1, 2]


def test_snapshot_does_not_change_afterwards():
    """What a reader was given is its own."""
    durations = make_durations()
    durations.record(0.1, ("/a",), span(1))
    ((_, before),) = durations.snapshot()
    durations.record(0.1, ("/a",), span(2))
    ((_, after),) = durations.snapshot()
    assert (sum(before.counts), sum(after.counts)) == (1, 2)
    assert [one.span.trace_id for one in (*before.exemplars.values(), *after.exemplars.values())] == [1, 2]
