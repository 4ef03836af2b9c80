"""`POST /events/ingest`: one event per request, answered when the broker has confirmed it."""

from time import perf_counter

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pulsecart.errors import BrokerRefused, EventError, PublishError
from pulsecart.http.auth import name_of, require_credit, source_of
from pulsecart.http.body import Bodies
from pulsecart.http.problems import DEFECT, Problem, ProblemError, problem_of
from pulsecart.message import Receipt
from pulsecart.producer import Producer
from pulsecart.telemetry.logs import EventLog

__all__ = ["ROUTE", "Ingest"]


ROUTE = "/events/ingest"

MOST_FAULTS = 10
"""Maximum number of faults in a log line, each with its pointer and code."""

_HEADERS = frozenset({b"content-type", b"content-encoding", b"content-length"})
"""The headers that are read."""

_Headers = dict[bytes, bytes]


class Ingest:
    """The endpoint. It logs the outcome of each event.

    It is a plain ASGI application: using Starlette's `Request` would add half of the time that the rest takes.
    """

    def __init__(self, producer: Producer, log: EventLog, bodies: Bodies) -> None:
        self._producer = producer
        self._log = log
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = perf_counter()
        headers = _headers(scope)
        source = source_of(scope)
        name = name_of(source)
        try:
            _require_json(headers)
            require_credit(source)
            body = await self._bodies.read(headers.get(b"content-length", b""), receive)
            prepared = self._producer.prepare(body, caller=source)
            del body  # free it while waiting for the broker
            self._bodies.hold(prepared.size)
            try:
                receipt = await self._producer.publish(prepared)
            finally:
                self._bodies.release(prepared.size)
            response = _accepted(receipt)
            self._log.published(receipt, perf_counter() - started, name)
        except (EventError, PublishError, ProblemError) as error:
            problem = problem_of(error)
            response = problem.response()
            _log_problem(self._log, error, problem, perf_counter() - started, name)
        except ClientDisconnect:
            response = Response(status_code=400)  # not delivered: the client has disconnected
            self._log.failed("info", "abandoned", "client-disconnect", perf_counter() - started, source=name)
        except Exception as error:  # noqa: BLE001
            # If it were raised, the server would log a traceback for each request.
            response = DEFECT.response()
            self._log.defect(error, DEFECT.type, perf_counter() - started, name)
        await response(scope, receive, send)


def _headers(scope: Scope) -> _Headers:
    """Return the headers that are read, with lines of the same name joined (RFC 9110, section 5.2)."""
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


def _log_problem(log: EventLog, error: Exception, problem: Problem, seconds: float, source: str) -> None:
    """Log an event that was not published: as an error if the topic is rejected, which an operator must fix."""
    names = ("event_type", "event_id", "topic", "traceparent", "error_type")
    fields = {name: getattr(error, name, "") for name in names}
    fields |= {"detail": getattr(error, "log_detail", ""), "source": source}
    if problem.errors:
        fields["faults"] = ", ".join(f"{fault.pointer} {fault.code}".strip() for fault in problem.errors[:MOST_FAULTS])
    if problem.status < 500:
        log.failed("info", "refused", problem.type, seconds, **fields)
    else:
        severity = "error" if isinstance(error, BrokerRefused) else "warning"
        log.failed(severity, "failed", problem.type, seconds, **fields)


def _require_json(headers: _Headers) -> None:
    # Header lines of the same name are joined, so that two media types or codings are rejected.
    sent = headers.get(b"content-type", b"").decode("latin-1")
    media_type, _, parameters = sent.lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    if media_type.strip() != "application/json" or charset not in ("", "charset=utf-8", "charset=us-ascii"):
        raise _unsupported(
            f"Content-Type must be application/json; this request has {sent[:100]!r}."
            if sent
            else "Content-Type must be application/json; this request has none.",
            {"Accept": "application/json"},
        )
    coding = headers.get(b"content-encoding", b"").decode("latin-1").lower()
    if coding not in ("", "identity"):
        raise _unsupported(
            f"Send the body without Content-Encoding; this request has {coding[:100]!r}.",
            {"Accept-Encoding": "identity"},
        )


def _unsupported(detail: str, headers: dict[str, str]) -> ProblemError:
    return ProblemError(
        Problem(
            status=415,
            type="unsupported-media-type",
            title="The media type or content coding is not supported",
            detail=detail,
            headers=headers,
        )
    )
