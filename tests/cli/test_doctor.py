"""`pulsecart doctor`, on the strict server as Google Cloud."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from pulsecart.cli import main
from pulsecart.cli.keys import command as keys
from tests.serving import run
from tests.strict_server import on_a_thread

TOPICS = ["pulsecart.commerce-events", "pulsecart.system-events", "pulsecart.user-actions"]


def examined() -> tuple[int, list[str]]:
    ended = CliRunner().invoke(main, ["doctor"], catch_exceptions=False)
    return ended.exit_code, ended.output.splitlines()


def line(lines: list[str], name: str) -> str:
    return next(found for found in lines if found[6:].startswith(name))


@pytest.fixture
def lasting(monkeypatch) -> None:
    """Let the certificate of the next server expire later than it does."""
    real = x509.CertificateBuilder.not_valid_after
    late = datetime.now(UTC) + timedelta(days=60)
    monkeypatch.setattr(x509.CertificateBuilder, "not_valid_after", lambda self, _time: real(self, late))


@pytest.fixture
def ready(cloud) -> None:
    cloud.topics |= {f"projects/test/topics/{topic}" for topic in TOPICS}


@contextmanager
def raw_server(answer: bytes) -> Iterator[str]:
    """Answer each connection with these bytes, in two parts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(ConnectionError):  # the client may have read enough
                    connection.recv(65536)
                    connection.sendall(answer[:3])
                    time.sleep(0.1)  # so that they arrive apart
                    connection.sendall(answer[3:])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_everything_works(lasting, cloud, ready):
    """Each check is a line that says what was found, and the exit status is 0. Nothing is published or created."""
    status, lines = examined()
    assert status == 0, lines
    assert {found[:4] for found in lines} == {"ok  "}
    principal = "pulsecart@test.iam.gserviceaccount.com"
    assert line(lines, "setting: GCP") == "ok    setting: GCP_PROJECT_ID=test (from the environment)"
    assert line(lines, "events") == "ok    events: 8 event types on 3 topics"
    assert line(lines, "credentials") == f"ok    credentials: events are published as {principal}"
    assert f"{cloud.host} answers (TLSv1.3, connected in" in line(lines, "endpoint")
    assert line(lines, "clock") == "ok    clock: it agrees with the broker's"
    assert line(lines, "broker") == "ok    broker: it answers on the rest wire"
    for topic in TOPICS:
        assert line(lines, f"topic {topic}") == f"ok    topic {topic}: exists, and {principal} may publish to it"
    assert not cloud.requests
    assert len(cloud.topics) == 3


def test_the_other_wire(cloud, ready, monkeypatch):
    """With PULSECART_WIRE=grpc, that wire is checked."""
    monkeypatch.setenv("PULSECART_WIRE", "grpc")
    status, lines = examined()
    assert status == 0, lines
    assert line(lines, "broker") == "ok    broker: it answers on the grpc wire"


def test_wrong_settings_are_all_named(monkeypatch):
    """Wrong settings are lines of their own, after those that are set."""
    monkeypatch.setenv("ENVIRONMENT", "prod")
    monkeypatch.setenv("PORT", "http")
    status, lines = examined()
    assert status == 1
    assert "ok    setting: ENVIRONMENT=prod (from the environment)" in lines
    assert line(lines, "settings: PORT").startswith("fail")
    assert line(lines, "settings: PULSECART_TRANSPORT is not set").startswith("fail")


def test_settings_of_a_file_say_so(tmp_path):
    """A setting that comes from .env is told from one of the environment."""
    (tmp_path / ".env").write_text("PULSECART_LOG_LEVEL=debug\nPORT=1\n")
    ended = run("doctor", cwd=tmp_path, env={"PATH": "", "PORT": "2"})
    assert "ok    setting: PULSECART_LOG_LEVEL=debug (from .env)" in ended.stdout
    assert "ok    setting: PORT=2 (from the environment)" in ended.stdout
    assert ended.returncode == 0


def test_wrong_events_are_an_error(monkeypatch):
    """A module of events that does not exist, and a topic that no event has, are named."""
    monkeypatch.setenv("PULSECART_EVENTS", "no_such_module")
    status, lines = examined()
    assert status == 1
    assert "no_such_module" in line(lines, "events")
    monkeypatch.setenv("PULSECART_EVENTS", "")
    monkeypatch.setenv("PULSECART_TOPICS", "pulsecart.orders=shop.orders")
    assert "no event type has the topic 'pulsecart.orders'" in line(examined()[1], "events")


