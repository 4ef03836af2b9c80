"""FastAPI and Google's publisher client, whose future is awaited."""

import asyncio

from fastapi import FastAPI
from google.cloud import pubsub_v1

from benchmarks.peers.events import TOPICS, Accepted, AnyEvent

app = FastAPI()
publisher = pubsub_v1.PublisherClient(publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True))


@app.post("/events/ingest", status_code=202)
async def ingest(event: AnyEvent) -> Accepted:
    """Publish, and await the broker."""
    published = publisher.publish(
        publisher.topic_path("pulsecart-bench", TOPICS[event.event_type]),
        event.model_dump_json().encode(),
        ordering_key=event.user_id,
        event_type=event.event_type,
        event_id=event.event_id,
    )
    message_id = await asyncio.wait_for(asyncio.wrap_future(published), timeout=10)
    return Accepted(event_id=event.event_id, message_id=message_id)
