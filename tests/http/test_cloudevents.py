"""`POST /events/cloudevents`: binary, structured and batched mode."""

import asyncio
import hashlib
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulsecart.serve.settings import Settings
from tests.http.client import problem, served
from tests.http.test_batch import incomplete, messages
from tests.http.test_ingest import json_values

pytestmark = pytest.mark.anyio

STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"
DATA = {"user_id": "u", "order_id": "o", "payload": {"n": 1}}
EVENT = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed", "data": DATA}
UUID = "6BA7B810-9dad-11d1-80b4-00c04fd430c8"
OURS = "evt_01a208d02d4708440c6fe7ff04e1d3bb"
MODES = pytest.mark.parametrize("mode", ["binary", "structured", "batched"])


def hashed(source: str, id_: str) -> str:
    return f"ce_{hashlib.sha256(f'{source}{chr(0)}{id_}'.encode()).hexdigest()[:32]}"


def changed(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (EVENT | changes).items() if value is not ...}


async def post(client: httpx.AsyncClient, content: Any, content_type: str, **headers: str) -> httpx.Response:
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return await client.post("/events/cloudevents", content=content, headers={"Content-Type": content_type, **headers})


async def send(client: httpx.AsyncClient, mode: str, event: dict[str, Any]) -> httpx.Response:
    """Send an event in one of the modes."""
    if mode == "structured":
        return await post(client, event, STRUCTURED)
    if mode == "batched":
        return await post(client, [event], BATCHED)
    data = event.get("data")
    attributes = {name: value for name, value in event.items() if name != "data"}
    headers = {f"ce-{name}": quote(value, safe="!#$&'()*+,/:;=?@[]~") for name, value in attributes.items()}
    return await post(client, b"" if data is None else data, "application/json", **headers)


def fault_of(response: httpx.Response, mode: str, status: int, type_: str) -> list[tuple[str, str]]:
    """Check that an event was refused, in the answer or in its result, and return pointers and codes."""
    if mode == "batched":
        (result,) = incomplete(response, 422)["results"]
        assert (result["index"], result["status"], result["type"]) == (0, status, type_)
        found = result.get("errors", [])
    else:
        found = problem(response, status, type_)["errors"]
    return [(fault["pointer"], fault["code"]) for fault in found]


@MODES
@pytest.mark.parametrize(
    ("id_", "event_id"), [(OURS, OURS), (UUID, UUID), ("1", hashed("/shop", "1")), ('é "%', hashed("/shop", 'é "%'))]
)
async def test_event_is_published(client, mode, id_, event_id):
    """Each attribute has its place; an id that is unique by its form is kept, any other becomes a hash with source."""
    event = changed(
        id=id_, time="2026-01-31T13:00:00+01:00", subject="s", dataschema="https://x/y", anyextension="kept by nobody"
    )
    response = await send(client, mode, event)
    assert response.status_code == 202, response.text
    answer = response.json()
    result = answer["results"][0] if mode == "batched" else answer
    assert result["event_id"] == event_id
    (message,) = await messages(client)
    assert message["attributes"] == {
        "event_type": "order.placed",
        "event_id": event_id,
        "cloudevents_id": id_,
        "cloudevents_source": "/shop",
    }
    expected = {"event_type": "order.placed", "event_id": event_id, "timestamp": "2026-01-31T12:00:00Z", **DATA}
    assert message["data"] == expected
    assert message["ordering_key"] == "u"


@MODES
async def test_partition_key_is_the_user(client, mode):
    """The extension `partitionkey` may replace user_id, or repeat it."""
    for data in ({"order_id": "o", "payload": {}}, {"user_id": "ü 1", "order_id": "o", "payload": {}}):
        assert (await send(client, mode, changed(data=data, partitionkey="ü 1"))).status_code == 202
    assert [message["ordering_key"] for message in await messages(client)] == ["ü 1", "ü 1"]


