"""Which hosts may use the development routes."""

import re
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from pulsecart.http.problems import Problem

__all__ = ["only_for"]

_HOST = re.compile(r"(?:\[(.+)\]|([^:]+))(?::[0-9]*)?")
"""A Host header: an IPv6 address in brackets, another address or a name, with an optional port."""

_NOT_LISTED = "is neither loopback nor listed in PULSECART_DEV_HOSTS."

Endpoint = Callable[[Request], Awaitable[Response]]


def only_for(may_use_dev: Callable[[str], bool], endpoint: Endpoint) -> Endpoint:
    """Return an endpoint that rejects other hosts than `may_use_dev` allows; see `Settings.may_use_dev`."""

    async def guarded(request: Request) -> Response:
        if forbidden := _forbidden(request, may_use_dev):
            return Problem(
                status=403,
                type="forbidden-host",
                title="This host may not see the messages",
                detail=forbidden,
            ).response()
        return await endpoint(request)

    return guarded


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
        if origin.lower() not in {f"{scheme}://{host}".lower() for scheme in ("http", "https")}:
            return f"The Origin {origin[:100]!r} is not that of the Host {host[:100]!r}."
    return ""
