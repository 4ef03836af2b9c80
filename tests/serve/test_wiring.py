"""What `create_app` wires: settings, transport and routes."""

from collections.abc import Callable
from typing import Self

import httpx
import pytest

from pulsecart import BrokerRefused, Message
from pulsecart.app import create_app
from pulsecart.serve.settings import Settings
from pulsecart.testing import strict_pubsub
from pulsecart.transports import EmulatorTransport, MemoryTransport
from tests.http.client import ingest, problem, served

pytestmark = pytest.mark.anyio

DEV_PATHS = ["/dev", "/dev/messages", "/dev/rejected", "/dev/stream"]


async def test_given_transport_is_opened_and_closed():
    """The application opens a given transport at startup and closes it at shutdown."""
    opened: list[str] = []

    class Watched(MemoryTransport):
        async def __aenter__(self) -> Self:
            opened.append("opened")
            return await super().__aenter__()

        async def aclose(self) -> None:
            opened.append("closed")
            await super().aclose()

    async with served(Watched()):
        assert opened == ["opened"]
    assert opened == ["opened", "closed"]


async def test_missing_topic_is_logged_and_reported_by_readyz(caplog):
    """Outside development a missing topic is not created, but logged at startup and reported by /readyz."""
    async with strict_pubsub(["pulsecart.user-actions", "pulsecart.system-events"]) as server:
        settings = Settings(
            transport="emulator", emulator_host=server.host, environment="staging", auth="none", project="test"
        )
        async with served(settings=settings) as client:
            assert "pulsecart.commerce-events does not exist in project test" in caplog.text
            response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json()["missing_topics"] == ["pulsecart.commerce-events"]


async def test_missing_topics_are_created_on_the_emulator_in_development(order_json):
    """Missing topics are created at startup, and again by the next event if the emulator loses them."""
    async with strict_pubsub([]) as server:
        settings = Settings(transport="emulator", emulator_host=server.host, project="test")
        async with served(settings=settings) as client:
            assert (await ingest(client, order_json())).status_code == 202
            server.topics.clear()
            assert (await ingest(client, order_json())).status_code == 202
    assert [message.ordering_key for message in server.confirmed] == ["u1", "u1"]


@pytest.mark.parametrize("wire", ["rest", "grpc"])
async def test_topics_have_the_names_of_the_deployment(order_json, wire):
    """Messages go to the deployment's topic, and all who ask hear of the catalog's."""
    names = {"pulsecart.commerce-events": "shop.orders"}
    async with strict_pubsub([]) as server:
        settings = Settings(
            transport="emulator", emulator_host=server.host, project="test", topics=names, wire=wire, docs="true"
        )
        async with served(settings=settings) as client:
            assert server.topics == {
                f"projects/test/topics/{name}"
                for name in ("shop.orders", "pulsecart.user-actions", "pulsecart.system-events")
            }
            assert (await ingest(client, order_json())).status_code == 202
            documents = (await client.get("/schemas")).text + (await client.get("/asyncapi.json")).text
    assert [request.topic for request in server.requests] == ["projects/test/topics/shop.orders"]
    assert "pulsecart.commerce-events" in documents
    assert "shop.orders" not in documents


async def test_missing_topic_with_another_name(order_json, caplog):
    """The log names the topic that an operator has to create; /readyz and callers hear of the catalog's."""
    async with strict_pubsub(["pulsecart.user-actions", "pulsecart.system-events"]) as server:
        settings = Settings(
            transport="emulator",
            emulator_host=server.host,
            environment="staging",
            auth="none",
            project="test",
            topics={"pulsecart.commerce-events": "shop.orders"},
        )
        async with served(settings=settings) as client:
            assert "The topic shop.orders does not exist in project test" in caplog.text
            assert (await client.get("/readyz")).json()["missing_topics"] == ["pulsecart.commerce-events"]
            refused = problem(await ingest(client, order_json()), 503, "broker-unavailable")
    assert "the topic pulsecart.commerce-events does not exist" in refused["detail"]
    assert "shop.orders" not in refused["detail"]


async def test_log_names_both_names_of_a_topic():
    """A failure's text for the log has the catalog's name and the deployment's."""
    names = {"shop.events": "shop.clicks"}
    async with (
        strict_pubsub([]) as server,
        EmulatorTransport(project="test", host=server.host, topics=names) as transport,
    ):
        with pytest.raises(BrokerRefused) as caught:
            await transport.publish(Message(topic="shop.events", data=b"{}", attributes={}))
    assert caught.value.log_detail.startswith("topic shop.events (shop.clicks): NOT_FOUND")


@pytest.mark.parametrize("path", DEV_PATHS)
async def test_dev_exists_only_in_development_and_not_on_pubsub(path):
    """In other environments, and where events go to real Pub/Sub, the routes of development are 404."""
    pubsub = Settings(transport="pubsub", project="shop")
    staging = Settings(transport="emulator", emulator_host="127.0.0.1:1", environment="staging", auth="none")
    for app in (create_app(pubsub), create_app(staging, transport=MemoryTransport())):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            problem(await client.get(path), 404, "not-found")


async def test_messages_of_the_emulator_are_listed_in_development(order_json):
    """/dev/messages lists what was published to the emulator, with the broker's message ids, until it is cleared."""
    async with strict_pubsub(["pulsecart.commerce-events"]) as server:
        settings = Settings(transport="emulator", emulator_host=server.host, project="test")
        async with served(settings=settings) as client:
            answer = (await ingest(client, order_json())).json()
            (message,) = (await client.get("/dev/messages?user_id=u1")).json()["messages"]
            assert (message["message_id"], message["data"]["event_id"]) == (answer["message_id"], answer["event_id"])
            assert message["attributes"] == server.confirmed[0].attributes
            assert (await client.delete("/dev/messages")).status_code == 204
            assert (await client.get("/dev/messages")).json() == {"messages": []}


def test_settings_are_read_from_the_environment_by_default(monkeypatch):
    """create_app() without arguments is a factory for any ASGI server."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    routes: Callable[[], set[str]] = lambda: {route.path for route in create_app().routes}  # noqa: E731
    events = {"/events/ingest", "/events/batch", "/events/cloudevents", "/events/validate"}
    documents = {"/docs", "/schemas", "/schemas/{event_type:path}", "/openapi.json", "/asyncapi.json"}
    assert routes() == events | {"/health", "/livez", "/readyz"} | documents | set(DEV_PATHS)
    monkeypatch.setenv("PULSECART_DOCS", "false")
    assert not routes() & documents
