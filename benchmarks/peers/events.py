"""The event types in Pydantic, for the peers on FastAPI."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1, max_length=1024)]


class Event(BaseModel):
    """What every event has."""

    model_config = ConfigDict(extra="forbid")

    event_id: Text = Field(default_factory=lambda: f"evt_{uuid4().hex}")
    timestamp: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    user_id: Text
    payload: dict[str, Any]


class SessionEvent(Event):
    """A user did something in a session."""

    event_type: Literal["cart.item_added", "product.viewed", "search.performed", "cart.abandoned"]
    session_id: Text


class OrderEvent(Event):
    """An order was placed, or its payment failed."""

    event_type: Literal["order.placed", "payment.failed"]
    order_id: Text


class SystemEvent(Event):
    """A user should be notified."""

    event_type: Literal["message.personalized_send", "inventory.low_stock_alert"]


AnyEvent = Annotated[SessionEvent | OrderEvent | SystemEvent, Field(discriminator="event_type")]


class Accepted(BaseModel):
    """The answer."""

    status: Literal["accepted"] = "accepted"
    event_id: str
    message_id: str


class AllAccepted(BaseModel):
    """The answer to a list."""

    status: Literal["accepted"] = "accepted"
    results: list[Accepted]


TOPICS = {
    "cart.item_added": "pulsecart.user-actions",
    "product.viewed": "pulsecart.user-actions",
    "search.performed": "pulsecart.user-actions",
    "order.placed": "pulsecart.commerce-events",
    "payment.failed": "pulsecart.commerce-events",
    "cart.abandoned": "pulsecart.commerce-events",
    "message.personalized_send": "pulsecart.system-events",
    "inventory.low_stock_alert": "pulsecart.system-events",
}
