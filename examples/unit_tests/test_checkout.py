"""Unit tests on the memory transport, the broker's outage included. Run: pytest examples/unit_tests."""

import asyncio

from checkout import Checkout

from pulsecart import BrokerUnavailable, Message, Producer
from pulsecart.transports import MemoryTransport


def test_an_order_is_published() -> None:
    transport = MemoryTransport()
    asyncio.run(Checkout(Producer(transport)).place_order("user-1", "order-1", 8990))
    (message,) = transport.messages
    assert message.topic == "pulsecart.commerce-events"
    assert message.ordering_key == "user-1"
    assert message.attributes == {"event_type": "order.placed", "event_id": "order-1"}
    assert message.json()["payload"] == {"cents": 8990}


def test_an_order_is_kept_for_later_while_the_broker_is_away() -> None:
    async def outage(_message: Message) -> None:
        raise BrokerUnavailable("the broker is away")

    checkout = Checkout(Producer(MemoryTransport(outage)))
    asyncio.run(checkout.place_order("user-1", "order-1", 8990))
    assert [event.event_id for event in checkout.to_retry] == ["order-1"]
