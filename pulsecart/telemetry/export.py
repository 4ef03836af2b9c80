"""Sets OpenTelemetry up for the service, by its standard `OTEL_*` variables, and flushes it at the end.

Where no exporter is configured nothing is set up. What a provider that the host has set already does is the host's.
"""

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pulsecart.telemetry import tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

__all__ = ["FLUSH_SECONDS", "exporting"]

FLUSH_SECONDS = 1.0
"""How long what is left may take to be exported when the service stops."""

DETECT_SECONDS = 3
"""How long Google's metadata server may take to say where we run."""

_log = logging.getLogger("pulsecart")

_EXPORTERS = {
    ("traces", "grpc"): "opentelemetry.exporter.otlp.proto.grpc.trace_exporter:OTLPSpanExporter",
    ("traces", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http.trace_exporter:OTLPSpanExporter",
    ("metrics", "grpc"): "opentelemetry.exporter.otlp.proto.grpc.metric_exporter:OTLPMetricExporter",
    ("metrics", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http.metric_exporter:OTLPMetricExporter",
    ("traces", "console"): "opentelemetry.sdk.trace.export:ConsoleSpanExporter",
    ("metrics", "console"): "opentelemetry.sdk.metrics.export:ConsoleMetricExporter",
}


@asynccontextmanager
async def exporting() -> AsyncIterator[None]:
    """Export what happens in the block, and flush at its end, for `FLUSH_SECONDS` at most."""
    flushes = _set_up()
    try:
        yield
    finally:
        if flushes:
            await asyncio.gather(*map(_in_bounds, flushes))


@cache
def _set_up() -> list[Callable[[], object]]:
    """Set this process's providers, once. Return what flushes them."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    flushes: list[Callable[[], object]] = []
    exporters = {signal: _exporter(signal) for signal in ("traces", "metrics")}
    if tracing.is_on():  # the host has a provider of its own
        exporters["traces"] = ""
    if any(exporters.values()):
        failures = _Failures()
        resource = _resource()
        if exporters["traces"]:
            flushes.append(_set_up_traces(exporters["traces"], resource, failures))
        if exporters["metrics"]:
            flushes.append(_set_up_metrics(exporters["metrics"], resource, failures))
        # From now on; what the SDK has to say of the variables themselves is not kept from anybody.
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(failures)
        logger.propagate = False
    return flushes


def _exporter(signal: str) -> str:
    """Return the name of a signal's exporter, as module:class; "none" for none that exports; "" for not configured.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#exporter-selection
    """
    name = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower()
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    if not name:
        name = "otlp" if any(os.environ.get(variable) for variable in endpoints) else ""
    if name in ("", "none"):
        return name
    if name == "otlp":
        name = (
            os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
            or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "grpc"
        )
    if (signal, name) not in _EXPORTERS:
        known = ", ".join(sorted({known for _, known in _EXPORTERS}))
        _log.warning(
            "No %s are exported: there is no exporter or protocol %r; there are otlp, none, %s", signal, name, known
        )
        return ""
    return _EXPORTERS[signal, name]


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _resource() -> "Resource":
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource, get_aggregated_resources

    ours = Resource(
        {
            "service.name": "pulsecart",
            "service.version": version("pulsecart"),
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    detectors: list[Any] = [OTELResourceDetector()]
    # Only where it can know something: elsewhere it would wait for a metadata server that is not there.
    if any(os.environ.get(mark) for mark in ("K_SERVICE", "KUBERNETES_SERVICE_HOST")):
        from opentelemetry.resourcedetector.gcp_resource_detector import GoogleCloudResourceDetector

        detectors.insert(0, GoogleCloudResourceDetector(raise_on_error=False))
    return get_aggregated_resources(detectors, Resource.create(ours.attributes), timeout=DETECT_SECONDS)


def _set_up_traces(exporter: str, resource: "Resource", failures: "_Failures") -> Callable[[], object]:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from pulsecart.telemetry.sampling import EventIdGenerator, EventSampler

    provider = TracerProvider(resource=resource, id_generator=EventIdGenerator(), shutdown_on_exit=False)
    provider.sampler = EventSampler(provider.sampler)
    if exporter != "none":
        provider.add_span_processor(BatchSpanProcessor(failures.told(_load(exporter)(), "traces")))
    trace.set_tracer_provider(provider)
    return provider.force_flush


def _set_up_metrics(exporter: str, resource: "Resource", failures: "_Failures") -> Callable[[], object]:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    readers = []
    if exporter != "none":
        readers.append(PeriodicExportingMetricReader(failures.told(_load(exporter)(), "metrics")))
    provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.force_flush


async def _in_bounds(flush: Callable[[], object]) -> None:
    """Run a flush in a thread of its own, which the process's end does not wait for, for `FLUSH_SECONDS` at most."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            flush()
        finally:
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH_SECONDS):
            await ended.wait()
    except TimeoutError:
        _log.warning("Telemetry was not exported to the end within %g s", FLUSH_SECONDS)


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


class _Failures(logging.Handler):
    """Says once that an exporter fails, and once that it works again, in place of the SDK's line for each attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said = threading.local()  # by the SDK, in the thread that exports

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what the SDK says, for when an export has failed. That spans are dropped is said at once, and once."""
        message = record.getMessage()
        if message.startswith("Queue full"):
            _warn_once("Spans are dropped: they come faster than their collector takes them")
            return
        self._said.lines = [*getattr(self._said, "lines", ()), message]

    def told(self, exporter: Any, signal: str) -> Any:
        """Return the exporter, whose failures are told."""
        export, failing = exporter.export, False

        def telling(*arguments: Any, **options: Any) -> Any:
            nonlocal failing
            self._said.lines = []
            result = export(*arguments, **options)
            if (result.name != "SUCCESS") is not failing:
                failing = not failing
                if failing:
                    # The first line has the cause, the last one what became of it.
                    why = "; ".join(dict.fromkeys([*self._said.lines[:1], *self._said.lines[-1:]]))
                    _log.warning("The %s do not reach their collector; publishing goes on: %s", signal, why)
                else:
                    _log.warning("The %s reach their collector again", signal)
            return result

        exporter.export = telling
        return exporter
