"""Log lines: JSON as Cloud Logging reads it, and readable ones on a terminal.

One line says how an event ended. None holds a payload, a user id or an ordering key. Lines of other libraries, by
Python's own logging, come in the same form.
"""

import asyncio
import atexit
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Hashable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import msgspec
import structlog
from structlog.typing import Processor

from pulsecart.ids import trace_id_of
from pulsecart.message import Receipt
from pulsecart.telemetry.records import exported
from pulsecart.telemetry.stderr import Writer

__all__ = [
    "FLOOD_SECONDS",
    "EventLog",
    "Flood",
    "Handler",
    "capture",
    "configure",
    "finish",
    "flush",
    "formatter",
    "standard_logging",
]

_log = logging.getLogger("pulsecart")

FLOOD_SECONDS = 10.0
"""After the first line of a kind of failure, further ones are counted for so long, and the count is logged."""

MOST_KINDS = 1000
"""How many kinds of lines are remembered."""

# https://cloud.google.com/logging/docs/agent/logging/configuration#special-fields
_TRACE = "logging.googleapis.com/trace"
_SPAN = "logging.googleapis.com/spanId"
_SAMPLED = "logging.googleapis.com/trace_sampled"

_SEVERITIES = {"debug": "DEBUG", "info": "INFO", "warning": "WARNING", "error": "ERROR", "critical": "CRITICAL"}

Fields = MutableMapping[str, Any]


def configure(level: str, project: str) -> None:
    """Set structlog up for this process."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, *_written(project, colored=_on_a_terminal())],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=_Stderr,
        cache_logger_on_first_use=True,
    )


def standard_logging(level: str, project: str) -> dict[str, Any]:
    """Return a configuration for Python's own logging, as `logging.config.dictConfig` takes it."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": "pulsecart.telemetry.logs.formatter", "project": project}},
        "filters": {"flood": {"()": "pulsecart.telemetry.logs.Flood"}},
        "handlers": {
            "stderr": {"class": "pulsecart.telemetry.logs.Handler", "formatter": "lines", "filters": ["flood"]},
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {name: {"level": level.upper()} for name in ("pulsecart", "uvicorn")},
    }


def capture() -> None:
    """Log what Python itself would write to the standard error: warnings, and exceptions that cannot be raised."""
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _unraisable


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    _log.error("%s: %r", found.err_msg or "Exception ignored in", found.object, exc_info=found.exc_value)


class Flood(logging.Filter):
    """Of warnings and errors of one kind lets one pass in `FLOOD_SECONDS`, which says how many were left out before."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[Hashable, tuple[float, int]] = {}
        """When one passed, and how many were left out since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record passes. Those logged by one line of code with the same arguments are of one kind."""
        if record.levelno < logging.WARNING:
            return True
        kind = record.pathname, record.lineno, str(record.args)
        passed_at, left_out = self._kinds.get(kind, (-FLOOD_SECONDS, 0))
        now = time.monotonic()
        if now - passed_at < FLOOD_SECONDS:
            self._kinds[kind] = passed_at, left_out + 1
            return False
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out:,} more like it)", None
        return True


def formatter(project: str) -> structlog.stdlib.ProcessorFormatter:
    """Return a formatter for Python's own logging."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_log_level],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_written(project, colored=_on_a_terminal()),
        ],
    )


def _on_a_terminal() -> bool:
    with suppress(AttributeError, ValueError):  # there is no stream, or it is closed
        return sys.stderr.isatty()
    return False


def _written(project: str, *, colored: bool) -> list[Processor]:
    """Return the last steps, which make a line of the fields."""
    if colored:
        clock = structlog.processors.TimeStamper("%H:%M:%S", utc=False)
        return [exported, clock, _for_people, structlog.dev.ConsoleRenderer()]
    return [exported, structlog.processors.format_exc_info, _CloudLogging(project), _json]


def _notice(dropped: int) -> str:
    line: Any = {
        "level": "warning",
        "event": f"{dropped:,} log lines were dropped: the standard error could not be written to, or was not read",
        "dropped": dropped,
    }
    for step in _written("", colored=_on_a_terminal()):
        line = step(None, "warning", line)
    return str(line)


_stderr = Writer(_notice)
flush = _stderr.flush
finish = _stderr.finish
atexit.register(finish)
with suppress(AttributeError):  # Windows has no fork
    os.register_at_fork(after_in_child=_stderr.reset)


class Handler(logging.Handler):
    """Queues the records of Python's own logging with the lines of events."""

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record. One that cannot be formatted is an error in the log, not text on the standard error."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 (a record's arguments run any code)
            text, place = "The log record of %s:%d could not be formatted", (record.pathname, record.lineno)
            line = self.format(
                logging.LogRecord(record.name, logging.ERROR, *place, text, place, exc_info=sys.exc_info())
            )
        _stderr.put(line)


