"""The dispatcher: events take the same route with middleware and below a prefix."""

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from pulsecart.app import create_app
from tests.http.client import DEV, JSON, ingest

pytestmark = pytest.mark.anyio


async def test_added_middleware_runs_for_events(order_json):
    """Middleware that is added to the application also runs for events."""
    app = create_app(DEV)

    def stamping(inner: Any) -> Any:
        async def stamp(scope: Any, receive: Any, send: Any) -> None:
            async def send_stamped(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-stamp", b"1"))
                await send(message)

            await inner(scope, receive, send_stamped)

        return stamp

    app.add_middleware(stamping)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await ingest(client, order_json())
    assert (response.status_code, response.headers["x-stamp"]) == (202, "1")


@pytest.mark.parametrize(
    ("prefix", "path", "status"), [("/shop", "/shop/events/ingest", 202), ("/events", "/events/ingest", 404)]
)
async def test_application_mounted_below_a_prefix(order_json, prefix, path, status):
    """When the application is mounted below a prefix of another one, events are accepted below that prefix only."""
    outer = Starlette(routes=[Mount(prefix, create_app(DEV))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as client:
        response = await client.post(path, content=order_json(), headers=JSON)
    assert response.status_code == status


async def test_hint_below_a_prefix_names_the_whole_path():
    """The hint of a 404 is right where the application is mounted below a prefix."""
    outer = Starlette(routes=[Mount("/shop", create_app(DEV))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as client:
        response = await client.get("/shop/nope")
    assert response.json()["detail"].endswith("Events go to POST /shop/events/ingest.")


@pytest.mark.parametrize("root_path", ["/", "/e", "/events/ing"])
async def test_prefix_ends_between_segments(order_json, root_path):
    """A prefix that is not one of whole segments is none, for events as for other routes."""
    transport = httpx.ASGITransport(create_app(DEV), root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await ingest(client, order_json())).status_code == 202
        assert (await client.get("/health")).status_code == 200
