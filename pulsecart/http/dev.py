"""`/dev/messages`: lists the messages that the memory transport keeps. For development only."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pulsecart.http.problems import Problem
from pulsecart.message import PublishedMessage
from pulsecart.ports import Inspectable

__all__ = ["messages"]

_HOST = re.compile(r"(?:\[(.+)\]|([^:]+))(?::[0-9]*)?")
"""A Host header: an IPv6 address in brackets, another address or a name, with an optional port."""

_NOT_LISTED = "is neither loopback nor listed in PULSECART_DEV_HOSTS."

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


def messages(transport: Inspectable, may_use_dev: Callable[[str], bool]) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint: GET lists the messages, newest last, filtered by the query; DELETE removes all of them.

    With `after`, a message id, GET lists the messages that were published after that one; all of them if it is not
    there (any more). With `wait` and `count`, it answers once there are `count` messages in the list, and after `wait`
    seconds at the latest.

    Requests from other hosts than `may_use_dev` allows are rejected; see `Settings.may_use_dev`.
    """

    async def endpoint(request: Request) -> Response:
        if forbidden := _forbidden(request, may_use_dev):
            return Problem(
                status=403,
                type="forbidden-host",
                title="This host may not see the messages",
                detail=forbidden,
            ).response()
        if request.method == "DELETE":
            transport.clear()
            return Response(status_code=204)
        filters = dict(request.query_params)
        after, wait, count = filters.pop("after", ""), filters.pop("wait", "0"), filters.pop("count", "1")
        if unknown := [name for name in filters if name not in _FILTERS]:
            return Problem(
                status=400,
                type="bad-request",
                title="Unknown filter",
                detail=f"There is no filter {unknown[0][:100]!r}. The filters are {', '.join(_FILTERS)}.",
            ).response()
        if not _SECONDS.fullmatch(wait) or float(wait) > _MAX_WAIT:
            return _malformed(f"wait must be a number of seconds from 0 to {_MAX_WAIT:g}, not {wait[:100]!r}.")
        if not _COUNT.fullmatch(count):
            return _malformed(f"count must be a whole number of at most 9 digits, not {count[:100]!r}.")

        def matches(message: PublishedMessage) -> bool:
            return all(_FILTERS[name](message) == value for name, value in filters.items())

        def find() -> list[PublishedMessage]:
            return [message for message in _after(transport.messages, after) if matches(message)]

        await _until(lambda: len(find()) >= int(count), float(wait), transport, matches)
        found = [
            {
                "topic": message.topic,
                "message_id": message.message_id,
                "ordering_key": message.ordering_key,
                "attributes": message.attributes,
                "data": msgspec.Raw(message.data),  # as published, digit for digit
            }
            for message in find()
        ]
        return Response(msgspec.json.encode({"messages": found}), media_type="application/json")

    return endpoint


def _malformed(detail: str) -> Response:
    return Problem(status=400, type="malformed-request", title="The query is invalid", detail=detail).response()


def _after(messages: Sequence[PublishedMessage], message_id: str) -> Sequence[PublishedMessage]:
    """Return what was published after a message; everything if it is not in the list."""
    ids = [message.message_id for message in messages] if message_id else []
    return messages[ids.index(message_id) + 1 :] if message_id in ids else messages


async def _until(
    enough: Callable[[], bool], seconds: float, transport: Inspectable, matches: Callable[[PublishedMessage], bool]
) -> None:
    """Wait until there are enough messages, but at most some seconds. That is judged when a matching one arrives."""
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def listen(message: PublishedMessage) -> None:
        if matches(message):
            loop.call_soon_threadsafe(arrived.set)

    with transport.listening(listen), suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not enough():
                arrived.clear()
                await arrived.wait()


def _forbidden(request: Request, may_use_dev: Callable[[str], bool]) -> str:
    """Return why a request is forbidden; empty if it is allowed.

    Checking the peer is not enough: requests of any web page in the developer's browser come from this machine too.
    They have the page's Origin or, if its host name has been made to resolve to this machine, that name as Host.
    """
    peer, server = request.client, request.scope.get("server")
    # A Unix socket has no peer and no port. A TCP connection that has been reset has a port, but no peer.
    if not may_use_dev(peer.host) if peer else server and server[1] is not None:
        return f"The peer {peer.host if peer else 'of a lost connection'} {_NOT_LISTED}"
    host = ", ".join(request.headers.getlist("host"))
    match = _HOST.fullmatch(host)
    if not match or not may_use_dev(match[1] or match[2]):
        return f"The Host {host[:100]!r} {_NOT_LISTED}"
    for origin in request.headers.getlist("origin"):
        if origin.partition("://")[2].lower() != host.lower():
            return f"The Origin {origin[:100]!r} is not that of the Host {host[:100]!r}."
    return ""
