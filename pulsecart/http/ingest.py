"""`POST /events/ingest`: one event a request, answered once the broker has it."""

from time import perf_counter

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pulsecart.errors import BrokerRefused, EventError, PublishError
from pulsecart.http.body import Bodies
from pulsecart.http.problems import DEFECT, Problem, ProblemError, problem_of
from pulsecart.message import Receipt
from pulsecart.producer import Producer
from pulsecart.telemetry.logs import EventLog

__all__ = ["ROUTE", "Ingest"]


ROUTE = "/events/ingest"

MOST_FAULTS = 10
"""How many of an event's faults its log line names, by pointer and code."""

_HEADERS = frozenset({b"content-type", b"content-encoding", b"content-length"})
"""Those that are looked at."""

_Headers = dict[bytes, bytes]


class Ingest:
    """The endpoint, an ASGI application of its own: Starlette's request and its reading cost half as much as the rest.

    How each event ends is logged.
    """

    def __init__(self, producer: Producer, log: EventLog, bodies: Bodies) -> None:
        self._producer = producer
        self._log = log
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = perf_counter()
        headers = _headers(scope)
        try:
            _require_json(headers)
            body = await self._bodies.read(headers.get(b"content-length", b""), receive)
            prepared = self._producer.prepare(body)
            del body  # while the broker is awaited, only what is sent is kept
            self._bodies.hold(prepared.size)
            try:
                receipt = await self._producer.publish(prepared)
            finally:
                self._bodies.release(prepared.size)
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
            # Were it raised, the server would log it in full for each request.
            response = DEFECT.response()
            self._log.defect(error, DEFECT.type, perf_counter() - started)
        await response(scope, receive, send)


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
    if problem.errors:
        fields["faults"] = ", ".join(f"{fault.pointer} {fault.code}".strip() for fault in problem.errors[:MOST_FAULTS])
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
