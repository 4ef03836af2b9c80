"""What a batch is answered: how many events were accepted, and how each of them ended."""

from typing import Any, Protocol

import msgspec
from attrs import evolve
from starlette.responses import Response

from pulsecart.errors import Aborted, PublishError
from pulsecart.http.auth import name_of
from pulsecart.http.endpoint import Request, log_failure
from pulsecart.http.headers import split, unquoted
from pulsecart.http.problems import Problem, problem_of
from pulsecart.many import Outcome
from pulsecart.message import Receipt
from pulsecart.telemetry.logs import EventLog

__all__ = ["MOST_FAILURES", "BatchObserver", "Results"]

MOST_FAILURES = 1000
"""How many failures an answer lists. A stream with so many ends early."""


class BatchObserver(Protocol):
    """Observes batches."""

    def batch(self, size: int) -> None:
        """Observe a batch of `size` events that is about to be answered. Called in the task that answers it."""
        ...


class Results:
    """Counts and lists the outcomes of a batch in the order of its events, and logs failures.

    It follows the caller's preferences (RFC 7240). For a `stream` they are different: its answer never lists accepted
    events, and what is published cannot depend on what arrives later.
    """

    def __init__(self, request: Request, log: EventLog, observer: BatchObserver, *, stream: bool = False) -> None:
        self._request = request
        self._log = log
        self._observer = observer
        preferred = _preferences(request.headers.get(b"prefer", b""))
        self._prefers_minimal = preferred.get("return") == "minimal"
        self._lists_accepted = not stream and not self._prefers_minimal
        self.strict = not stream and preferred.get("handling") == "strict"
        """Whether nothing is to be published if any event is invalid."""
        self._receipts: list[dict[str, Any]] = []
        self._failures: list[dict[str, Any]] = []
        self._retry_after = 0
        self.accepted = 0
        self.failed = 0

    @property
    def size(self) -> int:
        """The number of events that have ended."""
        return self.accepted + self.failed

    @property
    def room(self) -> int:
        """How many events may be on their way besides the next one so that each can be listed if it fails."""
        return max(0, MOST_FAILURES - 1 - self.failed)

    def add(self, outcome: Outcome, **place: int) -> None:
        """Add the outcome of the next event, and its place in addition to its index."""
        if not isinstance(outcome, Receipt):
            self.add_failure(self.size, outcome, **place)
            return
        if self._lists_accepted:
            self._receipts.append(
                {
                    "index": self.size,
                    "event_id": outcome.event_id,
                    "message_id": outcome.message_id,
                    "trace_id": outcome.trace_id,
                }
            )
        self.accepted += 1

    def add_failure(self, index: int, error: Exception, **place: int) -> None:
        """Add the failure of the event with this index."""
        self.failed += 1
        problem = problem_of(error)
        if problem.retryable:
            self._retry_after = max(self._retry_after, error.retry_after if isinstance(error, PublishError) else 1)
        if len(self._failures) < MOST_FAILURES:
            self._failures.append({"index": index, **place, **_result(error, problem)})
        log_failure(self._log, error, problem, self._request.seconds, self._request.source)

    def answer(self) -> Response:
        """Return the answer when all events have ended."""
        if self.failed:
            return self._incomplete(f"{self.failed:,} of {self.size:,} events were not published.")
        self._ended("accepted")
        document: dict[str, Any] = {"status": "accepted", "accepted": self.accepted, "failed": 0}
        if self._lists_accepted:
            document["results"] = self._receipts
        headers = self._preference_applied(accepted=True)
        return Response(msgspec.json.encode(document), 202, headers, "application/json")

    def answer_invalid(self) -> Response:
        """Return the answer when nothing was published because of the failures."""
        return self._incomplete(f"{self.failed:,} events are invalid, so none was published.")

    def answer_early(self, line: int, cause: Problem | None) -> Response:
        """Return the answer when the stream was not processed from a line on: for a cause, or for too many failures."""
        why = f": {cause.detail}" if cause else ", since too many events had failed."
        detail = f"{self.failed:,} of {self.size:,} events were not published; line {line:,} and those after it were "
        return self._incomplete(f"{detail}not processed{why}", cause, stopped_at=line)

    def _incomplete(self, detail: str, cause: Problem | None = None, **more: int) -> Response:
        document: dict[str, Any] = {"accepted": self.accepted, "failed": self.failed, **more, "results": self._failures}
        if self.failed > len(self._failures):
            document["truncated"] = True
        headers = {**(cause.headers if cause else {}), **self._preference_applied(accepted=False)}
        if retry_after := max(self._retry_after, int(headers.get("Retry-After", 0))):
            headers["Retry-After"] = str(retry_after)
        if cause and cause.status < 500:
            retryable = cause.retryable or bool(retry_after)
            problem = evolve(cause, detail=detail, more=document, headers=headers, retryable=retryable)
        else:
            problem = Problem(
                status=503 if retry_after else 422,
                type="batch-incomplete",
                title="Not all events were published",
                detail=detail,
                more=document,
                headers=headers,
            )
        self._ended("incomplete", problem)
        return problem.response()

    def _ended(self, outcome: str, problem: Problem | None = None) -> None:
        severity = "warning" if problem and problem.status >= 500 else "info"
        fields = {"problem": problem.type if problem else "", "source": name_of(self._request.source)}
        self._log.batch(severity, outcome, self.accepted, self.failed, self._request.seconds, **fields)
        self._observer.batch(self.size)

    def _preference_applied(self, *, accepted: bool) -> dict[str, str]:
        applied = ["return=minimal"] * (accepted and self._prefers_minimal) + ["handling=strict"] * self.strict
        return {"Preference-Applied": ", ".join(applied)} if applied else {}


def _result(error: Exception, problem: Problem) -> dict[str, Any]:
    """Return what the results say about a failure, without its place."""
    result: dict[str, Any] = {
        "status": problem.status,
        "type": "aborted" if isinstance(error, Aborted) else problem.type,
        "detail": problem.detail,
        "retryable": problem.retryable,
    }
    optional = {
        "event_id": getattr(error, "event_id", None),
        "timestamp": getattr(error, "timestamp", None),
        "errors": problem.errors,
    }
    return result | {name: value for name, value in optional.items() if value}


def _preferences(header: bytes) -> dict[str, str]:
    """Return the preferences in a header Prefer, of which the first of each name counts (RFC 7240, section 2)."""
    found: dict[str, str] = {}
    for preference in split(header.decode("latin-1").lower(), ","):
        name, _, value = next(iter(split(preference, ";")), "").partition("=")
        found.setdefault(name.strip(), unquoted(value.strip()))
    return found
