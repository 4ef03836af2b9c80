"""Sets up OpenTelemetry for the service from the standard `OTEL_*` variables, and flushes it at shutdown.

Nothing is set up unless an exporter is configured. A provider that the host has already set is left unchanged.
"""

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pulsecart.limits import MAX_REQUEST_MESSAGES
from pulsecart.telemetry import durations, metrics, records, tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from pulsecart.telemetry.backlog import BoundedProcessor

__all__ = [
    "FLUSH_SECONDS",
    "collectors",
    "exporting",
    "flush_in_time",
    "misconfigured",
    "resource_of_process",
    "set_up_providers",
]

FLUSH_SECONDS = 1.0
"""How long the last export may take when the service stops."""

DETECT_SECONDS = 3
"""How long Google's metadata server may take to describe where the service runs."""

_log = logging.getLogger("pulsecart")

_OTLP = {
    ("traces", "grpc"): "opentelemetry.exporter.otlp.proto.grpc.trace_exporter:OTLPSpanExporter",
    ("traces", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http.trace_exporter:OTLPSpanExporter",
    ("metrics", "grpc"): "opentelemetry.exporter.otlp.proto.grpc.metric_exporter:OTLPMetricExporter",
    ("metrics", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http.metric_exporter:OTLPMetricExporter",
    ("logs", "grpc"): "opentelemetry.exporter.otlp.proto.grpc._log_exporter:OTLPLogExporter",
    ("logs", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http._log_exporter:OTLPLogExporter",
}
_CONSOLE = {
    "traces": "opentelemetry.sdk.trace.export:ConsoleSpanExporter",
    "metrics": "opentelemetry.sdk.metrics.export:ConsoleMetricExporter",
    "logs": "opentelemetry.sdk._logs.export:ConsoleLogRecordExporter",
}

WAITING_RECORDS = 2048
"""How many log records may wait for their export, as the standard has it, unless OTEL_BLRP_MAX_QUEUE_SIZE is set."""

_backlogs: list["BoundedProcessor"] = []


@asynccontextmanager
async def exporting(set_up: Callable[[], object]) -> AsyncIterator[None]:
    """Export telemetry within the block, and flush it at the end, for at most `FLUSH_SECONDS`.

    `set_up` is called once the providers have been set.
    """
    flushes = await asyncio.to_thread(set_up_providers)  # it may wait for a metadata server
    set_up()
    try:
        yield
    finally:
        if flushes:
            await asyncio.gather(*map(flush_in_time, flushes))
        for backlog in _backlogs:
            backlog.report_lost()


@cache
def set_up_providers() -> list[Callable[[], object]]:
    """Set this process's providers, once. Return the functions that flush them."""
    if _variable("OTEL_SDK_DISABLED").lower() == "true":
        return []
    _unset_empty_variables()
    exporters = _configured()
    hosts = {
        "traces": tracing.is_on(),
        "metrics": metrics.are_on(),
        "logs": bool(exporters["logs"]) and records.are_on(),
    }
    set_ups = {"traces": _set_up_traces, "metrics": _set_up_metrics, "logs": _set_up_logs}
    if hosts["logs"]:
        records.start()
    wanted = [signal for signal, names in exporters.items() if names and not hosts[signal]]
    if not wanted:
        return []
    failures = _Failures()
    flushes: list[Callable[[], object]] = []
    try:
        resource = resource_of_process()
    except ModuleNotFoundError as error:
        _warn_missing(" and ".join(wanted), error)
        return []
    for signal in wanted:
        try:
            flushes.append(set_ups[signal](exporters[signal], resource, failures))
        except ModuleNotFoundError as error:
            _warn_missing(signal, error)
        except Exception as error:  # noqa: BLE001 (the SDK and its exporters raise many types for a bad variable)
            _log.warning("No %s are exported: %s: %s", signal, type(error).__name__, error)
    if not any(hosts.values()):
        # Only from here on, so that the SDK's warnings about the variables themselves are logged.
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(failures)
        logger.propagate = False
    return flushes


def _unset_empty_variables() -> None:
    """Remove variables without a value. By the specification this means unset, but the SDK rejects it as a number."""
    for variable, value in list(os.environ.items()):
        if variable.startswith("OTEL_") and not value.strip():
            del os.environ[variable]


def _warn_missing(signal: str, error: ModuleNotFoundError) -> None:
    _log.warning("No %s are exported: %s is not installed: pip install 'pulsecart[otlp]'", signal, error.name)


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _configured() -> dict[str, list[str]]:
    """Return the exporters of each signal, and log what is wrong with their names."""
    found = {}
    for signal in _CONSOLE:
        found[signal], faults = _exporters(signal)
        for fault in faults:
            _log.warning("No %s are exported: %s", signal, fault)
    return found


def _exporters(signal: str) -> tuple[list[str], list[str]]:
    """Return the exporters of a signal, as module:class, or "none", and what is wrong with the others' names.

    Both lists are empty if none is configured.

    An endpoint for all signals is for traces and metrics: logs, which are lines already, have to be asked for.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#exporter-selection
    """
    of_signal = f"OTEL_EXPORTER_OTLP_{signal.upper()}"
    for_all = "" if signal == "logs" else _variable("OTEL_EXPORTER_OTLP_ENDPOINT")
    implied = "otlp" if for_all or _variable(f"{of_signal}_ENDPOINT") else ""
    protocol = _variable(f"{of_signal}_PROTOCOL") or _variable("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    # Without an exporter, spans give messages their context; log records would be for nobody.
    none = "" if signal == "logs" else "none"
    known = {"otlp": _OTLP.get((signal, protocol.lower())), "console": _CONSOLE[signal], "none": none}
    found, faults = [], []
    for name in (_variable(f"OTEL_{signal.upper()}_EXPORTER") or implied).lower().split(","):
        if exporter := known.get(name.strip()):
            found.append(exporter)
        elif name.strip() not in ("", "none"):
            wrong = (
                f"protocol {protocol!r}; there are grpc, http/protobuf"
                if name.strip() in known
                else f"exporter {name!r}"
            )
            faults.append(f"there is no {wrong}; exporters are otlp, console, none")
    return found, faults


def misconfigured() -> dict[str, str]:
    """Return why a signal would not be exported. It makes the exporters, but exports nothing."""
    _unset_empty_variables()
    faults = {}
    for signal in [] if _variable("OTEL_SDK_DISABLED").lower() == "true" else _CONSOLE:
        exporters, wrong = _exporters(signal)
        for name in exporters:
            try:
                if name != "none":
                    _load(name)().shutdown()
            except ModuleNotFoundError as error:
                wrong.append(f"{error.name} is not installed: pip install 'pulsecart[otlp]'")
            except Exception as error:  # noqa: BLE001 (exporters raise many types for a bad variable)
                wrong.append(f"{type(error).__name__}: {error}")
        if wrong:
            faults[signal] = "; ".join(wrong)
    return faults


def collectors() -> dict[str, tuple[str, int]]:
    """Return the address of the collector of each signal that is exported to one, by the standard variables."""
    found = {}
    for signal in _CONSOLE:
        exporters = [] if _variable("OTEL_SDK_DISABLED").lower() == "true" else _exporters(signal)[0]
        if otlp := next((name for name in exporters if "otlp" in name), None):
            own = _variable(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
            port = 4318 if ".http." in otlp else 4317
            url = own or _variable("OTEL_EXPORTER_OTLP_ENDPOINT") or f"http://localhost:{port}"
            parts = urlsplit(url if "//" in url else f"//{url}")
            implied = {"http": 80, "https": 443}.get(parts.scheme, port) if ".http." in otlp else port
            found[signal] = (parts.hostname or "localhost", parts.port or implied)
    return found


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def resource_of_process() -> "Resource":
    """Return what identifies this process: standard variables, and on Google Cloud what its metadata server says."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource, get_aggregated_resources

    ours = Resource(
        {
            "service.name": "pulsecart",
            "service.version": version("pulsecart"),
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    resource = get_aggregated_resources([OTELResourceDetector()], Resource.create(ours.attributes))
    # Only on Google's platforms: elsewhere it would wait for a metadata server that does not exist.
    if any(os.environ.get(mark) for mark in ("K_SERVICE", "KUBERNETES_SERVICE_HOST")):
        return _at_google().merge(resource)
    return resource


def _at_google() -> "Resource":
    """Return what Google's metadata server says about this service within `DETECT_SECONDS`."""
    from opentelemetry.resourcedetector.gcp_resource_detector import GoogleCloudResourceDetector
    from opentelemetry.sdk.resources import Resource

    found = [Resource.get_empty()]

    def detect() -> None:
        try:
            found.append(GoogleCloudResourceDetector(raise_on_error=True).detect())
        except Exception as error:  # noqa: BLE001 (the metadata server may answer anything)
            _log.warning("Google's metadata server did not describe this service: %s: %s", type(error).__name__, error)

    # The detector has a timeout for each of its requests, which add up. The thread is not waited for after that.
    thread = threading.Thread(target=detect, daemon=True)
    thread.start()
    thread.join(DETECT_SECONDS)
    return found[-1]


def _set_up_traces(exporters: list[str], resource: "Resource", failures: "_Failures") -> Callable[[], object]:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from pulsecart.telemetry.sampling import EventIdGenerator, EventSampler

    provider = TracerProvider(
        resource=resource,
        id_generator=EventIdGenerator(),
        # The SDK's own limit is 128, and a request may carry more messages.
        span_limits=SpanLimits(max_links=None if _variable("OTEL_SPAN_LINK_COUNT_LIMIT") else MAX_REQUEST_MESSAGES),
        shutdown_on_exit=False,
    )
    provider.sampler = EventSampler(provider.sampler, known=True)
    for exporter in exporters:
        if exporter != "none":
            provider.add_span_processor(BatchSpanProcessor(failures.reporting(_load(exporter)(), "traces")))
    trace.set_tracer_provider(provider)
    return provider.force_flush


def _set_up_metrics(exporters: list[str], resource: "Resource", failures: "_Failures") -> Callable[[], object]:
    from opentelemetry.metrics import set_meter_provider
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    in_tables = _durations_in_tables()
    readers = []
    for name in exporters:
        if name != "none":
            exporter = failures.reporting(_load(name)(), "metrics")
            if in_tables:
                exporter = durations.exported(exporter, "pulsecart", metrics.DURATIONS, delta=_is_delta(name))
            readers.append(PeriodicExportingMetricReader(exporter))
    provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    set_meter_provider(provider)
    if in_tables:
        metrics.tabulate()
    return provider.force_flush


def _set_up_logs(exporters: list[str], resource: "Resource", failures: "_Failures") -> Callable[[], object]:
    from opentelemetry._logs import set_logger_provider
    from opentelemetry.sdk._logs import LoggerProvider

    from pulsecart.telemetry.backlog import BoundedProcessor

    most = int(_variable("OTEL_BLRP_MAX_QUEUE_SIZE") or WAITING_RECORDS)
    provider = LoggerProvider(resource, shutdown_on_exit=False)
    for name in exporters:
        exporter = _load(name)()
        backlog = BoundedProcessor(exporter, most)
        failures.reporting(exporter, "logs", backlog.take_lost)
        _backlogs.append(backlog)
        provider.add_log_record_processor(backlog)
    set_logger_provider(provider)
    records.start()
    return provider.force_flush


def _durations_in_tables() -> bool:
    """Return whether durations are wanted in the form that our tables have: explicit buckets, traces as exemplars."""
    aggregation = _variable("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION").lower()
    exemplars = _variable("OTEL_METRICS_EXEMPLAR_FILTER").lower()
    return aggregation in ("", "explicit_bucket_histogram") and exemplars in ("", "trace_based")


def _is_delta(exporter: str) -> bool:
    """Return whether an exporter wants of a histogram what has been added since it was last exported."""
    preference = _variable("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE").upper()
    return exporter != _CONSOLE["metrics"] and preference in ("DELTA", "LOWMEMORY")


async def flush_in_time(flush: Callable[[], object]) -> None:
    """Run a flush for at most `FLUSH_SECONDS`, in a daemon thread, which does not keep the process alive."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            flush()
        except Exception:  # noqa: BLE001 (an exporter may raise anything)
            _log.exception("Telemetry could not be flushed")
        finally:
            with suppress(RuntimeError):  # the loop has been closed, and nothing waits any more
                loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH_SECONDS):
            await ended.wait()
    except TimeoutError:
        _log.warning("Telemetry was not fully exported within %g s", FLUSH_SECONDS)


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


class _Failures(logging.Handler):
    """Logs once that an exporter fails and once that it works again, instead of the SDK's line for each attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._exporting = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep messages logged during an export, in case it fails. Dropped spans are logged once."""
        said = getattr(self._exporting, "said", None)
        if said is not None:
            said.append(record.getMessage())
        elif str(record.msg).startswith(("Queue full", "Queue is full")):
            _warn_once("Spans are dropped: they come faster than their collector takes them")

    def reporting(self, exporter: Any, signal: str, take_lost: Callable[[], int] = int) -> Any:
        """Return the exporter, whose failures are logged from now on, and what was lost, if it is counted."""
        export, failing = exporter.export, False

        def export_and_report(*arguments: Any, **options: Any) -> Any:
            said: list[str] = []
            self._exporting.said = said
            failed = True
            try:
                result = export(*arguments, **options)
                failed = result.name != "SUCCESS"
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
                raise  # the SDK continues with the next batch
            finally:
                self._exporting.said = None
                report(failed, said)
            return result

        def report(failed: bool, said: list[str]) -> None:  # noqa: FBT001 (a state, not a mode)
            nonlocal failing
            if failed and not failing:
                # The first line has the cause, the last one the outcome.
                why = "; ".join(dict.fromkeys([*said[:1], *said[-1:]]))
                _log.warning("The %s do not reach their collector; publishing goes on: %s", signal, why)
            elif failing and not failed:
                lost = take_lost()
                _log.warning("The %s reach their collector again%s", signal, f"; {lost:,} were lost" if lost else "")
            failing = failed

        exporter.export = export_and_report
        return exporter
