"""Litestar, with msgspec's structs, and Google's publisher client, whose future is awaited."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

import msgspec
from google.cloud import pubsub_v1
from litestar import Litestar, post
from msgspec import Meta, Struct, field

Text = Annotated[str, Meta(min_length=1, max_length=1024)]


class Event(Struct, kw_only=True, tag_field="event_type", forbid_unknown_fields=True):
    """What every event has."""

    event_id: Text = field(default_factory=lambda: f"evt_{uuid4().hex}")
    timestamp: Annotated[datetime, Meta(tz=True)] = field(default_factory=lambda: datetime.now(UTC))
    user_id: Text
    payload: dict[str, Any]


class CartItemAdded(Event, tag="cart.item_added"):
    """A user put an item into the cart."""

    session_id: Text


class ProductViewed(Event, tag="product.viewed"):
    """A user looked at a product."""

    session_id: Text


class SearchPerformed(Event, tag="search.performed"):
    """A user searched."""

    session_id: Text


class OrderPlaced(Event, tag="order.placed"):
    """A user placed an order."""

    order_id: Text


class CartAbandoned(Event, tag="cart.abandoned"):
    """A user left a filled cart."""

    session_id: Text


class PaymentFailed(Event, tag="payment.failed"):
    """The payment of an order failed."""

    order_id: Text


class PersonalizedSend(Event, tag="message.personalized_send"):
    """A message should be sent to a user."""


class LowStockAlert(Event, tag="inventory.low_stock_alert"):
    """A product that a user follows is low in stock."""


class Accepted(Struct):
    """The answer."""

    event_id: str
    message_id: str
    status: str = "accepted"


TOPICS: dict[type[Event], str] = {
    CartItemAdded: "pulsecart.user-actions",
    ProductViewed: "pulsecart.user-actions",
    SearchPerformed: "pulsecart.user-actions",
    OrderPlaced: "pulsecart.commerce-events",
    CartAbandoned: "pulsecart.commerce-events",
    PaymentFailed: "pulsecart.commerce-events",
    PersonalizedSend: "pulsecart.system-events",
    LowStockAlert: "pulsecart.system-events",
}

AnyEvent = (
    CartItemAdded
    | ProductViewed
    | SearchPerformed
    | OrderPlaced
    | CartAbandoned
    | PaymentFailed
    | PersonalizedSend
    | LowStockAlert
)

publisher = pubsub_v1.PublisherClient(publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True))


@post("/events/ingest", status_code=202)
async def ingest(data: AnyEvent) -> Accepted:
    """Publish, and await the broker."""
    published = publisher.publish(
        publisher.topic_path("pulsecart-bench", TOPICS[type(data)]),
        msgspec.json.encode(data),
        ordering_key=data.user_id,
        event_type=str(type(data).__struct_config__.tag),
        event_id=data.event_id,
    )
    message_id = await asyncio.wait_for(asyncio.wrap_future(published), timeout=10)
    return Accepted(event_id=data.event_id, message_id=message_id)


app = Litestar([ingest])
