"""FastAPI and fastpubsub's broker. It returns no message id, so the answer has none."""

from fastapi import FastAPI
from fastpubsub import PubSubBroker

from benchmarks.peers.events import TOPICS, AnyEvent

app = FastAPI()
broker = PubSubBroker(project_id="pulsecart-bench")


@app.post("/events/ingest", status_code=202)
async def ingest(event: AnyEvent) -> dict[str, str]:
    """Publish, and await the broker."""
    await broker.publish(
        TOPICS[event.event_type],
        event,
        ordering_key=event.user_id,
        attributes={"event_type": event.event_type, "event_id": event.event_id},
        autocreate=False,
    )
    return {"status": "accepted", "event_id": event.event_id}
