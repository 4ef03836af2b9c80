"""End to end: from an HTTP request through the real emulator to Google's own subscriber."""

import json
import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import httpx
import pytest

from pulsecart import Message, load_catalog
from tests.serving import Served, serving
from tests.subscriber import subscriber

pytestmark = pytest.mark.emulator

USERS = 20
EVENTS_PER_USER = 15


@pytest.fixture
def project() -> str:
    return f"p-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def served(project, tmp_path) -> Iterator[Served]:
    with serving("--project", project, cwd=tmp_path) as service:
        yield service


@pytest.fixture
def pull(served, project) -> Iterator[Callable[[str, int], list[Message]]]:
    with subscriber(os.environ["PUBSUB_EMULATOR_HOST"], project) as client:
        client.subscribe(load_catalog().topics)
        yield client.pull


def test_posted_events_are_pulled(served, pull):
    """Each event answered 202 is pulled once, in order, with its ids, key, attributes and exact numbers."""
    numbers = ["89.90", "1E+400", "123456789012345678901234567890", "-0.0", "0.1000"]
    answers: dict[str, list[dict[str, str]]] = defaultdict(list)

    def shop(user: str) -> None:
        """Post a user's events one after another."""
        with httpx.Client(base_url=served.url, timeout=30) as client:
            for number in range(EVENTS_PER_USER):
                payload = f'{{"n":{number},"amount":{numbers[number % len(numbers)]}}}'
                body = f'{{"event_type":"order.placed","user_id":"{user}","order_id":"o","payload":{payload}}}'
                response = client.post(
                    "/events/ingest", content=body.encode(), headers={"Content-Type": "application/json"}
                )
                assert response.status_code == 202, response.text
                answers[user].append(response.json() | {"payload": payload})

    users = [f"user-{number} é" for number in range(USERS)]
    with ThreadPoolExecutor(USERS) as threads:
        list(threads.map(shop, users))

    found = defaultdict(list)
    for message in pull("pulsecart.commerce-events", USERS * EVENTS_PER_USER):
        found[message.ordering_key].append(message)
    assert sorted(found) == sorted(users)
    for user, messages in found.items():
        assert [m.attributes for m in messages] == [
            {"event_type": "order.placed", "event_id": answer["event_id"]} for answer in answers[user]
        ]
        for message, answer in zip(messages, answers[user], strict=True):
            assert f'"payload":{answer["payload"]}'.encode() in message.data
            event = json.loads(message.data)
            assert (event["event_type"], event["event_id"], event["user_id"]) == (
                "order.placed",
                answer["event_id"],
                user,
            )
            assert datetime.fromisoformat(event["timestamp"]).utcoffset() is not None
            assert event["timestamp"].endswith("Z")


def test_every_event_type_reaches_its_topic(served, pull):
    """Each event type of the catalog is published to the topic of its class."""
    sent = {}
    for cls in load_catalog():
        body = {"event_type": cls.event_type, "user_id": "u", "payload": {}}
        own = {"session_id": "s", "order_id": "o"}
        body |= {name: value for name, value in own.items() if hasattr(cls, name)}
        response = httpx.post(f"{served.url}/events/ingest", json=body)
        sent[response.json()["event_id"]] = (cls.topic, cls.event_type)
    topics = Counter(cls.topic for cls in load_catalog())
    found = {
        message.attributes["event_id"]: (topic, message.attributes["event_type"])
        for topic, count in topics.items()
        for message in pull(topic, count)
    }
    assert found == sent


def test_two_workers_publish(project, tmp_path):
    """Two workers share the port and the broker."""
    with serving("--project", project, "--workers", "2", cwd=tmp_path) as service:
        for _ in range(20):
            body = {"event_type": "message.personalized_send", "user_id": "u", "payload": {}}
            assert httpx.post(f"{service.url}/events/ingest", json=body, timeout=30).status_code == 202
        assert service.stop() == 0


def test_readiness_and_banner_show_the_emulator(served, project):
    """The banner names the emulator and the project, and /readyz answers ready."""
    assert f"the Pub/Sub emulator at {os.environ['PUBSUB_EMULATOR_HOST']}, project {project}" in served.output
    assert httpx.get(f"{served.url}/readyz").json() == {"status": "ready", "broker": "ok", "missing_topics": []}
