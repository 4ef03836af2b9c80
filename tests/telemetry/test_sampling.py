"""Whether a span is dropped can be known before the sampler is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext, TraceFlags

from pulsecart.telemetry import EventSampler, tracing

NAMES = ["always_on", "always_off", "traceidratio", *(f"parentbased_{root}" for root in ("always_on", "always_off"))]
TRACE_IDS = st.integers(1, (1 << 128) - 1)
CALLERS = st.one_of(
    st.just(INVALID_SPAN_CONTEXT),
    st.builds(
        lambda trace_id, flags: SpanContext(trace_id, 1, is_remote=True, trace_flags=TraceFlags(flags)),
        TRACE_IDS,
        st.sampled_from([0, 1, 2, 3]),
    ),
)


def configured(name: str, ratio: float) -> Sampler:
    """Return the sampler that the SDK makes by the standard variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_TRACES_SAMPLER", name)
        patch.setenv("OTEL_TRACES_SAMPLER_ARG", str(ratio))
        return TracerProvider(shutdown_on_exit=False).sampler


@pytest.mark.parametrize("name", [*NAMES, "parentbased_traceidratio"])
@given(
    ratio=st.floats(0, 1) | st.sampled_from([1e-7, 0.1, 0.5]), trace_id=TRACE_IDS, caller=CALLERS, near=st.booleans()
)
def test_what_is_sure_to_be_dropped_is_dropped(name, ratio, trace_id, caller, near):
    """The quick answer is that of the sampler, for events and for requests."""
    sampler = EventSampler(configured(name, ratio), known=True)
    if near:  # on either side of the ratio
        trace_id = min(max(round(ratio * (1 << 64)) + trace_id % 3 - 1, 1), (1 << 64) - 1)
    event = Context({tracing.CALLER: caller})
    dropped = sampler.should_sample(event, trace_id, "create t").decision is Decision.DROP
    assert sampler.is_sure_to_drop(trace_id, caller) == dropped
    if caller.is_valid and sampler.is_sure_to_drop(caller.trace_id, caller):
        request = trace.set_span_in_context(NonRecordingSpan(caller), Context())
        assert sampler.should_sample(request, caller.trace_id, "POST /").decision is Decision.DROP


@given(trace_id=TRACE_IDS, caller=CALLERS)
def test_nothing_is_sure_with_a_sampler_that_is_not_known(trace_id, caller):
    """A host's own sampler may look like one of the SDK's and decide by other rules."""
    sampler = EventSampler(configured("always_off", 0))
    assert not sampler.is_sure_to_drop(trace_id, caller)
