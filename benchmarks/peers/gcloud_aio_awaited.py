"""FastAPI and gcloud-aio-pubsub (REST on aiohttp), one request an event, or a user's events of a list.

It keeps no order among requests in flight.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain

from aiohttp import ClientSession, TCPConnector
from fastapi import FastAPI
from gcloud.aio.pubsub import PublisherClient, PubsubMessage

from benchmarks.peers.events import TOPICS, Accepted, AllAccepted, AnyEvent


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the client in the running event loop, for PUBSUB_ENDPOINT over TLS or for PUBSUB_EMULATOR_HOST.

    With a root address of its own the client does not ask for a token, and does not verify certificates unless it is
    given a session that does.
    """
    endpoint = os.environ.get("PUBSUB_ENDPOINT")
    context = ssl.create_default_context(cafile=os.environ["PUBSUB_ROOTS"]) if endpoint else True
    async with ClientSession(connector=TCPConnector(ssl=context)) as session:
        app.state.publisher = PublisherClient(session=session, api_root=f"https://{endpoint}/v1" if endpoint else None)
        yield


app = FastAPI(lifespan=lifespan)


def message_of(event: AnyEvent) -> PubsubMessage:
    """Return an event as a message."""
    return PubsubMessage(
        event.model_dump_json(),
        ordering_key=event.user_id,
        event_type=event.event_type,
        event_id=event.event_id,
    )


async def publish(topic: str, events: list[AnyEvent]) -> list[Accepted]:
    """Publish events in one request, and await the broker."""
    path = PublisherClient.topic_path("pulsecart-bench", topic)
    published = await app.state.publisher.publish(path, list(map(message_of, events)), timeout=10)
    return [
        Accepted(event_id=event.event_id, message_id=message_id)
        for event, message_id in zip(events, published["messageIds"], strict=True)
    ]


@app.post("/events/ingest", status_code=202)
async def ingest(event: AnyEvent) -> Accepted:
    """Publish, and await the broker."""
    (accepted,) = await publish(TOPICS[event.event_type], [event])
    return accepted


@app.post("/events/batch", status_code=202)
async def batch(events: list[AnyEvent]) -> AllAccepted:
    """Publish all, and await the broker. All events of a request to Pub/Sub must have the same ordering key."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, event in enumerate(events):
        groups.setdefault((TOPICS[event.event_type], event.user_id), []).append(index)
    answers = await asyncio.gather(
        *(publish(topic, [events[index] for index in indices]) for (topic, _), indices in groups.items())
    )
    found = dict(zip(chain.from_iterable(groups.values()), chain.from_iterable(answers), strict=True))
    return AllAccepted(results=[found[index] for index in range(len(events))])
