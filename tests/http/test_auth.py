"""Authentication by keys, grants and rates, through HTTP."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pulsecart import Message
from pulsecart.access.keys import new_key
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import logs
from pulsecart.transports import MemoryTransport
from tests.http.client import JSON, POST, problem, served

pytestmark = pytest.mark.anyio

KEY, OTHER, SLOW = new_key(), new_key(), new_key()


def hashed(key: str) -> str:
    return f'"sha256:{hashlib.sha256(key.encode()).hexdigest()}"'


SOURCES = f"""
[checkout]
keys = [{hashed(KEY)}]
events = ["order.*", "payment.failed"]
[anything]
keys = [{hashed(OTHER)}]
[slow]
keys = [{hashed(SLOW)}]
rate = 2
"""


@asynccontextmanager
async def guarded(
    path: Path, transport: Any = None, sources: str = SOURCES, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    file = path / "sources.toml"
    file.write_text(sources)
    async with served(transport, Settings(transport="memory", auth="keys", sources=str(file), **settings)) as client:
        yield client


async def post(client: httpx.AsyncClient, body: bytes, key: str | None, **headers: str) -> httpx.Response:
    credentials = {} if key is None else {"Authorization": f"Bearer {key}"}
    return await client.post("/events/ingest", content=body, headers=JSON | credentials | headers)


def refused(response: httpx.Response) -> str:
    """Check that the answer is a 401, and return its detail."""
    assert response.headers["www-authenticate"] == "Bearer"
    return problem(response, 401, "unauthenticated")["detail"]


async def test_event_with_a_key_is_published_with_its_source(tmp_path, order_json):
    """The message has the name of the source as an attribute; the answer does not have it."""
    transport = MemoryTransport()
    async with guarded(tmp_path, transport) as client:
        response = await post(client, order_json(), KEY)
    assert response.status_code == 202
    assert response.json().keys() == {"status", "event_id", "message_id", "trace_id"}
    assert "checkout" not in str(response.headers) + response.text
    assert transport.messages[0].attributes["source"] == "checkout"


async def test_without_authentication_messages_have_no_source(order_json):
    """With PULSECART_AUTH=none a key is not looked at, and nothing is added to the message."""
    transport = MemoryTransport()
    async with served(transport) as client:
        assert (await post(client, order_json(), "pck_made-up")).status_code == 202
    assert transport.messages[0].attributes.keys() == {"event_type", "event_id"}


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        KEY,
        f"Bearer{KEY}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer {KEY} {KEY}",
        f"Bearer {KEY}, Bearer {KEY}",
        f"Bearer {new_key()}",
        "Bearer pck_",
        "Bearer made-up",
        "Bearer " + "x" * 50_000,
        "Bearer a.b.c",
        f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}",
    ],
    ids=map(str, range(16)),  # the keys differ in each process
)
async def test_invalid_credentials_are_401(tmp_path, order_json, capsys, authorization):
    """An unknown key, another scheme and malformed headers are rejected, and not repeated in the answer or log."""
    transport = MemoryTransport()
    async with guarded(tmp_path, transport) as client:
        response = await client.post(
            "/events/ingest", content=order_json(), headers=JSON | {"Authorization": authorization}
        )
    assert refused(response)
    assert not transport.messages
    logs.flush()
    line = json.loads(capsys.readouterr().err)
    assert (line["severity"], line["problem"], line["outcome"]) == ("INFO", "unauthenticated", "refused")
    assert line["error_type"]
    for text in (response.text, str(response.headers), str(line)):
        assert KEY[4:] not in text
        assert KEY[4:20] not in text


async def test_scheme_is_case_insensitive_and_spaces_are_optional(tmp_path, order_json):
    """`bearer` is the same scheme (RFC 9110, section 11.1)."""
    async with guarded(tmp_path) as client:
        for value in (f"bearer {KEY}", f"BEARER   {KEY}", f"Bearer {KEY} "):
            response = await client.post(
                "/events/ingest", content=order_json(), headers=JSON | {"Authorization": value}
            )
            assert response.status_code == 202


async def test_missing_and_repeated_header_are_401(tmp_path, order_json):
    """A request with two Authorization headers is rejected, even if both are valid."""
    async with guarded(tmp_path) as client:
        assert "no Authorization" in refused(await post(client, order_json(), None))
        twice = [("Content-Type", "application/json"), *[("Authorization", f"Bearer {KEY}")] * 2]
        response = await client.post("/events/ingest", content=order_json(), headers=twice)
        assert "several" in refused(response)


async def test_401_comes_before_the_body_is_read(tmp_path):
    """Nothing is received from a caller without credentials, and the connection is closed."""
    (tmp_path / "sources.toml").write_text(SOURCES)
    app = create_app(Settings(transport="memory", auth="keys", sources=str(tmp_path / "sources.toml")))
    for body in ([(b"content-length", b"10000000000")], [(b"transfer-encoding", b"chunked")], []):
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the body was read")

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await app({**POST, "headers": body}, receive, send)
        assert sent[0]["status"] == 401
        assert ((b"connection", b"close") in sent[0]["headers"]) is bool(body)


async def test_other_event_type_is_403(tmp_path, order_json):
    """A source sends only the types it may; the answer names the type, and nothing is published."""
    transport = MemoryTransport()
    viewed = order_json(event_type="product.viewed", order_id=..., session_id="s1")
    async with guarded(tmp_path, transport) as client:
        document = problem(await post(client, viewed, KEY), 403, "event-type-not-allowed")
        assert "'product.viewed'" in document["detail"]
        assert not transport.messages
        assert (await post(client, viewed, OTHER)).status_code == 202
        failed = order_json(event_type="payment.failed")
        assert (await post(client, failed, KEY)).status_code == 202
        # Its fields are not looked at.
        problem(await post(client, order_json(event_type="product.viewed", user_id=3), KEY), 403, document["type"])
        for wrong, type_ in (("product.view", "unknown-event-type"), (3, "invalid-event"), ({}, "invalid-event")):
            problem(await post(client, order_json(event_type=wrong), KEY), 422, type_)


async def test_invalid_event_of_a_known_source_is_explained(tmp_path, order_json):
    """A source gets the same explanations as without authentication."""
    async with guarded(tmp_path) as client:
        problem(await post(client, order_json(user_id=""), KEY), 422, "invalid-event")
        problem(await post(client, b"{", KEY), 400, "malformed-body")


async def test_log_lines_name_the_source(tmp_path, order_json, capsys):
    """Lines of published, rejected and failed events have the field `source`, and no part of a key."""
    calls: list[Message] = []

    async def fail_later(message: Message) -> None:
        calls.append(message)
        if len(calls) == 2:
            raise RuntimeError("defect")

    async with guarded(tmp_path, MemoryTransport(fail_later)) as client:
        for body in (order_json(), order_json(), order_json(user_id="")):
            await post(client, body, KEY)
    logs.flush()
    written = capsys.readouterr().err
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(line["outcome"], line["source"]) for line in lines] == [
        ("published", "checkout"),
        ("failed", "checkout"),
        ("refused", "checkout"),
    ]
    assert KEY[4:] not in written


async def test_rate_of_a_source_is_bounded(tmp_path, order_json):
    """Beyond its burst of one second a source gets 429 with Retry-After; other sources are not affected."""
    async with guarded(tmp_path) as client:
        answers = [await post(client, order_json(), SLOW) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        document = answers[2].json()
        assert (document["type"], document["retryable"]) == ("rate-limited", True)
        assert answers[2].headers["retry-after"] == "1"
        assert (await post(client, order_json(), OTHER)).status_code == 202
        async with asyncio.timeout(10):
            while (await post(client, order_json(), SLOW)).status_code == 429:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/readyz?exclude=broker", 200),
        ("GET", "/nowhere", 404),
        ("POST", "/nowhere", 404),
        ("GET", "/dev/nowhere", 404),
        ("POST", "/events/ingest/", 404),
        ("GET", "/events/ingest", 405),
        ("OPTIONS", "/events/ingest", 405),
        ("POST", "/health", 405),
        ("POST", "/events/ingest", 401),
        ("POST", "/events/ingest%0A", 404),
        ("GET", "/dev/messages", 401),
        ("DELETE", "/dev/messages", 401),
        ("PUT", "/dev/messages", 401),
        ("GET", "/dev/messages%0A", 404),
    ],
)
async def test_what_needs_credentials(tmp_path, method, path, status):
    """POST routes and /dev need credentials; health routes and unknown paths do not."""
    async with guarded(tmp_path) as client:
        assert (await client.request(method, path)).status_code == status
        with_key = await client.request(method, path, headers={"Authorization": f"Bearer {KEY}"})
    assert (with_key.status_code == status) is (status != 401)
    assert with_key.status_code != 401


async def test_unauthenticated_body_is_not_welcome_anywhere(tmp_path):
    """A body to an unknown path is answered with Connection: close, so that the server does not read it."""
    async with guarded(tmp_path) as client:
        response = await client.post("/nowhere", content=b"x" * 1000)
        problem(response, 404, "not-found")
        assert response.headers["connection"] == "close"
        assert "connection" not in (await client.get("/nowhere")).headers


async def test_dev_messages_are_shown_to_a_source(tmp_path, order_json):
    """With a key, /dev/messages answers as without authentication."""
    async with guarded(tmp_path) as client:
        await post(client, order_json(), KEY)
        response = await client.get("/dev/messages", headers={"Authorization": f"Bearer {KEY}"})
    assert [message["attributes"]["source"] for message in response.json()["messages"]] == ["checkout"]


async def test_changed_file_is_used_within_5_seconds(tmp_path, order_json, caplog):
    """An added key is accepted, a removed one is not, without a restart."""
    caplog.set_level(logging.INFO, "pulsecart.access")
    async with guarded(tmp_path) as client:
        (tmp_path / "sources.toml").write_text(f"[pos]\nkeys = [{hashed(new := new_key())}]\n")
        async with asyncio.timeout(5):
            while (await post(client, order_json(), new)).status_code != 202:
                await asyncio.sleep(0.05)
        assert refused(await post(client, order_json(), KEY))
    assert "added pos; removed checkout, anything, slow" in caplog.text


async def test_request_keeps_the_sources_it_began_with(tmp_path, order_json):
    """A source that is removed while its body arrives may finish this request."""
    body, go_on = order_json(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield body[:5]
        await go_on.wait()
        yield body[5:]

    async with guarded(tmp_path) as client:
        begun = asyncio.create_task(
            client.post("/events/ingest", content=slow(), headers=JSON | {"Authorization": f"Bearer {KEY}"})
        )
        await asyncio.sleep(0)
        (tmp_path / "sources.toml").write_text("")
        async with asyncio.timeout(5):
            while (await post(client, body, KEY)).status_code != 401:
                await asyncio.sleep(0.05)
        go_on.set()
        assert (await begun).status_code == 202


async def test_browser_is_asked_for_a_key(tmp_path):
    """A browser gets the console with a 401, since it can send no key with that; what it shows still needs one."""
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    async with guarded(tmp_path) as client:
        response = await client.get("/dev", headers=browser)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        with_key = await client.get("/dev", headers=browser | {"Authorization": f"Bearer {KEY}"})
        assert (with_key.status_code, with_key.content) == (200, response.content)
        problem(await client.get("/dev", headers=browser | {"Host": "evil.example"}), 403, "forbidden-host")
        for path in ("/dev/messages", "/dev/rejected", "/dev/stream"):
            refused(await client.get(path, headers=browser))
        refused(await client.get("/dev"))
        refused(await client.delete("/dev", headers=browser))
        refused(await client.get("/dev", headers={"Accept": "application/json"}))
