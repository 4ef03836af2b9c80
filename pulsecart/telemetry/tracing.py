"""Spans, by OpenTelemetry's conventions for messaging (in development, as of v1.44) and for HTTP (stable).

Every event is the root of a trace of its own, whose trace id is that of its event id. Its root, `create`, lasts from
the event's validation to its answer. A request to the broker is `send`: a child of `create` if it carries one message,
and a root of its own, with links, if it carries several. The HTTP request's span follows the caller's `traceparent`;
it and `create` are linked to each other.

Most requests and events are not sampled. For them the sampler is asked before a span exists, and none is started.
"""

import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any, Literal, cast

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pulsecart.ids import trace_id_of
from pulsecart.message import Prepared

__all__ = [
    "CALLER",
    "DECIDED",
    "SAMPLED",
    "Callers",
    "Tracing",
    "end_request",
    "fail",
    "is_on",
    "propagated",
    "recorded_span",
    "root_trace_id",
    "traceparent",
    "turn_came",
]

_propagator = TraceContextTextMapPropagator()

LONGEST_TRACEPARENT = 512
"""Longer ones are ignored: OpenTelemetry would log a line for each."""

CALLER = contexts.create_key("pulsecart-caller")
"""In an OpenTelemetry context: the `SpanContext` of the caller, by whose flag an event is sampled too."""

SAMPLED = contexts.create_key("pulsecart-sampled")
"""In an OpenTelemetry context: whether a root span is to be sampled whatever its trace id."""

DECIDED = contexts.create_key("pulsecart-decided")
"""In an OpenTelemetry context: what the sampler has decided about the span that is being started."""

root_trace_id: ContextVar[int] = ContextVar("root_trace_id", default=0)
"""The trace id for the next root span, while it is started; 0 for any."""

Callers = Literal["always", "ratio", "never"]
"""Which sampled callers cause a trace: all, those whose trace id the sampler would choose for a root too, or none."""

_NOWHERE = Context()


def is_on() -> bool:
    """Return whether a TracerProvider has been set."""
    return not isinstance(trace.get_tracer_provider(), ProxyTracerProvider)


def _sampling_of(provider: TracerProvider) -> tuple[Any, Any] | None:
    """Return the sampler and the id generator of a provider that can be asked before a span exists."""
    if "opentelemetry.sdk.trace" not in sys.modules:
        return None
    from pulsecart.telemetry.sampling import sampling_of  # noqa: PLC0415 (it needs the SDK)

    return sampling_of(provider)


