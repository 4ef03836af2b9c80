"""A service of yours, which publishes an event when an order is placed."""

from pulsecart import Producer, PublishError
from pulsecart.events import OrderPlaced


class Checkout:
    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.to_retry: list[OrderPlaced] = []

    async def place_order(self, user_id: str, order_id: str, cents: int) -> None:
        # With an id of your own, a retry is the same event to every consumer.
        placed = OrderPlaced(event_id=order_id, user_id=user_id, order_id=order_id, payload={"cents": cents})
        try:
            await self._producer.publish(placed)
        except PublishError as error:
            if not error.retryable:
                raise
            self.to_retry.append(placed)
