"""Durations, counted in tables of our own: the SDK's histograms cost several times as much for each measurement.

`exported` adds the tables to what an exporter of the SDK is given, and `snapshot` returns them to any other reader.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import inf
from threading import Lock
from time import time_ns
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen
from opentelemetry.trace import Span, SpanContext

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric, MetricExporter

__all__ = ["BOUNDS", "Durations", "Exemplar", "Series", "exported"]

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The upper bounds of the buckets, in seconds and inclusive; the last bucket has none."""

Attributes = Mapping[str, str | int]


@frozen
class Exemplar:
    """A measurement made in a sampled span."""

    seconds: float
    time_ns: int
    span: SpanContext


@define
class Series:
    """The measurements of one attribute set."""

    counts: list[int] = field(factory=lambda: [0] * (len(BOUNDS) + 1))
    """The number of measurements in each bucket."""

    sum: float = 0.0
    min: float = inf
    max: float = -inf
    exemplars: dict[int, Exemplar] = field(factory=dict)
    """The last one of each bucket that has one."""

    def add(self, other: "Series") -> None:
        """Add the measurements of another."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)
        self.exemplars |= other.exemplars


_Table = dict[tuple[Any, ...], Series]


class Durations:
    """The durations of one metric, by attribute set.

    Every reader gets all of them, however many readers there are. To record a duration touches one series alone; what
    has been recorded is passed on to the readers when one of them asks.
    """

    def __init__(self, name: str, description: str, attributes: Callable[..., Attributes]) -> None:
        """Use a metric's name and description, and a function from `record`'s key to attributes."""
        self.name = name
        self.description = description
        self.started_ns = time_ns()
        self.attributes = attributes
        self._lock = Lock()
        self._recent: _Table = {}
        self._read: list[_Table] = [{}]

    def record(self, seconds: float, key: tuple[Any, ...], span: Span) -> None:
        """Record a duration, with the span that was measured."""
        bucket = bisect_left(BOUNDS, seconds)
        with self._lock:
            series = self._recent.get(key)
            if series is None:
                series = self._recent[key] = Series()
            series.counts[bucket] += 1
            series.sum += seconds
            series.min = min(series.min, seconds)
            series.max = max(series.max, seconds)
            context = span.get_span_context()
            if context.trace_flags.sampled:
                series.exemplars[bucket] = Exemplar(seconds, time_ns(), context)

    def snapshot(self) -> list[tuple[Attributes, Series]]:
        """Return all that has been recorded, with the last exemplars. It may be called in any thread."""
        with self._lock:
            self._pass_on()
            return self._copy(self._read[0])

    def reader(self, *, delta: bool) -> Callable[[], list[tuple[Attributes, Series]]]:
        """Return a function like `snapshot`, whose exemplars are those since its last call.

        With `delta`, so is all else.
        """
        with self._lock:
            self._pass_on()
            table = {key: evolve(series, exemplars={}) for key, series in self._read[0].items()}
            self._read.append(table)

        def read() -> list[tuple[Attributes, Series]]:
            with self._lock:
                self._pass_on()
                found = self._copy(table)
                if delta:
                    table.clear()
                for series in table.values():
                    series.exemplars = {}
            return found

        return read

    def _pass_on(self) -> None:
        for table in self._read:
            for key, series in self._recent.items():
                table.setdefault(key, Series()).add(series)
        self._recent = {}

    def _copy(self, table: _Table) -> list[tuple[Attributes, Series]]:
        return [
            (self.attributes(*key), evolve(series, exemplars=dict(series.exemplars))) for key, series in table.items()
        ]


def exported(
    exporter: "MetricExporter", scope: str, durations: Iterable[Durations], *, delta: bool
) -> "MetricExporter":
    """Return the exporter, which from now on exports the durations with the other metrics of a scope.

    The SDK has no way to produce metrics other than its own instruments, of which the scope must have at least one.
    """
    export = exporter.export
    readers = [(each, each.reader(delta=delta)) for each in durations]
    since = {each.name: each.started_ns for each in durations}

    def read() -> "list[Metric]":
        now, metrics = time_ns(), []
        for each, take in readers:
            if found := take():
                metrics.append(_metric(each, found, since[each.name], now, delta=delta))
            if delta:
                since[each.name] = now
        return metrics

    def export_all(data: Any, *arguments: Any, **options: Any) -> Any:
        ours = read()
        resources = [
            replace(
                resource,
                scope_metrics=[
                    replace(one, metrics=[*one.metrics, *ours]) if one.scope.name == scope else one
                    for one in resource.scope_metrics
                ],
            )
            for resource in data.resource_metrics
        ]
        return export(replace(data, resource_metrics=resources), *arguments, **options)

    exporter.export = export_all  # type: ignore[assignment, method-assign]
    return exporter


def _metric(
    durations: Durations, found: list[tuple[Attributes, Series]], since: int, now: int, *, delta: bool
) -> "Metric":
    from opentelemetry.sdk import metrics  # noqa: PLC0415 (the SDK is there when something is exported)
    from opentelemetry.sdk.metrics import export  # noqa: PLC0415

    points = [
        export.HistogramDataPoint(
            attributes=attributes,
            start_time_unix_nano=since,
            time_unix_nano=now,
            count=sum(series.counts),
            sum=series.sum,
            bucket_counts=tuple(series.counts),
            explicit_bounds=BOUNDS,
            min=series.min,
            max=series.max,
            exemplars=[
                metrics.Exemplar({}, one.seconds, one.time_ns, one.span.span_id, one.span.trace_id)
                for _bucket, one in sorted(series.exemplars.items())
            ],
        )
        for attributes, series in found
    ]
    temporality = export.AggregationTemporality.DELTA if delta else export.AggregationTemporality.CUMULATIVE
    return export.Metric(durations.name, durations.description, "s", export.Histogram(points, temporality))
