"""Spans, by OpenTelemetry's conventions for messaging (in development, as of v1.44) and for HTTP (stable).

Every event is the root of a trace of its own, whose trace id is that of its event id. Its root, `create`, lasts from
the event's validation to its answer. A request to the broker is `send`: a child of `create` where it carries one
message, and a root of its own, with links, where it carries several. The HTTP request's span follows the caller's
`traceparent`; it and `create` are linked to each other.

Without a TracerProvider, all this is skipped.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from importlib.metadata import version

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pulsecart.ids import trace_id_of
from pulsecart.message import Prepared

__all__ = [
    "CALLER",
    "SAMPLED",
    "end_request",
    "event_trace_id",
    "fail",
    "is_on",
    "propagated",
    "recorded_span",
    "start_create",
    "start_request",
    "start_send",
    "traceparent",
    "turn_came",
    "within",
    "within_span",
]

_tracer = trace.get_tracer("pulsecart", version("pulsecart"))
_propagator = TraceContextTextMapPropagator()

LONGEST_TRACEPARENT = 512
"""Longer ones are left aside: OpenTelemetry would log a line for each."""

CALLER = contexts.create_key("pulsecart-caller")
"""In an OpenTelemetry context: the `SpanContext` of the caller, by whose flag an event is sampled too."""

SAMPLED = contexts.create_key("pulsecart-sampled")
"""In an OpenTelemetry context: whether a root span is to be sampled whatever its trace id."""

event_trace_id: ContextVar[int] = ContextVar("event_trace_id", default=0)
"""The trace id that the next root span is to have, while it is started; 0 for any."""


def is_on() -> bool:
    """Return whether anybody has set a TracerProvider."""
    return not isinstance(trace.get_tracer_provider(), ProxyTracerProvider)


def start_request(method: str, path: str, route: str, scheme: str, parent: bytes) -> tuple[Span, Context | None]:
    """Start the span of an HTTP request, whose `traceparent` header is `parent`, or empty.

    Work inside `within` the context, so that `start_create` finds the caller.
    """
    if not is_on():
        return INVALID_SPAN, None
    # Without the caller's tracestate: nothing of its trace is passed on from here.
    usable = 0 < len(parent) <= LONGEST_TRACEPARENT
    caller = _propagator.extract({"traceparent": parent.decode("latin-1")}, Context()) if usable else Context()
    span = _tracer.start_span(
        f"{method} {route}",
        caller,
        SpanKind.SERVER,
        {"http.request.method": method, "url.path": path, "url.scheme": scheme, "http.route": route},
    )
    return span, Context(
        {**trace.set_span_in_context(span, caller), CALLER: trace.get_current_span(caller).get_span_context()}
    )


def end_request(span: Span, status: int) -> None:
    """End the span of an HTTP request. A 4xx is the caller's fault, and leaves the span's status unset."""
    if span.is_recording():
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
    span.end()


def start_create(event: Prepared, ordering_key: str | None) -> Span:
    """Start an event's root span, and link it with the current one.

    It is sampled as its trace id or its caller's flag says: the remote caller's where a request is served, else the
    current span's. `ordering_key` may be personal data; it becomes an attribute where it is given.
    """
    if not is_on():
        return INVALID_SPAN
    around = trace.get_current_span()
    link = around.get_span_context()
    caller = contexts.get_value(CALLER)
    attributes = {
        "messaging.system": "gcp_pubsub",
        "messaging.operation.name": "create",
        "messaging.operation.type": "create",
        "messaging.destination.name": event.message.topic,
        "cloudevents.event_id": event.event_id,
        "cloudevents.event_type": event.event_type,
    }
    if ordering_key:
        attributes["messaging.gcp_pubsub.message.ordering_key"] = ordering_key
    wanted = event_trace_id.set(int(trace_id_of(event.event_id), 16))
    try:
        span = _tracer.start_span(
            f"create {event.message.topic}",
            Context({CALLER: link if caller is None else caller}),
            SpanKind.PRODUCER,
            attributes,
            [Link(link)] if link.is_valid else None,
        )
    finally:
        event_trace_id.reset(wanted)
    if around.is_recording():
        around.add_link(span.get_span_context())
    return span


def turn_came(create: Span, count: int) -> None:
    """Note that an event's message is about to be sent, with others, so that its wait for that can be told."""
    create.add_event("pulsecart.turn_came", {"messaging.batch.message_count": count})


def start_send(topic: str, count: int, creates: Sequence[Span], server: tuple[str, int]) -> Span:
    """Start the span of a request with `count` messages, of which `creates` are the recorded spans.

    It is sampled if any of them is.
    """
    if not creates:
        return INVALID_SPAN
    alone = count == 1
    span = _tracer.start_span(
        f"send {topic}",
        trace.set_span_in_context(creates[0], Context()) if alone else Context({SAMPLED: True}),
        SpanKind.CLIENT,
        {
            "messaging.system": "gcp_pubsub",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
            "messaging.batch.message_count": count,
            "server.address": server[0],
            "server.port": server[1],
        },
        None if alone else [Link(create.get_span_context()) for create in creates],
    )
    if not alone:
        for create in creates:
            create.add_link(span.get_span_context())
    return span


def fail(span: Span, kind: str) -> None:
    """Mark a span as failed. `kind` is one of few; what an error says in words may repeat what a caller wrote."""
    if span.is_recording():
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR))


def traceparent(context: SpanContext) -> str:
    """Return a span's `traceparent` (W3C Trace Context, 3.2.2), or "" where there is none.

    No flag but `sampled` is set: older Go SDKs drop a traceparent with others.
    """
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def propagated(context: SpanContext) -> dict[str, str]:
    """Return the attributes by which a message's consumers continue its trace.

    Google's own clients read the names that begin with `googclient_`.
    """
    parent = traceparent(context)
    if not parent:
        return {}
    attributes = {"traceparent": parent, "googclient_traceparent": parent}
    if context.trace_state:
        state = context.trace_state.to_header()
        attributes |= {"tracestate": state, "googclient_tracestate": state}
    return attributes


class within:  # noqa: N801 (it reads as what it is used as: `with within(context):`)
    """Makes an OpenTelemetry context the current one for a block; None changes nothing."""

    def __init__(self, context: Context | None) -> None:
        self._context = context

    def __enter__(self) -> None:
        if self._context is not None:
            self._token = contexts.attach(self._context)

    def __exit__(self, *_error: object) -> None:
        if self._context is not None:
            contexts.detach(self._token)


def within_span(span: Span) -> within:
    """Make a span the current one for a block."""
    return within(None if span is INVALID_SPAN else trace.set_span_in_context(span))


def recorded_span() -> Span | None:
    """Return the current span where it is recorded."""
    span = trace.get_current_span()
    return span if span.is_recording() else None
