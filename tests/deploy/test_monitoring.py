"""`deploy/monitoring`: rules and dashboard against the metrics that the service has, and in a real Prometheus."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.faults.debian import installed
from tests.serving import serving
from tests.strict_server import on_a_thread

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
TOPICS = ("pulsecart.commerce-events", "pulsecart.system-events", "pulsecart.user-actions")
WAIT_SECONDS = 60

RULES = [rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
PANELS = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]

_NAMES = r"(?:pulsecart|http|messaging|process)[a-z_]*(?::[a-z_0-9:]+)?"
_OF_PROMETHEUS = {"instance", "job", "le"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds, and return its value."""
    end = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)
    return value


@contextmanager
def exposing(folder: Path, broker: str) -> Iterator[tuple[str, int]]:
    """Serve with /metrics, and give the URL for events and the port for metrics."""
    port = free_port()
    options = ("--transport", "emulator", "--emulator-host", broker, "--project", "test")
    with serving(*options, "--metrics-port", str(port), "--publish-deadline", "1", cwd=folder) as served:
        yield served.url, port


def order(**fields: Any) -> dict[str, Any]:
    return {"event_type": "order.placed", "user_id": "u", "order_id": "o", "payload": {}} | fields


def test_every_metric_and_label_exists(tmp_path):
    """Each name in the rules and the dashboard is one that the service exposes, and each label one that it has."""
    with on_a_thread(*TOPICS, tls=False) as broker, exposing(tmp_path, broker.host) as (url, port):
        assert httpx.post(f"{url}/events/ingest", json=order()).status_code == 202
        assert httpx.post(f"{url}/events/ingest", json=order(order_id="")).status_code == 422
        assert httpx.post(f"{url}/events/batch", json=[order()]).status_code == 202
        broker.topics.clear()
        broker.script.append("PERMISSION_DENIED")
        assert httpx.post(f"{url}/events/ingest", json=order()).status_code == 503
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    exposed = set(re.findall(r"^([a-z_]+)(?:\{| )", text, re.MULTILINE)) | RECORDED | {"up"}
    labels = set(re.findall(r'[{,]([a-z_]+)="', text)) | _OF_PROMETHEUS
    assert len(EXPRESSIONS) > 40
    for expression in EXPRESSIONS:
        in_braces = set(re.findall(r"([a-z_]+)\s*(?:=~|!=|!~|=)", "".join(re.findall(r"\{[^}]*\}", expression))))
        grouped = {name for names in re.findall(r"by \(([^)]*)\)", expression) for name in names.split(", ")}
        assert in_braces | grouped <= labels, expression
        bare = re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expression)
        assert set(re.findall(_NAMES, bare)) <= exposed, expression


def test_every_panel_has_a_place_of_its_own():
    """No panel covers another."""
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(places)) == len(PANELS)
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


@pytest.mark.monitoring
def test_alerts_fire_on_an_outage_and_not_otherwise():
    """Promtool's unit tests of the rules."""
    promtool = installed("bin/promtool", "prometheus")
    subprocess.run([promtool, "check", "config", "prometheus.yml"], cwd=MONITORING, check=True)
    subprocess.run([promtool, "test", "rules", "rules_test.yml"], cwd=MONITORING, check=True)


@pytest.mark.monitoring
def test_metrics_pass_promtools_checks(tmp_path):
    """Promtool finds nothing wrong with what is exposed, but names that OpenTelemetry prescribes."""
    promtool = installed("bin/promtool", "prometheus")
    with on_a_thread(*TOPICS, tls=False) as broker, exposing(tmp_path, broker.host) as (url, port):
        assert httpx.post(f"{url}/events/ingest", json=order()).status_code == 202
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert checked.returncode in (0, 3), checked.stderr  # 3 is for hints about names
    assert "error while linting" not in checked.stderr


class Prometheus:
    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        return httpx.get(f"{self._url}/api/v1/{path}", params=parameters).raise_for_status().json()["data"]

    def value(self, query: str) -> float:
        """Return the value of a query that has one; 0 if it has none."""
        found = self.get("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def states(self) -> dict[str, str]:
        """Return the state of each alert that is pending or firing."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self.get("alerts")["alerts"]}


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[Prometheus]:
    """Run a Prometheus with the configuration and rules of deploy/monitoring, every second, on another target."""
    program = installed("bin/prometheus", "prometheus")
    shutil.copy(MONITORING / "rules.yml", folder)
    configuration = (MONITORING / "prometheus.yml").read_text()
    assert "pulsecart:9464" in configuration
    file = folder / "prometheus.yml"
    file.write_text(configuration.replace("pulsecart:9464", f"127.0.0.1:{target}").replace("15s", "1s"))
    port = free_port()
    options = [
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen([program, *options], stderr=log) as process:
        url = f"http://127.0.0.1:{port}"

        def is_ready() -> bool:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            try:
                return httpx.get(f"{url}/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        try:
            until(is_ready)
            yield Prometheus(url)
        finally:
            process.terminate()


@pytest.mark.monitoring
def test_prometheus_scrapes_the_service_under_load(tmp_path):
    """A real Prometheus counts all events, keeps their ids as exemplars, and its alerts notice an outage."""
    with (
        on_a_thread(*TOPICS, tls=False) as broker,
        exposing(tmp_path, broker.host) as (url, port),
        prometheus(tmp_path, port) as server,
        httpx.Client() as client,
        ThreadPoolExecutor(8) as callers,
    ):
        until(lambda: server.value('up{job="pulsecart"}') == 1)

        def post(number: int) -> str:
            return client.post(f"{url}/events/ingest", json=order(user_id=f"u{number}")).json()["event_id"]

        event_ids = set(callers.map(post, range(2000)))
        until(lambda: server.value("sum(pulsecart_events_total)") == 2000)
        assert len(broker.confirmed) == 2000
        count = 'sum(http_server_request_duration_seconds_count{http_route="/events/ingest"})'
        until(lambda: server.value(count) == 2000)
        assert server.value("pulsecart_messages_in_flight") == 0

        now = time.time()
        found = server.get("query_exemplars", query="pulsecart_events_total", start=str(now - 600), end=str(now + 600))
        exemplars = {exemplar["labels"]["event_id"] for series in found for exemplar in series["exemplars"]}
        assert exemplars
        assert exemplars <= event_ids

        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        until(lambda: all(rule["health"] == "ok" for rule in server.get("rules")["groups"][0]["rules"]))
        assert len(rules) == len(RULES)
        until(lambda: server.get("query", query="pulsecart:failed:ratio_rate1h")["result"])
        assert server.states() == {}

        broker.script.extend(["PERMISSION_DENIED"] * 100_000)
        wanted = {"PulsecartEventsFailedFast", "PulsecartNotAcceptedFast"}

        def fail(number: int) -> int:
            return client.post(f"{url}/events/ingest", json=order(user_id=f"u{number}")).status_code

        def alerts_after_failures() -> bool:
            # Again and again, since an increase shows only between two scrapes of a series. Many, since an alert needs
            # 14.4 % of all requests.
            assert set(callers.map(fail, range(50))) == {503}
            return wanted <= server.states().keys()

        until(alerts_after_failures)