def test_sources(monkeypatch, tmp_path):
    """A sources file is read; what is wrong in it is named."""
    monkeypatch.setenv("PULSECART_AUTH", "keys")
    monkeypatch.setenv("PULSECART_SOURCES", "sources.toml")
    assert "fail  sources: " in line(examined()[1], "sources")
    made = CliRunner().invoke(keys, ["new", "checkout"]).output
    Path("sources.toml").write_text(made.partition("\n")[2])
    assert line(examined()[1], "sources") == "ok    sources: 1 in sources.toml: checkout"
    Path("sources.toml").write_text("[checkout]\nrat = 1")
    status, lines = examined()
    assert status == 1
    assert "rat" in line(lines, "sources")


def test_open_service_outside_development_is_a_warning(cloud, ready, monkeypatch):
    """PULSECART_AUTH=none is allowed, but worth a look."""
    monkeypatch.setenv("ENVIRONMENT", "prod")
    monkeypatch.setenv("PULSECART_AUTH", "none")
    status, lines = examined()
    assert status == 0
    assert line(lines, "access").startswith("warn  access: all who reach the port may send any event")


def test_missing_credentials(cloud, monkeypatch):
    """Without credentials the line says how to get them, and nothing else about the broker can be checked."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "missing.json")
    status, lines = examined()
    assert status == 1
    assert "Application Default Credentials" in line(lines, "broker")


def test_no_token(cloud, ready, monkeypatch):
    """Credentials for which there is no token are an error of their own."""
    Path("user.json").write_text(
        '{"type": "authorized_user", "client_id": "1", "client_secret": "x", "refresh_token": "x", '
        '"token_uri": "http://127.0.0.1:1/token"}'
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "user.json")
    status, lines = examined()
    assert status == 1
    assert line(lines, "credentials").startswith("fail  credentials: there is no valid access token: TransportError")
    assert "check GOOGLE_APPLICATION_CREDENTIALS" in line(lines, "credentials")


@pytest.mark.parametrize("transport", ["pubsub", "emulator"])
def test_broker_that_cannot_be_reached(cloud, monkeypatch, transport):
    """An endpoint that does not answer names what to check."""
    monkeypatch.setenv("PULSECART_TRANSPORT", transport)
    monkeypatch.setenv("PULSECART_ENDPOINT", "127.0.0.1:1")
    if transport == "emulator":
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    status, lines = examined()
    assert status == 1
    found = line(lines, "endpoint")
    assert found.startswith("fail  endpoint: 127.0.0.1:1 cannot be reached: ")
    assert ("check that it runs" in found) == (transport == "emulator")
    assert line(lines, "broker").startswith("fail  broker: no answer on the rest wire")


def test_certificate_that_is_not_trusted(cloud, monkeypatch):
    """A certificate of an unknown authority is a failure of the endpoint."""
    monkeypatch.delenv("PULSECART_CA_FILE")
    status, lines = examined()
    assert status == 1
    assert "CERTIFICATE_VERIFY_FAILED" in line(lines, "endpoint")
    assert "PULSECART_CA_FILE" in line(lines, "endpoint")


def test_proxy_is_named(cloud, monkeypatch):
    """A connection that goes through a proxy says so."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    assert f"{cloud.host} by the proxy 127.0.0.1:1 cannot be reached" in line(examined()[1], "endpoint")


@pytest.mark.parametrize(
    ("offset", "status", "says"),
    [
        (60, "warn", "s behind the broker's, so that generated timestamps are wrong: synchronize it (NTP)"),
        (-60, "warn", "s ahead of the broker's, so that generated timestamps are wrong"),
        (3600, "fail", "s behind the broker's, so that tokens are rejected"),
    ],
)
def test_clock(cloud, ready, offset, status, says):
    """A clock that differs from the broker's is a warning, and an error if tokens would be rejected."""
    cloud.clock_offset = offset
    ended, lines = examined()
    assert line(lines, "clock").startswith(f"{status}  clock: this machine's is ")
    assert says in line(lines, "clock")
    assert ended == (status == "fail")


@pytest.mark.parametrize("date", [b"", b"Date: yesterday\r\n"])
def test_answer_without_the_time(monkeypatch, date):
    """Not every emulator tells the time."""
    with raw_server(b"HTTP/1.1 404 Not Found\r\n" + date + b"Content-Length: 0\r\n\r\n") as host:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", host)
        assert line(examined()[1], "clock") == "ok    clock: the broker does not tell the time"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n\r\n", b"", b"x" * 70_000])
def test_answer_that_is_not_http(monkeypatch, answer):
    """Another service at the address is a failure."""
    with raw_server(answer) as host:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", host)
        assert "the answer is not HTTP" in line(examined()[1], "endpoint")