@MODES
@pytest.mark.parametrize(
    ("changes", "status", "type_", "found"),
    [
        ({"specversion": ...}, 400, "malformed-body", [("/specversion", "missing")]),
        ({"specversion": "0.3"}, 400, "malformed-body", [("/specversion", "invalid")]),
        ({"id": ..., "source": ...}, 400, "malformed-body", [("/id", "missing"), ("/source", "missing")]),
        ({"id": ""}, 400, "malformed-body", [("/id", "empty")]),
        ({"id": "a\x01"}, 400, "malformed-body", [("/id", "invalid")]),
        ({"id": "x" * 1025}, 400, "malformed-body", [("/id", "too-long")]),
        ({"source": "x" * 1025}, 400, "malformed-body", [("/source", "too-long")]),
        ({"source": "not a URI"}, 400, "malformed-body", [("/source", "invalid")]),
        ({"type": ...}, 400, "malformed-body", [("/type", "missing")]),
        ({"type": "order.place"}, 422, "unknown-event-type", [("/type", "unknown")]),
        ({"time": "yesterday"}, 422, "invalid-event", [("/time", "invalid")]),
        ({"data": ...}, 422, "invalid-event", [("/data", "missing")]),
        ({"data": [1]}, 422, "invalid-event", [("/data", "wrong-type")]),
        ({"data": "a string"}, 422, "invalid-event", [("/data", "wrong-type")]),
        ({"partitionkey": "other"}, 422, "invalid-event", [("/partitionkey", "invalid")]),
        ({"partitionkey": ""}, 422, "invalid-event", [("/partitionkey", "invalid"), ("/partitionkey", "empty")]),
        ({"data": DATA | {"event_id": "x"}}, 422, "invalid-event", [("/data/event_id", "unknown")]),
        ({"data": DATA | {"event_type": "x"}}, 422, "invalid-event", [("/data/event_type", "unknown")]),
        ({"data": DATA | {"timestamp": "x"}}, 422, "invalid-event", [("/data/timestamp", "unknown")]),
        (
            {"data": DATA | {"oder": 1}, "time": "x"},
            422,
            "invalid-event",
            [("/time", "invalid"), ("/data/oder", "unknown")],
        ),
    ],
    ids=lambda value: repr(value)[:50],
)
async def test_fault_names_its_attribute(client, mode, changes, status, type_, found):  # noqa: PLR0913, PLR0917
    """Pointers are the same in every mode: those of the structured event."""
    response = await send(client, mode, changed(**changes))
    assert fault_of(response, mode, status, type_) == found
    assert await messages(client) == []


@pytest.mark.parametrize("mode", ["structured", "batched"])
@pytest.mark.parametrize(
    ("changes", "status", "type_", "found"),
    [
        ({"id": 1}, 400, "malformed-body", [("/id", "wrong-type")]),
        ({"id": None}, 400, "malformed-body", [("/id", "missing")]),
        ({"source": {"a": 1}}, 400, "malformed-body", [("/source", "wrong-type")]),
        ({"time": 5}, 422, "invalid-event", [("/time", "wrong-type")]),
        ({"partitionkey": 5}, 422, "invalid-event", [("/partitionkey", "invalid"), ("/partitionkey", "wrong-type")]),
        ({"data": ..., "data_base64": "e30="}, 422, "invalid-event", [("/data_base64", "unknown")]),
        ({"datacontenttype": "text/plain"}, 415, "unsupported-media-type", []),
        ({"datacontenttype": 1}, 415, "unsupported-media-type", []),
    ],
    ids=lambda value: repr(value)[:50],
)
async def test_fault_of_an_event_in_json(client, mode, changes, status, type_, found):  # noqa: PLR0913, PLR0917
    """What only the JSON format can express is refused by name."""
    assert fault_of(await send(client, mode, changed(**changes)), mode, status, type_) == found


async def test_null_is_nothing(client):
    """In the JSON format an attribute that is null is not set."""
    nulls = {"time": None, "partitionkey": None, "datacontenttype": None, "data_base64": None, "subject": None}
    assert (await post(client, changed(**nulls), STRUCTURED)).status_code == 202


@pytest.mark.parametrize("content_type", ["application/json", "text/json", 'Application/vnd.shop+JSON; v="1;2"'])
async def test_json_types_of_data(client, content_type):
    """Data may have any media type of JSON, in both forms."""
    assert (await post(client, changed(datacontenttype=content_type), STRUCTURED)).status_code == 202
    headers = {"ce-specversion": "1.0", "ce-id": "2", "ce-source": "/s", "ce-type": "order.placed"}
    assert (await post(client, DATA, content_type, **headers)).status_code == 202


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/xml",
        "application/cloudevents",
        "application/cloudevents+avro",
        "application/cloudevents-batch",
        "application/cloudevents+json; charset=latin-1",
        "application/json; charset=latin-1",
        "json",
        "",
    ],
)
async def test_other_media_type_is_415(client, content_type):
    """The answer names what is accepted."""
    headers = {"ce-specversion": "1.0", "ce-id": "2", "ce-source": "/s", "ce-type": "order.placed"}
    response = await post(client, DATA, content_type, **headers)
    problem(response, 415, "unsupported-media-type")
    assert all("json" in accepted for accepted in response.headers["accept"].split(", "))


