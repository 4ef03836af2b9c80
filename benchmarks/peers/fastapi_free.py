"""FastAPI and a publish that costs nothing: about the least that a service on FastAPI costs."""

from fastapi import FastAPI

from benchmarks.peers.events import Accepted, AnyEvent

app = FastAPI()


@app.post("/events/ingest", status_code=202)
async def ingest(event: AnyEvent) -> Accepted:
    """Encode the event, as if to publish it."""
    event.model_dump_json()
    return Accepted(event_id=event.event_id, message_id="1")