class Tracing:
    """Starts the spans of one provider.

    If the provider has no `EventSampler` and `EventIdGenerator`, its own rules hold, and `callers` has no effect.
    """

    def __init__(self, provider: TracerProvider, callers: Callers = "always") -> None:
        self._tracer = provider.get_tracer("pulsecart", version("pulsecart"))
        self._sampling = _sampling_of(provider)
        self._callers = callers if self._sampling else "always"

    def start_request(self, method: str, path: str, route: str, scheme: str, parent: bytes) -> tuple[Span, Context]:
        """Start the span of an HTTP request, whose `traceparent` header is `parent`, or empty.

        Work inside the context, so that `start_create` finds the caller.
        """
        attributes = {"http.request.method": method, "url.path": path, "url.scheme": scheme, "http.route": route}
        # Without the caller's tracestate: nothing of its trace is passed on from here.
        usable = 0 < len(parent) <= LONGEST_TRACEPARENT
        below = _propagator.extract({"traceparent": parent.decode("latin-1")}, _NOWHERE) if usable else _NOWHERE
        caller = trace.get_current_span(below).get_span_context()
        counted = self._counted(caller) if caller.is_valid else caller
        span = self._start(
            f"{method} {route}",
            below,
            SpanKind.SERVER,
            attributes,
            trace_id=caller.trace_id,
            caller=counted,
            judged_by=below if counted is caller else _below(counted),
        )
        return span, Context({**trace.set_span_in_context(span, _NOWHERE), CALLER: counted})

    def start_create(self, event: Prepared, ordering_key: str | None) -> tuple[Span, Context | None]:
        """Start an event's root span, and link it with the current one.

        It is sampled as its trace id or its caller's flag says: the remote caller's if a request is served, else the
        current span's. `ordering_key` may be personal data; it becomes an attribute if it is given.

        Work inside the context, if there is one.
        """
        topic = event.message.topic
        current = contexts.get_current()
        around = trace.get_current_span(current)
        link = around.get_span_context()
        attributes = {
            "messaging.system": "gcp_pubsub",
            "messaging.operation.name": "create",
            "messaging.operation.type": "create",
            "messaging.destination.name": topic,
            "cloudevents.event_id": event.event_id,
            "cloudevents.event_type": event.event_type,
        }
        if ordering_key:
            attributes["messaging.gcp_pubsub.message.ordering_key"] = ordering_key
        caller = cast("SpanContext", current.get(CALLER, link))
        span = self._start(
            f"create {topic}",
            Context({CALLER: caller}),
            SpanKind.PRODUCER,
            attributes,
            [Link(link)] if link.is_valid else None,
            trace_id=int(trace_id_of(event.event_id), 16),
            caller=caller,
        )
        if around.is_recording():
            around.add_link(span.get_span_context())
        # Below a span that is not sampled, nothing would be either.
        apart = span.is_recording() or link.trace_flags.sampled or not link.is_valid
        return span, trace.set_span_in_context(span) if apart else None

    def start_send(self, topic: str, count: int, creates: Sequence[Span], server: tuple[str, int]) -> Span:
        """Start the span of a request with `count` messages, of which `creates` are the recorded spans.

        It is sampled if any of them is.
        """
        if not creates:
            return INVALID_SPAN
        alone = count == 1
        span = self._tracer.start_span(
            f"send {topic}",
            trace.set_span_in_context(creates[0], _NOWHERE) if alone else Context({SAMPLED: True}),
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

    def _counted(self, caller: SpanContext) -> SpanContext:
        """Return a caller as it counts for sampling."""
        if self._callers == "never":
            return INVALID_SPAN_CONTEXT
        if self._callers == "ratio" and caller.trace_flags.sampled and not self._would_choose(caller.trace_id):
            return SpanContext(caller.trace_id, caller.span_id, is_remote=True)
        return caller

    def _would_choose(self, trace_id: int) -> bool:
        """Return whether the sampler would sample a root of this trace."""
        assert self._sampling is not None  # for the type checker: else every caller counts
        decision: bool = self._sampling[0].should_sample(_NOWHERE, trace_id, "").decision.is_sampled()
        return decision

    def _start(  # noqa: PLR0913 (those of start_span, and how to sample)
        self,
        name: str,
        context: Context,
        kind: SpanKind,
        attributes: Mapping[str, str],
        links: Sequence[Link] | None = None,
        *,
        trace_id: int,
        caller: SpanContext,
        judged_by: Context | None = None,
    ) -> Span:
        """Start a span, or make one that only has a context if it is not to be recorded.

        The sampler is asked with the context `judged_by`, if that is another. A trace id of 0 is any.
        """
        if self._sampling:
            sampler, ids = self._sampling
            trace_id = trace_id or ids.generate_trace_id()
            if sampler.is_sure_to_drop(trace_id, caller):
                return NonRecordingSpan(SpanContext(trace_id, ids.generate_span_id(), is_remote=False))
            decided = sampler.should_sample(
                context if judged_by is None else judged_by, trace_id, name, kind, attributes, links
            )
            if not decided.decision.is_recording():
                return NonRecordingSpan(
                    SpanContext(trace_id, ids.generate_span_id(), is_remote=False, trace_state=decided.trace_state)
                )
            context = Context({**context, DECIDED: decided})
        wanted = root_trace_id.set(trace_id)
        try:
            return self._tracer.start_span(name, context, kind, attributes, links)
        finally:
            root_trace_id.reset(wanted)


def _below(parent: SpanContext) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(parent), _NOWHERE)


def end_request(span: Span, status: int) -> None:
    """End the span of an HTTP request. A 4xx is the caller's fault and leaves the status unset."""
    if span.is_recording():
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
    span.end()


def turn_came(create: Span, count: int) -> None:
    """Note that an event's message is about to be sent, with others, which ends its wait."""
    create.add_event("pulsecart.turn_came", {"messaging.batch.message_count": count})


def fail(span: Span, kind: str) -> None:
    """Mark a span as failed. `kind` is one of few values; an error's message may repeat what a caller wrote."""
    if span.is_recording():
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR))


def traceparent(context: SpanContext) -> str:
    """Return a span's `traceparent` (W3C Trace Context, 3.2.2), or "" if there is none.

    No flag but `sampled` is set: older Go SDKs drop a traceparent with others.
    """
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def propagated(context: SpanContext) -> dict[str, str]:
    """Return the attributes with which a message's consumers continue its trace.

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


def recorded_span() -> Span | None:
    """Return the current span if it is recorded."""
    span = trace.get_current_span()
    return span if span.is_recording() else None