async def test_content_type_alone_decides_the_mode(client):
    """Headers of binary mode have no effect in the other modes; case and parameters do not matter."""
    headers = {"ce-specversion": "0.1", "ce-id": "other", "ce-type": "other"}
    assert (await post(client, EVENT, "Application/CloudEvents+JSON; charset=UTF-8", **headers)).status_code == 202
    response = await post(client, [EVENT], "application/cloudevents-BATCH+json;charset=utf-8", **headers)
    assert response.json()["accepted"] == 1
    assert {message["attributes"]["cloudevents_id"] for message in await messages(client)} == {"1"}


async def test_binary_without_attributes_is_400(client):
    """A plain JSON body is no CloudEvent, and the answer names what is missing."""
    found = problem(await post(client, DATA, "application/json"), 400, "malformed-body")["errors"]
    assert [fault["pointer"] for fault in found] == ["/specversion", "/id", "/source", "/type"]


@pytest.mark.parametrize(
    ("header", "id_"),
    [
        (b"a%20b", "a b"),
        (b'"a b"', "a b"),
        (b'"a\\"b\\\\c"', 'a"b\\c'),
        (b"%C3%A9%F0%9F%98%80", "é😀"),
        (b"%2541", "%41"),
        (b"a b", "a b"),
        (b'"%22"', '"'),
        (b"%22a%22", '"a"'),
        (b"\xc3\xa9", None),
        (b"%C0%A0", None),
        (b"%ED%A0%80", None),
        (b"%", None),
        (b"%4", None),
        (b"%zz", None),
        (b'"a', None),
        (b'"', None),
        (b"%00", None),
        (b"", None),
        (b'""', None),
    ],
)
async def test_header_is_unquoted_and_decoded_once(client, header, id_):
    """A quoted value is unquoted first, then percent-encoding is removed once; invalid UTF-8 is refused by name."""
    headers = [
        (b"Content-Type", b"application/json"),
        (b"ce-specversion", b"1.0"),
        (b"ce-source", b"/s"),
        (b"CE-Type", b"order.placed"),
        (b"ce-id", header),
    ]
    response = await client.post("/events/cloudevents", content=json.dumps(DATA).encode(), headers=headers)
    if id_ is None:
        found = problem(response, 400, "malformed-body")["errors"]
        assert [fault["pointer"] for fault in found] == ["/id"]
    else:
        assert response.status_code == 202, response.text
        assert (await messages(client))[0]["attributes"]["cloudevents_id"] == id_


async def test_repeated_header_is_400(client):
    """An attribute in two headers is refused by name; other headers that repeat are not read."""
    headers = [("Content-Type", "application/json"), ("ce-specversion", "1.0"), ("ce-source", "/s"), ("ce-id", "1")]
    headers += [("ce-type", "order.placed"), ("ce-other", "a"), ("ce-other", "b"), ("ce-datacontenttype", "x")]
    body = json.dumps(DATA).encode()
    assert (await client.post("/events/cloudevents", content=body, headers=headers)).status_code == 202
    response = await client.post("/events/cloudevents", content=body, headers=[*headers, ("ce-id", "1")])
    (fault,) = problem(response, 400, "malformed-body")["errors"]
    assert (fault["pointer"], fault["code"]) == ("/id", "duplicate")


@pytest.mark.parametrize(
    ("body", "type_", "status"),
    [
        (b"{", "malformed-body", 400),
        (b"nonsense", "malformed-body", 400),
        (b'1,"data":2', "malformed-body", 400),
        (b'1,"x":2', "malformed-body", 400),
        (b"\xff", "malformed-body", 400),
        (b'{"user_id":"a","user_id":"b"}', "malformed-body", 400),
        (b"  [ ] ", "invalid-event", 422),
        (b"null", "invalid-event", 422),
    ],
)
async def test_binary_data_that_is_no_object(client, body, type_, status):
    """Malformed JSON is 400, another value than an object 422."""
    headers = {"ce-specversion": "1.0", "ce-id": "2", "ce-source": "/s", "ce-type": "order.placed"}
    problem(await post(client, body, "application/json", **headers), status, type_)


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_repeated_name_in_data_is_400(client, mode):
    """The pointer names the field in data."""
    data = b'{"user_id":"a","user_id":"b"}'
    if mode == "binary":
        headers = {"ce-specversion": "1.0", "ce-id": "2", "ce-source": "/s", "ce-type": "order.placed"}
        response = await post(client, data, "application/json", **headers)
    else:
        body = b'{"specversion":"1.0","id":"1","source":"/s","type":"order.placed","data":%b}' % data
        response = await post(client, body, STRUCTURED)
    (fault,) = problem(response, 400, "malformed-body")["errors"]
    assert (fault["pointer"], fault["code"]) == ("/data/user_id", "duplicate")


