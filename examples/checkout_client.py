"""A checkout service that sends its events over HTTP. Run: python examples/checkout_client.py.

The service runs in this process, on the memory transport. In production: AsyncClient("https://events.example", key=…).
"""

import asyncio
from decimal import Decimal

import httpx

from pulsecart import BrokerUnavailable, Message
from pulsecart.app import create_app
from pulsecart.client import AnyEvent, AsyncClient, SendError
from pulsecart.events import OrderPlaced
from pulsecart.transports import MemoryTransport


class Checkout:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.outbox: list[AnyEvent] = []
        """Events to send later. In production, a table: the order and its event are stored in one transaction."""

    async def place_order(self, user_id: str, order_id: str, total: Decimal) -> None:
        placed = OrderPlaced(user_id=user_id, order_id=order_id, payload={"total": total})
        if self.outbox:
            self.outbox.append(placed)  # sent now, it could overtake an earlier event of the user
            return
        try:
            receipt = await self._client.send(placed)
        except SendError as error:
            if not error.retryable:
                raise  # the event is invalid, which is a mistake in this program
            # It has an id by now. Under the same id, consumers recognize it if it has been published nevertheless.
            self.outbox += [failure.document for failure in error.failures]
            print(f"{order_id}: kept for later, {error}")
        else:
            print(f"{order_id}: published as message {receipt.message_id}")

    async def send_outbox(self) -> None:
        waiting, self.outbox = self.outbox, []
        try:
            async for receipt in self._client.send_many(waiting):
                print(f"{receipt.event_id}: published as message {receipt.message_id}")
        except SendError as error:
            self.outbox += [failure.document for failure in error.failures if failure.problem.retryable]


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
        await checkout.place_order("user-1", "order-3", Decimal("7.50"))
        await checkout.send_outbox()
        published = [message.json()["order_id"] for message in transport.messages]
        assert published == ["order-1", "order-2", "order-3"]


asyncio.run(main())
