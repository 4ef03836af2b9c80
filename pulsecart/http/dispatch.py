"""The dispatcher: a table of hot routes, by method and path, in front of Starlette's router for all others.

Starlette alone would route an event through two exception layers and a list of patterns, which takes more time than
publishing it to memory. Requests take the same path with and without added middleware, and below a mount prefix.
"""

import logging
import re
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pulsecart.errors import SettingsError
from pulsecart.http.auth import Guard

_log = logging.getLogger("pulsecart.http")

__all__ = ["Application", "RequestObservation", "RequestObserver", "path_of"]


class RequestObservation(Protocol):
    """Observes an HTTP request until it is answered."""

    @property
    def traceresponse(self) -> str:
        """The value of the response's `traceresponse` header, or empty."""
        ...

    def ended(self, status: int) -> None:
        """Observe the response and its status."""
        ...


class RequestObserver(Protocol):
    """Observes HTTP requests."""

    def request(self, scope: Any, route: str, *, traced: bool) -> RequestObservation | None:
        """Observe a request. Called in the task that answers it.

        `route` is empty if there is none for the path. `traced` says whether the request may have a span. Returns None
        if the request is not observed.
        """
        ...


class Application(Starlette):
    """A Starlette application with a table of hot routes, by method and path. Middleware can be added as usual.

    The endpoints in the table are ASGI applications that handle all of their own errors. A `guard` authenticates
    requests for them and for `/dev`; see `pulsecart.http.auth`.
    """

    def __init__(
        self,
        hot: Mapping[tuple[str, str], ASGIApp],
        observer: RequestObserver,
        guard: Guard | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for route in [each for each in self.routes if isinstance(each, Route)]:
            # Its own pattern also matches a path with a line break at the end.
            route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")
        self._hot = hot
        self._guard = guard
        self._observer = observer

    def build_middleware_stack(self) -> ASGIApp:
        """Insert the dispatcher between added middleware and Starlette's own layers."""
        added, self.user_middleware = self.user_middleware, []
        hot, rest = self._hot, super().build_middleware_stack()
        if self._guard is not None:
            hot = {route: self._guard.protect(endpoint) for route, endpoint in hot.items()}
            rest = self._guard.protect_routes(rest, self.router.routes, {path for _, path in hot})
        app: ASGIApp = _Dispatcher(hot, rest, self.router, self._observer)
        self.user_middleware = added
        for middleware in reversed(added):
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        return app


def path_of(scope: Scope) -> str:
    """Return the path of a request without the prefix that the application is mounted at, as Starlette sees it."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    return below if below.startswith("/") or below == "" else path


class _Dispatcher:
    def __init__(
        self, hot: Mapping[tuple[str, str], ASGIApp], rest: ASGIApp, router: Router, observer: RequestObserver
    ) -> None:
        self._hot = hot
        self._rest = rest
        self._routes = frozenset(route.path for route in router.routes if isinstance(route, Route))
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, partial(_send_explained, send))
            return
        path = path_of(scope)
        endpoint = self._hot.get((scope["method"], path))
        observed = self._observer.request(scope, path if path in self._routes else "", traced=endpoint is not None)
        if observed is None:
            await (endpoint or self._rest)(scope, receive, send)
        else:
            await _observe(observed, endpoint or self._rest, scope, receive, send)


async def _send_explained(send: Send, message: Message) -> None:
    """Send a message of the lifespan. An error that is explained reaches the server without Starlette's traceback."""
    error = sys.exception()
    if message["type"] == "lifespan.startup.failed" and isinstance(error, SettingsError):
        message = {**message, "message": "; ".join(error.problems)}
    await send(message)


async def _observe(observed: RequestObservation, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    status = 500

    async def send_observed(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            if trace := observed.traceresponse:
                message["headers"] = [*message.get("headers", ()), (b"traceresponse", trace.encode())]
        await send(message)

    try:
        await app(scope, receive, send_observed)
    finally:
        try:
            observed.ended(status)
        except Exception:  # noqa: BLE001 (for example of a custom span processor)
            _log.exception("Telemetry raised an exception")
