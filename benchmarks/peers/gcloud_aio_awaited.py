"""FastAPI and gcloud-aio-pubsub (REST on aiohttp), one request an event. It keeps no order among requests in flight."""

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientSession, TCPConnector
from fastapi import FastAPI
from gcloud.aio.pubsub import PublisherClient, PubsubMessage

from benchmarks.peers.events import TOPICS, Accepted, AnyEvent


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


@app.post("/events/ingest", status_code=202)
async def ingest(event: AnyEvent) -> Accepted:
    """Publish, and await the broker."""
    message = PubsubMessage(
        event.model_dump_json(),
        ordering_key=event.user_id,
        event_type=event.event_type,
        event_id=event.event_id,
    )
    topic = PublisherClient.topic_path("pulsecart-bench", TOPICS[event.event_type])
    published = await app.state.publisher.publish(topic, [message], timeout=10)
    return Accepted(event_id=event.event_id, message_id=published["messageIds"][0])
