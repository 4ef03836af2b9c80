"""The clients: what makes the requests, and waits."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx

from pulsecart.client.documents import AnyEvent
from pulsecart.client.outcomes import NO_ANSWER, Failure, Outcome, Receipt, SendError
from pulsecart.client.sending import Answer, Limits, Request, Sending, Steps, T
from pulsecart.ids import new_event_id

__all__ = ["AsyncClient", "Client"]

MAX_BATCH_EVENTS = 10_000
MAX_BATCH_BYTES = 10_485_760

HttpT = TypeVar("HttpT", httpx.Client, httpx.AsyncClient)


class _Service(Generic[HttpT]):
    def __init__(  # noqa: PLR0913 (all of it can be set)
        self,
        base_url: str,
        *,
        key: str | None = None,
        attempts: int = 5,
        max_wait: float = 30.0,
        timeout: float = 60.0,
        batch_events: int = MAX_BATCH_EVENTS,
        batch_bytes: int = MAX_BATCH_BYTES,
        http_client: HttpT | None = None,
    ) -> None:
        """Use the service at a URL, and a key that it knows.

        An event is sent at most `attempts` times. Before a retry, the client waits for 0.5 seconds, then 1, 2, 4 …,
        or for as long as the service asks (`Retry-After`), but at most for `max_wait` seconds, and at random up to
        half as long again. `timeout` is the number of seconds for which the service may be silent; it may need some
        for a large batch. `batch_events` and `batch_bytes` are the limits of a request; the defaults are those of the
        service.

        An `http_client` of your own, with its own timeout, proxy or certificates, is used and not closed.
        Raises `ValueError` if an argument cannot work.
        """
        if attempts < 1 or batch_events < 1 or batch_bytes < 1 or not max_wait >= 0:
            raise ValueError("attempts, batch_events and batch_bytes must be at least 1, and max_wait at least 0")
        url = _url(base_url)
        self._address = f"{url.scheme}://{url.netloc.decode()}"
        self._url = str(url).rstrip("/")
        self._limits = Limits(attempts=attempts, max_wait=max_wait, batch_events=batch_events, batch_bytes=batch_bytes)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json, application/problem+json"}
        if key is not None:
            # httpx would show a key that it cannot send.
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("the key must be printable ASCII characters, without spaces")
            self._headers["Authorization"] = f"Bearer {key}"
        self._owns_http = http_client is None
        self._http: HttpT = self._new_http(timeout) if http_client is None else http_client

    @abstractmethod
    def _new_http(self, timeout: float) -> HttpT: ...

    def _sending(self, held: Iterable[str] = (), event_id_of: Callable[[int], str] | None = None) -> Sending:
        return Sending(self._limits, event_id_of or (lambda _index: new_event_id()), held)

    def _no_answer(self, error: httpx.RequestError) -> Answer:
        text = f"{self._address} did not answer: {str(error) or 'no reason given'} ({type(error).__name__})"
        return Answer(status=NO_ANSWER, body=text.encode())


class Client(_Service[httpx.Client]):
    """Sends events to the service. It can be used by several threads.

    A missing `event_id` is set before the first attempt. The answers 408, 429 and 5xx, and requests without an answer,
    are retried under it: the service may have published the event, and consumers recognize it by its id.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    def _new_http(self, timeout: float) -> httpx.Client:
        return httpx.Client(timeout=timeout)

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            self._http.close()

    def send(self, event: AnyEvent) -> Receipt:
        """Send an event, and return when the broker has it.

        Raises `SendError` if it is invalid, or is not confirmed after all attempts.
        """
        outcome = self._run(self._sending().send(event))
        if isinstance(outcome, Failure):
            raise SendError([outcome])
        return outcome

    def send_many(self, events: Iterable[AnyEvent]) -> Iterator[Receipt]:
        """Send events in batches, and yield the receipt of each in order. Nothing is sent unless you iterate.

        A batch is sent when it is full, or at the end. A user's events are published in the order in which they are
        given: the next batch waits for retries and, if an event has failed that could succeed later, the later events
        of its user fail as `aborted`.

        Raises `SendError` at the end if events have failed; each event has either a receipt or a failure.
        """
        failures: list[Failure] = []
        for outcomes in self.send_batches(events):
            yield from _receipts(outcomes, failures)
        if failures:
            raise SendError(failures)

    def send_batches(
        self,
        events: Iterable[AnyEvent | None],
        *,
        held: Iterable[str] = (),
        event_id_of: Callable[[int], str] | None = None,
    ) -> Iterator[list[Outcome]]:
        """Send events as `send_many` does, and yield the receipts and failures of each batch in order.

        Keeps nothing of earlier batches, except the ids of users whose events must wait: those that failures name
        (`Failure.holds`), and those in `held`. `event_id_of` makes the id of the event at an index that has none.
        Where `events` has None, the events before it are sent although the batch is not full.
        """
        sending = self._sending(held, event_id_of)
        for event in events:
            if outcomes := self._run(sending.flush() if event is None else sending.add(event)):
                yield outcomes
        if outcomes := self._run(sending.flush()):
            yield outcomes

    def _run(self, steps: Steps[T]) -> T:
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = None
            if isinstance(step, Request):
                answer = self._answer(step)
            else:
                time.sleep(step)

    def _answer(self, request: Request) -> Answer:
        try:
            response = self._http.post(
                self._url + request.path, content=request.body, headers=self._headers, follow_redirects=False
            )
        except httpx.RequestError as error:
            return self._no_answer(error)
        return _read(response)


