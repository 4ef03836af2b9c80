"""`/dev/rejected`: lists the newest requests that were rejected, each with its problem and its body."""

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pulsecart.http.dev.feed import Feed

__all__ = ["rejected"]


def rejected(feed: Feed) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint: GET lists the rejected requests, newest last; DELETE removes all of them."""

    async def endpoint(request: Request) -> Response:
        if request.method == "DELETE":
            feed.clear_rejected()
            return Response(status_code=204)
        return Response(msgspec.json.encode({"rejected": feed.rejected}), media_type="application/json")

    return endpoint
