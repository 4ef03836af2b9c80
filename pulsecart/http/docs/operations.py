"""The routes of the service, as a table: what each takes, and what it answers. A row counts if its route is there."""

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from pulsecart.errors import (
    BrokerUnavailable,
    EventError,
    Fault,
    InvalidEvent,
    MalformedBody,
    MessageRefused,
    MissingEventType,
    Overloaded,
    PublishError,
    TransportClosed,
    UnknownEventType,
)
from pulsecart.http.problems import DEFECT, Problem, problem_of
from pulsecart.message import Message

__all__ = ["EVERY_ROUTE", "OPERATIONS", "PROBLEMS", "Operation"]

_EVENT_ID = "evt_01a208d02d4708440c6fe7ff04e1d3bb"
_TIMESTAMP = "2026-01-31T12:00:00.250000Z"

_MESSAGE = Message(topic="", data=f'{{"timestamp":"{_TIMESTAMP}"}}'.encode(), attributes={"event_id": _EVENT_ID})
_RETRY_LATER = {"Retry-After": "1"}


def _raised(error: EventError | PublishError) -> Problem:
    return problem_of(error)


PROBLEMS: Mapping[str, tuple[str, Problem]] = {
    "malformed-request": (
        "The request is not valid HTTP, or a header or a parameter of the query is invalid.",
        Problem(
            status=400,
            type="malformed-request",
            title="The request is not valid HTTP",
            detail="This is not a valid HTTP/1.1 request.",
        ),
    ),
    "malformed-body": (
        "The body is not JSON in UTF-8 of the form that is expected, is nested too deep, or could not be read exactly.",
        _raised(MalformedBody("The event is an array; send one JSON object for each event.")),
    ),
    "missing-event-type": (
        "The event has no event_type.",
        _raised(
            MissingEventType(
                "The event has no event_type.", [Fault("/event_type", "missing", "is required, but missing")]
            )
        ),
    ),
    "unauthenticated": (
        "There are no credentials, or they are invalid.",
        Problem(
            status=401,
            type="unauthenticated",
            title="The caller is not authenticated",
            detail="Send Authorization: Bearer with a key or a token.",
            headers={"WWW-Authenticate": "Bearer"},
        ),
    ),
    "event-type-not-allowed": (
        "The source may not send events of this type.",
        Problem(
            status=403,
            type="event-type-not-allowed",
            title="The source may not send this event type",
            detail="The source 'recommendations' may not send 'order.placed'.",
        ),
    ),
    "forbidden-host": (
        "The peer, the Host or the Origin may not use this route.",
        Problem(
            status=403,
            type="forbidden-host",
            title="This host may not see the messages",
            detail="The peer 203.0.113.7 is neither loopback nor listed in PULSECART_DEV_HOSTS.",
        ),
    ),
    "not-found": (
        "The catalog has no such event type.",
        Problem(
            status=404,
            type="not-found",
            title="Not Found",
            detail="'order.plased' is not an event type of the catalog; did you mean 'order.placed'?",
        ),
    ),
    "request-timeout": (
        "The head or the body arrived too slowly.",
        Problem(
            status=408,
            type="request-timeout",
            title="The body arrived too slowly",
            detail="The body was not complete within 10 seconds; 4,096 bytes had arrived.",
        ),
    ),
    "body-too-large": (
        "The body, also after decompression, or the finished message is over the limit that is stated.",
        Problem(
            status=413,
            type="body-too-large",
            title="The body is too large",
            detail="The body exceeds the limit of 1,048,576 bytes.",
            more={"limit": 1_048_576},
        ),
    ),
    "unsupported-media-type": (
        "The Content-Type is missing or another than those listed, or the content coding is unknown.",
        Problem(
            status=415,
            type="unsupported-media-type",
            title="The media type or content coding is not supported",
            detail="Content-Type must be application/json; this request has 'text/plain'.",
            headers={"Accept": "application/json"},
        ),
    ),
    "unknown-event-type": (
        "The event_type is not in the catalog.",
        _raised(
            UnknownEventType(
                "The event_type is not in the catalog; did you mean 'order.placed'?",
                [Fault("/event_type", "unknown", "'order.plased' is not in the catalog; did you mean 'order.placed'?")],
            )
        ),
    ),
    "invalid-event": (
        "Fields are missing, unknown or wrong; all of them are listed.",
        _raised(
            InvalidEvent(
                "The event is not a valid 'order.placed' event.",
                [
                    Fault("/order_id", "missing", "is required, but missing"),
                    Fault("/oder_id", "unknown", "is not a known field; did you mean 'order_id'?"),
                ],
            )
        ),
    ),
    "message-refused": (
        "The broker rejects this one message, and would reject it again.",
        _raised(MessageRefused("The broker rejected the message.", message=_MESSAGE)),
    ),
    "rate-limited": (
        "The source sends more events a second than it may.",
        Problem(
            status=429,
            type="rate-limited",
            title="Too many events",
            detail="The source sends more events a second than it may.",
            headers=_RETRY_LATER,
        ),
    ),
    "head-too-large": (
        "The request line and the headers are over the limit.",
        Problem(
            status=431,
            type="head-too-large",
            title="The request head is too large",
            detail="The request line and headers exceed the limit of 65,536 bytes.",
        ),
    ),
    "internal-error": ("A defect of the service; retry under the same event id.", DEFECT),
    "overloaded": (
        "Too many events, bytes or connections are in flight.",
        _raised(Overloaded("10,000 messages are in flight.", message=_MESSAGE)),
    ),
    "broker-unavailable": (
        "The event was not published within the deadline; retry under this event id and timestamp.",
        _raised(BrokerUnavailable("The broker did not confirm in time.", message=_MESSAGE)),
    ),
    "not-ready": (
        "The broker cannot be reached.",
        Problem(
            status=503,
            type="broker-unavailable",
            title="The service is not ready",
            detail="The broker cannot be reached.",
            more={"broker": "unavailable"},
            headers=_RETRY_LATER,
        ),
    ),
    "identity-provider-unavailable": (
        "The signing keys of the token's issuer have not been fetched yet.",
        Problem(
            status=503,
            type="identity-provider-unavailable",
            title="The identity provider is unavailable",
            detail="The signing keys of the issuer have not been fetched yet.",
            headers=_RETRY_LATER,
        ),
    ),
    "shutting-down": (
        "The service is stopping; another instance may accept the request.",
        _raised(TransportClosed("The service is shutting down.")),
    ),
    "batch-incomplete-422": (
        "Events failed that must not be resent unchanged; all others are published. With handling=strict, none is.",
        Problem(
            status=422,
            type="batch-incomplete",
            title="Not all events were published",
            detail="1 of 2 events were not published.",
            more={
                "accepted": 1,
                "failed": 1,
                "results": [
                    {
                        "index": 1,
                        "status": 422,
                        "type": "invalid-event",
                        "detail": "The event is not a valid 'order.placed' event.",
                        "retryable": False,
                        "errors": [{"pointer": "/order_id", "code": "missing", "message": "is required, but missing"}],
                    }
                ],
            },
        ),
    ),
    "batch-incomplete-503": (
        "Events failed that can be resent; all others are published.",
        Problem(
            status=503,
            type="batch-incomplete",
            title="Not all events were published",
            detail="1 of 2 events were not published.",
            more={
                "accepted": 1,
                "failed": 1,
                "results": [
                    {
                        "index": 0,
                        "status": 503,
                        "type": "broker-unavailable",
                        "detail": "The broker did not confirm in time.",
                        "retryable": True,
                        "event_id": _EVENT_ID,
                        "timestamp": _TIMESTAMP,
                    }
                ],
            },
            headers=_RETRY_LATER,
        ),
    ),
}
"""What each error is, with an example, by its type or, where several cases have one type, by a name for the case."""

