"""Idempotency-Key: the same request again has the same event ids."""

import hashlib
import json
from typing import Any

import pytest

from pulsecart import BrokerUnavailable, Message
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport
from tests.http.client import POST, ingest, problem, served
from tests.http.test_batch import messages, ndjson, order, post, post_lines

pytestmark = pytest.mark.anyio


def expected(*parts: str) -> str:
    return f"idk_{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"


@pytest.mark.parametrize("sent", ['"a key, really"', "a key, really"])
async def test_id_follows_from_the_key(client, sent):
    """The id is the hash of source, route, key, index, event type and user; quotes are not part of the key."""
    for _ in range(2):
        response = await ingest(client, json.dumps(order(1, "ü")).encode(), **{"Idempotency-Key": sent})
        event_id = response.json()["event_id"]
        assert event_id == expected("", "/events/ingest", "a key, really", "0", "order.placed", "ü")
    other = await ingest(client, json.dumps(order(1, "ü")).encode(), **{"Idempotency-Key": "another"})
    assert other.json()["event_id"] != event_id


async def test_id_of_the_caller_is_kept(client):
    """The key is only for events without an id."""
    response = await ingest(client, json.dumps(order(event_id="mine")).encode(), **{"Idempotency-Key": "k"})
    assert response.json()["event_id"] == "mine"


async def test_events_of_a_batch_have_their_index(client):
    """Equal events of a batch are different ones, and malformed ones count."""
    ids = [expected("", "/events/batch", "k", str(index), "order.placed", "u") for index in (0, 2)]
    await post(client, [order(1), 7, order(1)], **{"Idempotency-Key": '"k"'})
    await post_lines(client, ndjson(b"", order(1), b"x", b"", order(1)), **{"Idempotency-Key": "k"})
    assert [message["attributes"]["event_id"] for message in await messages(client)] == ids * 2


async def test_prefix_of_a_mount_is_not_part_of_the_route():
    """The id does not depend on where the application is mounted."""
    app = create_app(Settings(transport="memory"))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(order()).encode()}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [*POST["headers"], (b"idempotency-key", b"k")]
    await app(POST | {"path": "/mounted/events/ingest", "root_path": "/mounted", "headers": headers}, receive, send)
    assert json.loads(sent[1]["body"])["event_id"] == expected("", "/events/ingest", "k", "0", "order.placed", "u")


VALID = ["x", "x" * 255, f'"{"x" * 255}"', "~!#$%&'()*+,-./:;<=>?@[]^_`{|}", "a\\b", '" "', "a, b"]
INVALID = [
    "",
    '"',
    '""',
    "x" * 256,
    f'"{"x" * 256}"',
    '"a"b"',
    '"a',
    'a"',
    'a"b',
    '"a\\"b"',
    '"a\\\\b"',
    "ü",
    "a\tb",
    '"a", "b"',
    '"a";p=1',
]


@pytest.mark.parametrize("key", VALID)
async def test_key_of_printable_ascii_is_accepted(client, key):
    """1 to 255 printable ASCII characters, in quotes or not."""
    assert (await ingest(client, json.dumps(order()).encode(), **{"Idempotency-Key": key})).status_code == 202


@pytest.mark.parametrize("path", ["/events/ingest", "/events/validate", "/events/batch", "/events/cloudevents"])
@pytest.mark.parametrize("key", INVALID)
async def test_other_key_is_400(client, path, key):
    """Anything else is refused by every route, and the answer says what is allowed."""
    headers = [(b"Content-Type", b"application/json"), (b"Idempotency-Key", key.encode())]
    document = problem(await client.post(path, content=b"[]", headers=headers), 400, "malformed-request")
    assert "255" in document["detail"]


async def test_two_keys_are_400(client):
    """Two lines are refused even if they are equal."""
    headers = [("Content-Type", "application/json"), ("Idempotency-Key", "k"), ("Idempotency-Key", "k")]
    problem(await client.post("/events/ingest", content=b"{}", headers=headers), 400, "malformed-request")
    headers[-1] = ("Idempotency-Key", "")
    problem(await client.post("/events/ingest", content=b"{}", headers=headers), 400, "malformed-request")


async def test_whole_body_is_resent_after_an_outage():
    """Consumers that drop by event id see each event of each user once, in order."""
    outage = True

    async def handler(message: Message) -> None:
        if outage and json.loads(message.data)["payload"]["n"] == 7:
            raise BrokerUnavailable("test")

    transport = MemoryTransport(handler)
    body = [order(n, f"u{n % 3}") for n in range(30)]
    async with served(transport) as client:
        assert (await post(client, body, **{"Idempotency-Key": "upload-1"})).status_code == 503
        outage = False
        assert (await post(client, body, **{"Idempotency-Key": "upload-1"})).status_code == 202
    seen: dict[str, int] = {}
    for message in transport.messages:
        seen.setdefault(message.attributes["event_id"], message.json()["payload"]["n"])
    assert sorted(seen.values()) == list(range(30))
    for user in range(3):
        assert [n for n in seen.values() if n % 3 == user] == list(range(user, 30, 3))
