"""Consume events from Pub/Sub as a downstream service would.

    python examples/consumer.py

It needs an emulator at PUBSUB_EMULATOR_HOST (`nox -s emulator` starts one and runs this), publishes a few events to
it, one of them twice, and consumes them with Google's subscriber: as typed events, in order per user, each once, and in
the trace that the message carries.
"""

import asyncio
import os
import threading
import uuid
from collections import defaultdict
from decimal import Decimal

from google.cloud import pubsub_v1  # type: ignore[import-untyped]
from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from pulsecart import EventError, Producer, load_catalog, trace_id_of
from pulsecart.events import Event, OrderPlaced, PaymentFailed
from pulsecart.telemetry import EventIdGenerator, Telemetry
from pulsecart.transports import EmulatorTransport

PROJECT = f"consumer-{uuid.uuid4().hex[:8]}"
TOPIC = OrderPlaced.topic
ORDERS = 5

catalog = load_catalog()
trace.set_tracer_provider(TracerProvider(id_generator=EventIdGenerator()))
tracer = trace.get_tracer("consumer")


class Consumer:
    """Handles each event once. In production `_seen` is a table with a unique key, written with the event's effects."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._lock = threading.Lock()  # the subscriber calls from several threads, but one at a time for each user
        self._seen: set[str] = set()
        self.duplicates = 0
        self.handled: dict[str, list[str]] = defaultdict(list)
        self.traces: dict[str, str] = {}
        self.done = threading.Event()

    def receive(self, message: pubsub_v1.subscriber.message.Message) -> None:
        """Handle a message. It is acknowledged when that is done, so it comes again if the process dies before."""
        try:
            # Fields that are newer than this consumer are ignored.
            event = catalog.read(message.data, tolerant=True)
        except EventError as error:
            # It would fail again for ever: a subscription with a dead-letter topic puts it aside.
            print("cannot read", message.message_id, error)
            message.nack()
            return
        with tracer.start_as_current_span(
            f"process {event.event_type}", extract(message.attributes), SpanKind.CONSUMER
        ) as span:
            self.handle(event, f"{span.get_span_context().trace_id:032x}")
        message.ack()

    def handle(self, event: Event, trace_id: str) -> None:
        assert event.event_id is not None  # a published event has one
        with self._lock:
            if event.event_id in self._seen:
                self.duplicates += 1
            else:
                self._seen.add(event.event_id)
                self.handled[event.user_id].append(describe(event))
                self.traces[event.event_id] = trace_id
            if len(self._seen) + self.duplicates == self._expected:
                self.done.set()


def describe(event: Event) -> str:
    match event:
        case OrderPlaced(order_id=order_id, payload=payload):
            total = payload["total"]
            assert isinstance(total, Decimal)  # 89.90 is still 89.90
            return f"{order_id} for {total}"
        case PaymentFailed(order_id=order_id):
            return f"{order_id} not paid"
        case _:
            return event.event_type


async def publish(users: list[str]) -> None:
    host = os.environ["PUBSUB_EMULATOR_HOST"]
    async with EmulatorTransport(project=PROJECT, host=host) as transport:
        producer = Producer(transport, observer=Telemetry())
        for number in range(1, ORDERS + 1):
            for user in users:
                order = OrderPlaced(user_id=user, order_id=f"order-{number}", payload={"total": Decimal("89.90")})
                await producer.publish(order)
        failed = PaymentFailed(event_id=f"failed-{PROJECT}", user_id=users[0], order_id="order-1", payload={})
        for _ in range(2):  # a caller that got no answer sends it again, under the same id
            await producer.publish(failed)


def main() -> None:
    users = ["user-1", "user-2"]
    consumer = Consumer(expected=ORDERS * len(users) + 2)
    with pubsub_v1.SubscriberClient() as subscriber, pubsub_v1.PublisherClient() as publisher:
        topic, subscription = publisher.topic_path(PROJECT, TOPIC), subscriber.subscription_path(PROJECT, "orders")
        publisher.create_topic(name=topic)
        subscriber.create_subscription(request={"name": subscription, "topic": topic, "enable_message_ordering": True})
        asyncio.run(publish(users))
        pulling = subscriber.subscribe(subscription, consumer.receive)
        finished = consumer.done.wait(60)
        pulling.cancel()
        pulling.result(60)
    assert finished, "not every event came within a minute"
    for user, events in consumer.handled.items():
        print(f"{user}: {', '.join(events)}")
    expected = [f"order-{number} for 89.90" for number in range(1, ORDERS + 1)]
    assert consumer.handled == {users[0]: [*expected, "order-1 not paid"], users[1]: expected}
    assert all(trace_id == trace_id_of(event_id) for event_id, trace_id in consumer.traces.items())
    print(f"{consumer.duplicates} duplicate dropped")


if __name__ == "__main__":
    main()