EVERY_ROUTE = (
    "malformed-request",
    "request-timeout",
    "head-too-large",
    "internal-error",
    "overloaded",
    "shutting-down",
)
"""The errors of every route: the server answers them."""

_BODY = ("malformed-body", "body-too-large", "unsupported-media-type")
_EVENT = (*_BODY, "missing-event-type", "unknown-event-type", "invalid-event")
_PUBLISH = ("message-refused", "broker-unavailable")
_BATCH = ("batch-incomplete-422", "batch-incomplete-503")

_JSON = "application/json"
_ACCEPTED = {"$ref": "#/components/schemas/Accepted"}
_ACCEPTED_EXAMPLE = {
    "status": "accepted",
    "event_id": _EVENT_ID,
    "message_id": "8912367451",
    "trace_id": _EVENT_ID.removeprefix("evt_"),
}
_BATCH_ACCEPTED = {"$ref": "#/components/schemas/BatchAccepted"}
_BATCH_EXAMPLE = {"status": "accepted", "accepted": 1, "failed": 0, "results": [{"index": 0, **_ACCEPTED_EXAMPLE}]}
_BATCH_EXAMPLE["results"][0].pop("status")  # type: ignore[index]
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
_DOCUMENT = {"type": "object"}

_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "`return=minimal` leaves `results` out of a 202; `handling=strict` publishes nothing if an event of "
    "an array is invalid (RFC 7240).",
    "schema": {"type": "string"},
    "example": "return=minimal",
}


