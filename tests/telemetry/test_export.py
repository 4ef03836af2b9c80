"""The export of traces and metrics, configured by the standard `OTEL_*` variables."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.resourcedetector.gcp_resource_detector import _metadata
from opentelemetry.sdk.trace.export import SpanExportResult

from pulsecart.telemetry import export
from tests.collector import collector
from tests.serving import Served, serving

pytestmark = pytest.mark.anyio

ORDER = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {"total": 89.9}}


def post(served: Served, **changes) -> httpx.Response:
    return httpx.post(f"{served.url}/events/ingest", json=ORDER | changes, timeout=30)


def lines_with(served: Served, text: str) -> list[dict[str, str]]:
    return [line for line in map(json.loads, served.output.splitlines()) if text in line["message"]]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_spans_and_metrics_reach_a_collector(tmp_path, protocol):
    """Over either protocol, with the resource; the rest is exported at shutdown."""
    with collector(protocol) as collects:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collects.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with serving(cwd=tmp_path, **environment) as served:
            answer = post(served)
            assert answer.status_code == 202
            assert served.stop() == 0
        assert {span.name for span in collects.spans} == {
            "POST /events/ingest",
            f"create {'pulsecart.commerce-events'}",
        }
        (create,) = [span for span in collects.spans if span.name.startswith("create")]
        assert create.trace_id.hex() == answer.json()["trace_id"]
        for resource in collects.resources:
            assert (resource["service.name"], resource["deployment.environment.name"]) == ("pulsecart", "test")
            assert resource["service.version"]
            assert resource["service.instance.id"]
        assert {"http.server.request.duration", "pulsecart.events"} <= set(collects.metrics)
    assert lines_with(served, "collector") == []


def test_ratio_and_service_name_from_standard_variables(tmp_path):
    """OTEL_TRACES_SAMPLER applies to events, OTEL_SERVICE_NAME to the resource, and both may be in .env."""
    (tmp_path / ".env").write_text("OTEL_SERVICE_NAME=shop-front\nOTEL_TRACES_SAMPLER=parentbased_traceidratio\n")
    low, high = "evt_0123456789ab00000000000000000001", "evt_0123456789ab0000ffffffffffffffff"
    with collector("grpc") as collects:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collects.endpoint, "OTEL_TRACES_SAMPLER_ARG": "0.5"}
        with serving(cwd=tmp_path, **environment) as served:
            for event_id in (low, high):
                assert post(served, event_id=event_id).status_code == 202
            served.stop()
        creates = [span.trace_id.hex() for span in collects.spans if span.name.startswith("create")]
        assert creates == [low.removeprefix("evt_")]
        assert {resource["service.name"] for resource in collects.resources} == {"shop-front"}


def test_metrics_are_exported_without_traces(tmp_path):
    """With an endpoint for metrics only, metrics are exported and nothing is traced."""
    with collector("grpc") as collects:
        with serving(cwd=tmp_path, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=collects.endpoint) as served:
            assert "traceresponse" not in post(served).headers
            served.stop()
        assert "pulsecart.events" in collects.metrics
        assert collects.spans == []


@pytest.mark.parametrize(("preference", "temporality"), [("", 2), ("cumulative", 2), ("delta", 1), ("LowMemory", 1)])
def test_durations_are_exported_in_the_preferred_temporality(tmp_path, preference, temporality):
    """A histogram has the standard buckets, and the trace of a sampled request as an exemplar."""
    with collector("http/protobuf") as collects:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collects.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": preference,
            "OTEL_METRIC_EXPORT_INTERVAL": "60000",
        }
        with serving(cwd=tmp_path, **environment) as served:
            assert post(served).status_code == 202
            served.stop()
        metric = collects.metrics["http.server.request.duration"]
        (request,) = [span for span in collects.spans if span.name.startswith("POST")]
    assert (metric.unit, metric.histogram.aggregation_temporality) == ("s", temporality)
    (point,) = [
        point
        for point in metric.histogram.data_points
        if any(pair.value.string_value == "/events/ingest" for pair in point.attributes)
    ]
    assert list(point.explicit_bounds) == [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
    assert point.count == sum(point.bucket_counts) == 1
    assert 0 < point.min == point.max == point.sum
    (exemplar,) = point.exemplars
    assert (exemplar.trace_id, exemplar.span_id) == (request.trace_id, request.span_id)
    assert exemplar.as_double == point.sum


def test_exponential_histograms_are_exported_on_request(tmp_path):
    """OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION applies to durations."""
    with collector("grpc") as collects:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collects.endpoint,
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram",
        }
        with serving(cwd=tmp_path, **environment) as served:
            assert post(served).status_code == 202
            served.stop()
        metric = collects.metrics["http.server.request.duration"]
    assert [point.count for point in metric.exponential_histogram.data_points] == [1]


def test_every_worker_exports(tmp_path):
    """The spans of two processes reach the collector, under two instance ids."""
    with collector("grpc") as collects:
        environment = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collects.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "PUBSUB_EMULATOR_HOST": "127.0.0.1:1",
            "PULSECART_PUBLISH_DEADLINE": "0.1",
        }
        with serving("--workers", "2", cwd=tmp_path, **environment) as served:
            end = time.monotonic() + 30
            while len({resource["service.instance.id"] for resource in collects.resources}) < 2:
                assert time.monotonic() < end
                assert post(served).status_code == 503
            served.stop()


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}]
)
def test_nothing_is_traced_or_logged_without_an_exporter(tmp_path, environment):
    """Without configuration, or with the SDK disabled, there is no trace context and no log line about telemetry."""
    with serving(cwd=tmp_path, **environment) as served:
        assert "traceresponse" not in post(served).headers
        assert served.stop() == 0
    assert "collector" not in served.output
    assert "opentelemetry" not in served.output.lower()


def test_exporter_none_passes_on_context_only(tmp_path):
    """OTEL_TRACES_EXPORTER=none still gives each message its trace context."""
    with serving(cwd=tmp_path, OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none") as served:
        answer = post(served)
        (message,) = httpx.get(f"{served.url}/dev/messages").json()["messages"]
        assert message["attributes"]["traceparent"].split("-")[1] == answer.json()["trace_id"]
        assert served.stop() == 0


def test_unknown_exporter_is_named(tmp_path):
    """A misspelt exporter is a warning; the service runs."""
    with serving(cwd=tmp_path, OTEL_TRACES_EXPORTER="otpl") as served:
        assert post(served).status_code == 202
        served.stop()
    (line,) = lines_with(served, "No traces are exported")
    assert "there is no exporter 'otpl'" in line["message"]


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100", "No traces are exported: ValueError"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "No traces are exported: ValueError"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grcp", "there is no protocol 'grcp'; there are grpc, http/protobuf"),
    ],
)
def test_invalid_variable_disables_telemetry_only(tmp_path, variable, value, says):
    """A value that the SDK rejects is a warning that names the signal and the reason."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", variable: value}
    with serving(cwd=tmp_path, **environment) as served:
        assert post(served).status_code == 202
        assert served.stop() == 0
    assert lines_with(served, says)


