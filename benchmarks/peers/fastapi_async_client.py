"""FastAPI and Google's generated asyncio client, one request per event. It keeps no order among requests in flight."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from fastapi import FastAPI
from google.pubsub_v1 import PublisherAsyncClient, PubsubMessage
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

from benchmarks.peers.events import TOPICS, Accepted, AnyEvent


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the client in the running event loop. It does not read PUBSUB_EMULATOR_HOST."""
    channel = grpc.aio.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"])
    app.state.publisher = PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
    yield
    await channel.close()


app = FastAPI(lifespan=lifespan)


@app.post("/events/ingest", status_code=202)
async def ingest(event: AnyEvent) -> Accepted:
    """Publish, and await the broker."""
    message = PubsubMessage(
        data=event.model_dump_json().encode(),
        ordering_key=event.user_id,
        attributes={"event_type": event.event_type, "event_id": event.event_id},
    )
    published = await app.state.publisher.publish(
        topic=f"projects/pulsecart-bench/topics/{TOPICS[event.event_type]}", messages=[message], timeout=10
    )
    return Accepted(event_id=event.event_id, message_id=published.message_ids[0])
