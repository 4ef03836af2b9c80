"""A checkout service that sends its events over HTTP. Run: python examples/checkout_client.py.

The service runs in this process, on the memory transport. In production: AsyncClient("https://events.example", key=…).
"""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal

import httpx

from pulsecart import BrokerUnavailable, Message
from pulsecart.app import create_app
from pulsecart.client import AsyncClient, SendError
from pulsecart.events import OrderPlaced
from pulsecart.transports import MemoryTransport


class Checkout:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._relaying = asyncio.Lock()
        self.outbox: dict[str, OrderPlaced] = {}
        """Events that are not confirmed, by id. In production, a table."""

    async def place_order(self, user_id: str, order_id: str, total: Decimal) -> None:
        event_id = f"order.placed:{order_id}"  # the same in each attempt, so that consumers recognize it
        placed = OrderPlaced(
            event_id=event_id,
            timestamp=datetime.now(UTC),
            user_id=user_id,
            order_id=order_id,
            payload={"total": total},
        )
        self.outbox[event_id] = placed  # in the transaction that stores the order
        await self.relay()

    async def relay(self) -> None:
        """Send what is in the outbox, the oldest first. An event stays there until it is confirmed."""
        async with self._relaying:  # otherwise a new event could overtake an earlier one of its user
            try:
                async for receipt in self._client.send_many(list(self.outbox.values())):
                    del self.outbox[receipt.event_id]
                    print(f"{receipt.event_id}: published as message {receipt.message_id}")
            except SendError as error:
                for failure in error.failures:
                    if failure.problem.retryable:
                        print(f"{failure.event_id}: kept for later, {failure.problem}")
                        continue
                    # It is invalid, which is a mistake in this program: a person has to look at it.
                    print(f"{failure.event_id}: cannot be published, {failure.problem}")
                    del self.outbox[str(failure.event_id)]


async def main() -> None:
    outage = False

    async def broker(_message: Message) -> None:
        if outage:
            raise BrokerUnavailable("the broker is away")

    transport = MemoryTransport(broker)
    app = create_app(transport=transport)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http,
        AsyncClient("http://pulsecart", http_client=http, attempts=2, max_wait=0.1) as client,
    ):
        checkout = Checkout(client)
        await checkout.place_order("user-1", "order-1", Decimal("89.90"))
        outage = True
        await checkout.place_order("user-1", "order-2", Decimal("12.00"))
        outage = False
        await checkout.place_order("user-1", "order-3", Decimal("7.50"))  # sends order-2 first
        assert checkout.outbox == {}
        published = [message.json()["order_id"] for message in transport.messages]
        assert published == ["order-1", "order-2", "order-3"]


asyncio.run(main())
