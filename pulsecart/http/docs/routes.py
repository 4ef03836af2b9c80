"""The routes of the documents. Each document is made when it is first asked for, and kept."""

from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pulsecart.events import Catalog
from pulsecart.events.schema import body_schema, json_text
from pulsecart.http.docs.asyncapi import asyncapi
from pulsecart.http.docs.openapi import openapi
from pulsecart.http.pages import page
from pulsecart.http.problems import Problem
from pulsecart.suggest import nearest

__all__ = ["routes"]

Endpoint = Callable[[Request], Awaitable[Response]]

_SCHEMA = "/schemas/{event_type:path}"  # an event type may contain a slash
_OPENAPI = "/openapi.json"


def routes(catalog: Catalog, paths: Iterable[str], *, authenticated: bool) -> list[Route]:
    """Return the routes that describe a service with these paths: itself, the event types and their topics."""
    own = ["/docs", "/schemas", _SCHEMA, _OPENAPI, "/asyncapi.json"]
    described = [*paths, *own]

    def service(prefix: str) -> Any:
        return openapi(catalog, described, authenticated=authenticated, prefix=prefix)

    endpoints = [
        page("docs", "base.css", "docs.css", "base.js", "form.js", "docs.js"),
        _document(lambda prefix: _list(catalog, prefix)),
        _schema(catalog),
        _document(service),
        _document(lambda _prefix: asyncapi(catalog)),
    ]
    return [Route(path, endpoint) for path, endpoint in zip(own, endpoints, strict=True)]


def _document(make: Callable[[str], Any]) -> Endpoint:
    """Return an endpoint for a document that is made of the prefix that the application is mounted at."""

    @cache
    def made(prefix: str) -> bytes:
        return json_text(make(prefix))

    async def endpoint(request: Request) -> Response:
        return Response(made(request.scope.get("root_path", "")), media_type="application/json")

    return endpoint


def _list(catalog: Catalog, prefix: str) -> Any:
    return {
        "schemas": [
            {"event_type": cls.event_type, "topic": cls.topic, "schema": f"{prefix}/schemas/{quote(cls.event_type)}"}
            for cls in catalog
        ]
    }


def _schema(catalog: Catalog) -> Endpoint:
    classes = {cls.event_type: cls for cls in catalog}

    @cache
    def made(event_type: str) -> bytes:
        return json_text(body_schema(classes[event_type]))

    async def endpoint(request: Request) -> Response:
        event_type = request.path_params["event_type"]
        if event_type in classes:
            return Response(made(event_type), media_type="application/schema+json")
        hint = nearest(event_type, classes) or f"; known are {', '.join(classes)}"
        detail = f"{event_type[:200]!r} is not an event type of the catalog{hint}"
        return Problem(status=404, type="not-found", title="Not Found", detail=detail).response()

    return endpoint
