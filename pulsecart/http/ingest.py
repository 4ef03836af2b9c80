"""`POST /events/ingest`: one event a request, answered once the broker has it."""

import asyncio
from time import perf_counter

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pulsecart.errors import BrokerRefused, EventError, Overloaded, PublishError
from pulsecart.http.problems import DEFECT, Problem, ProblemError, problem_of
from pulsecart.message import Receipt
from pulsecart.producer import Producer
from pulsecart.telemetry import metrics, tracing
from pulsecart.telemetry.logs import EventLog

__all__ = ["ROUTE", "Ingest"]


ROUTE = "/events/ingest"

_HEADERS = frozenset({b"content-type", b"content-encoding", b"content-length", b"traceparent"})
"""Those that are looked at."""

_Headers = dict[bytes, bytes]


class Ingest:
    """The endpoint, an ASGI application of its own: Starlette's request and its reading cost half as much as the rest.

    How each event ends is logged. A body may have `max_body_bytes` and take `body_timeout` seconds to arrive; all that
    are being read at a time may have `max_reading_bytes`, over which a further one is refused.
    """

    def __init__(
        self, producer: Producer, log: EventLog, *, max_body_bytes: int, max_reading_bytes: int, body_timeout: float
    ) -> None:
        self._producer = producer
        self._log = log
        self._bodies = _Bodies(max_body_bytes, max_reading_bytes, body_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = perf_counter()
        try:
            response = await self._respond(scope, receive, started)
        except Exception as error:  # noqa: BLE001 (of what observes: of a host's span processor, say)
            response = self._defect(error, started)
        await response(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, started: float) -> Response:
        """Return the answer to one request, and observe it."""
        headers = _headers(scope)
        scheme = scope.get("scheme", "http")
        span, context = tracing.start_request("POST", ROUTE, ROUTE, scheme, headers.get(b"traceparent", b""))
        status = 500
        try:
            with tracing.within(context):
                response = await self._ingest(headers, receive, started)
            status = response.status_code
        finally:
            tracing.end_request(span, status)
            metrics.request_ended("POST", ROUTE, scheme, status, perf_counter() - started)
        if own_trace := tracing.traceparent(span.get_span_context()):
            response.headers["traceresponse"] = own_trace
        return response

    async def _ingest(self, headers: _Headers, receive: Receive, started: float) -> Response:
        """Publish the event of one request, and log how it ended."""
        try:
            _require_json(headers)
            receipt = await self._producer.ingest(await self._bodies.read(headers, receive))
            response = _accepted(receipt)
            self._log.published(receipt, perf_counter() - started)
        except (EventError, PublishError, ProblemError) as error:
            problem = problem_of(error)
            response = problem.response()
            _log_problem(self._log, error, problem, perf_counter() - started)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody will read it
            self._log.failed("info", "abandoned", "client-disconnect", perf_counter() - started)
        except Exception as error:  # noqa: BLE001
            response = self._defect(error, started)
        return response

    def _defect(self, error: Exception, started: float) -> Response:
        """Log a defect, and return its answer. Were it raised, the server would log it in full for each request."""
        self._log.defect(error, DEFECT.type, perf_counter() - started)
        return DEFECT.response()


def _headers(scope: Scope) -> _Headers:
    """Return the headers that are looked at. Lines of one name count together (RFC 9110, section 5.2)."""
    headers: _Headers = {}
    for name, value in scope["headers"]:
        if name in _HEADERS:
            headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _accepted(receipt: Receipt) -> Response:
    answer = {
        "status": "accepted",
        "event_id": receipt.event_id,
        "message_id": receipt.message_id,
        "trace_id": receipt.trace_id,
    }
    return Response(msgspec.json.encode(answer), 202, media_type="application/json")


def _log_problem(log: EventLog, error: Exception, problem: Problem, seconds: float) -> None:
    """Log an event that was not published. A refusal for good needs an operator, and is an error."""
    names = ("event_type", "event_id", "topic", "traceparent", "error_type")
    fields = {name: getattr(error, name, "") for name in names} | {"detail": getattr(error, "log_detail", "")}
    if problem.status < 500:
        log.failed("info", "refused", problem.type, seconds, **fields)
    else:
        severity = "error" if isinstance(error, BrokerRefused) else "warning"
        log.failed(severity, "failed", problem.type, seconds, **fields)


def _require_json(headers: _Headers) -> None:
    # Two lines are more than one media type, or coding.
    sent = headers.get(b"content-type", b"").decode("latin-1")
    media_type, _, parameters = sent.lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    if media_type.strip() != "application/json" or charset not in ("", "charset=utf-8", "charset=us-ascii"):
        raise _unsupported(
            f"Send the header Content-Type: application/json; this request has {sent[:100]!r}."
            if sent
            else "Send the header Content-Type: application/json; this request has none.",
            {"Accept": "application/json"},
        )
    coding = headers.get(b"content-encoding", b"").decode("latin-1").lower()
    if coding not in ("", "identity"):
        raise _unsupported(
            f"Send the body as it is, without Content-Encoding; this request has {coding[:100]!r}.",
            {"Accept-Encoding": "identity"},
        )


def _unsupported(detail: str, headers: dict[str, str]) -> ProblemError:
    return ProblemError(
        Problem(
            status=415,
            type="unsupported-media-type",
            title="The body is not sent as JSON",
            detail=detail,
            headers=headers,
        )
    )


class _Bodies:
    """Reads request bodies, within limits for each and for all together."""

    def __init__(self, limit: int, limit_of_all: int, seconds: float) -> None:
        self._limit = limit
        self._limit_of_all = limit_of_all
        self._seconds = seconds
        self._reading = 0

    async def read(self, headers: _Headers, receive: Receive) -> bytes:
        declared = headers.get(b"content-length", b"")
        # Twenty digits are more than any limit, and int() is slow and at last refuses with thousands.
        if declared.isdigit() and int(declared[:20]) > self._limit:
            raise _too_large(self._limit)
        chunks: list[bytes] = []
        size = 0
        more = True
        try:
            async with asyncio.timeout(self._seconds):
                while more:
                    chunk, more = _chunk(await receive())
                    size += len(chunk)
                    self._reading += len(chunk)
                    if size > self._limit:
                        raise _too_large(self._limit)
                    if self._reading > self._limit_of_all:
                        raise Overloaded(f"{self._reading:,} bytes of bodies are being read")
                    chunks.append(chunk)
        except TimeoutError:
            raise _too_slow(self._seconds, size) from None
        finally:
            self._reading -= size
        return b"".join(chunks)


def _chunk(message: Message) -> tuple[bytes, bool]:
    """Return a part of a body, and whether there is more."""
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def _too_slow(seconds: float, size: int) -> ProblemError:
    return ProblemError(
        Problem(
            status=408,
            type="request-timeout",
            title="The body arrived too slowly",
            detail=f"The body was not complete within {seconds:g} seconds; {size:,} bytes of it had come.",
            headers={"Connection": "close"},
        )
    )


def _too_large(limit: int) -> ProblemError:
    return ProblemError(
        Problem(
            status=413,
            type="body-too-large",
            title="The body is too large",
            detail=f"The body has more than {limit:,} bytes, which is the limit.",
            more={"limit": limit},
        )
    )
