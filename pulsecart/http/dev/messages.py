"""`/dev/messages`: lists the newest messages. For development only."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pulsecart.http.dev.feed import Feed
from pulsecart.http.problems import Problem
from pulsecart.message import PublishedMessage

__all__ = ["messages"]

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_COUNT = re.compile(r"[0-9]{1,9}")

_MAX_WAIT = 60.0
"""Maximum value of `wait` in seconds."""

_FILTERS: dict[str, Callable[[PublishedMessage], Any]] = {
    "topic": lambda message: message.topic,
    "event_type": lambda message: message.attributes["event_type"],
    "event_id": lambda message: message.attributes["event_id"],
    "user_id": lambda message: message.json()["user_id"],
}


def messages(feed: Feed) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint: GET lists the messages, newest last, filtered by the query; DELETE removes all of them.

    With `wait` and `count`, GET answers once `count` messages are in the list, after `wait` seconds at the latest.
    """

    async def endpoint(request: Request) -> Response:
        if request.method == "DELETE":
            feed.clear()
            return Response(status_code=204)
        filters = dict(request.query_params)
        wait, count = filters.pop("wait", "0"), filters.pop("count", "1")
        if unknown := [name for name in filters if name not in _FILTERS]:
            return _malformed(f"There is no filter {unknown[0][:100]!r}. The filters are {', '.join(_FILTERS)}.")
        if not _SECONDS.fullmatch(wait) or float(wait) > _MAX_WAIT:
            return _malformed(f"wait must be a number of seconds from 0 to {_MAX_WAIT:g}, not {wait[:100]!r}.")
        if not _COUNT.fullmatch(count):
            return _malformed(f"count must be a whole number of at most 9 digits, not {count[:100]!r}.")
        with suppress(TimeoutError):
            async with asyncio.timeout(float(wait)):
                while len(_found(feed, filters)) < int(count) and not feed.ended:
                    await feed.changed(feed.number)
        found = [
            {
                "topic": message.topic,
                "message_id": message.message_id,
                "ordering_key": message.ordering_key,
                "attributes": message.attributes,
                "data": msgspec.Raw(message.data),  # as published, digit for digit
            }
            for message in _found(feed, filters)
        ]
        return Response(msgspec.json.encode({"messages": found}), media_type="application/json")

    return endpoint


def _found(feed: Feed, filters: dict[str, str]) -> list[PublishedMessage]:
    return [
        message for message in feed.messages if all(_FILTERS[name](message) == value for name, value in filters.items())
    ]


def _malformed(detail: str) -> Response:
    return Problem(status=400, type="malformed-request", title="The query is invalid", detail=detail).response()
