"""How events are sent: in batches, in order for each user, with retries. All of it without I/O.

The steps are generators. They yield a request, and are sent its answer, or a number of seconds to wait. So the
synchronous and the asynchronous client share them.
"""

import random
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

import msgspec
from attrs import frozen

from pulsecart.client.documents import AnyEvent, Document, read
from pulsecart.client.outcomes import ABORTED, NO_ANSWER, Failure, Outcome, Problem, Receipt
from pulsecart.errors import EventError, Fault, InvalidEvent
from pulsecart.ids import trace_id_of

__all__ = ["Answer", "Request", "Sending", "Steps"]

FIRST_WAIT = 0.5
"""Seconds before the first retry; each further wait is twice as long."""


@frozen
class Request:
    """A request to make."""

    path: str
    body: bytes


@frozen(kw_only=True)
class Answer:
    """The answer to a request. If there was none, the status is 0 and the body says why."""

    status: int
    retry_after: str = ""
    """The header's value."""

    body: bytes


T = TypeVar("T")

Steps = Generator[Request | float, Answer | None, T]


@frozen(kw_only=True)
class Limits:
    """How much is sent at a time, and how often."""

    attempts: int
    max_wait: float
    batch_events: int
    batch_bytes: int


class _Accepted(msgspec.Struct):
    """What an answer says about an event that was published."""

    index: int = 0
    message_id: str = ""


class _AllAccepted(_Accepted):
    results: list[_Accepted] = []


class _Refused(msgspec.Struct):
    """What an answer says about an event that was not published, or about the request."""

    status: int = 0
    type: str = ""
    title: str = ""
    detail: str = ""
    errors: tuple[Fault, ...] = ()
    index: int = 0
    timestamp: str = ""

    @property
    def problem(self) -> Problem:
        return Problem(status=self.status, type=self.type, title=self.title, detail=self.detail, errors=self.errors)


class _Incomplete(_Refused):
    results: list[_Refused] = []
    truncated: bool = False


Verdict = Receipt | _Refused | None
"""What an answer says about an event: None if it does not tell."""


class Sending:
    """The events of one call on their way."""

    def __init__(self, limits: Limits, new_event_id: Callable[[int], str], held: Iterable[str]) -> None:
        """`held` are users whose events must not be sent, since an earlier one may still be."""
        self._limits = limits
        self._new_event_id = new_event_id
        self._held = set(held)
        self._index = 0
        self._batch: list[Document | Failure] = []
        self._bytes = 0
        self._away = False
        """Whether the service could not be reached, in all attempts. Then the next batch gets only one."""

    def send(self, event: AnyEvent) -> Steps[Outcome]:
        """Send one event."""
        document = self._read(event)
        if isinstance(document, Failure):
            return document
        outcomes: dict[int, Outcome] = {}
        yield from self._deliver([document], outcomes, single=True)
        return outcomes[document.index]

    def add(self, event: AnyEvent) -> Steps[list[Outcome]]:
        """Take the next event, and send what makes a full batch. Return the outcomes of all events in it, in order."""
        document = self._read(event)
        size = len(document.raw) + 1 if isinstance(document, Document) else 0
        outcomes = []
        if self._bytes + size >= self._limits.batch_bytes:
            outcomes = yield from self.flush()
        self._batch.append(document)
        self._bytes += size
        if len(self._batch) == self._limits.batch_events:
            outcomes += yield from self.flush()
        return outcomes

    def flush(self) -> Steps[list[Outcome]]:
        """Send the events that were taken, and return their outcomes in order."""
        batch, self._batch, self._bytes = self._batch, [], 0
        outcomes: dict[int, Outcome] = {each.index: each for each in batch if isinstance(each, Failure)}
        yield from self._deliver([each for each in batch if isinstance(each, Document)], outcomes)
        return [outcomes[each.index] for each in batch]

    def _read(self, event: AnyEvent) -> Document | Failure:
        index, self._index = self._index, self._index + 1
        try:
            document = read(event, index, self._new_event_id)
        except EventError as error:
            status, kind = (422, "invalid-event") if isinstance(error, InvalidEvent) else (400, "malformed-body")
            problem = Problem(status=status, type=kind, detail=error.detail, errors=error.faults)
            raw = event if isinstance(event, bytes) else b""
            return Failure(index=index, event=event, document=raw, event_id=None, problem=problem)
        if (size := len(document.raw) + 2) > self._limits.batch_bytes:
            detail = f"The event has {size:,} bytes as an array; the limit is {self._limits.batch_bytes:,}."
            return _failure(document, Problem(status=413, type="body-too-large", detail=detail))
        return document

    def _deliver(
        self, documents: Sequence[Document], outcomes: dict[int, Outcome], *, single: bool = False
    ) -> Steps[None]:
        """Send events until each has an outcome. What is retried is sent in order, and before all later events."""
        documents = self._not_held(documents, outcomes)
        while documents:
            answer = yield _request(documents, single=single)
            assert answer is not None  # it is sent for each request
            verdicts, whole = _verdicts(answer, documents, single=single)
            if whole and (whole.status == 413 or whole.type == "malformed-body"):
                if len(documents) > 1:  # the limit is smaller here, or one of them cannot be read
                    middle = len(documents) // 2
                    yield from self._deliver(documents[:middle], outcomes)
                    yield from self._deliver(documents[middle:], outcomes)
                    return
                whole = None
            attempts = 1 if whole and self._away else self._limits.attempts
            self._away = self._away and whole is not None
            again: list[Document] = []
            wait = 0
            for document, verdict in zip(documents, verdicts, strict=True):
                if isinstance(verdict, Receipt):
                    outcomes[document.index] = verdict
                elif verdict is None:
                    again.append(document)
                elif self._may_retry(document, verdict, attempts):
                    again.append(document)
                    wait = max(wait, document.attempts, 1)
                else:
                    failure = _failure(document, verdict.problem, of_request=whole is not None and not single)
                    outcomes[document.index] = failure
                    self._away = self._away or (whole is not None and failure.problem.retryable)
                    if failure.holds:
                        self._held.add(failure.holds)
            documents = self._not_held(again, outcomes)
            if documents and wait:
                yield self._seconds(wait, answer.retry_after)

    def _may_retry(self, document: Document, result: _Refused, attempts: int) -> bool:
        document.keep(result.timestamp)
        document.attempts += result.type != ABORTED
        return result.problem.retryable and document.attempts < attempts

    def _not_held(self, documents: Sequence[Document], outcomes: dict[int, Outcome]) -> Sequence[Document]:
        """Fail the events of users that are held, and return the others."""
        if not self._held:
            return documents
        for document in documents:
            if document.user_id in self._held:
                outcomes[document.index] = _failure(document, _OVERTAKING)
        return [document for document in documents if document.index not in outcomes]

    def _seconds(self, attempt: int, retry_after: str) -> float:
        """Return how long to wait before a retry. Chance spreads those of many callers."""
        seconds = FIRST_WAIT * 2.0 ** min(attempt - 1, 30)
        if retry_after.isascii() and retry_after.isdigit():
            seconds = max(seconds, float(retry_after[:9]))
        return min(seconds, self._limits.max_wait) * random.uniform(1, 1.5)  # noqa: S311 (no secret)