def test_certificate_that_expires_soon(cloud, ready):
    """A certificate is to be renewed before it expires."""
    status, lines = examined()
    assert status == 0
    assert line(lines, "endpoint").startswith("warn  endpoint: ")
    assert "its certificate expires on 2" in line(lines, "endpoint")


def test_missing_topic(cloud, ready, monkeypatch):
    """A topic that is missing says how to create it, under the name that it has in the project."""
    monkeypatch.setenv("PULSECART_TOPICS", "pulsecart.commerce-events=shop.orders")
    status, lines = examined()
    assert status == 1
    assert line(lines, "topic pulsecart.commerce-events (shop.orders)").endswith(
        "does not exist in project test: run pulsecart topics apply"
    )


def test_missing_permission(cloud, ready):
    """Without permission to publish, the role is named, and for whom."""
    cloud.denied |= {"pubsub.topics.publish", "pubsub.topics.get"}
    status, lines = examined()
    assert status == 1
    found = line(lines, "topic pulsecart.commerce-events")
    assert found.startswith("fail")
    assert "pulsecart@test.iam.gserviceaccount.com may not publish to it: grant roles/pubsub.publisher" in found


def test_permission_that_cannot_be_tested(cloud, ready):
    """A topic that exists for the look-up only is a failure with the broker's answer."""
    cloud.denied.add("pubsub.topics.get")
    cloud.topics.clear()
    status, lines = examined()
    assert status == 1
    assert "whether it may be published to is unknown: Resource not found" in line(lines, "topic pulsecart.comm")


def test_topics_of_an_emulator(monkeypatch):
    """On an emulator topics need no permission, and in development they are created."""
    with on_a_thread("pulsecart.user-actions", tls=False) as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.host)
        monkeypatch.setenv("GCP_PROJECT_ID", "test")
        status, lines = examined()
        assert status == 0
        assert line(lines, "topic pulsecart.user-actions") == "ok    topic pulsecart.user-actions: exists"
        assert "it is created when the service starts" in line(lines, "topic pulsecart.commerce-events")


def test_collectors(monkeypatch):
    """Each exported signal's collector is connected to; what is off is not checked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        status, lines = examined()
        assert status == 0
        assert line(lines, "export of traces") == f"ok    export of traces: 127.0.0.1:{port} accepts connections"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "127.0.0.1:1")
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
        status, lines = examined()
    assert status == 1
    assert line(lines, "export of metrics").startswith("fail  export of metrics: 127.0.0.1:1 cannot be reached")
    assert not any("export of traces" in found or "export of logs" in found for found in lines)
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    assert line(examined()[1], "export of logs").startswith("fail  export of logs: ")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert examined()[0] == 0


@pytest.mark.parametrize(
    ("endpoint", "protocol", "address"),
    [
        ("https://collector.invalid", "http/protobuf", "collector.invalid:443"),
        ("http://collector.invalid/v1", "http/protobuf", "collector.invalid:80"),
        ("http://collector.invalid", "grpc", "collector.invalid:4317"),
    ],
)
def test_address_of_a_collector(monkeypatch, endpoint, protocol, address):
    """Without a port, it is the protocol's."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    assert f"{address} cannot be reached" in line(examined()[1], "export of traces")


def test_exporters_that_are_not_installed(monkeypatch):
    """Without the extra, the line names it."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    assert "pip install 'pulsecart[otlp]'" in line(examined()[1], "export of traces")


@pytest.mark.parametrize(
    ("variable", "value", "signal", "says"),
    [
        ("OTEL_TRACES_EXPORTER", "otpl", "traces", "there is no exporter 'otpl'; exporters are otlp, console, none"),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grcp",
            "metrics",
            "there is no protocol 'grcp'; there are grpc, http/protobuf",
        ),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "logs", "ValueError: could not convert string to float: '10s'"),
    ],
)
def test_export_that_is_misconfigured(monkeypatch, variable, value, signal, says):
    """A line names the signal that would not be exported, and why; the exit status is 1."""
    for each in ("TRACES", "METRICS", "LOGS"):
        monkeypatch.setenv(f"OTEL_{each}_EXPORTER", "none")
    monkeypatch.setenv(f"OTEL_{signal.upper()}_EXPORTER", "otlp")
    monkeypatch.setenv(variable, value)
    status, lines = examined()
    assert status == 1
    assert line(lines, "export of").startswith(f"fail  export of {signal}: {says}")
    assert sum("export of" in found for found in lines) == 1
