"""One event, one trace: from the service that publishes it to the one that consumes it.

    python examples/tracing.py

Each has its own TracerProvider, as two services would. The memory transport takes the place of the broker.
"""

import asyncio

from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind

from pulsecart import Message, Producer
from pulsecart.events import OrderPlaced
from pulsecart.telemetry import EventIdGenerator, EventSampler, Telemetry
from pulsecart.transports import MemoryTransport

collected = InMemorySpanExporter()


def consume(message: Message, tracer: trace.Tracer) -> None:
    """Handle a message as a consumer would, and continue the trace that the message carries."""
    with (
        tracer.start_as_current_span("process order.placed", extract(message.attributes), SpanKind.CONSUMER),
        tracer.start_as_current_span("pack the parcel"),
    ):
        pass


def tree(spans: list[ReadableSpan], parent: int | None = None, depth: int = 0) -> list[str]:
    lines = []
    for span in spans:
        if span.context and (span.parent.span_id if span.parent else None) == parent:
            lines.append(f"{'  ' * depth}{span.name}")
            lines += tree(spans, span.context.span_id, depth + 1)
    return lines


async def main() -> None:
    # An application with its own provider gives it these two. `pulsecart serve` does that for you.
    producers = TracerProvider(id_generator=EventIdGenerator(), sampler=EventSampler(ALWAYS_ON))
    producers.add_span_processor(SimpleSpanProcessor(collected))
    trace.set_tracer_provider(producers)
    consumers = TracerProvider()
    consumers.add_span_processor(SimpleSpanProcessor(collected))

    transport = MemoryTransport()
    receipt = await Producer(transport, observer=Telemetry()).publish(
        OrderPlaced(user_id="user-1", order_id="order-1", payload={"total": 89.9})
    )
    consume(transport.messages[0], consumers.get_tracer("parcels"))

    spans = list(collected.get_finished_spans())
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {receipt.trace_id}
    print(f"event {receipt.event_id}")
    print(f"trace {receipt.trace_id}")
    print("\n".join(tree(spans, depth=1)))


asyncio.run(main())
