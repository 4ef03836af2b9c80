"""CORS: which pages may send events."""

import httpx
import pytest

from pulsecart.serve.settings import Settings
from tests.http.client import JSON, problem, served

pytestmark = pytest.mark.anyio

SHOP = "https://shop.example"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}


def allowed(response: httpx.Response) -> str | None:
    return response.headers.get("access-control-allow-origin")


async def test_cors_is_off_by_default(client, order_json):
    """Without the setting no page of another origin gets anything."""
    response = await client.options("/events/ingest", headers={"Origin": SHOP, **ASKS})
    assert response.status_code == 405
    response = await client.post("/events/ingest", content=order_json(), headers={"Origin": SHOP, **JSON})
    assert not any(name.startswith("access-control") for name in response.headers)


async def test_pages_of_listed_origins_may_send(order_json):
    """A listed page passes its preflight, and can read answers and errors; credentials of the browser are not used."""
    async with served(settings=Settings(transport="memory", cors_origins=(SHOP,))) as client:
        preflight = await client.options("/events/ingest", headers={"Origin": SHOP, **ASKS})
        assert (preflight.status_code, allowed(preflight)) == (200, SHOP)
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in preflight.headers
        for body, status in ((order_json(), 202), (b"{", 400)):
            response = await client.post("/events/ingest", content=body, headers={"Origin": SHOP, **JSON})
            assert (response.status_code, allowed(response)) == (status, SHOP)
            assert "Retry-After" in response.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": SHOP, "Access-Control-Request-Method": "DELETE"},
        {"Origin": SHOP, "Access-Control-Request-Headers": "x-other"},
    ],
)
async def test_other_preflights_are_problems(headers):
    """Another origin, method or header is refused with a problem."""
    async with served(settings=Settings(transport="memory", cors_origins=(SHOP,))) as client:
        refused = await client.options("/events/ingest", headers=ASKS | headers)
        assert "Disallowed CORS" in problem(refused, 400, "malformed-request")["detail"]
        assert allowed(refused) in (None, SHOP)
        assert allowed(refused) != headers["Origin"] or headers["Origin"] == SHOP


async def test_any_origin():
    """`*` allows all pages."""
    async with served(settings=Settings(transport="memory", cors_origins=("*",))) as client:
        assert allowed(await client.options("/events/ingest", headers={"Origin": "https://x", **ASKS})) == "*"


@pytest.mark.parametrize("path", ["/dev/messages", "/dev", "/dev/messages%0A"])
async def test_dev_is_never_opened(path):
    """No page of another origin can read or delete messages, whatever the setting."""
    async with served(settings=Settings(transport="memory", cors_origins=("*",))) as client:
        for method in ("GET", "DELETE", "OPTIONS"):
            response = await client.request(method, path, headers={"Origin": SHOP, "Host": "localhost", **ASKS})
            assert response.status_code in (403, 404, 405)
            assert allowed(response) is None


async def test_preflight_needs_no_credentials(tmp_path, order_json):
    """Browsers send preflights without credentials; the page can read the 401 that follows."""
    (tmp_path / "sources.toml").write_text("")
    settings = Settings(transport="memory", auth="keys", sources=str(tmp_path / "sources.toml"), cors_origins=(SHOP,))
    async with served(settings=settings) as client:
        assert (await client.options("/events/ingest", headers={"Origin": SHOP, **ASKS})).status_code == 200
        response = await client.post("/events/ingest", content=order_json(), headers={"Origin": SHOP, **JSON})
        assert (response.status_code, allowed(response)) == (401, SHOP)
