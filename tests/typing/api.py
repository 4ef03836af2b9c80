"""The public names, as a type checker sees them. Never run: `nox -s typecheck` checks it."""

import asyncio
from datetime import UTC, datetime
from typing import assert_type

from attrs import field, frozen
from grpc import StatusCode

from pulsecart import (
    BrokerUnavailable,
    Catalog,
    Event,
    Fault,
    Message,
    Producer,
    Receipt,
    SyncProducer,
    Transport,
    event,
)
from pulsecart.client import AsyncClient, Client, Failure, SendError
from pulsecart.client import Receipt as Sent
from pulsecart.events import OrderPlaced, non_empty
from pulsecart.testing import PublishRequest, RawAnswer, ReceivedMessage, RecordingTransport, http_answer, strict_pubsub
from pulsecart.transports import EmulatorTransport, MemoryTransport, PublishedMessage


@frozen(kw_only=True)
class Basket:
    items: list[str]


@event("shop.basket", topic="shop-events")
@frozen(kw_only=True)
class BasketFilled(Event):
    shop: str = field(validator=non_empty)
    payload: Basket


async def outage(message: Message) -> None:
    raise BrokerUnavailable(message.topic)


async def use() -> None:
    async with MemoryTransport(outage, keep=10) as memory:
        producer = Producer(
            memory,
            catalog=Catalog([BasketFilled, OrderPlaced]),
            clock=lambda: datetime.now(UTC),
            new_event_id=lambda: "evt_1",
        )
        assert_type(await producer.ingest(b"{}"), Receipt)
        filled = BasketFilled(user_id="u", shop="s", payload=Basket(items=[]))
        assert_type(filled.payload, Basket)
        assert_type(filled.event_type, str)
        assert_type((await producer.publish(filled)).message_id, str)
        async for outcome in producer.publish_many([filled, b"{}", {}, producer.prepare(filled)]):
            assert_type(outcome, Receipt | Exception)
        assert_type(memory.messages, list[PublishedMessage])
    async with EmulatorTransport(project="p", host="127.0.0.1:8085") as emulator:
        port: Transport = emulator
        await port.check(["t"])
    async with strict_pubsub(["t"], tls=True) as server:
        server.script.extend(["UNAVAILABLE", StatusCode.ABORTED, ["1"], asyncio.Event(), RawAnswer(), None])
        server.script.append(lambda request: http_answer(502) if request.wire == "rest" else None)
        server.script.append(7)  # type: ignore[arg-type]
        server.latency = lambda request: request.connection % 2
        assert_type(server.confirmed, list[ReceivedMessage])
        assert_type(server.requests, list[PublishRequest])
    assert_type(BrokerUnavailable("x").event_id, str | None)
    assert_type(Fault("", "", "").pointer, str)
    recording = RecordingTransport()
    assert_type(recording.published(OrderPlaced, user_id="u"), list[OrderPlaced])
    assert_type(recording.assert_published(BasketFilled).payload, Basket)
    assert_type(await recording.wait_for(OrderPlaced, timeout=1), OrderPlaced)
    BasketFilled(user_id="u", shop="s")  # type: ignore[call-arg]
    filled.shop = "t"  # type: ignore[misc]


async def call() -> None:
    event = OrderPlaced(user_id="u", order_id="o", payload={})
    with Client("http://localhost", key="k") as client:
        assert_type(client.send(event), Sent)
        assert_type(client.send({"event_type": "order.placed"}).message_id, str | None)
        try:
            for receipt in client.send_many([event, {}, b"{}"]):
                assert_type(receipt, Sent)
        except SendError as error:
            assert_type(error.failures, tuple[Failure, ...])
            assert_type(error.retryable, bool)
        for outcomes in client.send_batches([event]):
            assert_type(outcomes, list[Sent | Failure])
        client.send("{}")  # type: ignore[arg-type]
    async with AsyncClient("http://localhost") as other:
        assert_type(await other.send(b"{}"), Sent)
        async for receipt in other.send_many(iter([event])):
            assert_type(receipt, Sent)


def use_without_an_event_loop() -> None:
    with SyncProducer(MemoryTransport(), catalog=Catalog([OrderPlaced]), new_event_id=lambda: "evt_1") as producer:
        assert_type(producer.publish(OrderPlaced(user_id="u", order_id="o", payload={})), Receipt)
        producer.publish(b"{}")  # type: ignore[arg-type]
    SyncProducer(MemoryTransport(), deadline=3)  # type: ignore[call-arg]
