"""OpenAPI 3.1 of the routes that a service has."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from pulsecart.events import Catalog
from pulsecart.events.schema import DIALECT, Definitions, example, json_line
from pulsecart.http.docs.operations import EVERY_ROUTE, OPERATIONS, PROBLEMS, Operation
from pulsecart.http.problems import MEDIA_TYPE, Problem

__all__ = ["openapi"]

_SCHEMAS = "#/components/schemas/"

_DESCRIPTION = """\
Events that are accepted are published to Google Cloud Pub/Sub. A 202 means that the broker has confirmed them.

Every error is `application/problem+json` (RFC 9457). Compare its `type` as a string. `retryable` says whether the \
same request can succeed later; retry under the same `event_id`, a bounded number of times. Unknown paths are 404 \
`not-found`, other methods 405 `method-not-allowed`."""

_STRING = {"type": "string"}
_ID = {"type": "string", "minLength": 1}

_COMMON: dict[str, Any] = {
    "Fault": {
        "title": "Fault",
        "type": "object",
        "required": ["pointer", "code", "message"],
        "properties": {
            "pointer": {"type": "string", "description": "The place in the body (RFC 6901); empty for all of it."},
            "code": {
                "type": "string",
                "description": "missing, unknown, duplicate, wrong-type, empty, too-long, out-of-range, invalid, or a "
                "code of a validator.",
            },
            "message": {"type": "string", "description": "What is wrong and how to fix it."},
        },
    },
    "Problem": {
        "title": "Problem",
        "type": "object",
        "required": ["type", "title", "status", "detail", "retryable", "errors"],
        "properties": {
            "type": {"type": "string", "description": "The kind of problem, to be compared as a string."},
            "title": _STRING,
            "status": {"type": "integer"},
            "detail": _STRING,
            "retryable": {"type": "boolean", "description": "Whether the same request can succeed later."},
            "errors": {
                "type": "array",
                "items": {"$ref": f"{_SCHEMAS}Fault"},
                "description": "All faults of the body.",
            },
            "event_id": {"type": "string", "description": "What to retry under, if the event is valid."},
            "timestamp": {"type": "string", "format": "date-time", "description": "What to retry with."},
            "limit": {"type": "integer", "description": "The limit in bytes that was exceeded."},
        },
    },
    "Accepted": {
        "title": "Accepted",
        "type": "object",
        "required": ["status", "event_id", "message_id", "trace_id"],
        "properties": {
            "status": {"const": "accepted"},
            "event_id": _ID,
            "message_id": {"type": "string", "description": "The id that the broker assigned."},
            "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "OpenTelemetry trace id."},
        },
    },
    "BatchAccepted": {
        "title": "BatchAccepted",
        "type": "object",
        "required": ["status", "accepted", "failed"],
        "properties": {
            "status": {"const": "accepted"},
            "accepted": {"type": "integer"},
            "failed": {"const": 0},
            "results": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["index", "event_id", "message_id", "trace_id"],
                    "properties": {
                        "index": {"type": "integer"},
                        **dict.fromkeys(["event_id", "message_id", "trace_id"], _STRING),
                    },
                },
            },
        },
    },
}
"""Schemas that do not depend on the catalog."""

_BATCH = "/events/batch"

# These came together with the routes for many events.
_WITH_BATCH = (
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "An event without an event_id gets one that follows from this key, the route, its event_type, "
        "its user_id and its position: a request that is resent publishes the same events.",
        "schema": {
            "type": "string",
            "pattern": r"""^("[ !#-\[\]-~]{1,255}"|[!#-~]([ !#-~]{0,253}[!#-~])?)$""",
        },
        "example": '"checkout-8f14e45f"',
    },
    {
        "name": "Content-Encoding",
        "in": "header",
        "description": "How the body is compressed.",
        "schema": {"enum": ["identity", "gzip", "x-gzip", "zstd"]},
    },
)


def openapi(catalog: Catalog, paths: Iterable[str], *, authenticated: bool, prefix: str = "") -> dict[str, Any]:
    """Return the OpenAPI document of a service that has these paths and event types.

    `prefix` is the path that it is mounted at.
    """
    present = {path.replace(":path}", "}") for path in paths}
    definitions = Definitions(_SCHEMAS)
    definitions.schemas.update(_COMMON, Event={})  # first, so that no class takes their names
    references = {cls.event_type: definitions.refer(cls, event=True)["$ref"] for cls in catalog}
    definitions.schemas["Event"] = {
        "title": "Event",
        "oneOf": [{"$ref": reference} for reference in references.values()],
        "discriminator": {"propertyName": "event_type", "mapping": references},
    }
    bodies = _bodies({cls.event_type: shown for cls in catalog if (shown := example(cls))})
    described: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        if operation.path in present:
            more = _WITH_BATCH if operation.request and _BATCH in present else ()
            needs_credentials = authenticated and (bool(operation.request) or operation.path.startswith("/dev"))
            described.setdefault(operation.path, {})[operation.method] = _operation(
                operation, bodies, more, authenticated=needs_credentials
            )
    bearer = {"type": "http", "scheme": "bearer", "description": "A key (`pck_…`) or a JWT of an identity provider."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "pulsecart", "version": version("pulsecart"), "description": _DESCRIPTION},
        "jsonSchemaDialect": DIALECT,
        "servers": [{"url": prefix or "/"}],
        "paths": described,
        "components": {
            "schemas": definitions.schemas,
            **({"securitySchemes": {"bearer": bearer}} if authenticated else {}),
        },
    }