def _cloudevents_header(name: str, text: str) -> dict[str, Any]:
    return {
        "name": f"ce-{name}",
        "in": "header",
        "description": f"In binary mode: {text}",
        "schema": {"type": "string"},
    }


@frozen(kw_only=True)
class Operation:
    """What a route does for a method."""

    path: str
    method: str = "get"
    id: str
    tag: str
    summary: str
    description: str = ""
    parameters: tuple[Mapping[str, Any], ...] = ()
    request: Mapping[str, str] = field(factory=dict)
    """The media types of the body, each with the name of what it holds; see `openapi`."""

    answers: Mapping[int, tuple[str, str, Any, Any]]
    """By status: what it means, the media type, the schema, and an example; no media type for an empty body."""

    problems: tuple[str, ...] = ()


OPERATIONS = [
    Operation(
        path="/events/ingest",
        method="post",
        id="ingestEvent",
        tag="events",
        summary="Publish one event",
        description="Answers 202 when the broker has confirmed the event.",
        request={_JSON: "event"},
        answers={202: ("The broker has the event.", _JSON, _ACCEPTED, _ACCEPTED_EXAMPLE)},
        problems=(*_EVENT, *_PUBLISH),
    ),
    Operation(
        path="/events/batch",
        method="post",
        id="ingestBatch",
        tag="events",
        summary="Publish many events",
        description="Takes an array, or one event a line. Events of one ordering key are published in the order given. "
        "The answer is 202 if and only if every event is with the broker.",
        parameters=(_PREFER,),
        request={_JSON: "array", "application/x-ndjson": "lines", "application/jsonl": "lines"},
        answers={202: ("The broker has every event.", _JSON, _BATCH_ACCEPTED, _BATCH_EXAMPLE)},
        problems=(*_BODY, *_BATCH),
    ),
    Operation(
        path="/events/cloudevents",
        method="post",
        id="ingestCloudEvents",
        tag="events",
        summary="Publish CloudEvents",
        description="CloudEvents 1.0.2 in structured, batched or binary mode: `type` is the event type, `time` the "
        "timestamp, `data` holds every other field, and `partitionkey` or `data.user_id` is the user.",
        parameters=(
            _cloudevents_header("specversion", "1.0."),
            _cloudevents_header("id", "unique for its source."),
            _cloudevents_header("source", "where the event comes from."),
            _cloudevents_header("type", "the event type."),
            _cloudevents_header("time", "when it happened (RFC 3339)."),
            _cloudevents_header("partitionkey", "the user."),
        ),
        request={
            "application/cloudevents+json": "cloudevent",
            "application/cloudevents-batch+json": "cloudevents",
            _JSON: "data",
        },
        answers={
            202: (
                "The broker has the event, or every event of a batch.",
                _JSON,
                {"anyOf": [_ACCEPTED, _BATCH_ACCEPTED]},
                _ACCEPTED_EXAMPLE,
            )
        },
        problems=(*_EVENT, *_PUBLISH, *_BATCH),
    ),
    Operation(
        path="/events/validate",
        method="post",
        id="validateEvent",
        tag="events",
        summary="Check one event",
        description="Gives the verdict of `/events/ingest`, and publishes nothing.",
        request={_JSON: "event"},
        answers={200: ("The event is valid.", _JSON, _STATUS, {"status": "valid"})},
        problems=_EVENT,
    ),
    *(
        Operation(
            path=path,
            id=id_,
            tag="health",
            summary="Whether the process is alive",
            answers={200: ("It is.", _JSON, _STATUS, {"status": "ok"})},
        )
        for path, id_ in (("/health", "health"), ("/livez", "live"))
    ),
    Operation(
        path="/readyz",
        id="ready",
        tag="health",
        summary="Whether events can be published",
        description="`exclude=broker` ignores the broker; orchestrators should use it.",
        parameters=({"name": "exclude", "in": "query", "schema": {"type": "string"}, "example": "broker"},),
        answers={
            200: (
                "They can, except to the topics that are missing.",
                _JSON,
                _STATUS,
                {"status": "ready", "broker": "ok", "missing_topics": []},
            )
        },
        problems=("not-ready",),
    ),
    Operation(
        path="/schemas",
        id="listSchemas",
        tag="documents",
        summary="The event types, with their topics and schemas",
        answers={
            200: (
                "The event types.",
                _JSON,
                {
                    "type": "object",
                    "required": ["schemas"],
                    "properties": {
                        "schemas": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["event_type", "topic", "schema"],
                                "properties": {name: {"type": "string"} for name in ("event_type", "topic", "schema")},
                            },
                        }
                    },
                },
                {
                    "schemas": [
                        {
                            "event_type": "order.placed",
                            "topic": "pulsecart.commerce-events",
                            "schema": "/schemas/order.placed",
                        }
                    ]
                },
            )
        },
    ),
    Operation(
        path="/schemas/{event_type}",
        id="getSchema",
        tag="documents",
        summary="The JSON Schema of an event type",
        parameters=(
            {"name": "event_type", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
        ),
        answers={200: ("JSON Schema 2020-12 of a body.", "application/schema+json", _DOCUMENT, None)},
        problems=("not-found",),
    ),
    Operation(
        path="/openapi.json",
        id="getOpenApi",
        tag="documents",
        summary="This document",
        answers={200: ("OpenAPI 3.1.", _JSON, _DOCUMENT, None)},
    ),
    Operation(
        path="/asyncapi.json",
        id="getAsyncApi",
        tag="documents",
        summary="The topics and what is published to them",
        answers={200: ("AsyncAPI 3.0.", _JSON, _DOCUMENT, None)},
    ),
    Operation(
        path="/docs",
        id="getDocs",
        tag="documents",
        summary="A page with the events and routes",
        answers={200: ("The page.", "text/html", {"type": "string"}, None)},
    ),
    Operation(
        path="/dev",
        id="getConsole",
        tag="development",
        summary="A page with the events as they come",
        description="The console of a developer. A browser that has no credentials gets it with the status 401, and is "
        "asked for a key.",
        answers={200: ("The page.", "text/html", {"type": "string"}, None)},
        problems=("forbidden-host",),
    ),
    Operation(
        path="/dev/stream",
        id="streamEvents",
        tag="development",
        summary="Messages and rejected requests as they come",
        description="Server-sent events: `message` has what `/dev/messages` lists of a message, with its trace, "
        "`rejected` what `/dev/rejected` lists, with the path. A stream begins with all that is kept.",
        parameters=(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "Begin after the event with this id.",
                "schema": {"type": "string"},
            },
        ),
        answers={200: ("Events, until the service stops.", "text/event-stream", {"type": "string"}, None)},
        problems=("forbidden-host",),
    ),
    Operation(
        path="/dev/rejected",
        id="listRejected",
        tag="development",
        summary="The newest requests that were rejected",
        answers={
            200: (
                "The requests, newest last.",
                _JSON,
                {
                    "type": "object",
                    "required": ["rejected"],
                    "properties": {
                        "rejected": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["time", "status", "problem", "body"],
                                "properties": {
                                    "time": {"type": "string", "format": "date-time"},
                                    "status": {"type": "integer"},
                                    "problem": {"$ref": "#/components/schemas/Problem"},
                                    "body": {
                                        "type": "string",
                                        "description": "At most 64 KiB; what is not UTF-8 is replaced.",
                                    },
                                },
                            },
                        }
                    },
                },
                None,
            )
        },
        problems=("forbidden-host",),
    ),
    Operation(
        path="/dev/rejected",
        method="delete",
        id="clearRejected",
        tag="development",
        summary="Remove all rejected requests",
        answers={204: ("They are gone.", "", None, None)},
        problems=("forbidden-host",),
    ),
    Operation(
        path="/dev/messages",
        id="listMessages",
        tag="development",
        summary="The newest messages",
        parameters=(
            *(
                {"name": name, "in": "query", "schema": {"type": "string"}}
                for name in ("topic", "event_type", "event_id", "user_id")
            ),
            {"name": "wait", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 60}},
            {"name": "count", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999}},
        ),
        answers={
            200: (
                "The messages, newest last.",
                _JSON,
                {
                    "type": "object",
                    "required": ["messages"],
                    "properties": {"messages": {"type": "array", "items": {"type": "object"}}},
                },
                None,
            )
        },
        problems=("forbidden-host",),
    ),
    Operation(
        path="/dev/messages",
        method="delete",
        id="clearMessages",
        tag="development",
        summary="Remove all messages",
        answers={204: ("They are gone.", "", None, None)},
        problems=("forbidden-host",),
    ),
]
"""All operations that pulsecart may have."""
