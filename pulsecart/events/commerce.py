"""The event types of the commerce pipeline."""

from attrs import field, frozen

from pulsecart.events.base import Event, event, non_empty

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


@event("cart.item_added", topic=USER_ACTIONS)
@frozen(kw_only=True)
class CartItemAdded(Event):
    """A user put an item into the cart."""

    session_id: str = field(validator=non_empty)


@event("product.viewed", topic=USER_ACTIONS)
@frozen(kw_only=True)
class ProductViewed(Event):
    """A user looked at a product."""

    session_id: str = field(validator=non_empty)


@event("search.performed", topic=USER_ACTIONS)
@frozen(kw_only=True)
class SearchPerformed(Event):
    """A user searched."""

    session_id: str = field(validator=non_empty)


@event("order.placed", topic=COMMERCE_EVENTS)
@frozen(kw_only=True)
class OrderPlaced(Event):
    """A user placed an order."""

    order_id: str = field(validator=non_empty)


@event("cart.abandoned", topic=COMMERCE_EVENTS)
@frozen(kw_only=True)
class CartAbandoned(Event):
    """A user left a filled cart."""

    session_id: str = field(validator=non_empty)


@event("payment.failed", topic=COMMERCE_EVENTS)
@frozen(kw_only=True)
class PaymentFailed(Event):
    """The payment of an order failed."""

    order_id: str = field(validator=non_empty)


@event("message.personalized_send", topic=SYSTEM_EVENTS)
@frozen(kw_only=True)
class PersonalizedSend(Event):
    """A personalized message is to be sent to a user."""


@event("inventory.low_stock_alert", topic=SYSTEM_EVENTS)
@frozen(kw_only=True)
class LowStockAlert(Event):
    """A product a user cares about runs low."""
