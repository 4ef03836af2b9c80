"""The event types of the commerce pipeline."""

from decimal import Decimal

from attrs import field, frozen

from pulsecart.events.base import Event, described, event, non_empty

__all__ = [
    "CartAbandoned",
    "CartItemAdded",
    "LowStockAlert",
    "OrderPlaced",
    "PaymentFailed",
    "PersonalizedSend",
    "ProductViewed",
    "SearchPerformed",
]

USER_ACTIONS = "pulsecart.user-actions"
COMMERCE_EVENTS = "pulsecart.commerce-events"
SYSTEM_EVENTS = "pulsecart.system-events"

_SESSION = described("The visit in which it happened.", example="session-7f3a")
_ORDER = described("The order's id in the shop.", example="order-1042")

_PRODUCT = described("The product's id in the shop.", example="lamp-brass")
_CURRENCY = described("The currency of all amounts (ISO 4217).", example="EUR")
_TOTAL = described("The sum, in the currency.", example=Decimal("89.90"))
_ITEMS = described(
    "The products, each with its quantity and the price of one.",
    example=[{"product_id": "lamp-brass", "quantity": 2, "price": Decimal("44.95")}],
)


@event(
    "cart.item_added",
    topic=USER_ACTIONS,
    payload={
        "product_id": _PRODUCT,
        "quantity": described("How many were added.", example=2),
        "price": described("The price of one, in the currency.", example=Decimal("44.95")),
        "currency": _CURRENCY,
    },
)
@frozen(kw_only=True)
class CartItemAdded(Event):
    """A user put an item into the cart."""

    session_id: str = field(validator=non_empty, metadata=_SESSION)


@event(
    "product.viewed",
    topic=USER_ACTIONS,
    payload={
        "product_id": _PRODUCT,
        "category": described("Where the product is in the shop.", example="lighting/table-lamps"),
        "referrer": described("Where the user came from: search, home, email or another page.", example="search"),
    },
)
@frozen(kw_only=True)
class ProductViewed(Event):
    """A user looked at a product."""

    session_id: str = field(validator=non_empty, metadata=_SESSION)


@event(
    "search.performed",
    topic=USER_ACTIONS,
    payload={
        "query": described("What the user typed.", example="brass lamp"),
        "filters": described("The filters that were set, by name.", example={"colour": ["brass"], "max_price": 100}),
        "results": described("How many products were found.", example=17),
    },
)
@frozen(kw_only=True)
class SearchPerformed(Event):
    """A user searched."""

    session_id: str = field(validator=non_empty, metadata=_SESSION)


@event(
    "order.placed",
    topic=COMMERCE_EVENTS,
    payload={
        "total": _TOTAL,
        "currency": _CURRENCY,
        "items": _ITEMS,
        "shipping": described("How it is shipped.", example={"method": "standard", "country": "DE"}),
    },
)
@frozen(kw_only=True)
class OrderPlaced(Event):
    """A user placed an order."""

    order_id: str = field(validator=non_empty, metadata=_ORDER)


@event(
    "cart.abandoned",
    topic=COMMERCE_EVENTS,
    payload={
        "total": _TOTAL,
        "currency": _CURRENCY,
        "items": _ITEMS,
        "idle_minutes": described("How long nothing happened before the cart counted as abandoned.", example=45),
    },
)
@frozen(kw_only=True)
class CartAbandoned(Event):
    """A user left a filled cart."""

    session_id: str = field(validator=non_empty, metadata=_SESSION)


@event(
    "payment.failed",
    topic=COMMERCE_EVENTS,
    payload={
        "amount": described("What was to be paid, in the currency.", example=Decimal("89.90")),
        "currency": _CURRENCY,
        "method": described("How the user wanted to pay.", example="card"),
        "reason": described("Why it failed, as a code of the payment provider.", example="insufficient_funds"),
        "attempt": described("Which attempt to pay this order it was, from 1.", example=1),
    },
)
@frozen(kw_only=True)
class PaymentFailed(Event):
    """The payment of an order failed."""

    order_id: str = field(validator=non_empty, metadata=_ORDER)


@event(
    "message.personalized_send",
    topic=SYSTEM_EVENTS,
    payload={
        "channel": described("How the message is sent: email, push or sms.", example="email"),
        "template": described("The template of the message.", example="cart-reminder"),
        "campaign": described("What the message is sent for.", example="autumn-lights"),
        "variables": described("What the template is filled with.", example={"first_name": "Ada", "discount": "10 %"}),
    },
)
@frozen(kw_only=True)
class PersonalizedSend(Event):
    """A personalized message is to be sent to a user."""


@event(
    "inventory.low_stock_alert",
    topic=SYSTEM_EVENTS,
    payload={
        "product_id": _PRODUCT,
        "stock": described("How many are left.", example=3),
        "threshold": described("The stock below which users are alerted.", example=5),
        "warehouse": described("Where the stock is.", example="berlin-1"),
    },
)
@frozen(kw_only=True)
class LowStockAlert(Event):
    """A product a user cares about runs low."""