def test_empty_variables_count_as_unset_and_several_exporters_work(tmp_path):
    """Both are required by the specification."""
    with collector("grpc") as collects:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collects.endpoint,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "",
            "OTEL_EXPORTER_OTLP_COMPRESSION": " ",
            "OTEL_EXPORTER_OTLP_PROTOCOL": " GRPC ",
            "OTEL_TRACES_EXPORTER": "otlp, console",
        }
        with serving(cwd=tmp_path, **environment) as served:
            assert post(served).status_code == 202
            served.stop()
        assert len(collects.spans) == 2
        assert collects.metrics


def test_unreachable_collector_is_logged_once(tmp_path):
    """Events are published without a collector; one line for traces and one for metrics has the reason."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        "OTEL_BSP_SCHEDULE_DELAY": "10",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
    }
    with serving(cwd=tmp_path, **environment) as served:
        end = time.monotonic() + 30
        while len(lines_with(served, "do not reach")) < 2:
            assert time.monotonic() < end, served.output
            assert post(served).status_code == 202
        for _ in range(10):
            assert post(served).status_code == 202
        assert served.stop() == 0
    lines = lines_with(served, "do not reach")
    assert sorted(line["message"].split()[1] for line in lines) == ["metrics", "traces"]
    assert {line["severity"] for line in lines} == {"WARNING"}
    assert all("refused" in line["message"] for line in lines)
    assert [line for line in lines_with(served, "retrying") if line not in lines] == []


def test_collector_that_recovers_is_logged(tmp_path):
    """After an outage one line says that it is over, and spans arrive."""
    with collector("http/protobuf") as collects:
        collects.go_on.clear()
        environment = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collects.endpoint}/v1/traces",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "10",
        }
        with serving(cwd=tmp_path, **environment) as served:
            end = time.monotonic() + 30
            while not lines_with(served, "do not reach"):
                assert time.monotonic() < end, served.output
                assert post(served).status_code == 202
            collects.go_on.set()
            while not lines_with(served, "again"):
                assert time.monotonic() < end, served.output
                assert post(served).status_code == 202
            served.stop()


def test_hanging_collector_does_not_delay_shutdown(tmp_path):
    """Spans over the queue's limit are dropped, which is logged once; the flush is bounded; the exit status is 0."""
    with collector("grpc") as collects:
        collects.go_on.clear()
        environment = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collects.endpoint,
            "OTEL_BSP_MAX_QUEUE_SIZE": "2",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1",
        }
        with serving(cwd=tmp_path, **environment) as served:
            for _ in range(10):
                assert post(served).status_code == 202
            assert len(lines_with(served, "Spans are dropped")) == 1
            start = time.monotonic()
            assert served.stop() == 0
            assert time.monotonic() - start < 8
    assert lines_with(served, "Telemetry was not fully exported")


