"""Publish from FastAPI, in two ways. Run: python examples/fastapi_shop.py.

- A `Producer` that lives as long as the application: your own routes publish events.
- pulsecart's application mounted at a prefix: other services send events to it, with all of its checks and answers.

It calls the application as a test would. A server runs it with `uvicorn fastapi_shop:app`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel

from pulsecart import Producer, PublishError
from pulsecart.app import create_app
from pulsecart.events import OrderPlaced
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport

# In production use another transport; nothing else changes. The two share it, so each user's events are in order.
transport = MemoryTransport()
# Without settings, create_app() reads them from the environment, as `pulsecart serve` does.
events = create_app(Settings(transport="memory"), transport=transport)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # A mounted application is not started by the one around it. It opens the transport, and closes it at the end.
    async with events.router.lifespan_context(events):
        app.state.producer = Producer(transport)
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/pulsecart", events)


def get_producer(request: Request) -> Producer:
    producer: Producer = request.app.state.producer
    return producer


class Order(BaseModel):
    user_id: str
    items: list[str]


@app.post("/orders/{order_id}", status_code=201)
async def place_order(
    order_id: str, order: Order, producer: Annotated[Producer, Depends(get_producer)]
) -> dict[str, str]:
    event = OrderPlaced(
        event_id=f"order.placed:{order_id}",  # so that consumers recognize a retry
        user_id=order.user_id,
        order_id=order_id,
        payload={"items": order.items},
    )
    try:
        receipt = await producer.publish(event)
    except PublishError as error:
        raise HTTPException(503 if error.retryable else 422, str(error)) from error
    return {"event_id": receipt.event_id}


async def main() -> None:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        answer = await client.post("/orders/1", json={"user_id": "user-1", "items": ["lamp"]})
        print(answer.status_code, answer.json())
        assert answer.status_code == 201

        payment = {"event_type": "payment.failed", "user_id": "user-1", "order_id": "1", "payload": {"attempt": 1}}
        answer = await client.post("/pulsecart/events/ingest", json=payment)
        print(answer.status_code, answer.json())
        assert answer.status_code == 202

        answer = await client.post("/pulsecart/events/ingest", json=payment | {"order_id": ""})
        print(answer.status_code, answer.json()["errors"])
        assert answer.status_code == 422
        assert (await client.get("/pulsecart/readyz")).status_code == 200
    assert [message.attributes["event_type"] for message in transport.messages] == ["order.placed", "payment.failed"]


if __name__ == "__main__":
    asyncio.run(main())
