"""The documents: JSON Schemas, OpenAPI and AsyncAPI."""

import json
from typing import Any

import attrs
import httpx
import pytest
from attrs import field, frozen, validators
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Mount

from pulsecart import Catalog, Event, event, load_catalog
from pulsecart.app import create_app
from pulsecart.events.schema import json_text
from pulsecart.http.docs import asyncapi, openapi
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport
from tests.http.client import DEV, JSON, problem, served

PATHS = ["/docs", "/schemas", "/schemas/order.placed", "/openapi.json", "/asyncapi.json"]
PROD = Settings(transport="pubsub", environment="prod", project="shop", auth="none")
ALL_PATHS = [
    "/events/ingest",
    "/events/batch",
    "/events/cloudevents",
    "/events/validate",
    "/health",
    "/livez",
    "/readyz",
    "/dev",
    "/dev/messages",
    "/dev/rejected",
    "/dev/stream",
]


@event("a/b c", topic="odd-topic")
@frozen(kw_only=True)
class Problem(Event):
    """Its type has a slash and a space, and its class the name of a schema of the service."""


@pytest.fixture
async def document(client) -> Any:
    return (await client.get("/openapi.json")).json()


async def test_schemas_are_listed(client):
    """Each event type has its topic and the path of its schema, which is a JSON Schema of a body."""
    response = await client.get("/schemas")
    assert response.headers["content-type"] == "application/json"
    found = response.json()["schemas"]
    assert [(each["event_type"], each["topic"]) for each in found] == [(c.event_type, c.topic) for c in load_catalog()]
    for each in found:
        response = await client.get(each["schema"])
        assert response.headers["content-type"] == "application/schema+json"
        schema = response.json()
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["properties"]["event_type"] == {"const": each["event_type"]}
        for shown in schema["examples"]:
            assert (await client.post("/events/ingest", json=shown)).status_code == 202


async def test_unknown_type_is_404_with_the_nearest(client):
    """A schema that is not there is a 404 that names the nearest type, or all of them."""
    found = problem(await client.get("/schemas/order.plased"), 404, "not-found")
    assert found["detail"] == "'order.plased' is not an event type of the catalog; did you mean 'order.placed'?"
    assert "known are cart.item_added, " in problem(await client.get("/schemas/xyz"), 404, "not-found")["detail"]


@pytest.mark.parametrize("path", PATHS)
async def test_documents_are_off_outside_development(path):
    """Outside development there are no documents, unless PULSECART_DOCS asks for them; in development it can refuse."""
    for settings, status in [
        (PROD, 404),
        (attrs.evolve(PROD, docs="true"), 200),
        (DEV, 200),
        (attrs.evolve(DEV, docs="false"), 404),
    ]:
        async with served(MemoryTransport(), settings) as client:
            response = await client.get(path)
            assert response.status_code == status
            if status == 404:
                problem(response, 404, "not-found")


