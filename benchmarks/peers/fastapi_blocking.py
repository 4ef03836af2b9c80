"""FastAPI and Google's publisher client, whose future blocks a thread of the framework's pool."""

from fastapi import FastAPI
from google.cloud import pubsub_v1

from benchmarks.peers.events import TOPICS, Accepted, AnyEvent

app = FastAPI()
publisher = pubsub_v1.PublisherClient(publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True))


@app.post("/events/ingest", status_code=202)
def ingest(event: AnyEvent) -> Accepted:
    """Publish, and wait for the broker."""
    published = publisher.publish(
        publisher.topic_path("pulsecart-bench", TOPICS[event.event_type]),
        event.model_dump_json().encode(),
        ordering_key=event.user_id,
        event_type=event.event_type,
        event_id=event.event_id,
    )
    return Accepted(event_id=event.event_id, message_id=published.result(timeout=10))
