"""The service without a network: the ASGI application on a transport, and a client that calls it."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import structlog
from anyio.from_thread import BlockingPortal, start_blocking_portal
from attrs import frozen
from starlette.applications import Starlette

from pulsecart.app import create_app
from pulsecart.ports import Transport
from pulsecart.serve.settings import Settings

__all__ = ["Service", "running"]


@frozen
class Service:
    """The service, which is running."""

    app: Starlette

    client: httpx.Client
    """Calls the application, from any thread. Its base URL is http://localhost."""


@contextmanager
def running(transport: Transport, settings: Settings) -> Iterator[Service]:
    """Run the application on a transport, in a thread with an event loop, until the end of the block."""
    configured = structlog.is_configured()
    app = create_app(settings, transport=transport)
    try:
        with (
            start_blocking_portal("asyncio") as portal,
            portal.wrap_async_context_manager(app.router.lifespan_context(app)),
            httpx.Client(transport=_Caller(app, portal), base_url="http://localhost") as client,
        ):
            yield Service(app, client)
    finally:
        if not configured:  # the test's own application may configure it
            structlog.reset_defaults()


class _Caller(httpx.BaseTransport):
    """Calls an ASGI application that runs in another thread."""

    def __init__(self, app: Starlette, portal: BlockingPortal) -> None:
        self._asgi = httpx.ASGITransport(app, raise_app_exceptions=False)  # they are answered with 500
        self._portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return self._portal.call(self._call, request)

    async def _call(self, request: httpx.Request) -> httpx.Response:
        answer = await self._asgi.handle_async_request(request)
        body = b"".join([part async for part in answer.aiter_raw()])
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(body))
