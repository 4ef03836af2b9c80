"""Log lines as OpenTelemetry's log records, for the exporters of `OTEL_LOGS_EXPORTER`.

A record has the fields of its line as attributes, and its event's trace. OpenTelemetry's own names for logs in Python
begin with an underscore, since they may still change. They are documented, and imported only if records are asked for.
"""

import time
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context

from pulsecart.ids import trace_id_of

if TYPE_CHECKING:
    from opentelemetry._logs import Logger, LogRecord

__all__ = ["are_on", "exported", "start"]

_SEVERITIES = {"debug": "DEBUG", "info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "FATAL"}

_NAMES = {"exception": "exception.stacktrace"}
"""Fields that OpenTelemetry's semantic conventions name."""

_logger: "Logger | None" = None


def are_on() -> bool:
    """Return whether a LoggerProvider has been set."""
    from opentelemetry._logs import get_logger_provider

    # The API's stand-in has no public name.
    return not type(get_logger_provider()).__module__.startswith("opentelemetry._logs")


def start() -> None:
    """From now on, emit a record for each line to the LoggerProvider."""
    from opentelemetry._logs import get_logger_provider

    global _logger  # noqa: PLW0603 (there is one log in a process, as there is one provider)
    _logger = get_logger_provider().get_logger("pulsecart")


def exported(_writer: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Emit a record with the fields of a line, if that is wanted, and return them: a step of structlog."""
    if _logger is not None:
        import structlog  # slow

        _logger.emit(_record(structlog.processors.format_exc_info(None, "", dict(fields))))
    return fields


def _record(fields: MutableMapping[str, Any]) -> "LogRecord":
    from opentelemetry._logs import LogRecord, SeverityNumber

    level, body = fields.pop("level"), fields.pop("event")
    context = _context(fields.pop("traceparent", ""), fields.get("event_id", ""))
    return LogRecord(
        timestamp=time.time_ns(),
        context=context,
        severity_text=level.upper(),
        severity_number=SeverityNumber[_SEVERITIES.get(level, "UNSPECIFIED")],
        body=body,
        attributes={
            _NAMES.get(name, name): value if isinstance(value, str | int | float) else repr(value)
            for name, value in fields.items()
        },
    )


def _context(traceparent: str, event_id: str) -> Context | None:
    """Return the context of an event's trace. None, which means the current context, if a line is about no event."""
    if traceparent:
        _version, trace_id, span_id, flags = traceparent.split("-")
    elif event_id:
        trace_id, span_id, flags = trace_id_of(event_id), "0", "0"
    else:
        return None
    of_event = trace.SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=trace.TraceFlags(int(flags, 16))
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(of_event), Context())
