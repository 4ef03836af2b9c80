"""Health: whether the process is alive, and whether it can publish."""

from collections.abc import Awaitable, Callable

from attrs import evolve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pulsecart.errors import PublishError, TransportClosed
from pulsecart.http.drain import Drain
from pulsecart.http.problems import problem_of

__all__ = ["alive", "ready"]


async def alive(_request: Request) -> Response:
    """Answer that the process is alive, regardless of the broker."""
    return JSONResponse({"status": "ok"})


def ready(missing_topics: Callable[[], Awaitable[list[str]]], drain: Drain) -> Callable[[Request], Awaitable[Response]]:
    """Return the readiness endpoint: 503 while the broker cannot be reached or the service is draining.

    Missing topics are listed, but are not a reason for a 503, since the other topics can be published to.
    `?exclude=broker` ignores the broker. It is meant for orchestrators: otherwise an outage of the broker would take
    every instance out of rotation, and callers would get no answer at all.
    """

    async def endpoint(request: Request) -> Response:
        if drain.begun:
            return _not_ready(TransportClosed("the service is shutting down"))
        if "broker" in request.query_params.getlist("exclude"):
            return JSONResponse({"status": "ready"})
        try:
            missing = await missing_topics()
        except PublishError as error:
            return _not_ready(error, broker="unavailable")
        return JSONResponse({"status": "ready", "broker": "ok", "missing_topics": missing})

    return endpoint


def _not_ready(error: PublishError, **members: str) -> Response:
    return evolve(problem_of(error), title="The service is not ready", more=members).response()
