"""Unit tests with pulsecart's fixtures, including an outage of the broker. Run: pytest examples/unit_tests.

pytest finds the fixtures in the installed package: pip install 'pulsecart[testing]'.
"""

import asyncio

from checkout import Checkout

from pulsecart import Producer
from pulsecart.events import OrderPlaced
from pulsecart.testing import RecordingTransport, Service


def test_an_order_is_published(pulsecart_events: RecordingTransport) -> None:
    asyncio.run(Checkout(Producer(pulsecart_events)).place_order("user-1", "order-1", 8990))
    placed = pulsecart_events.assert_published(OrderPlaced, order_id="order-1", payload={"cents": 8990})
    assert placed.event_id == "order.placed:order-1"


def test_an_order_is_kept_for_later_while_the_broker_is_away(pulsecart_events: RecordingTransport) -> None:
    checkout = Checkout(Producer(pulsecart_events))
    with pulsecart_events.outage():
        asyncio.run(checkout.place_order("user-1", "order-1", 8990))
    assert [event.event_id for event in checkout.to_retry] == ["order.placed:order-1"]


def test_an_order_is_published_in_the_background(pulsecart_events: RecordingTransport) -> None:
    async def run() -> None:
        placing = asyncio.create_task(Checkout(Producer(pulsecart_events)).place_order("user-1", "order-1", 8990))
        await pulsecart_events.wait_for(OrderPlaced, user_id="user-1")
        await placing

    asyncio.run(run())


def test_a_service_in_another_language_sends_this(
    pulsecart_service: Service, pulsecart_events: RecordingTransport
) -> None:
    body = {"event_type": "order.placed", "user_id": "user-1", "order_id": "order-1", "payload": {"cents": 8990}}
    assert pulsecart_service.client.post("/events/ingest", json=body).status_code == 202
    pulsecart_events.assert_published(OrderPlaced, user_id="user-1")
