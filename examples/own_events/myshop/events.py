"""Your own event types: attrs classes, declared with their event type and topic."""

from datetime import datetime
from decimal import Decimal
from enum import Enum

from attrs import field, frozen, validators

from pulsecart import Event, event
from pulsecart.events import described, non_empty


class Carrier(Enum):
    POST = "post"
    BIKE = "bike"


@frozen(kw_only=True)
class Parcel:
    """Nested objects are attrs classes too, so a payload can be as strict as you like."""

    weight_kg: Decimal = field(validator=validators.gt(Decimal(0)))
    contents: list[str]
    note: str | None = None


@frozen(kw_only=True)
class Shipment:
    carrier: Carrier
    ships_at: datetime
    parcels: list[Parcel] = field(validator=validators.min_len(1))


@event("order.shipped", topic="myshop.shipping")
@frozen(kw_only=True)
class OrderShipped(Event):
    order_id: str = field(validator=non_empty)
    payload: Shipment


@event("review.written", topic="myshop.reviews")
@frozen(kw_only=True)
class ReviewWritten(Event):
    """The payload has no class, so it may be any JSON object."""

    product_id: str = field(validator=non_empty)
    stars: int = field(
        validator=[validators.ge(1), validators.le(5)],
        metadata=described("How much the user likes it.", example=5),  # shown in the documents, see GET /schemas
    )
