"""`/metrics`, scraped from the running service."""

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.serving import Served, serving

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def exposing(folder: Path, **environment: str) -> Iterator[tuple[Served, str]]:
    """Serve with /metrics on memory, and give its URL."""
    port = free_port()
    with serving("--metrics-port", str(port), "--transport", "memory", cwd=folder, **environment) as served:
        yield served, f"http://127.0.0.1:{port}/metrics"


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[tuple[Served, str]]:
    with exposing(tmp_path_factory.mktemp("service")) as running:
        yield running


def scrape(url: str, accept: str = OPENMETRICS) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept})) as answer:
        return answer.read().decode()


def families(url: str):
    return {family.name: family for family in parse_openmetrics(scrape(url))}


def value(url: str, name: str, **labels: str) -> float:
    """Return the sum of the samples that have these labels."""
    return sum(
        sample.value
        for family in families(url).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def post(served: Served, body: bytes) -> httpx.Response:
    return httpx.post(f"{served.url}/events/ingest", content=body, headers={"Content-Type": "application/json"})


def test_events_are_counted_by_outcome(service, order_json):
    """`pulsecart_events_total` counts by type and outcome; what a caller makes up is no label."""
    served, url = service
    published = {"pulsecart_outcome": "published", "cloudevents_event_type": "order.placed"}
    before = value(url, "pulsecart_events_total", **published)
    assert post(served, order_json()).status_code == 202
    assert post(served, order_json(order_id="")).status_code == 422
    assert post(served, order_json(event_type="made.up")).status_code == 422
    assert value(url, "pulsecart_events_total", **published) == before + 1
    assert value(url, "pulsecart_events_total", pulsecart_outcome="refused", error_type="InvalidEvent") >= 1
    assert "made.up" not in scrape(url)


def test_event_ids_are_exemplars(service, order_json):
    """In OpenMetrics the counter of events has the id of the last event; an id that is too long is left out."""
    served, url = service
    event_id = post(served, order_json()).json()["event_id"]

    def exemplar():
        return next(
            sample.exemplar
            for sample in families(url)["pulsecart_events"].samples
            if sample.labels.get("pulsecart_outcome") == "published"
        )

    assert exemplar().labels == {"event_id": event_id}
    strange = 'with "quotes", \\ and \n'
    assert post(served, order_json(event_id=strange)).status_code == 202
    assert exemplar().labels == {"event_id": strange}
    assert post(served, order_json(event_id="x" * 101)).status_code == 202
    assert exemplar() is None


def test_durations_are_histograms(service, order_json):
    """Requests are in buckets in seconds, which have what an objective of one second needs."""
    served, url = service
    labels = {"http_route": "/events/ingest", "http_response_status_code": "202"}
    before = value(url, "http_server_request_duration_seconds_count", **labels)
    post(served, order_json())
    assert value(url, "http_server_request_duration_seconds_count", **labels) == before + 1
    for bound in ("1.0", "+Inf"):
        assert value(url, "http_server_request_duration_seconds_bucket", le=bound, **labels) == before + 1
    assert value(url, "http_server_request_duration_seconds_sum", **labels) > 0


def test_older_text_format(service, order_json):
    """A scraper that does not ask for OpenMetrics gets the older format, without exemplars."""
    served, url = service
    post(served, order_json())
    text = scrape(url, "text/plain")
    names = {family.name for family in parse_text(text)}
    assert {"pulsecart_events", "pulsecart_info", "pulsecart_messages_in_flight", "process_open_fds"} <= names
    assert "event_id" not in text
    assert "# TYPE pulsecart_events_total counter" in text


def test_metrics_are_only_on_their_own_port(service):
    """The port for events does not show them."""
    served, _url = service
    assert httpx.get(f"{served.url}/metrics").status_code == 404


def test_traces_are_exemplars_of_durations(tmp_path, order_json):
    """With tracing on, durations have trace ids as exemplars, also next to a histogram of the SDK."""
    for aggregation in ("explicit_bucket_histogram", "base2_exponential_bucket_histogram"):
        environment = {
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": aggregation,
        }
        with exposing(tmp_path, **environment) as (served, url):
            answer = post(served, order_json())
            trace_id = answer.headers["traceresponse"].split("-")[1]
            exemplars = [
                sample.exemplar.labels["trace_id"]
                for sample in families(url)["http_server_request_duration_seconds"].samples
                if sample.exemplar
            ]
            assert exemplars == [trace_id]
            assert value(url, "http_server_request_duration_seconds_count", http_route="/events/ingest") == 1


def test_port_that_is_taken_is_an_error(tmp_path):
    """The service does not start without its metrics, and says why."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(AssertionError, match="metrics cannot be served on 127.0.0.1:.*Address already in use"),
        serving("--metrics-port", str(taken.getsockname()[1]), cwd=tmp_path),
    ):
        pass  # not reached


def test_metrics_end_with_the_service(tmp_path):
    """A service that has ended no longer listens on the port."""
    with exposing(tmp_path) as (served, url):
        assert scrape(url)
        assert served.stop() == 0
        with pytest.raises(OSError, match="Connection refused"):
            scrape(url)
