"""`POST /events/batch`: many events in an array, or any number of them as lines (NDJSON)."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from time import perf_counter

from starlette.responses import Response

from pulsecart.errors import PublishError
from pulsecart.http.auth import name_of, require_credit
from pulsecart.http.body import Bodies, Stream
from pulsecart.http.endpoint import Request, media_type, unsupported_type
from pulsecart.http.formats.json_array import elements
from pulsecart.http.formats.ndjson import Lines
from pulsecart.http.problems import Problem, ProblemError, problem_of, too_large
from pulsecart.http.results import MOST_FAILURES, BatchObserver, Results
from pulsecart.many import TURN_SECONDS, WINDOW_BYTES
from pulsecart.message import Prepared
from pulsecart.producer import Producer
from pulsecart.telemetry.logs import EventLog

__all__ = ["BATCH", "Arrays", "Batch"]

BATCH = "/events/batch"

ARRAY = "application/json"
LINES = ("application/x-ndjson", "application/jsonl")

Prepare = Callable[[bytes, int], Prepared]
"""Prepares an element of an array, given its index. Raises an `EventError` or a `ProblemError`."""


class Arrays:
    """Publishes arrays of events: all forms of them."""

    def __init__(  # noqa: PLR0913 (parts and limits)
        self,
        producer: Producer,
        log: EventLog,
        bodies: Bodies,
        observer: BatchObserver,
        *,
        max_events: int,
        max_bytes: int,
    ) -> None:
        self._producer = producer
        self._log = log
        self._bodies = bodies
        self._observer = observer
        self._max_events = max_events
        self._max_bytes = max_bytes

    async def publish(self, request: Request, prepare: Prepare, *, may_be_empty: bool = False) -> Response:
        """Publish the elements of the array in a request."""
        coding = request.coding
        body = await self._bodies.read(request.declared, request.receive, coding=coding, limit=self._max_bytes)
        array = elements(body, self._max_events, may_be_empty=may_be_empty)
        require_credit(request.source, len(array))
        results = Results(request, self._log, self._observer)
        # The elements, and what they become.
        with self._bodies.holding(len(body) * 2 if results.strict else len(body) + min(len(body), WINDOW_BYTES)):
            del body
            prepared: Iterable[Prepared | Exception] = (
                self._prepared(prepare, element, index) for index, element in enumerate(array)
            )
            if results.strict:
                prepared = [each async for each in _taking_turns(prepared)]
                for index, each in enumerate(prepared):
                    if isinstance(each, Exception):
                        results.add_failure(index, each)
                if results.failed:
                    return results.answer_invalid()
            async with aclosing(self._producer.publish_many(prepared)) as outcomes:
                async for outcome in outcomes:
                    results.add(outcome)
        return results.answer()

    def _prepared(self, prepare: Prepare, element: bytes, index: int) -> Prepared | Exception:
        if len(element) > self._bodies.body_limit:
            return too_large(self._bodies.body_limit, "event")
        try:
            return prepare(element, index)
        except Exception as error:  # noqa: BLE001 (it is the outcome of this event alone)
            return error


async def _taking_turns(prepared: Iterable[Prepared | Exception]) -> AsyncIterator[Prepared | Exception]:
    turn = perf_counter()
    for each in prepared:
        yield each
        if perf_counter() - turn > TURN_SECONDS:
            await asyncio.sleep(0)
            turn = perf_counter()


class Batch:
    """Publishes the events of a request, an array or lines."""

    def __init__(
        self, producer: Producer, log: EventLog, bodies: Bodies, observer: BatchObserver, arrays: Arrays
    ) -> None:
        self._producer = producer
        self._log = log
        self._bodies = bodies
        self._observer = observer
        self._arrays = arrays

    async def __call__(self, request: Request) -> Response:
        """Publish the events of a request."""
        kind = media_type(request.content_type)
        if kind == ARRAY:
            return await self._arrays.publish(
                request, lambda element, index: request.prepare(self._producer, element, index)
            )
        if kind in LINES:
            with self._bodies.streaming(WINDOW_BYTES + self._bodies.body_limit, name_of(request.source)):
                return await self._publish_lines(request)
        raise unsupported_type(request.content_type, ARRAY, *LINES)

    async def _publish_lines(self, request: Request) -> Response:
        results = Results(request, self._log, self._observer, stream=True)
        refused: PublishError | None = None
        async with (
            aclosing(self._bodies.stream(request.receive, request.coding)) as body,
            aclosing(body.pieces()) as pieces,
        ):
            lines = _Lines(request, self._producer, body, Lines(pieces, self._bodies.body_limit), results)
            try:
                async with (
                    aclosing(lines.events()) as events,
                    aclosing(
                        self._producer.publish_many(events, stops_if_refused=True, window=lambda: results.room)
                    ) as outcomes,
                ):
                    async for outcome in outcomes:
                        results.add(outcome, line=lines.numbers.popleft())
            except PublishError as error:
                refused = error
        if refused is not None:
            return results.answer_early(lines.numbers[0], problem_of(refused))
        if lines.stopped_at:
            return results.answer_early(lines.stopped_at, lines.cause)
        return results.answer()


class _Lines:
    """The events of a stream of lines."""

    def __init__(self, request: Request, producer: Producer, body: Stream, lines: Lines, results: Results) -> None:
        self._request = request
        self._producer = producer
        self._body = body
        self._lines = lines
        self._results = results
        self.numbers: deque[int] = deque()
        """The numbers of the lines whose outcome is not known yet."""
        self.stopped_at = 0
        """The first line that was not read as an event because the stream ended early; 0 if there is none."""
        self.cause: Problem | None = None
        """The problem for which it ended early, if that is not the number of failures."""

    async def events(self) -> AsyncGenerator[Prepared | Exception, None]:
        """Yield the event of each line, or what is wrong with it, until the stream ends."""
        index = 0
        source = self._request.source
        try:
            async for line in self._lines:
                if self._results.failed >= MOST_FAILURES:
                    self.stopped_at = self._lines.number
                    return
                if source is not None:
                    self.stopped_at = self._lines.number
                    while seconds := source.charge():
                        await self._body.pause(seconds)
                    self.stopped_at = 0
                self.numbers.append(self._lines.number)
                yield self._prepared(line, index)
                index += 1
        except ProblemError as error:
            self.cause = error.problem
            self.stopped_at = self.stopped_at or self._lines.number + 1

    def _prepared(self, line: bytes | None, index: int) -> Prepared | Exception:
        if line is None:
            return too_large(self._lines.limit, "line")
        try:
            return self._request.prepare(self._producer, line, index)
        except Exception as error:  # noqa: BLE001 (it is the outcome of this line alone)
            return error
