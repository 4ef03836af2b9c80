"""The pages: what a browser is told to forbid. What they do is tested in a real browser."""

import base64
import hashlib
import re

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from pulsecart.app import create_app
from tests.http.client import DEV

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/dev", "/docs"])
async def test_page_is_whole_and_strict(client, path):
    """A page needs no other file, and its policy allows exactly its own scripts and styles, by their hashes."""
    response = await client.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cross-origin-opener-policy"] == "same-origin"
    assert response.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        assert contents
        assert policy.pop(directive) == " ".join(f"'sha256-{each}'" for each in hashes)
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", response.text)
    assert "innerHTML" not in response.text.replace("outerHTML", "")


async def test_pages_below_a_mount_prefix():
    """Below a prefix there are the same pages: they take the prefix from their address."""
    app = Starlette(routes=[Mount("/shop", create_app(DEV))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for path in ("/shop/dev", "/shop/docs"):
            assert (await client.get(path)).status_code == 200


async def test_head_of_the_stream_has_an_end(client):
    """HEAD of the stream answers with its headers, and ends."""
    response = await client.head("/dev/stream")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
