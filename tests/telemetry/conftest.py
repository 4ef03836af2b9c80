"""Tracing for the duration of a test, in this process."""

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler

from pulsecart.telemetry import EventIdGenerator, EventSampler


class Spans:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def __call__(self, beginning: str) -> list[ReadableSpan]:
        """Return those whose names begin with this."""
        return [span for span in self._exporter.get_finished_spans() if span.name.startswith(beginning)]

    def one(self, beginning: str) -> ReadableSpan:
        (span,) = self(beginning)
        return span

    def clear(self) -> None:
        self._exporter.clear()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Spans]:
    """Set a TracerProvider, as a host would, until the test's end: OpenTelemetry itself lets it be set only once."""

    def turn_on(sampler: Sampler = ALWAYS_ON, *, known: bool = False, **options: Any) -> Spans:
        exporter = InMemorySpanExporter()
        provider = TracerProvider(
            sampler=EventSampler(ParentBased(sampler), known=known),
            id_generator=EventIdGenerator(),
            shutdown_on_exit=False,
            **options,
        )
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        return Spans(exporter)

    return turn_on


@pytest.fixture
def spans(traced) -> Spans:
    """All spans, each recorded."""
    return traced()
