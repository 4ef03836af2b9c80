"""Publish from Python, without HTTP. Run: python examples/library.py."""

import asyncio
from decimal import Decimal

from pulsecart import InvalidEvent, Producer
from pulsecart.events import OrderPlaced
from pulsecart.transports import MemoryTransport


async def main() -> None:
    # In production use another transport; nothing else changes.
    async with MemoryTransport() as transport:
        producer = Producer(transport)

        receipt = await producer.publish(
            OrderPlaced(user_id="user-1", order_id="order-1", payload={"total": Decimal("89.90")})
        )
        print(f"published {receipt.event_id} to {receipt.topic} as message {receipt.message_id}")

        # A JSON body, as it would arrive over HTTP, with two mistakes.
        try:
            await producer.ingest(b'{"event_type": "order.placed", "user_id": "", "oder_id": "order-2", "payload": {}}')
        except InvalidEvent as error:
            for fault in error.faults:
                print(f"rejected {fault}")

        (message,) = transport.messages
        print(message.data.decode())
        assert message.json()["payload"]["total"] == 89.9


asyncio.run(main())
