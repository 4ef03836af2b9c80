"""`/dev/messages`: lists the newest messages. For development only."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pulsecart.http.problems import Problem
from pulsecart.message import PublishedMessage
from pulsecart.ports import Inspectable

__all__ = ["messages"]

_FILTERS: dict[str, Callable[[PublishedMessage], Any]] = {
    "topic": lambda message: message.topic,
    "event_type": lambda message: message.attributes["event_type"],
    "event_id": lambda message: message.attributes["event_id"],
    "user_id": lambda message: message.json()["user_id"],
}


def messages(transport: Inspectable) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint: GET lists the messages, newest last, filtered by the query; DELETE removes all of them."""

    async def endpoint(request: Request) -> Response:
        if request.method == "DELETE":
            transport.clear()
            return Response(status_code=204)
        if unknown := [name for name in request.query_params if name not in _FILTERS]:
            return Problem(
                status=400,
                type="malformed-request",
                title="Unknown filter",
                detail=f"There is no filter {unknown[0][:100]!r}. The filters are {', '.join(_FILTERS)}.",
            ).response()
        found = [
            {
                "topic": message.topic,
                "message_id": message.message_id,
                "ordering_key": message.ordering_key,
                "attributes": message.attributes,
                "data": msgspec.Raw(message.data),  # as published, digit for digit
            }
            for message in transport.messages
            if all(_FILTERS[name](message) == value for name, value in request.query_params.items())
        ]
        return Response(msgspec.json.encode({"messages": found}), media_type="application/json")

    return endpoint
