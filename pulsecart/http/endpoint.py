"""What all POST routes share: the request, its headers, and the answers to errors.

Endpoints are plain ASGI applications: using Starlette's `Request` would add half of the time that the rest takes.
"""

from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any

from attrs import define
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pulsecart.access.sources import Source
from pulsecart.errors import BrokerRefused, EventError, PublishError
from pulsecart.http.auth import name_of, source_of
from pulsecart.http.dev.feed import Feed, keeping
from pulsecart.http.formats.coding import coding_of
from pulsecart.http.headers import split, unquoted
from pulsecart.http.idempotency import IdempotencyKey
from pulsecart.http.problems import DEFECT, Problem, ProblemError, problem_of, unsupported
from pulsecart.message import Prepared
from pulsecart.producer import Producer
from pulsecart.telemetry.logs import EventLog

__all__ = ["Request", "endpoint", "log_failure", "media_type", "require_json", "unsupported_type"]

MOST_FAULTS = 10
"""Maximum number of faults in a log line, each with its pointer and code."""

_HEADERS = frozenset({b"content-type", b"content-encoding", b"content-length", b"idempotency-key", b"prefer"})
"""The headers that are read."""

_NONE: Mapping[str, str] = {}


@define
class Request:
    """A request for one of the POST routes."""

    scope: Scope
    receive: Receive
    headers: dict[bytes, bytes]
    """The headers that are read, with lines of the same name joined (RFC 9110, section 5.2)."""
    source: Source | None
    key: IdempotencyKey | None
    started: float

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return perf_counter() - self.started

    @property
    def declared(self) -> bytes:
        """The value of Content-Length, or empty."""
        return self.headers.get(b"content-length", b"")

    @property
    def content_type(self) -> bytes:
        """The value of Content-Type, or empty."""
        return self.headers.get(b"content-type", b"")

    @property
    def coding(self) -> str:
        """The content coding, or empty. Raises `ProblemError` (415)."""
        header = self.headers.get(b"content-encoding")
        return coding_of(header) if header else ""

    def prepare(
        self,
        producer: Producer,
        document: bytes | dict[str, Any],
        index: int = 0,
        attributes: Mapping[str, str] = _NONE,
    ) -> Prepared:
        """Prepare an event of this request: the one with this index. Raises an `EventError`."""
        new_event_id = None if self.key is None else self.key.of_event(index)
        return producer.prepare(document, caller=self.source, new_event_id=new_event_id, attributes=attributes)


def endpoint(
    route: str, answer: Callable[[Request], Awaitable[Response]], log: EventLog, feed: Feed | None = None
) -> ASGIApp:
    """Return the ASGI application of a route. It answers and logs what `answer` raises.

    Requests that it rejects are recorded in the feed, if there is one.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        if feed is not None:
            receive, parts = keeping(receive)
        source = source_of(scope)
        try:
            headers = _headers(scope)
            sent = headers.get(b"idempotency-key")
            key = None if sent is None else IdempotencyKey.read(sent, route, name_of(source))
            response = await answer(Request(scope, receive, headers, source, key, started))
        except (EventError, PublishError, ProblemError) as error:
            problem = problem_of(error)
            response = problem.response()
            log_failure(log, error, problem, perf_counter() - started, source)
        except ClientDisconnect:
            response = Response(status_code=400)  # not delivered: the client has disconnected
            seconds = perf_counter() - started
            log.failed("info", "abandoned", "client-disconnect", seconds, source=name_of(source))
        except Exception as error:  # noqa: BLE001
            # If it were raised, the server would log a traceback for each request.
            response = DEFECT.response()
            log.defect(error, DEFECT.type, perf_counter() - started, name_of(source))
        if feed is not None and response.status_code >= 400 and response.body:
            await feed.add_rejected(scope, receive, parts, response)
        await response(scope, receive, send)

    return application


def _headers(scope: Scope) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _HEADERS:
            headers[name] = headers[name] + b", " + value if name in headers else value
            if name == b"idempotency-key" and headers[name] is not value:
                headers[name] = b""  # two lines are no key, while one key may contain a comma
    return headers


def media_type(content_type: bytes) -> str:
    """Return the media type of a Content-Type header; empty if there is none, or for text that is not UTF-8.

    Parameters other than `charset` have no meaning here (RFC 9110, section 8.3.1).
    """
    name, *parameters = split(content_type.decode("latin-1").lower(), ";") or [""]
    for parameter in parameters:
        attribute, _, value = parameter.partition("=")
        if attribute.strip() == "charset" and unquoted(value.strip()) not in {"utf-8", "us-ascii"}:
            return ""
    return name


def require_json(content_type: bytes) -> None:
    """Raise `ProblemError` (415) unless the media type is `application/json`."""
    if content_type != b"application/json" and media_type(content_type) != "application/json":
        raise unsupported_type(content_type, "application/json")


def unsupported_type(content_type: bytes, *accepted: str) -> ProblemError:
    """Return the error (415) for a media type, given those that are accepted."""
    sent = repr(content_type.decode("latin-1")[:100]) if content_type else "none"
    detail = f"Content-Type must be {' or '.join(accepted)}; this request has {sent}."
    return unsupported(detail, {"Accept": ", ".join(accepted)})


def log_failure(log: EventLog, error: Exception, problem: Problem, seconds: float, source: Source | None) -> None:
    """Log an event that was not published: as an error if the topic is rejected, which an operator must fix."""
    if problem is DEFECT:
        log.defect(error, problem.type, seconds, name_of(source))
        return
    names = ("event_type", "event_id", "topic", "traceparent", "error_type")
    fields = {name: getattr(error, name, "") for name in names}
    fields |= {"detail": getattr(error, "log_detail", ""), "source": name_of(source)}
    if problem.errors:
        fields["faults"] = ", ".join(f"{fault.pointer} {fault.code}".strip() for fault in problem.errors[:MOST_FAULTS])
    if problem.status < 500:
        log.failed("info", "refused", problem.type, seconds, **fields)
    else:
        severity = "error" if isinstance(error, BrokerRefused) else "warning"
        log.failed(severity, "failed", problem.type, seconds, **fields)