def test_provider_of_the_host_is_kept(traced, monkeypatch):
    """If the host has set a TracerProvider, the application sets none."""
    traced()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert export.set_up_providers.__wrapped__() == []


def test_logging_of_the_host_is_kept(tmp_path):
    """With a TracerProvider of the host metrics are exported, and OpenTelemetry's log lines are not redirected."""
    program = """
import logging
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
host = TracerProvider()
trace.set_tracer_provider(host)
from pulsecart.telemetry import export, metrics
assert len(export.set_up_providers()) == 1
assert metrics.are_on()
assert trace.get_tracer_provider() is host
assert logging.getLogger("opentelemetry").propagate
"""
    environment = os.environ | {"OTEL_METRICS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "console"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_log_lines_outside_an_export_are_not_kept(caplog):
    """Callers can make OpenTelemetry log a line for each request, which must fill neither memory nor the log."""
    failures = export._Failures()
    for _ in range(3):
        failures.handle(logging.LogRecord("opentelemetry", logging.WARNING, __file__, 1, "%s is odd", ("x",), None))
    assert vars(failures._exporting) == {}
    assert caplog.records == []


def test_exporter_that_raises_is_logged(caplog):
    """Older exporters raise an exception, newer ones return a failure: both are logged once, and so is their end."""
    outcomes = [ConnectionError("refused"), ConnectionError("refused"), SpanExportResult.SUCCESS]

    class Exporter:
        def export(self, _spans: object) -> SpanExportResult:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    exporter = export._Failures().reporting(Exporter(), "traces")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            exporter.export([])
    exporter.export([])
    down, again = [record.getMessage() for record in caplog.records]
    assert "ConnectionError: refused" in down
    assert "again" in again


async def test_failing_flush_is_logged(caplog):
    """An exception of an exporter does not prevent shutdown."""

    def defective() -> None:
        raise ZeroDivisionError

    await export.flush_in_time(defective)
    assert [record.getMessage() for record in caplog.records] == ["Telemetry could not be flushed"]


def test_hanging_metadata_server_is_not_waited_for(monkeypatch):
    """Detection is bounded; without an answer the resource has no platform."""
    monkeypatch.setattr(export, "DETECT_SECONDS", 0.2)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        monkeypatch.setattr(_metadata, "_GCP_METADATA_URL", f"http://127.0.0.1:{hanging.getsockname()[1]}/")
        _metadata.is_available.cache_clear()
        start = time.monotonic()
        assert export.resource_of_process().attributes["service.name"] == "pulsecart"
        assert time.monotonic() - start < 2


def test_failing_metadata_server_is_a_warning(monkeypatch, caplog):
    """Telemetry is exported even if the detector fails."""

    def nonsense() -> None:
        raise KeyError("project")

    monkeypatch.setattr(_metadata, "is_available", nonsense)
    monkeypatch.setenv("K_SERVICE", "front")
    assert export.resource_of_process().attributes["service.name"] == "pulsecart"
    assert "did not describe this service: KeyError" in caplog.text


def test_resource_on_cloud_run(monkeypatch):
    """The resource has service, revision, instance and region from Google's metadata server."""

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = json.dumps(
                {
                    "instance": {"id": "i-1", "region": "projects/1/regions/europe-west3"},
                    "project": {"projectId": "shop"},
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setattr(_metadata, "_GCP_METADATA_URL", f"http://127.0.0.1:{server.server_port}/")
        for name, value in {"K_SERVICE": "front", "K_REVISION": "front-2", "K_CONFIGURATION": "front"}.items():
            monkeypatch.setenv(name, value)
        _metadata.is_available.cache_clear()
        _metadata.get_metadata.cache_clear()
        attributes = export.resource_of_process().attributes
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
    assert (attributes["faas.name"], attributes["faas.version"], attributes["faas.instance"]) == (
        "front",
        "front-2",
        "i-1",
    )
    assert (attributes["cloud.platform"], attributes["cloud.region"]) == ("gcp_cloud_run", "europe-west3")
    assert attributes["service.name"] == "pulsecart"
