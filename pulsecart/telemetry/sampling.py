"""What a TracerProvider needs so that the trace of an event is that of its id, and is sampled by one rule."""

import re
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context, get_value
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from pulsecart.telemetry.tracing import CALLER, DECIDED, SAMPLED, root_trace_id

__all__ = ["EventIdGenerator", "EventSampler", "sampling_of"]


class EventIdGenerator(RandomIdGenerator):
    """Gives an event's root span the trace id of its event id, and all others random ids.

    `TracerProvider(id_generator=EventIdGenerator(), sampler=EventSampler(…))` for a host with a provider of its own.
    """

    def generate_trace_id(self) -> int:
        """Return the trace id for a new root span."""
        return root_trace_id.get() or super().generate_trace_id()

    def is_trace_id_random(self) -> bool:
        """Return False: the ids are random enough, but older Go SDKs drop a traceparent that says so."""
        return False


class EventSampler(Sampler):
    """Decides as `sampler` does, with two more rules for the spans of events.

    An event's root is sampled by its trace id or, if the sampler respects parents, by its caller's flag. A request
    with several messages is sampled if any of their events is.
    """

    def __init__(self, sampler: Sampler, *, known: bool = False) -> None:
        """Decide as `sampler`, which is `known` if the SDK has made it by `OTEL_TRACES_SAMPLER`."""
        self._sampler = sampler
        self._bound = _bound(sampler) if known else _NO_BOUND
        self._respects_parents = isinstance(sampler, ParentBased)

    def is_sure_to_drop(self, trace_id: int, caller: SpanContext) -> bool:
        """Return whether a span of this trace is certain to be dropped, without asking the sampler.

        `caller` is the parent of a request, or the caller of an event.
        """
        is_sampled = self._respects_parents and caller.trace_flags.sampled
        return trace_id & TraceIdRatioBased.TRACE_ID_LIMIT >= self._bound and not is_sampled

    def should_sample(  # noqa: PLR0913, PLR0917 (the SDK's signature)
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide whether a span that is about to start is sampled."""
        decided = get_value(DECIDED, parent_context)
        if isinstance(decided, SamplingResult):
            return decided
        caller = get_value(CALLER, parent_context)
        if isinstance(caller, SpanContext) and caller.trace_flags.sampled:
            parent = trace.set_span_in_context(NonRecordingSpan(_remote(caller)), Context())
            by_flag = self._sampler.should_sample(parent, trace_id, name, kind, attributes, links, trace_state)
            if by_flag.decision is Decision.RECORD_AND_SAMPLE:
                # The caller's tracestate belongs to the caller's trace, and this one is new.
                return SamplingResult(by_flag.decision, by_flag.attributes)
        if get_value(SAMPLED, parent_context):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return self._sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Name the sampler."""
        return f"EventSampler{{{self._sampler.get_description()}}}"


_NO_BOUND = TraceIdRatioBased.TRACE_ID_LIMIT + 1


def _bound(sampler: Sampler) -> int:
    """Return the low 64 bits of a trace id from which on one of the SDK's samplers drops a root."""
    description = sampler.get_description()  # a parent-based one shows its root nowhere else
    if ratio := re.search(r"TraceIdRatioBased{(.+?)}", description):
        return TraceIdRatioBased(float(ratio[1])).bound
    return 0 if description.removeprefix("ParentBased{root:").startswith("AlwaysOff") else _NO_BOUND


def _remote(context: SpanContext) -> SpanContext:
    return SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=context.trace_flags)


def sampling_of(provider: trace.TracerProvider) -> tuple[EventSampler, EventIdGenerator] | None:
    """Return the sampler and the id generator of a provider, if they are those above.

    With these, what is decided before a span is started holds when it is started.
    """
    if (
        isinstance(provider, TracerProvider)
        and isinstance(provider.sampler, EventSampler)
        and isinstance(provider.id_generator, EventIdGenerator)
    ):
        return provider.sampler, provider.id_generator
    return None