class AsyncClient(_Service[httpx.AsyncClient]):
    """Sends events to the service, as `Client` does, with asyncio. It can be used by several tasks."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def _new_http(self, timeout: float) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=timeout)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def send(self, event: AnyEvent) -> Receipt:
        """See `Client.send`."""
        outcome = await self._run(self._sending().send(event))
        if isinstance(outcome, Failure):
            raise SendError([outcome])
        return outcome

    async def send_many(self, events: Iterable[AnyEvent] | AsyncIterable[AnyEvent]) -> AsyncIterator[Receipt]:
        """See `Client.send_many`. The events may come from an asynchronous iterable."""
        failures: list[Failure] = []
        async for outcomes in self.send_batches(events):
            for receipt in _receipts(outcomes, failures):
                yield receipt
        if failures:
            raise SendError(failures)

    async def send_batches(
        self,
        events: Iterable[AnyEvent | None] | AsyncIterable[AnyEvent | None],
        *,
        held: Iterable[str] = (),
        event_id_of: Callable[[int], str] | None = None,
    ) -> AsyncIterator[list[Outcome]]:
        """See `Client.send_batches`."""
        sending = self._sending(held, event_id_of)
        async for event in _each(events):
            if outcomes := await self._run(sending.flush() if event is None else sending.add(event)):
                yield outcomes
        if outcomes := await self._run(sending.flush()):
            yield outcomes

    async def _run(self, steps: Steps[T]) -> T:
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = None
            if isinstance(step, Request):
                answer = await self._answer(step)
            else:
                await asyncio.sleep(step)

    async def _answer(self, request: Request) -> Answer:
        try:
            response = await self._http.post(
                self._url + request.path, content=request.body, headers=self._headers, follow_redirects=False
            )
        except httpx.RequestError as error:
            return self._no_answer(error)
        return _read(response)


async def _each(events: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
    else:
        for event in events:
            yield event


def _receipts(outcomes: Iterable[Outcome], failures: list[Failure]) -> Iterator[Receipt]:
    """Yield the receipts, and add the failures to the others."""
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            failures.append(outcome)
        else:
            yield outcome


def _read(response: httpx.Response) -> Answer:
    return Answer(
        status=response.status_code, retry_after=response.headers.get("Retry-After", ""), body=response.content
    )


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
        # It may contain a password, so it is not shown.
        raise ValueError(
            "the URL must be the address of the service, such as http://localhost:8000 or https://events.example, "
            "without a query, a user name or a password"
        )
    return url
