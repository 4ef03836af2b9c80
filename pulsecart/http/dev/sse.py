"""`/dev/stream`: messages and rejected requests as they come.

The format is that of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from pulsecart.http.dev.feed import Entry, Feed
from pulsecart.http.problems import SHUTTING_DOWN

__all__ = ["stream"]

PAUSE_SECONDS = 0.05
"""What arrives within this time is sent together: thousands of events a second would otherwise be as many writes."""

IDLE_SECONDS = 15.0
"""After so long without an event a comment is sent, so that nothing between takes the connection for dead."""

PIECE_BYTES = 262_144


def stream(feed: Feed) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint: GET begins with all that the feed keeps, or with what follows `Last-Event-ID`."""

    async def endpoint(request: Request) -> Response:
        if feed.ended:
            response = SHUTTING_DOWN.response()
            response.headers["Connection"] = "close"
            return response
        number = feed.number_of(request.headers.get("last-event-id", ""))
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        return StreamingResponse(_pieces(feed, number), headers=headers, media_type="text/event-stream")

    return endpoint


async def _pieces(feed: Feed, number: int) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"  # sends the head, too
    while not feed.ended:
        piece = bytearray()
        for entry in feed.after(number):
            piece += _event(feed, entry)
            number = entry.number
            if len(piece) > PIECE_BYTES:
                break
        else:
            number = feed.number  # entries may have been removed
        try:
            if piece:
                yield bytes(piece)
            else:
                async with asyncio.timeout(IDLE_SECONDS):
                    await feed.changed(number)
                await asyncio.sleep(PAUSE_SECONDS)
        except TimeoutError:
            yield b": still here\n\n"


def _event(feed: Feed, entry: Entry) -> bytes:
    # A line break cannot be sent as such. The data of a message may have some between its values, as it was received.
    data = msgspec.json.encode(feed.document(entry)).splitlines()
    lines = b"".join(b"data: %b\n" % line for line in data)
    return b"id: %b\nevent: %b\n%b\n" % (feed.id_of(entry).encode(), entry.kind.encode(), lines)
