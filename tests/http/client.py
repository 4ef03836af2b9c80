"""Calls the application through ASGI, without a server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from pulsecart import Message
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport

JSON = {"Content-Type": "application/json"}
DEV = Settings(transport="memory")

POST = {
    "type": "http",
    "method": "POST",
    "path": "/events/ingest",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}
"""The ASGI scope of a request, for behaviour that no client library has."""


@asynccontextmanager
async def served(transport: Any = None, settings: Settings = DEV) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application on a transport or on that of its settings, and yield a client."""
    app = create_app(settings, transport=transport)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://localhost"
        ) as client,
    ):
        yield client


def problem(response: httpx.Response, status: int, type_: str) -> dict[str, Any]:
    """Check that the response is a problem with this status and type, and return it."""
    document = response.json()
    assert (response.status_code, document["status"], document["type"]) == (status, status, type_)
    assert response.headers["content-type"] == "application/problem+json"
    assert document["retryable"] is (status >= 500 or status in {408, 429})
    assert document["title"]
    assert document["detail"]
    assert all(fault.keys() == {"pointer", "code", "message"} for fault in document["errors"])
    assert "Traceback" not in response.text
    return document


async def ingest(client: httpx.AsyncClient, body: bytes, **headers: str) -> httpx.Response:
    """Post a body with the JSON content type."""
    return await client.post("/events/ingest", content=body, headers=JSON | headers)


def failing(error: Exception) -> MemoryTransport:
    """Return a transport on which every publish raises the error."""

    async def fail(_message: Message) -> None:
        raise error

    return MemoryTransport(fail)