class _Stderr:
    """What structlog hands its lines to."""

    def __init__(self, *_arguments: Any) -> None:
        pass

    def msg(self, line: str) -> None:
        """Queue one line."""
        _stderr.put(line)

    debug = info = warning = error = critical = msg


class _CloudLogging:
    """Names the fields as Cloud Logging does."""

    def __init__(self, project: str) -> None:
        self._traces = f"projects/{project}/traces/"

    def __call__(self, _logger: Any, _method: str, fields: Fields) -> Fields:
        line: Fields = {
            "severity": _SEVERITIES.get(fields.pop("level"), "DEFAULT"),
            "time": datetime.now(UTC).isoformat(),
            "message": fields.pop("event"),
        }
        traceparent = fields.pop("traceparent", "")
        line.update(fields)
        if traceparent:
            _version, trace_id, span_id, flags = traceparent.split("-")
            line.update({_TRACE: self._traces + trace_id, _SPAN: span_id, _SAMPLED: flags == "01"})
        elif event_id := fields.get("event_id"):
            line[_TRACE] = self._traces + trace_id_of(event_id)
        return line


def _for_people(_logger: Any, _method: str, fields: Fields) -> Fields:
    fields.pop("traceparent", None)  # the event's id says as much
    # What a caller wrote is not to steer a terminal.
    return {
        name: value if name == "exception" or not isinstance(value, str) or value.isprintable() else repr(value)
        for name, value in fields.items()
    }


_encoder = msgspec.json.Encoder(enc_hook=repr)


def _json(_logger: Any, _method: str, fields: Fields) -> str:
    return _encoder.encode(fields).decode()


class EventLog:
    """Logs how events end. Of failures of one kind the first is logged at once, and then their number.

    A line with `repeated` stands for that number of failures, and describes the last one.
    """

    def __init__(self, *, personal_data: bool = False) -> None:
        self._personal_data = personal_data
        self._left_out: dict[Hashable, tuple[int, Callable[..., None] | None]] = {}
        """By kind of which a count is due, how many failures it stands for, and what logs the last of them."""

    @cached_property
    def _log(self) -> Any:
        return structlog.get_logger("pulsecart.events").bind()  # otherwise it would be bound again for each line

    def published(self, receipt: Receipt, seconds: float, source: str = "") -> None:
        """Log an event that the broker has, and the name of its source, if any."""
        self._log.info(
            "event published",
            outcome="published",
            event_id=receipt.event_id,
            event_type=receipt.event_type,
            topic=receipt.topic,
            message_id=receipt.message_id,
            duration_ms=round(seconds * 1e3, 1),
            traceparent=receipt.traceparent,
            **({"source": source} if source else {}),
        )

    def failed(self, severity: str, outcome: str, problem: str, seconds: float, **fields: Any) -> None:
        """Log an event that was not published: `outcome`, and the problem that was answered.

        The problem and the fields `event_type`, `error_type` and `source` make the kind, of which there must be few.
        """
        fields = {
            "event": f"event {outcome}",
            "outcome": outcome,
            "problem": problem,
            "duration_ms": round(seconds * 1e3, 1),
            **{field: value for field, value in fields.items() if value},
        }
        name = problem, fields.get("event_type"), fields.get("error_type"), fields.get("source")
        write = partial(getattr(self._log, severity), **fields)
        if name in self._left_out:
            self._left_out[name] = self._left_out[name][0] + 1, write
        else:
            write()
            self._count_later(name)

    def batch(self, severity: str, outcome: str, accepted: int, failed: int, seconds: float, **fields: Any) -> None:
        """Log the end of a batch: its outcome, and how many events of it were accepted and have failed."""
        getattr(self._log, severity)(
            f"batch {outcome}",
            outcome=outcome,
            accepted=accepted,
            failed=failed,
            duration_ms=round(seconds * 1e3, 1),
            **{field: value for field, value in fields.items() if value},
        )

    def defect(self, error: Exception, problem: str, seconds: float, source: str = "") -> None:
        """Log a defect of ours with its traceback. Its message may repeat what the caller wrote: it is left out."""
        kind = type(error).__qualname__
        said = f"{kind}: {error}" if self._personal_data else kind
        frames = "".join(traceback.format_tb(error.__traceback__))
        said = f"Traceback:\n{frames}{said}"
        self.failed("error", "failed", problem, seconds, error_type=kind, source=source, exception=said)

    def flush(self) -> None:
        """Log what was left out so far."""
        for name, (left_out, write) in self._left_out.items():
            if write is not None:
                write(repeated=left_out)
            self._left_out[name] = 0, None

    def _count_later(self, name: Hashable) -> None:
        self._left_out[name] = 0, None
        asyncio.get_running_loop().call_later(FLOOD_SECONDS, self._count, name)

    def _count(self, name: Hashable) -> None:
        left_out, write = self._left_out.pop(name)
        if write is not None:  # otherwise the flood is over
            write(repeated=left_out)
            self._count_later(name)
