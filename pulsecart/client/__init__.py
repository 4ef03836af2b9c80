"""Sends events to the service over HTTP. Needs the extra `client`.

with Client("http://localhost:8000") as client:
    receipt = client.send(OrderPlaced(user_id="user-1", order_id="order-1", payload={"total": 89.9}))
"""

try:
    import httpx as _httpx  # noqa: F401 (to say what is missing)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; pulsecart.client needs it: pip install 'pulsecart[client]'") from error

from pulsecart.client.clients import AsyncClient, Client
from pulsecart.client.documents import AnyEvent
from pulsecart.client.outcomes import Failure, Outcome, Problem, Receipt, SendError

__all__ = ["AnyEvent", "AsyncClient", "Client", "Failure", "Outcome", "Problem", "Receipt", "SendError"]