async def test_documents_name_the_prefix_of_a_mounted_application():
    """Below a mount prefix, paths start with it."""
    app = Starlette(routes=[Mount("/shop", create_app(DEV))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        listed = (await client.get("/shop/schemas")).json()["schemas"]
        assert listed[3]["schema"] == "/shop/schemas/order.placed"
        assert (await client.get(listed[3]["schema"])).status_code == 200
        assert (await client.get("/shop/openapi.json")).json()["servers"] == [{"url": "/shop"}]


async def test_documents_do_not_change(client):
    """A document is the same each time."""
    for path in PATHS:
        assert (await client.get(path)).content == (await client.get(path)).content


async def test_openapi_is_valid_and_describes_the_routes_there_are(document):
    """The document meets OpenAPI 3.1, and has each route of the service, and no other."""
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"] == "3.1.0"
    assert {(path, method) for path, item in document["paths"].items() for method in item} == {
        ("/events/ingest", "post"),
        ("/health", "get"),
        ("/livez", "get"),
        ("/readyz", "get"),
        ("/docs", "get"),
        ("/schemas", "get"),
        ("/schemas/{event_type}", "get"),
        ("/openapi.json", "get"),
        ("/asyncapi.json", "get"),
        ("/dev", "get"),
        ("/dev/stream", "get"),
        ("/dev/rejected", "get"),
        ("/dev/rejected", "delete"),
        ("/dev/messages", "get"),
        ("/dev/messages", "delete"),
    } | {(path, "post") for path in ALL_PATHS[:4] if path in document["paths"]}


def examples(media: Any) -> list[Any]:
    """Return the examples of a media type object."""
    shown = [each["value"] for each in media.get("examples", {}).values()]
    return [*shown, media["example"]] if "example" in media else shown


@pytest.mark.parametrize("path", ALL_PATHS[:4])
async def test_examples_of_every_post_route_are_accepted(client, document, path):
    """Each example is accepted, in each media type, with the examples of the headers."""
    described = document["paths"][path]["post"]
    headers = {each["name"]: each["example"] for each in described["parameters"] if "example" in each}
    status = min(described["responses"])
    answer = described["responses"][status]["content"]["application/json"]["schema"]
    for media_type, media in described["requestBody"]["content"].items():
        assert examples(media)
        for each in examples(media):
            content = each if isinstance(each, str) else json.dumps(each)
            response = await client.post(path, content=content, headers=headers | {"Content-Type": media_type})
            assert response.status_code == int(status), response.text
            Draft202012Validator(answer | {"components": document["components"]}).validate(response.json())


@pytest.mark.parametrize("authenticated", [False, True])
def test_every_post_route_has_examples_and_every_error(authenticated):
    """Each POST route has a request, an answer and problems, and each example meets its schema."""
    document = json.loads(json_text(openapi(load_catalog(), ALL_PATHS, authenticated=authenticated)))
    OpenAPIV31SpecValidator(document).validate()
    for path in ALL_PATHS[:4]:
        described = document["paths"][path]["post"]
        statuses = {"400", "408", "413", "415", "422", "431", "500", "503"}
        assert described["responses"].keys() >= statuses | ({"401", "403", "429"} if authenticated else set())
        assert ("security" in described) is authenticated
        assert {"Idempotency-Key", "Content-Encoding"} <= {each["name"] for each in described["parameters"]}
        for media in [*described["requestBody"]["content"].values(), *contents(described["responses"])]:
            assert examples(media)
            for each in examples(media):
                Draft202012Validator(media["schema"] | {"components": document["components"]}).validate(each)
    assert "security" not in document["paths"]["/health"]["get"]
    assert ("security" in document["paths"]["/dev/messages"]["get"]) is authenticated


async def test_documents_need_no_credentials_and_describe_them(tmp_path):
    """With authentication, events need a key, the documents do not, and they say so."""
    sources = tmp_path / "sources.toml"
    sources.write_text(f'[checkout]\nkeys = ["sha256:{"0" * 64}"]\n')
    async with served(settings=attrs.evolve(DEV, auth="keys", sources=str(sources))) as client:
        document = (await client.get("/openapi.json")).json()
        assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
        response = await client.post("/events/ingest", json={})
        problem(response, 401, "unauthenticated")
        described = document["paths"]["/events/ingest"]["post"]["responses"]["401"]
        assert described["headers"].keys() == {"WWW-Authenticate"}
        schema = described["content"]["application/problem+json"]["schema"]
        Draft202012Validator(schema | {"components": document["components"]}).validate(response.json())


def contents(responses: Any) -> list[Any]:
    return [media for response in responses.values() for media in response["content"].values()]


def test_routes_that_are_not_there_are_not_described():
    """Headers that came with the routes for many events are described only with them."""
    document = openapi(load_catalog(), ["/events/ingest"], authenticated=False)
    assert list(document["paths"]) == ["/events/ingest"]
    assert "parameters" not in document["paths"]["/events/ingest"]["post"]


async def test_problems_are_described_as_they_are(client, document):
    """The problems of bad requests meet the schema of their status."""
    responses = document["paths"]["/events/ingest"]["post"]["responses"]
    for body, headers in [
        (b"", JSON),
        (b"{}", JSON),
        (b'{"event_type":"order.plased"}', JSON),
        (b'{"event_type":"order.placed"}', JSON),
        (b"{}", {}),
        (b"{" + b" " * 1_048_576, JSON),
    ]:
        response = await client.post("/events/ingest", content=body, headers=headers)
        described = responses[str(response.status_code)]["content"]["application/problem+json"]["schema"]
        Draft202012Validator(described | {"components": document["components"]}).validate(response.json())


def test_names_of_any_kind_have_their_place():
    """An event type with a slash and a class named like a schema of the service are described too."""
    catalog = Catalog([Problem, *load_catalog()])
    document = json.loads(json_text(openapi(catalog, ALL_PATHS, authenticated=False)))
    OpenAPIV31SpecValidator(document).validate()
    assert document["components"]["schemas"]["Problem"]["properties"].keys() >= {"type", "retryable"}
    reference = document["components"]["schemas"]["Event"]["discriminator"]["mapping"]["a/b c"]
    assert document["components"]["schemas"][reference.rpartition("/")[2]]["title"] == "Problem"
    assert "a_2f_b_20_c" in asyncapi(catalog)["components"]["messages"]


async def test_type_with_a_slash_has_a_schema(monkeypatch, tmp_path):
    """The path of a schema is quoted, and found."""
    (tmp_path / "odd_events.py").write_text("from tests.http.test_docs import Problem\n")
    monkeypatch.syspath_prepend(tmp_path)
    async with served(settings=attrs.evolve(DEV, events=("odd_events",))) as client:
        listed = (await client.get("/schemas")).json()["schemas"]
        assert listed[-1]["schema"] == "/schemas/a/b%20c"
        assert (await client.get(listed[-1]["schema"])).json()["title"] == "Problem"


async def test_asyncapi_describes_topics_and_messages(client):
    """Each topic is a channel with its messages, whose fields are all there, and to which others may be added."""
    document = (await client.get("/asyncapi.json")).json()
    assert document["asyncapi"] == "3.0.0"
    channel = document["channels"]["pulsecart.commerce-events"]
    assert channel["address"] == "pulsecart.commerce-events"
    assert channel["messages"].keys() == {"order.placed", "payment.failed", "cart.abandoned"}
    message = document["components"]["messages"]["order.placed"]
    assert message["bindings"]["googlepubsub"]["bindingVersion"] == "0.2.0"
    assert message["bindings"]["googlepubsub"]["attributes"] == {"event_type": "order.placed"}
    schema = document["components"]["schemas"]["OrderPlaced"]
    assert set(schema["required"]) == {"event_type", "event_id", "timestamp", "user_id", "payload", "order_id"}
    assert "additionalProperties" not in schema


def test_asyncapi_describes_what_a_class_makes():
    """A computed field is published too; what a converter returns can be anything; a class may have no example."""

    @event("test.made", topic="test-topic")
    @frozen(kw_only=True)
    class Made(Event):
        code: str = field(validator=validators.matches_re("[0-9]+"))
        length: int = field(init=False, default=3)
        tags: list[str] = field(factory=list, converter=sorted)

    document = asyncapi(Catalog([Made]))
    schema = document["components"]["schemas"]["Made"]
    assert {"code", "length", "tags"} <= set(schema["required"])
    assert schema["properties"]["length"]["type"] == "integer"
    assert schema["properties"]["tags"] == {}
    assert "examples" not in document["components"]["messages"]["test.made"]


async def test_published_messages_meet_the_asyncapi_document(client):
    """What is published is what the document says."""
    document = (await client.get("/asyncapi.json")).json()
    for described in document["components"]["messages"].values():
        payload = described["examples"][0]["payload"]
        sent = {name: value for name, value in payload.items() if name not in ("event_id", "timestamp")}
        assert (await client.post("/events/ingest", json=sent)).status_code == 202
    for message in (await client.get("/dev/messages")).json()["messages"]:
        described = document["components"]["messages"][message["attributes"]["event_type"]]
        for part, value in (("payload", message["data"]), ("headers", message["attributes"])):
            Draft202012Validator(described[part] | {"components": document["components"]}).validate(value)
        Draft202012Validator(described["payload"] | {"components": document["components"]}).validate(
            described["examples"][0]["payload"]
        )
