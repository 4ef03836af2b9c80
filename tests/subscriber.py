"""Google's subscriber client on the emulator."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.api_core.exceptions import DeadlineExceeded
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from pulsecart import Message

PULL_SECONDS = 60
MAX_BYTES = 20_000_000


class Subscriber:
    """Subscriptions to topics of a project, ordered by key."""

    def __init__(self, client: SubscriberClient, publisher: PublisherClient, project: str) -> None:
        self._client = client
        self._publisher = publisher
        self._project = project

    def subscribe(self, topics: list[str], name: str = "") -> None:
        for topic in topics:
            subscription = {
                "name": f"projects/{self._project}/subscriptions/{name or topic}",
                "topic": f"projects/{self._project}/topics/{topic}",
                "enable_message_ordering": True,
            }
            self._client.create_subscription(request=subscription, retry=None, timeout=PULL_SECONDS)

    def delete_topic(self, topic: str) -> None:
        self._publisher.delete_topic(topic=f"projects/{self._project}/topics/{topic}", retry=None, timeout=PULL_SECONDS)

    def create_topic(self, topic: str) -> None:
        self._publisher.create_topic(name=f"projects/{self._project}/topics/{topic}", retry=None, timeout=PULL_SECONDS)

    def pull(self, topic: str, count: int) -> list[Message]:
        """Pull until there are `count` messages, and once more to check that there are no others."""
        found: list[Message] = []
        end = time.monotonic() + PULL_SECONDS
        while len(found) < count and time.monotonic() < end:
            found += self._pull_some(topic, seconds=5)
        return found + self._pull_some(topic, seconds=0.5)

    def pull_event_ids(self, topic: str, wanted: set[str], name: str = "") -> list[str]:
        """Pull until all of these are delivered and nothing more arrives. Return ids in order of delivery."""
        found: list[str] = []
        end = time.monotonic() + PULL_SECONDS
        while wanted.difference(found) and time.monotonic() < end:
            found += [message.attributes["event_id"] for message in self._pull_some(topic, 2, name)]
        while more := self._pull_some(topic, 0.5, name):
            found += [message.attributes["event_id"] for message in more]
        return found

    def _pull_some(self, topic: str, seconds: float, name: str = "") -> list[Message]:
        path = f"projects/{self._project}/subscriptions/{name or topic}"
        try:
            response = self._client.pull(subscription=path, max_messages=100, retry=None, timeout=seconds)
        except DeadlineExceeded:
            return []
        if ack_ids := [received.ack_id for received in response.received_messages]:
            self._client.acknowledge(subscription=path, ack_ids=ack_ids, retry=None, timeout=PULL_SECONDS)
        return [
            Message(
                topic=topic,
                data=received.message.data,
                attributes=dict(received.message.attributes),
                ordering_key=received.message.ordering_key,
            )
            for received in response.received_messages
        ]


@contextmanager
def subscriber(host: str, project: str) -> Iterator[Subscriber]:
    channel = grpc.insecure_channel(host, options=[("grpc.max_receive_message_length", MAX_BYTES)])
    with SubscriberClient(transport=SubscriberGrpcTransport(channel=channel)) as client:
        publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        yield Subscriber(client, publisher, project)
