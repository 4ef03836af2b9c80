"""Log lines as OpenTelemetry's log records, over real sockets to a collector."""

import json
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

from pulsecart.telemetry import export
from tests.collector import Collector, collector
from tests.serving import Served, serving

ORDER = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {"total": 89.9}}

FAULTY = """
from attrs import field, frozen
from pulsecart import Event, event

def divide(_event, _field, value):
    1 / value

@event("stock.counted", topic="warehouse")
@frozen(kw_only=True)
class StockCounted(Event):
    count: int = field(validator=divide)
"""


def to(collects: Collector, protocol: str = "grpc", **more: str) -> dict[str, str]:
    return {
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": collects.endpoint + ("" if protocol == "grpc" else "/v1/logs"),
        "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": protocol,
        **more,
    }


def post(served: Served, **changes) -> httpx.Response:
    return httpx.post(f"{served.url}/events/ingest", json=ORDER | changes, timeout=30)


def lines(served: Served) -> list[dict]:
    return [json.loads(line) for line in served.output.splitlines()]


def messages(served: Served, text: str) -> list[str]:
    return [line["message"] for line in lines(served) if text in line["message"]]


def attributes(record) -> dict:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in record.attributes}


def wait_for(condition, served: Served) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, served.output
        time.sleep(0.02)


def lost_and_logged(served: Served) -> tuple[int, int]:
    """Return how many records are said to be lost, and of how many lines.

    Before the telemetry is set up two lines are written, and after it has been flushed some more.
    """
    found = [line["message"] for line in lines(served)]
    first = found.index("Waiting for application startup.") + 1
    (last,) = [index for index, message in enumerate(found) if "did not reach their collector" in message]
    return int(found[last].split()[0]), last - first


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_lines_reach_a_collector(tmp_path, protocol):
    """A record has the fields of its line and the trace of its event; lines of the service itself come, too."""
    with collector(protocol) as collects:
        with serving(cwd=tmp_path, **to(collects, protocol)) as served:
            answer = post(served).json()
            assert served.stop() == 0
        (record,) = [record for record in collects.logs if record.body.string_value == "event published"]
    (line,) = [line for line in lines(served) if line["message"] == "event published"]
    assert record.trace_id.hex() == answer["trace_id"] == answer["event_id"].removeprefix("evt_")
    assert (record.severity_number, record.severity_text) == (9, "INFO")
    assert attributes(record) == {
        name: value
        for name, value in line.items()
        if name not in ("message", "severity", "time") and not name.startswith("logging.googleapis.com")
    }
    assert abs(record.time_unix_nano / 1e9 - time.time()) < 60
    assert "Application startup complete." in [record.body.string_value for record in collects.logs]
    assert {resource["service.name"] for resource in collects.resources} == {"pulsecart"}
    assert not messages(served, "collector")


def test_record_of_a_sampled_event_has_its_span(tmp_path):
    """With traces a record is of the event's own span, and sampled as it is."""
    with collector("grpc") as collects:
        with serving(cwd=tmp_path, **to(collects, OTEL_EXPORTER_OTLP_ENDPOINT=collects.endpoint)) as served:
            assert post(served).status_code == 202
            served.stop()
        (record,) = [record for record in collects.logs if record.body.string_value == "event published"]
        (create,) = [span for span in collects.spans if span.name.startswith("create")]
    assert (record.trace_id, record.span_id, record.flags) == (create.trace_id, create.span_id, 1)


def test_record_of_a_defect_has_its_traceback(tmp_path):
    """Under the name that OpenTelemetry's conventions give it."""
    (tmp_path / "warehouse.py").write_text(FAULTY)
    with collector("grpc") as collects:
        with serving(cwd=tmp_path, PULSECART_EVENTS="warehouse", **to(collects)) as served:
            event = {"event_type": "stock.counted", "user_id": "u", "payload": {}, "count": 0}
            assert httpx.post(f"{served.url}/events/ingest", json=event).status_code == 500
            served.stop()
        (record,) = [record for record in collects.logs if record.body.string_value == "event failed"]
    assert record.severity_number == 17
    assert "in divide" in attributes(record)["exception.stacktrace"]


def test_an_endpoint_for_all_signals_exports_no_logs(tmp_path):
    """Logs are off unless they are asked for."""
    with collector("grpc") as collects:
        with serving(cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collects.endpoint) as served:
            assert post(served).status_code == 202
            served.stop()
        assert collects.spans
        assert collects.logs == []


