"""Health, readiness, and the answers for paths that do not exist."""

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from pulsecart import BrokerUnavailable, TransportClosed
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.testing import strict_pubsub
from pulsecart.transports import MemoryTransport
from tests.http.client import problem, served

pytestmark = pytest.mark.anyio


def calling(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        (BrokerUnavailable("it is down", "10.0.0.7 is down"), "broker-unavailable"),
        (TransportClosed("the service is shutting down"), "shutting-down"),
    ],
)
async def test_not_ready_is_a_problem(error, type_):
    """A 503 of /readyz is a problem document, with the broker's state and without the broker's own words."""

    class Failing(MemoryTransport):
        async def check(self, topics):
            raise error

    async with calling(create_app(Settings(transport="memory"), transport=Failing())) as client:
        response = await client.get("/readyz")
    document = response.json()
    assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
    assert (document["type"], document["status"], document["retryable"]) == (type_, 503, True)
    assert (document["title"], document["detail"]) == ("The service is not ready", str(error))
    assert document["broker"] == "unavailable"
    assert response.headers["retry-after"] == "1"


async def test_readiness_has_no_side_effects():
    """GET /readyz lists the topics that an emulator has lost, but does not create them."""
    async with strict_pubsub([]) as server:
        app = create_app(Settings(transport="emulator", emulator_host=server.host, project="test"))
        async with app.router.lifespan_context(app), calling(app) as client:
            assert len(server.topics) == 3
            assert (await client.get("/readyz")).json()["missing_topics"] == []
            server.topics.clear()
            for _ in range(2):
                response = await client.get("/readyz")
                assert (response.status_code, len(response.json()["missing_topics"])) == (200, 3)
            assert server.topics == set()


@pytest.mark.parametrize("host", ["[", "a b", "/", ""])
async def test_unknown_path_with_a_malformed_host_is_404(host):
    """The answer for an unknown path does not depend on the Host header."""
    async with calling(create_app(Settings(transport="memory"))) as client:
        response = await client.get("/nope", headers={"Host": host})
    assert response.status_code == 404
    assert response.json()["detail"] == "GET /nope: Not Found. Events go to POST /events/ingest."


async def test_unknown_path_below_a_prefix_names_the_prefixed_route():
    """Below a mount prefix, the hint of a 404 or 405 includes the prefix."""
    outer = Starlette(routes=[Mount("/shop", create_app(Settings(transport="memory")))])
    async with calling(outer) as client:
        for path, status, phrase in (
            ("/shop/nope", 404, "Not Found"),
            ("/shop/events/ingest", 405, "Method Not Allowed"),
        ):
            response = await client.get(path)
            assert response.status_code == status
            assert response.json()["detail"] == f"GET {path}: {phrase}. Events go to POST /shop/events/ingest."


@pytest.mark.parametrize("path", ["/health", "/livez"])
async def test_liveness_is_ok(path):
    """/health and /livez answer ok."""
    async with served() as client:
        response = await client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_memory_is_always_ready(client):
    """/readyz answers 200 on the memory transport."""
    response = await client.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ready", "broker": "ok", "missing_topics": []})


async def test_unreachable_broker_is_not_ready_unless_excluded(caplog):
    """/readyz is 503 while the broker cannot be reached, unless it is excluded; the service starts and is live."""
    async with strict_pubsub([]) as server:
        host = server.host
    settings = Settings(transport="emulator", emulator_host=host, environment="staging", auth="none", project="test")
    async with served(settings=settings) as client:
        assert "not available yet" in caplog.text
        document = problem(await client.get("/readyz"), 503, "broker-unavailable")
        assert document["broker"] == "unavailable"
        assert (await client.get("/readyz?exclude=broker")).json() == {"status": "ready"}
        assert (await client.get("/livez")).status_code == 200
