"""Event classes: how to define them, the commerce pipeline's own, and the catalog of all."""

from pulsecart.events.base import Event, FieldError, described, event, max_bytes, non_empty
from pulsecart.events.catalog import Catalog, load_catalog
from pulsecart.events.commerce import (
    CartAbandoned,
    CartItemAdded,
    LowStockAlert,
    OrderPlaced,
    PaymentFailed,
    PersonalizedSend,
    ProductViewed,
    SearchPerformed,
)
from pulsecart.events.lazy import JsonObject

__all__ = [
    "CartAbandoned",
    "CartItemAdded",
    "Catalog",
    "Event",
    "FieldError",
    "JsonObject",
    "LowStockAlert",
    "OrderPlaced",
    "PaymentFailed",
    "PersonalizedSend",
    "ProductViewed",
    "SearchPerformed",
    "described",
    "event",
    "load_catalog",
    "max_bytes",
    "non_empty",
]
