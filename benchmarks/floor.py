"""The floor: about the least that this work costs in Python on uvicorn and gRPC.

`route` is a bare ASGI application that answers at once. `publish` awaits a bare gRPC stub for each event. Neither
validates the body.
"""

import os
import random
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PROJECT = "pulsecart-bench"
TOPIC = f"projects/{PROJECT}/topics/pulsecart.commerce-events"
ANSWER = b'{"status":"accepted","event_id":"%b","message_id":"%b","trace_id":"01a208d02d4708440c6fe7ff04e1d3bb"}'
EVENT_ID = b"evt_01a208d02d4708440c6fe7ff04e1d3bb"


async def respond(send: Send, message_id: str) -> None:
    """Send the same answer as pulsecart."""
    answer = ANSWER % (EVENT_ID, message_id.encode())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def lifespan(receive: Receive, send: Send) -> None:
    """Start and stop when the server asks."""
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
    """Publishes the body of each request in a request of its own. Imports gRPC late, so that `route` stays small."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer when the broker has confirmed."""
        if scope["type"] == "lifespan":
            async with open_channel() as channel:
                self.publish = bare_stub(channel, TOPIC)
                await lifespan(receive, send)
            return
        confirmed = await self.publish((await receive())["body"], f"user-{random.randrange(1000)}")
        await respond(send, confirmed.message_ids[0])


def open_channel() -> Any:
    """Return a channel to PUBSUB_ENDPOINT, over TLS with the roots in PUBSUB_ROOTS, or to PUBSUB_EMULATOR_HOST."""
    import grpc.aio

    if endpoint := os.environ.get("PUBSUB_ENDPOINT"):
        roots = Path(os.environ["PUBSUB_ROOTS"]).read_bytes()
        return grpc.aio.secure_channel(endpoint, grpc.ssl_channel_credentials(roots))
    return grpc.aio.insecure_channel(os.environ["PUBSUB_EMULATOR_HOST"])


def bare_stub(channel: Any, topic: str) -> Callable[[bytes, str], Awaitable[Any]]:
    """Return a function that publishes data under an ordering key with gRPC alone."""
    from google.pubsub_v1.types import PublishRequest, PublishResponse

    request_class, response_class = PublishRequest.pb(), PublishResponse.pb()
    stub = channel.unary_unary(
        "/google.pubsub.v1.Publisher/Publish",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )
    metadata = (("x-goog-request-params", f"topic={topic}"),)

    def publish(data: bytes, key: str) -> Awaitable[Any]:
        request = request_class(topic=topic)
        message = request.messages.add(data=data, ordering_key=key)
        message.attributes["event_type"] = "order.placed"
        message.attributes["event_id"] = EVENT_ID.decode()
        answer: Awaitable[Any] = stub(request, timeout=10, metadata=metadata)
        return answer

    return publish


publish = Publish()
