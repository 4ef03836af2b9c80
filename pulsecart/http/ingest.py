"""`POST /events/ingest`: one event a request, answered once the broker has it."""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pulsecart.errors import BrokerRefused, EventError, Overloaded, PublishError
from pulsecart.http.problems import DEFECT, Problem, ProblemError, problem_of
from pulsecart.message import Receipt
from pulsecart.producer import Producer
from pulsecart.telemetry import metrics, tracing
from pulsecart.telemetry.logs import EventLog

__all__ = ["ingest"]


ROUTE = "/events/ingest"


def ingest(
    producer: Producer, log: EventLog, *, max_body_bytes: int, max_reading_bytes: int, body_timeout: float
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint. How each event ends is logged.

    A body may have `max_body_bytes` and take `body_timeout` seconds to arrive; all that are being
    read at a time may have `max_reading_bytes`, over which a further one is refused.
    """
    bodies = _Bodies(max_body_bytes, max_reading_bytes, body_timeout)

    async def endpoint(request: Request) -> Response:
        scheme = request.scope.get("scheme", "http")
        started = perf_counter()
        span, context = tracing.start_request("POST", ROUTE, ROUTE, scheme, request.headers)
        try:
            with tracing.within(context):
                _require_json(request.headers)
                receipt = await producer.ingest(await bodies.read(request))
            response = _accepted(receipt)
            log.published(receipt, perf_counter() - started)
        except (EventError, PublishError, ProblemError) as error:
            problem = problem_of(error)
            response = problem.response()
            _log_problem(log, error, problem, perf_counter() - started)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody will read it
            log.failed("info", "abandoned", "client-disconnect", perf_counter() - started)
        except Exception as error:  # noqa: BLE001 (a defect; were it raised, the server would log it for each request)
            response = DEFECT.response()
            log.defect(error, DEFECT.type, perf_counter() - started)
        except BaseException:
            tracing.end_request(span, 500)
            raise
        tracing.end_request(span, response.status_code)
        metrics.request_ended("POST", ROUTE, scheme, response.status_code, perf_counter() - started)
        if own_trace := tracing.traceparent(span.get_span_context()):
            response.headers["traceresponse"] = own_trace
        return response

    return endpoint


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
    fields = {name: getattr(error, name, "") for name in names}
    if problem.status < 500:
        log.failed("info", "refused", problem.type, seconds, **fields)
    else:
        severity = "error" if isinstance(error, BrokerRefused) else "warning"
        log.failed(severity, "failed", problem.type, seconds, detail=str(error), **fields)


def _require_json(headers: Headers) -> None:
    # Lines of one name count together (RFC 9110, section 5.2): two are more than one media type, or coding.
    got = ", ".join(headers.getlist("content-type"))
    media_type, _, parameters = got.lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    if media_type.strip() != "application/json" or charset not in ("", "charset=utf-8", "charset=us-ascii"):
        raise _unsupported(
            f"Send the header Content-Type: application/json; this request has {got[:100]!r}."
            if got
            else "Send the header Content-Type: application/json; this request has none.",
            {"Accept": "application/json"},
        )
    coding = ", ".join(headers.getlist("content-encoding")).lower()
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

    async def read(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        # Twenty digits are more than any limit, and int() is slow and at last refuses with thousands.
        if declared.isdecimal() and int(declared[:20]) > self._limit:
            raise _too_large(self._limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.stream():
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
