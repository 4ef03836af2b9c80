"""Creates the ASGI application from settings: transport, producer, telemetry and HTTP routes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pulsecart.errors import PublishError, SettingsError
from pulsecart.events import Catalog
from pulsecart.guard import guarded
from pulsecart.http import dev, docs
from pulsecart.http.batch import BATCH, Arrays, Batch
from pulsecart.http.body import Bodies
from pulsecart.http.cloudevents import CLOUDEVENTS, CloudEvents
from pulsecart.http.cors import Cors
from pulsecart.http.dispatch import Application
from pulsecart.http.drain import Drain
from pulsecart.http.endpoint import Request, endpoint
from pulsecart.http.health import alive, ready
from pulsecart.http.ingest import INGEST, VALIDATE, Ingest, Validate
from pulsecart.http.problems import EXCEPTION_HANDLERS
from pulsecart.ports import UNOBSERVED, Observer, TopicAdmin, Transport
from pulsecart.producer import Producer
from pulsecart.serve.access import Access
from pulsecart.serve.environment import load_settings
from pulsecart.serve.settings import Settings
from pulsecart.telemetry import export, logs
from pulsecart.telemetry.observer import Telemetry
from pulsecart.transports.registry import TransportConfig, make_transport

__all__ = ["create_app", "transport_of"]

_log = logging.getLogger("pulsecart")


def create_app(settings: Settings | None = None, *, transport: Transport | None = None) -> Starlette:
    """Create the application, for any ASGI server: `uvicorn --factory pulsecart.app:create_app`.

    By default settings are read from the environment. A `transport` replaces the one in the settings, which need not
    have one then; it is opened and closed with the application. Raises `SettingsError` or `DefinitionError`.
    """
    with _problems_logged():
        settings = load_settings(transport_given=transport is not None) if settings is None else settings
        catalog = settings.catalog
        settings.require_topics(catalog.topics)
        access = Access(settings, catalog)
        personal_data = settings.personal_data == "true"
        telemetry = Telemetry(traces_keys=personal_data, callers=settings.trace_callers)
        given = transport_of(settings, telemetry) if transport is None else transport
    transport = guarded(given, limits=settings.limits, name=settings.transport if transport is None else "")
    feed = dev.Feed(given, trace_url=settings.trace_url) if settings.has_dev else None
    producer = Producer(
        transport,
        catalog=catalog,
        ordering=settings.orderings,
        size_limit=settings.size_limit,
        observer=feed.observing(telemetry) if feed else telemetry,
    )
    if not structlog.is_configured():
        logs.configure(settings.log_level, settings.project)
    event_log = logs.EventLog(personal_data=personal_data)

    drain = Drain(transport, settings.drain_delay, *([feed.end] if feed else []))

    creates_topics = settings.environment == "dev" and isinstance(given, TopicAdmin)

    async def missing_topics() -> list[str]:
        return await transport.check(catalog.topics)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with _metrics(settings), export.exporting(telemetry.start), access.opened(), transport:
            try:
                missing = await missing_topics()
                if creates_topics and isinstance(transport, TopicAdmin):
                    await transport.create_topics(missing)
                    missing = []
            except PublishError as error:
                # Start anyway: until the broker is available, callers get a 503, and /readyz reports it.
                _log.warning("The broker is not available yet: %s", error.log_detail)
            else:
                for topic in missing:
                    name = settings.topics.get(topic, topic)
                    _log.warning(
                        "The topic %s does not exist in project %s: create it, for example with pulsecart topics apply",
                        name,
                        settings.project,
                    )
            async with drain.on_signals():
                yield
            event_log.flush()
        await asyncio.to_thread(logs.flush)

    hot = _events(settings, transport, producer, event_log, telemetry, feed=feed)
    routes = [
        *(Route(path, application, methods=[method]) for (method, path), application in hot.items()),
        Route("/health", alive),
        Route("/livez", alive),
        Route("/readyz", ready(missing_topics, drain)),
    ]
    if feed:
        routes += dev.routes(feed, settings.may_use_dev)
    routes += _documents(settings, catalog, routes)
    app = Application(
        hot,
        telemetry,
        access.guard(event_log),
        routes=routes,
        exception_handlers=EXCEPTION_HANDLERS,
        middleware=[Middleware(Cors, settings.cors_origins)] if settings.cors_origins else [],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would send the body twice; a 404 names the right path
    return app


@asynccontextmanager
async def _metrics(settings: Settings) -> AsyncIterator[None]:
    """Serve /metrics, if there is a port for it. Raises `SettingsError` if the port is taken."""
    if not settings.metrics_port:
        yield
        return
    from pulsecart.telemetry.prometheus import exposed  # noqa: PLC0415 (an optional dependency)

    with exposed(settings.metrics_host, settings.metrics_port):
        yield


def _events(  # noqa: PLR0913 (the parts)
    settings: Settings,
    transport: Transport,
    producer: Producer,
    log: logs.EventLog,
    telemetry: Telemetry,
    *,
    feed: dev.Feed | None,
) -> dict[tuple[str, str], ASGIApp]:
    """Return the routes that take events, by method and path."""
    bodies = Bodies(
        body_limit=settings.max_body_bytes,
        limit=settings.max_bytes,
        share=settings.connection_bytes,
        seconds=settings.body_timeout,
        max_streams=settings.max_streams,
        min_rate=settings.min_stream_rate,
    )
    arrays = Arrays(
        producer,
        log,
        bodies,
        telemetry,
        max_events=settings.max_batch_events,
        max_bytes=settings.max_batch_bytes,
    )
    ingest = Ingest(producer, log, bodies)
    # Events that are only validated are not observed.
    validating = Producer(
        transport, catalog=producer.catalog, ordering=settings.orderings, size_limit=settings.size_limit
    )
    answers: dict[str, Callable[[Request], Awaitable[Response]]] = {
        INGEST: ingest,
        BATCH: Batch(producer, log, bodies, telemetry, arrays),
        CLOUDEVENTS: CloudEvents(producer, bodies, ingest, arrays),
        VALIDATE: Validate(validating, bodies),
    }
    return {("POST", path): endpoint(path, answer, log, feed) for path, answer in answers.items()}


def _documents(settings: Settings, catalog: Catalog, routes: list[Route]) -> list[Route]:
    """Return the routes of the documents that describe these routes and the catalog, if they are on."""
    if settings.docs == "false":
        return []
    return docs.routes(catalog, [route.path for route in routes], authenticated=settings.auth != "none")


@contextmanager
def _problems_logged() -> Iterator[None]:
    """Log what is wrong with the settings: servers print a traceback, in which it is hard to find."""
    try:
        yield
    except SettingsError as error:
        _log.error("Invalid settings: %s", "; ".join(error.problems))
        raise


def transport_of(settings: Settings, observer: Observer = UNOBSERVED) -> Transport:
    """Return the transport of the settings. Raises `SettingsError`."""
    if not settings.transport:
        raise SettingsError(["PULSECART_TRANSPORT (--transport) is not set, and create_app was given no transport"])
    config = TransportConfig(
        project=settings.project,
        environment=settings.environment,
        limits=settings.limits,
        options=settings.transport_options,
        observer=observer,
        settings=settings,
    )
    return make_transport(settings.transport, config)
