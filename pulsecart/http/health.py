"""Health: is the process alive, and can it publish."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pulsecart.errors import BrokerUnavailable, TransportClosed
from pulsecart.http.drain import Drain

__all__ = ["alive", "ready"]


async def alive(_request: Request) -> Response:
    """Answer that the process serves, whatever the broker does."""
    return JSONResponse({"status": "ok"})


def ready(missing_topics: Callable[[], Awaitable[list[str]]], drain: Drain) -> Callable[[Request], Awaitable[Response]]:
    """Return the readiness endpoint: 503 while the broker cannot be reached, and once the service is to stop.

    A topic that is missing is named, but is no reason for 503: the other topics can be published to.
    `?exclude=broker` leaves the broker out, for orchestrators: its outage would otherwise take every
    instance out of rotation, and callers would get no answer at all.
    """

    async def endpoint(request: Request) -> Response:
        if drain.begun:
            return JSONResponse({"status": "not ready", "detail": "the service is shutting down"}, 503)
        if "broker" in request.query_params.getlist("exclude"):
            return JSONResponse({"status": "ready"})
        try:
            missing = await missing_topics()
        except (BrokerUnavailable, TransportClosed) as error:
            return JSONResponse({"status": "not ready", "broker": "unavailable", "detail": str(error)}, 503)
        return JSONResponse({"status": "ready", "broker": "ok", "missing_topics": missing})

    return endpoint
