"""Problem details (RFC 9457): the format of every error response.

A 5xx is always retryable. A 4xx is not, since the same request would fail again, except 408 and 429.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from attrs import field, frozen
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pulsecart.errors import (
    BrokerRefused,
    BrokerUnavailable,
    EventError,
    EventTypeNotAllowed,
    Fault,
    InvalidEvent,
    MalformedBody,
    MessageRefused,
    MessageTooLarge,
    MissingEventType,
    Overloaded,
    PublishError,
    PulsecartError,
    TransportClosed,
    UnknownEventType,
)

__all__ = [
    "DEFECT",
    "EXCEPTION_HANDLERS",
    "MEDIA_TYPE",
    "SHUTTING_DOWN",
    "Problem",
    "ProblemError",
    "problem_of",
    "too_large",
    "unsupported",
]

MEDIA_TYPE = "application/problem+json"


@frozen(kw_only=True)
class Problem:
    """The content of an error response."""

    status: int
    type: str
    """A relative URI reference that identifies the kind of problem."""

    title: str
    detail: str
    errors: Sequence[Fault] = ()
    more: Mapping[str, Any] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    retryable: bool = field()
    """Whether the same request can succeed later. By default this follows from the status."""

    @retryable.default
    def _by_status(self) -> bool:
        return self.status >= 500 or self.status in {408, 429}

    def document(self) -> dict[str, Any]:
        """Return the members of the body."""
        return {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "retryable": self.retryable,
            **self.more,
            "errors": [
                {"pointer": fault.pointer, "code": fault.code, "message": fault.message} for fault in self.errors
            ],
        }

    def response(self) -> Response:
        """Return the response."""
        return Response(msgspec.json.encode(self.document()), self.status, self.headers, MEDIA_TYPE)


class ProblemError(Exception):
    """Raised if a request is rejected before its body is read as an event."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def too_large(limit: int, what: str = "body") -> ProblemError:
    """Return the error for a body of more than `limit` bytes."""
    return ProblemError(
        Problem(
            status=413,
            type="body-too-large",
            title=f"The {what} is too large",
            detail=f"The {what} exceeds the limit of {limit:,} bytes.",
            more={"limit": limit},
        )
    )


def unsupported(detail: str, headers: Mapping[str, str]) -> ProblemError:
    """Return the error for a media type or coding. The headers name those that are supported."""
    return ProblemError(
        Problem(
            status=415,
            type="unsupported-media-type",
            title="The media type or content coding is not supported",
            detail=detail,
            headers=headers,
        )
    )


_KINDS: dict[type[PulsecartError], tuple[int, str, str]] = {
    MalformedBody: (400, "malformed-body", "The body cannot be read"),
    MissingEventType: (400, "missing-event-type", "The event type is missing"),
    UnknownEventType: (422, "unknown-event-type", "The event type is unknown"),
    EventError: (422, "invalid-event", "The event is invalid"),
    InvalidEvent: (422, "invalid-event", "The event is invalid"),
    EventTypeNotAllowed: (403, "event-type-not-allowed", "The source may not send this event type"),
    MessageTooLarge: (413, "body-too-large", "The event is too large"),
    MessageRefused: (422, "message-refused", "The broker rejected this message"),
    BrokerUnavailable: (503, "broker-unavailable", "The event was not published"),
    BrokerRefused: (503, "broker-unavailable", "The broker rejected the topic of this event"),
    Overloaded: (503, "overloaded", "The service is overloaded"),
    PublishError: (503, "broker-unavailable", "The event was not published"),
    TransportClosed: (503, "shutting-down", "The service is shutting down"),
}


def problem_of(error: Exception) -> Problem:
    """Return the problem for an error. An exception that is not for callers is a defect."""
    if isinstance(error, ProblemError):
        return error.problem
    if not isinstance(error, (EventError, PublishError)):
        return DEFECT
    # Search its base classes too, since transports may raise their own subclasses.
    status, type_, title = next(_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS)
    more: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if isinstance(error, MessageTooLarge):
        more = {"limit": error.limit}
    if isinstance(error, PublishError):
        if error.event_id is not None:
            more = {"event_id": error.event_id, "timestamp": error.timestamp}
        if error.retryable:
            headers["Retry-After"] = str(error.retry_after)
    detail = error.detail if isinstance(error, EventError) else str(error)
    if isinstance(error, TransportClosed):
        headers["Connection"] = "close"
        detail = "the service is shutting down"  # the transport's own text is for users of the library
    return Problem(
        status=status,
        type=type_,
        title=title,
        detail=detail,
        errors=error.faults if isinstance(error, EventError) else (),
        more=more,
        headers=headers,
        retryable=error.retryable,
    )


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer an exception of Starlette's router: 404 or 405."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    scope = request.scope  # request.url depends on the Host header, and fails if that is malformed
    return Problem(
        status=error.status_code,
        type=phrase.lower().replace(" ", "-"),
        title=phrase,
        detail=f"{request.method} {scope['path'][:200]}: {error.detail}. "
        f"Events go to POST {scope.get('root_path', '')}/events/ingest.",
        headers=error.headers or {},
    ).response()


DEFECT = Problem(
    status=500,
    type="internal-error",
    title="Internal error",
    detail="The service failed to process this request. An event in it was probably not published.",
)
"""The answer for an unexpected exception."""

SHUTTING_DOWN = Problem(
    status=503,
    type="shutting-down",
    title="The service is shutting down",
    detail="The service is shutting down and did not finish this request.",
)


async def _on_defect(_request: Request, _error: Exception) -> Response:
    """Answer an unexpected exception. Starlette raises it again after the response, so that the server logs it."""
    return DEFECT.response()


EXCEPTION_HANDLERS: dict[Any, Any] = {
    HTTPException: _on_http_exception,
    Exception: _on_defect,
}
