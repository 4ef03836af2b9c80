"""FastAPI and Google's publisher client, whose futures are awaited."""

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
from fastapi import FastAPI
from google.cloud import pubsub_v1
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

from benchmarks.peers.events import TOPICS, Accepted, AllAccepted, AnyEvent


def endpoint() -> dict[str, Any]:
    """Return the options for PUBSUB_ENDPOINT over TLS. Without it the client reads PUBSUB_EMULATOR_HOST."""
    if not (host := os.environ.get("PUBSUB_ENDPOINT")):
        return {}
    credentials = grpc.ssl_channel_credentials(Path(os.environ["PUBSUB_ROOTS"]).read_bytes())
    return {"transport": PublisherGrpcTransport(channel=grpc.secure_channel(host, credentials))}


app = FastAPI()
publisher = pubsub_v1.PublisherClient(
    publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True), **endpoint()
)


def publish(event: AnyEvent) -> asyncio.Future[str]:
    """Hand an event to the client, which returns at once."""
    published = publisher.publish(
        publisher.topic_path("pulsecart-bench", TOPICS[event.event_type]),
        event.model_dump_json().encode(),
        ordering_key=event.user_id,
        event_type=event.event_type,
        event_id=event.event_id,
    )
    return asyncio.wrap_future(published)


@app.post("/events/ingest", status_code=202)
async def ingest(event: AnyEvent) -> Accepted:
    """Publish, and await the broker."""
    message_id = await asyncio.wait_for(publish(event), timeout=10)
    return Accepted(event_id=event.event_id, message_id=message_id)


@app.post("/events/batch", status_code=202)
async def batch(events: list[AnyEvent]) -> AllAccepted:
    """Publish all, and await the broker."""
    message_ids = await asyncio.wait_for(asyncio.gather(*map(publish, events)), timeout=10)
    return AllAccepted(
        results=[
            Accepted(event_id=event.event_id, message_id=message_id)
            for event, message_id in zip(events, message_ids, strict=True)
        ]
    )
