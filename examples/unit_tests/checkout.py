"""A service of yours, which publishes an event when an order is placed."""

from pulsecart import Producer, PublishError
from pulsecart.events import OrderPlaced


class Checkout:
    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.to_retry: list[OrderPlaced] = []

    async def place_order(self, user_id: str, order_id: str, cents: int) -> None:
        placed = OrderPlaced(
            # With an id of your own, consumers recognize a retry. It must be unique among all events, not only among
            # those of this type: with the order id alone, a payment of the order would be taken for a retry.
            event_id=f"order.placed:{order_id}",
            user_id=user_id,
            order_id=order_id,
            payload={"cents": cents},
        )
        try:
            await self._producer.publish(placed)
        except PublishError as error:
            if not error.retryable:
                raise
            self.to_retry.append(placed)