def test_none_and_unknown_exporters(monkeypatch, caplog):
    """OTEL_LOGS_EXPORTER=none, as many set it, sets nothing up; a misspelt one is named."""
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    assert export.set_up_providers.__wrapped__() == []
    assert caplog.records == []
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none,otpl")
    assert export.set_up_providers.__wrapped__() == []
    assert "No logs are exported: there is no exporter 'otpl'" in caplog.text


def test_a_bad_bound_disables_the_export_only(tmp_path):
    """The service runs; the warning names the signal and the value."""
    environment = {"OTEL_LOGS_EXPORTER": "console", "OTEL_BLRP_MAX_QUEUE_SIZE": "many"}
    with serving(cwd=tmp_path, **environment) as served:
        assert post(served).status_code == 202
        served.stop()
    (message,) = messages(served, "No logs are exported: ValueError")
    assert "'many'" in message


def test_without_a_collector_events_are_published_and_the_lost_records_counted(tmp_path):
    """One line says why none arrives, and one at the end how many were lost: all, to the last."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"http://127.0.0.1:{port}/v1/logs",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        "OTEL_BLRP_SCHEDULE_DELAY": "10",
    }
    with serving(cwd=tmp_path, **environment) as served:
        wait_for(lambda: post(served).status_code == 202 and messages(served, "do not reach"), served)
        for _ in range(50):
            assert post(served).elapsed.total_seconds() < 1
        start = time.monotonic()
        assert served.stop() == 0
        assert time.monotonic() - start < 8
    (reason,) = messages(served, "The logs do not reach their collector; publishing goes on")
    assert "refused" in reason
    lost, logged = lost_and_logged(served)
    assert lost == logged > 50


def test_a_collector_that_recovers_gets_what_follows(tmp_path):
    """After an outage one line says how many records were lost, and later ones arrive."""
    with collector("http/protobuf") as collects:
        collects.go_on.clear()
        environment = to(collects, "http/protobuf", OTEL_EXPORTER_OTLP_TIMEOUT="1", OTEL_BLRP_SCHEDULE_DELAY="10")
        with serving(cwd=tmp_path, **environment) as served:
            wait_for(lambda: messages(served, "The logs do not reach"), served)
            collects.go_on.set()
            wait_for(lambda: post(served).status_code == 202 and messages(served, "again"), served)
            assert served.stop() == 0
        bodies = {record.body.string_value for record in collects.logs}
    (again,) = messages(served, "The logs reach their collector again")
    assert int(again.split("; ")[1].split()[0]) > 0
    assert again in bodies


def test_a_collector_that_hangs_fills_a_bounded_queue(tmp_path):
    """Records beyond it are dropped, which is logged once; events are answered; each record arrives or is counted."""
    with collector("grpc") as collects:
        collects.go_on.clear()
        bounds = {"OTEL_BLRP_MAX_QUEUE_SIZE": "10", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "5"}
        patience = {"OTEL_EXPORTER_OTLP_TIMEOUT": "120"}  # no export fails, however long the events take
        with serving(cwd=tmp_path, **to(collects, **bounds, **patience)) as served:
            for _ in range(100):
                answer = post(served)
                assert (answer.status_code, answer.elapsed.total_seconds() < 1) == (202, True)
            collects.go_on.set()
            wait_for(lambda: len(collects.logs) >= 10, served)
            assert served.stop() == 0
        arrived = len(collects.logs)
    assert len(messages(served, "Log records are dropped")) == 1
    lost, logged = lost_and_logged(served)
    assert lost > 80
    assert lost + arrived == logged


def test_provider_of_the_host_gets_the_records(tmp_path):
    """If the host has set a LoggerProvider, lines go to it, if logs are asked for, and no other is set."""
    program = """
import structlog
from opentelemetry import _logs
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
host, kept = LoggerProvider(), InMemoryLogRecordExporter()
host.add_log_record_processor(SimpleLogRecordProcessor(kept))
_logs.set_logger_provider(host)
from pulsecart.telemetry import export, logs
logs.configure("info", "shop")
log = structlog.get_logger()
log.info("before")
assert export.set_up_providers() == []
log.info("after", parts=["a"])
(found,) = kept.get_finished_logs()
assert found.log_record.body == "after"
assert found.log_record.attributes["parts"] == "['a']"
"""
    environment = os.environ | {"OTEL_LOGS_EXPORTER": "otlp"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
