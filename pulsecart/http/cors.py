"""CORS: which web pages of other origins may send events (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pulsecart.http.auth import is_dev
from pulsecart.http.dispatch import path_of
from pulsecart.http.problems import Problem

__all__ = ["Cors"]

REQUEST_HEADERS = (
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Idempotency-Key",
    "Prefer",
    "traceparent",
    "tracestate",
)
RESPONSE_HEADERS = ("Preference-Applied", "Retry-After", "traceresponse", "WWW-Authenticate")


class Cors(CORSMiddleware):
    """Lets web pages of some origins send events; `*` means all. They never reach `/dev`. Cookies are not used."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=tuple(origins),
            allow_methods=("GET", "POST"),
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight request, or pass the request on."""
        if scope["type"] == "http" and is_dev(path_of(scope)):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight request; a refusal is a problem, as with every other error."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return Problem(
            status=response.status_code,
            type="malformed-request",
            title="This page may not send such a request",
            detail=f"{bytes(response.body).decode()}. The origins are in PULSECART_CORS_ORIGINS.",
            headers=kept,
        ).response()