_OVERTAKING = Problem(
    status=503,
    type=ABORTED,
    detail="An earlier event of the user was not published. Sent now, this one would overtake its retry.",
)


def _failure(document: Document, problem: Problem, *, of_request: bool = False) -> Failure:
    # After a defect (500) in one event, the service sends the later events of its user.
    holds = problem.retryable and (of_request or problem.status != 500)
    return Failure(
        index=document.index,
        event=document.event,
        document=document.raw,
        event_id=document.event_id,
        problem=problem,
        of_request=of_request,
        holds=document.user_id if holds else None,
    )


def _request(documents: Sequence[Document], *, single: bool) -> Request:
    if single:
        return Request("/events/ingest", documents[0].raw)
    return Request("/events/batch", b"[%b]" % b",".join([document.raw for document in documents]))


def _verdicts(
    answer: Answer, documents: Sequence[Document], *, single: bool
) -> tuple[Sequence[Verdict], _Refused | None]:
    """Return what an answer says about each event, and what it says about the whole request if that has failed."""
    refused: _Refused
    if answer.status == 202:
        accepted = _decode(answer.body, _AllAccepted)
        results = [accepted] if single else accepted.results
        if [result.index for result in results] == list(range(len(documents))) and results[-1].message_id:
            return [_receipt(*each) for each in zip(documents, results, strict=True)], None
        refused = _unexpected(answer)
    else:
        refused = incomplete = _decode(answer.body, _Incomplete)
        indices = [result.index for result in incomplete.results]
        if refused.type == "batch-incomplete" and _are_places(indices, len(documents)):
            failed = dict(zip(indices, incomplete.results, strict=True))
            known = indices[-1] + 1 if incomplete.truncated else len(documents)
            return [
                failed.get(index, _receipt(document) if index < known else None)
                for index, document in enumerate(documents)
            ], None
        if not (refused.type and refused.status == answer.status >= 400):
            refused = _unexpected(answer)
    return [refused] * len(documents), refused


def _decode(body: bytes, cls: type[T]) -> T:
    """Read the document in an answer; what is not one, such as a proxy's page, says nothing."""
    try:
        return msgspec.json.decode(body, type=cls)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return cls()


def _are_places(indices: Sequence[int], length: int) -> bool:
    return bool(indices) and indices == sorted(set(indices)) and 0 <= indices[0] <= indices[-1] < length


def _receipt(document: Document, result: _Accepted | None = None) -> Receipt:
    event_id = document.event_id
    assert event_id is not None  # the service accepts no event without
    return Receipt(event_id=event_id, message_id=result.message_id if result else None, trace_id=trace_id_of(event_id))


def _unexpected(answer: Answer) -> _Refused:
    """Return the problem of an answer that is not one of pulsecart, such as a proxy's."""
    if answer.status == NO_ANSWER:
        return _Refused(type="no-answer", detail=answer.body.decode())
    detail = f"The answer has status {answer.status}, and is not one of pulsecart."
    if answer.status < 400:
        detail += " Check the URL."
    return _Refused(type="unexpected-answer", status=answer.status, detail=detail)