@MODES
async def test_numbers_keep_their_exact_value(client, mode):
    """Data is published as it was sent."""
    data = b'{"user_id":"u","order_id":"o","payload":{"total": 89.90, "big":1E+400}}'
    event = b'{"specversion":"1.0","id":"1","source":"/s","type":"order.placed","data":%b}' % data
    if mode == "binary":
        headers = {"ce-specversion": "1.0", "ce-id": "2", "ce-source": "/s", "ce-type": "order.placed"}
        await post(client, data, "application/json", **headers)
    else:
        await post(
            client, event if mode == "structured" else b"[%b]" % event, STRUCTURED if mode == "structured" else BATCHED
        )
    assert '{"total": 89.90, "big":1E+400}' in (await client.get("/dev/messages")).text


async def test_batch_is_answered_like_a_batch(client):
    """Each event has its result; preferences and limits apply; an empty batch is accepted."""
    response = await post(client, [EVENT, changed(id="2", data=1), changed(id="3")], BATCHED)
    document = incomplete(response, 422)
    assert (document["accepted"], document["failed"]) == (2, 1)
    response = await post(client, [EVENT], BATCHED, Prefer="return=minimal")
    assert response.json() == {"status": "accepted", "accepted": 1, "failed": 0}
    response = await post(client, [], BATCHED)
    assert response.status_code == 202
    assert response.json() == {"status": "accepted", "accepted": 0, "failed": 0, "results": []}
    problem(await post(client, EVENT, BATCHED), 400, "malformed-body")
    problem(await post(client, [1] * 10_001, BATCHED), 413, "body-too-large")


async def test_message_over_the_limit_is_413():
    """The attributes of the CloudEvent count for the limit of a message."""
    async with served(settings=Settings(transport="memory", max_body_bytes=10_000_000)) as client:
        data = DATA | {"payload": {"x": "y" * 9_999_000}}
        headers = {"ce-specversion": "1.0", "ce-id": "2", "ce-source": "/" + "s" * 1000, "ce-type": "order.placed"}
        problem(await post(client, data, "application/json", **headers), 413, "body-too-large")


names = st.sampled_from([*EVENT, "time", "partitionkey", "datacontenttype", "data_base64"]) | st.text(max_size=5)
values = json_values | st.sampled_from([*EVENT.values(), "order.placed", "2026-01-31T12:00:00Z"])


@given(event=st.dictionaries(names, values, max_size=8), complete=st.booleans(), batched=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_event_is_accepted_or_refused(event, complete, batched):
    """Any JSON is 202 or a 4xx with a reason."""

    async def run() -> None:
        document = (EVENT if complete else {}) | event
        async with served() as client:
            response = await post(client, [document] if batched else document, BATCHED if batched else STRUCTURED)
        if response.status_code != 202:
            problem(response, response.status_code, response.json()["type"])
            assert response.status_code < 500

    asyncio.run(run())


@given(
    headers=st.dictionaries(
        st.sampled_from(["specversion", "id", "source", "type", "time", "partitionkey", "x"]),
        st.binary(max_size=20).filter(lambda value: not {0, 10, 13} & set(value)),
    ),
    body=st.binary(max_size=30) | json_values.map(lambda value: json.dumps(value).encode()),
)
@settings(max_examples=200, deadline=None)
def test_any_headers_are_accepted_or_refused(headers, body):
    """Any headers and body are 202 or a 4xx with a reason."""

    async def run() -> None:
        complete = {"specversion": b"1.0", "id": b"1", "source": b"/s", "type": b"order.placed"} | headers
        sent = [(f"ce-{name}".encode(), value) for name, value in complete.items()]
        async with served() as client:
            response = await client.post(
                "/events/cloudevents", content=body, headers=[(b"content-type", b"application/json"), *sent]
            )
        if response.status_code != 202:
            problem(response, response.status_code, response.json()["type"])
            assert response.status_code < 500

    asyncio.run(run())
