import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import attrs
import httpx
import pytest

from pulsecart import load_catalog
from pulsecart.access.keys import HASH, digest
from pulsecart.access.keys import new_key as new_access_key
from pulsecart.serve.settings import Settings
from pulsecart.testing import strict_pubsub
from tests.google_login import new_key, service_account
from tests.serving import run, serving

ORDER = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {"total": 89.9}}

OWN_EVENTS = """
from attrs import frozen
from pulsecart import Event, event

@event("stock.counted", topic="warehouse")
@frozen(kw_only=True)
class StockCounted(Event):
    count: int
"""


def test_serve_without_settings(tmp_path):
    """`pulsecart serve` alone accepts events, and its banner says that memory keeps nothing."""
    with serving(cwd=tmp_path) as served:
        response = httpx.post(f"{served.url}/events/ingest", json=ORDER)
        assert response.status_code == 202
        (message,) = httpx.get(f"{served.url}/dev/messages").json()["messages"]
        assert message["message_id"] == response.json()["message_id"]
        assert message["data"]["payload"] == {"total": 89.9}
    (banner,) = [line for line in served.output.splitlines() if "pulsecart (dev)" in line]
    assert "memory, which keeps nothing" in banner
    assert "http://127.0.0.1:" in banner


def test_options_override_the_environment_which_overrides_dotenv(tmp_path):
    """Options override environment variables, which override .env."""
    body = {**ORDER, "payload": {"text": "x" * 200}}
    (tmp_path / ".env").write_text("PULSECART_MAX_BODY_BYTES=100\nPULSECART_EVENTS=warehouse\n")
    (tmp_path / "warehouse.py").write_text(OWN_EVENTS)
    limits = {}
    for name, options, environment in (
        ("file", [], {}),
        ("environment", [], {"PULSECART_MAX_BODY_BYTES": "150"}),
        ("option", ["--max-body-bytes", "200"], {"PULSECART_MAX_BODY_BYTES": "150"}),
    ):
        with serving(*options, cwd=tmp_path, **environment) as served:
            limits[name] = httpx.post(f"{served.url}/events/ingest", json=body).json()["limit"]
    assert limits == {"file": 100, "environment": 150, "option": 200}


def test_event_module_in_the_working_directory(tmp_path):
    """PULSECART_EVENTS finds modules in the working directory."""
    (tmp_path / "warehouse.py").write_text(OWN_EVENTS)
    with serving(cwd=tmp_path, PULSECART_EVENTS="warehouse") as served:
        event = {"event_type": "stock.counted", "user_id": "u", "payload": {}, "count": 3}
        assert httpx.post(f"{served.url}/events/ingest", json=event).status_code == 202
        refused = httpx.post(f"{served.url}/events/ingest", json=event | {"count": "3"})
        assert [fault["pointer"] for fault in refused.json()["errors"]] == ["/count"]
        (message,) = httpx.get(f"{served.url}/dev/messages?topic=warehouse").json()["messages"]
        assert message["data"]["count"] == 3


@pytest.mark.parametrize("parts", [1, 2])
def test_offer_to_upgrade_is_ignored(tmp_path, parts):
    """A client that offers HTTP/2 with each request, as Java's does, is answered in HTTP/1.1."""
    body = json.dumps(ORDER | {"payload": {"text": "\r\nUpgrade: me"}}).encode()
    head = (
        b"POST /events/ingest HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    with serving(cwd=tmp_path) as served:
        url = httpx.URL(served.url)
        with socket.create_connection((url.host, url.port), timeout=30) as connection:
            for _ in range(2):
                if parts == 1:
                    connection.sendall(head + body)
                else:
                    connection.sendall(head)
                    connection.sendall(body)
                answer = b""
                while b"trace_id" not in answer:
                    received = connection.recv(65536)
                    assert received, answer
                    answer += received
                assert answer.startswith(b"HTTP/1.1 202 ")
        texts = [m["data"]["payload"]["text"] for m in httpx.get(f"{served.url}/dev/messages").json()["messages"]]
    assert texts == ["\r\nUpgrade: me"] * 2


def test_start_without_the_broker(tmp_path):
    """The service starts although the emulator cannot be reached, logs a warning, and is not ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    with serving("--project", "shop", "--emulator-host", host, "--publish-deadline", "0.5", cwd=tmp_path) as served:
        assert f"publishes to the Pub/Sub emulator at {host}, project shop" in served.output
        assert '"severity":"WARNING"' in served.output
        assert "The broker is not available yet" in served.output
        assert httpx.get(f"{served.url}/readyz").status_code == 503
        assert httpx.get(f"{served.url}/livez").status_code == 200
        refused = httpx.post(f"{served.url}/events/ingest", json=ORDER)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_pubsub_transport_with_credentials(tmp_path):
    """With a service account's key the service starts; it is not ready while its endpoint cannot be reached."""
    (tmp_path / "key.json").write_text(service_account(new_key()))
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--transport", "pubsub", "--environment", "prod", "--auth", "none", "--project", "shop")
    options += ("--endpoint", endpoint)
    with serving(*options, cwd=tmp_path, GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "key.json")) as served:
        assert f"publishes to Google Cloud Pub/Sub at {endpoint}, project shop" in served.output
        assert httpx.get(f"{served.url}/readyz").status_code == 503
        assert httpx.get(f"{served.url}/dev/messages").status_code == 404


