"""What no service in Python that does this work can go below: bare ASGI applications, for uvicorn.

`route` answers at once. `publish` awaits the bare generated stub for each event, in the same process.
Neither looks at the body, which is what a service is for.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TOPIC = "projects/pulsecart-dev/topics/pulsecart.commerce-events"
ANSWER = b'{"status":"accepted","event_id":"%b","message_id":"%b","trace_id":"01a208d02d4708440c6fe7ff04e1d3bb"}'
EVENT_ID = b"evt_01a208d02d4708440c6fe7ff04e1d3bb"


async def respond(send: Send, message_id: str) -> None:
    """Send what pulsecart would."""
    answer = ANSWER % (EVENT_ID, message_id.encode())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def lifespan(receive: Receive, send: Send) -> None:
    """Start and stop as a server asks."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def route(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answer at once."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await receive()
    await respond(send, "1")


class Publish:
    """Publishes the body of each request by itself. Imports Google only now: `route` is to weigh nothing."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer once the broker has."""
        if scope["type"] == "lifespan":
            import grpc.aio
            from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

            channel = grpc.aio.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"])
            self.publish: Any = PublisherGrpcAsyncIOTransport(channel=channel).publish
            await lifespan(receive, send)
            return
        from google.pubsub_v1.types import PublishRequest, PubsubMessage

        message = PubsubMessage(
            data=(await receive())["body"],
            attributes={"event_type": "order.placed", "event_id": EVENT_ID.decode()},
            ordering_key="user-1",
        )
        confirmed = await self.publish(
            PublishRequest(topic=TOPIC, messages=[message]),
            timeout=10,
            metadata=(("x-goog-request-params", f"topic={TOPIC}"),),
        )
        await respond(send, confirmed.message_ids[0])


publish = Publish()