def _operation(
    operation: Operation, bodies: dict[str, Any], more: Iterable[Any], *, authenticated: bool
) -> dict[str, Any]:
    problems = [*operation.problems, *EVERY_ROUTE]
    if authenticated:
        problems += ["unauthenticated", "identity-provider-unavailable"]
        if operation.request:
            problems += ["event-type-not-allowed", "rate-limited"]
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": {str(status): _answer(*answer) for status, answer in operation.answers.items()}
        | _problems(problems),
    }
    if operation.description:
        described["description"] = operation.description
    if parameters := [*operation.parameters, *more]:
        described["parameters"] = parameters
    if operation.request:
        content = {media_type: bodies[name] for media_type, name in operation.request.items()}
        described["requestBody"] = {"required": True, "content": content}
        if "cloudevent" in operation.request.values():
            described["parameters"] = [_with_example(each, bodies["cloudevent"]) for each in parameters]
    if authenticated:
        described["security"] = [{"bearer": []}]
    return described


def _answer(meaning: str, media_type: str, schema: Any, shown: Any) -> dict[str, Any]:
    if not media_type:
        return {"description": meaning}
    content = {"schema": schema} | ({} if shown is None else {"example": shown})
    return {"description": meaning, "content": {media_type: content}}


def _problems(names: Iterable[str]) -> dict[str, Any]:
    """Return a response for each status of these problems, with an example of each."""
    by_status: dict[int, list[tuple[str, str, Problem]]] = {}
    for name in names:
        by_status.setdefault(PROBLEMS[name][1].status, []).append((name, *PROBLEMS[name]))
    return {str(status): _problem(status, cases) for status, cases in sorted(by_status.items())}


def _problem(status: int, cases: list[tuple[str, str, Problem]]) -> dict[str, Any]:
    types = list(dict.fromkeys(problem.type for _, _, problem in cases))
    headers = {name for _, _, problem in cases for name in problem.headers}
    return {
        "description": "\n\n".join(f"`{problem.type}`: {meaning}" for _, meaning, problem in cases),
        **({"headers": {name: {"schema": _STRING} for name in sorted(headers)}} if headers else {}),
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "allOf": [{"$ref": f"{_SCHEMAS}Problem"}],
                    "properties": {"type": {"enum": types}, "status": {"const": status}},
                },
                "examples": {
                    name: {"summary": meaning, "value": problem.document()} for name, meaning, problem in cases
                },
            }
        },
    }


def _bodies(examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the media type objects of request bodies, by the names that `OPERATIONS` uses."""
    event = {"$ref": f"{_SCHEMAS}Event"}
    events = list(examples.values())[:2]
    lines = "".join(f"{json_line(each)}\n" for each in events)
    clouds = [_cloudevent(each) for each in events]
    attributes = ("specversion", "id", "source", "type")
    cloudevent = {
        "type": "object",
        "required": [*attributes, "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            **dict.fromkeys(attributes[1:], _ID),
            "time": {"type": "string", "format": "date-time"},
            "partitionkey": {"type": "string", "description": "The user; or data.user_id."},
            "data": {"type": "object", "description": "Every other field of the event."},
        },
    }
    data = {"type": "object", "description": "Every field of the event but those in the headers."}
    return {
        "event": {"schema": event, "examples": {name: {"value": each} for name, each in examples.items()}},
        "array": {"schema": {"type": "array", "minItems": 1, "items": event}, "examples": _one(events)},
        "lines": {"schema": {"type": "string", "description": "One event a line."}, "examples": _one(lines)},
        "cloudevent": {"schema": cloudevent, "examples": _one(*clouds[:1])},
        "cloudevents": {"schema": {"type": "array", "items": cloudevent}, "examples": _one(clouds)},
        "data": {"schema": data, "examples": _one(*(each["data"] for each in clouds[:1]))},
    }


def _one(*values: Any) -> dict[str, Any]:
    return {"example": {"value": values[0]}} if values and values[0] else {}


def _with_example(parameter: Mapping[str, Any], structured: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter with the value that it has in binary mode, for the example in structured mode."""
    attributes = structured["examples"]["example"]["value"] if structured["examples"] else {}
    value = attributes.get(parameter["name"].removeprefix("ce-"))
    return {**parameter, **({"example": value} if value else {})}


def _cloudevent(event: dict[str, Any]) -> dict[str, Any]:
    data = {name: value for name, value in event.items() if name not in ("event_type", "user_id")}
    return {
        "specversion": "1.0",
        "id": "8f14e45f",
        "source": "/shop/checkout",
        "type": event["event_type"],
        "time": "2026-01-31T12:00:00Z",
        "partitionkey": event["user_id"],
        "data": data,
    }
