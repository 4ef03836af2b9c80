"""Google's subscriber, with its own tracing, continues the trace of an event."""

import threading
import uuid

import httpx
import pytest
from google.cloud import pubsub_v1
from google.cloud.pubsub_v1.types import SubscriberOptions
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.serving import serving

pytestmark = pytest.mark.emulator

TOPIC = "pulsecart.commerce-events"
ORDER = {"event_type": "order.placed", "user_id": "u1", "order_id": "o1", "payload": {"total": 89.9}}


@pytest.fixture
def consumers_spans(monkeypatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def test_google_subscriber_continues_the_trace(tmp_path, consumers_spans):
    """The subscriber's span is in the trace of the event id, a child of the span that the message names."""
    project = f"p-{uuid.uuid4().hex[:12]}"
    received, found = threading.Event(), []

    def handle(message) -> None:
        found.append(dict(message.attributes))
        message.ack()
        received.set()

    with serving("--project", project, cwd=tmp_path, OTEL_TRACES_EXPORTER="none") as served:
        options = SubscriberOptions(enable_open_telemetry_tracing=True)
        with pubsub_v1.SubscriberClient(subscriber_options=options) as client:
            path = client.subscription_path(project, "orders")
            client.create_subscription(name=path, topic=f"projects/{project}/topics/{TOPIC}")
            pulling = client.subscribe(path, callback=handle)
            answer = httpx.post(f"{served.url}/events/ingest", json=ORDER).json()
            assert received.wait(60)
            pulling.cancel()
            pulling.result(60)
    (attributes,) = found
    _version, trace_id, span_id, _flags = attributes["googclient_traceparent"].split("-")
    (subscribe,) = [span for span in consumers_spans.get_finished_spans() if span.name.endswith(" subscribe")]
    assert f"{subscribe.context.trace_id:032x}" == trace_id == answer["trace_id"]
    assert f"{subscribe.parent.span_id:016x}" == span_id
    assert attributes["traceparent"] == attributes["googclient_traceparent"]
