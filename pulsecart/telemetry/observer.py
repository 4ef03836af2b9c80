"""The observer that reports to OpenTelemetry: events, requests to the broker, and HTTP requests."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span

from pulsecart.errors import EventError, MessageRefused, PublishError
from pulsecart.message import Prepared
from pulsecart.ports import Loaded, Publishing, Sending, Unobserved
from pulsecart.telemetry import metrics, tracing

__all__ = ["Telemetry"]


class Telemetry(Unobserved):
    """Observes for the providers of this process: `Producer(transport, observer=Telemetry())`.

    A provider has to be set before; if one is set later, `start` begins to observe. With `traces_keys` the ordering
    key, which may be personal data, is an attribute of an event's span. `callers` says which sampled callers of HTTP
    requests cause a trace: `always`, at most the sampler's `ratio` of them, by their trace ids, or `never`.
    """

    def __init__(self, *, traces_keys: bool = False, callers: tracing.Callers = "always") -> None:
        self._traces_keys = traces_keys
        self._callers = callers
        self.start()

    def request(self, scope: Any, route: str, *, traced: bool) -> "_Request | None":  # noqa: ARG002
        """Observe an HTTP request: not before `start`."""
        return None

    def batch(self, size: int) -> None:
        """Observe a batch of callers that is about to be answered: not before `start`."""

    def start(self) -> None:
        """Begin to observe, if a TracerProvider or a MeterProvider has been set."""
        traces = tracing.Tracing(trace.get_tracer_provider(), self._callers) if tracing.is_on() else None
        if traces or metrics.are_on():
            active = _Active(traces, traces_keys=self._traces_keys)
            for name in ("rejected", "publishing", "current", "waited", "sending", "watch", "request", "batch"):
                setattr(self, name, getattr(active, name))  # a call goes there directly


class _Active:
    """The observer while something is to be observed."""

    def __init__(self, traces: tracing.Tracing | None, *, traces_keys: bool) -> None:
        self._traces = traces
        self._traces_keys = traces_keys

    def rejected(self, event_type: str, error: Exception, source: str) -> None:
        _count(event_type or metrics.OTHER, error, source)

    def publishing(self, event: Prepared) -> Publishing:
        if self._traces is None:
            return _Publishing(event, INVALID_SPAN, None)
        key = event.message.ordering_key if self._traces_keys else ""
        return _Publishing(event, *self._traces.start_create(event, key))

    def current(self) -> Span | None:
        return tracing.recorded_span()

    def waited(self, events: Sequence[Span], count: int) -> None:
        for span in events:
            tracing.turn_came(span, count)

    def sending(self, topic: str, count: int, events: Sequence[Span], server: tuple[str, int]) -> Sending:
        span = INVALID_SPAN if self._traces is None else self._traces.start_send(topic, count, events, server)
        return _Sending(topic, count, server, span)

    def watch(self, loaded: Loaded) -> None:
        metrics.watch(loaded)

    def batch(self, size: int) -> None:
        metrics.batch_ended(size)
        trace.get_current_span().set_attribute("messaging.batch.message_count", size)

    def request(self, scope: Any, route: str, *, traced: bool) -> "_Request":
        return _Request(scope, route, self._traces if traced else None)


class _Publishing:
    def __init__(self, event: Prepared, span: Span, context: Context | None) -> None:
        self._event_type = event.event_type
        self._event_id = event.event_id
        self._source = event.message.attributes.get("source", "")
        self._span = span
        self.attributes: Mapping[str, str] = tracing.propagated(span.get_span_context())
        self._token = None if context is None else contexts.attach(context)

    def admitted(self) -> None:
        if self._token is not None:
            contexts.detach(self._token)
            self._token = None

    def published(self, message_id: str) -> None:
        metrics.event_ended(self._event_type, "published", source=self._source, event_id=self._event_id)
        self._span.set_attribute("messaging.message.id", message_id)
        self._end()

    def failed(self, error: BaseException) -> None:
        tracing.fail(self._span, _count(self._event_type, error, self._source, self._event_id))
        self._end()

    def _end(self) -> None:
        self.admitted()
        self._span.end()


class _Sending:
    def __init__(self, topic: str, count: int, server: tuple[str, int], span: Span) -> None:
        self._topic = topic
        self._count = count
        self._server = server
        self._span = span
        self._started = perf_counter()

    def attempt_failed(self, error_type: str) -> None:
        self._span.add_event("pulsecart.attempt_failed", {"error.type": error_type})

    def ended(self, error_type: str) -> None:
        if error_type:
            tracing.fail(self._span, error_type)
        seconds = perf_counter() - self._started
        metrics.send_ended(self._topic, self._count, self._server, seconds, error_type, self._span)
        self._span.end()


class _Request:
    """An HTTP request. Health checks and the like are measured, but are no spans."""

    def __init__(self, scope: Any, route: str, traces: tracing.Tracing | None) -> None:
        self._started = perf_counter()
        self._method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        self._route = route
        self._scheme = scope.get("scheme", "http")
        self._span: Span = INVALID_SPAN
        self.traceresponse = ""
        self._token = None
        if traces is not None:
            # Lines of one name count together (RFC 9110, section 5.2), and two contexts are none.
            parent = b", ".join([value for name, value in scope["headers"] if name == b"traceparent"])
            self._span, context = traces.start_request(self._method, scope["path"], route, self._scheme, parent)
            self.traceresponse = tracing.traceparent(self._span.get_span_context())
            self._token = contexts.attach(context)

    def ended(self, status: int) -> None:
        if self._token is not None:
            contexts.detach(self._token)
        seconds = perf_counter() - self._started
        metrics.request_ended(self._method, self._route, self._scheme, status, seconds, self._span)
        tracing.end_request(self._span, status)


_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})


def _count(event_type: str, error: BaseException, source: str, event_id: str = "") -> str:
    """Count an event that was not published, by whose fault it was, and return what went wrong, in one word of few."""
    error_type = error.error_type if isinstance(error, PublishError) else type(error).__name__
    if isinstance(error, (EventError, MessageRefused)):
        outcome = "refused"
    else:
        outcome = "failed" if isinstance(error, Exception) else "abandoned"
    metrics.event_ended(event_type, outcome, error_type, source, event_id)
    return error_type