@pytest.mark.parametrize(
    ("key", "says"),
    [(None, "Your default credentials were not found."), ("missing.json", "File missing.json was not found.")],
)
def test_missing_credentials_are_an_error_at_startup(tmp_path, key, says):
    """Without Application Default Credentials startup fails with a message, without a traceback."""
    environment = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}
    environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
    if key:
        environment["GOOGLE_APPLICATION_CREDENTIALS"] = key
    ended = run("serve", "--transport", "pubsub", "--project", "shop", "--port", "0", cwd=tmp_path, env=environment)
    assert ended.returncode == 2
    assert f"the pubsub transport needs Google's Application Default Credentials: {says}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_factory_logs_invalid_settings(tmp_path):
    """Under another server, one log line has all problems, before that server's traceback."""
    (tmp_path / ".env").write_text("PORT=http\nPULSECART_ZZZ=1\n")
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "--factory", "pulsecart.app:create_app"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode > 0
    assert ended.stderr.splitlines()[0] == (
        "Invalid settings: PORT (--port) must be a whole number from 0 to 65,535, not 'http'; "
        "PULSECART_ZZZ is not a setting"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_with_status_0(tmp_path, number):
    """SIGTERM and Ctrl+C end the service with exit status 0."""
    with serving(cwd=tmp_path) as served:
        served.tell_to_stop(number)
        assert served.wait() == 0
    assert "Application shutdown complete" in served.output


def test_drain_delay(tmp_path):
    """After SIGTERM the service is not ready but accepts events, until the delay is over or a second signal comes."""
    with serving("--drain-delay", "300", cwd=tmp_path) as served:
        served.tell_to_stop()
        end = time.monotonic() + 30
        while (ready := httpx.get(f"{served.url}/readyz")).status_code == 200 and time.monotonic() < end:
            time.sleep(0.01)
        assert (ready.status_code, ready.json()["detail"]) == (503, "the service is shutting down")
        assert httpx.get(f"{served.url}/readyz?exclude=broker").status_code == 503
        assert httpx.get(f"{served.url}/livez").status_code == 200
        assert httpx.post(f"{served.url}/events/ingest", json=ORDER).status_code == 202
        served.tell_to_stop()
        served.wait()


def test_port_in_use_is_an_error(tmp_path):
    """If the port is in use, startup fails with a message."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run("serve", "--port", str(taken.getsockname()[1]), cwd=tmp_path)
    assert ended.returncode > 0
    assert "address already in use" in ended.stderr


@pytest.mark.anyio
async def test_events_in_flight_at_shutdown_are_answered(tmp_path):
    """On SIGTERM an event that the broker does not confirm is answered 503 before the deadline."""
    async with strict_pubsub(load_catalog().topics) as server:
        host = server.host
        gate = asyncio.Event()
        server.script.extend([gate] * 10)
        options = (
            "--transport",
            "emulator",
            "--project",
            "test",
            "--environment",
            "staging",
            "--auth",
            "none",
            "--publish-deadline",
            "60",
        )

        def serve_and_stop() -> tuple[httpx.Response, float, int]:
            service = serving("--emulator-host", host, *options, cwd=tmp_path)
            with service as served, ThreadPoolExecutor(1) as threads:
                answer = threads.submit(httpx.post, f"{served.url}/events/ingest", json=ORDER, timeout=60)
                asyncio.run_coroutine_threadsafe(server.received(1), loop).result(30)
                start = time.monotonic()
                served.tell_to_stop()
                response = answer.result()
                return response, time.monotonic() - start, served.wait()

        loop = asyncio.get_running_loop()
        response, seconds, status = await asyncio.to_thread(serve_and_stop)
        gate.set()
    assert response.status_code == 503
    assert response.json()["retryable"] is True
    assert response.json()["event_id"]
    assert seconds < 20  # 7, and what a busy machine adds; the deadline alone would be 60
    assert status == 0


def test_wrong_settings_are_reported_together(tmp_path):
    """Startup fails with every problem, without a traceback."""
    ended = run(
        "serve", "--transport", "memory", "--environment", "prod", "--workers", "2", "--port", "x", cwd=tmp_path
    )
    assert ended.returncode == 2
    assert "ENVIRONMENT is prod" in ended.stderr
    assert "2 workers cannot share" in ended.stderr
    assert "PORT (--port) must be" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_serve_with_keys(tmp_path):
    """A caller with a key is served; one without gets its 401 at once, even if it waits for 100 Continue."""
    key = new_access_key()
    sources = tmp_path / "sources.toml"
    sources.write_text(f'[checkout]\nkeys = ["{HASH}{digest(key.encode()).hex()}"]\n')
    with serving("--auth", "keys", "--sources", str(sources), cwd=tmp_path) as served:
        url = f"{served.url}/events/ingest"
        assert httpx.post(url, json=ORDER, headers={"Authorization": f"Bearer {key}"}).status_code == 202
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=10) as caller:
            caller.sendall(
                b"POST /events/ingest HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
            )
            answer = b"".join(iter(lambda: caller.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert b"100 Continue" not in answer
        assert served.stop() == 0
    assert '"source":"checkout"' in served.output
    assert key[4:] not in served.output


def test_wrong_sources_are_an_error_at_startup(tmp_path):
    """Startup fails with file, line and reason, without a traceback."""
    (tmp_path / "sources.toml").write_text("[checkout]\nrate = 0\n")
    ended = run("serve", "--auth", "keys", "--sources", "sources.toml", "--port", "0", cwd=tmp_path)
    assert ended.returncode == 2
    assert "sources.toml, line 2: [checkout] rate must be" in ended.stderr
    assert "Traceback" not in ended.stderr
    ended = run("serve", "--auth", "keys", "--sources", "none.toml", "--port", "0", cwd=tmp_path)
    assert ended.returncode == 2
    assert "none.toml: the sources file cannot be read: No such file or directory" in ended.stderr


def test_oidc_without_its_extra_is_an_error_at_startup(tmp_path):
    """If PyJWT is not installed, the message says what to install."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['jwt'] = None\n")
    (tmp_path / "sources.toml").write_text("")
    options = ("--sources", "sources.toml", "--oidc-issuers", "https://a.example", "--oidc-audience", "x")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = run("serve", "--auth", "oidc", *options, "--port", "0", cwd=tmp_path, env=environment)
    assert ended.returncode == 2
    assert "pip install 'pulsecart[oidc]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_event_module_that_does_not_import_is_an_error(tmp_path):
    """Startup fails with the name of the module."""
    ended = run("serve", "--events", "no_such_module", cwd=tmp_path)
    assert ended.returncode == 1
    assert "Error: the module 'no_such_module' (PULSECART_EVENTS) does not import" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_help_shows_every_setting_in_its_group(tmp_path, columns):
    """`serve --help` has each option with its values, and its text, variable and default in lines of full width."""
    text = run("serve", "--help", cwd=tmp_path, env=os.environ | {"COLUMNS": str(columns)}).stdout
    assert max(map(len, text.splitlines())) <= columns
    groups = re.split(r"^(?=\S.*:$)", text, flags=re.MULTILINE)
    assert [group.partition(":")[0] for group in groups[1:]] == [
        "What to serve",
        "Where events go",
        "Who may send events",
        "Limits",
        "Ordering and batching",
        "Telemetry and logs",
        "Development",
        "Other",
    ]
    for setting in attrs.fields(Settings):
        metadata = setting.metadata
        (group,) = [group for group in groups if group.startswith(f"{metadata['group']}:\n")]
        words = f"{metadata['help']} [env: {metadata['variable']}, default: {metadata['default']}]"
        option = f"  --{setting.name.replace('_', '-')} {metadata['metavar']}\n"
        assert " ".join(group.partition(option)[2].split()).startswith(words)


def test_help_names_the_kind_of_value(tmp_path):
    """The placeholder of an option says what to write, not the name of the variable."""
    text = run("serve", "--help", cwd=tmp_path).stdout
    assert "--port NUMBER\n" in text
    assert "--transport [memory|emulator|pubsub|NAME|MODULE:FACTORY]\n" in text
    assert "--body-timeout SECONDS\n" in text
