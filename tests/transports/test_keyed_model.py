"""KeyedQueues against random transports: order, bounds and accounting hold whatever `send` does."""

import asyncio
from contextlib import suppress

from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pulsecart import (
    Batching,
    BrokerRefused,
    BrokerUnavailable,
    Limits,
    MessageRefused,
    Overloaded,
    PublishError,
    TransportClosed,
)
from pulsecart.ports import Load, Unobserved
from pulsecart.transports.keyed import GRACE, Failure, KeyedQueues, Request
from tests.transports.messages import TOPICS, message
from tests.transports.virtual import MODEL_RUNS, VirtualLoop

DEADLINE = 2.0
KEYS = ["", "a", "b"]


class Defect(BaseException):
    """Ends the task that sends, as nothing that is expected does."""


def reject_some(request: Request) -> object:
    """Reject a request with a message whose number is a multiple of 3, as a broker does that rejects a message."""
    if any(int(sent.attributes["event_id"].rpartition("-")[2]) % 3 == 0 for sent in request.messages):
        return Failure(MessageRefused, "rejected")
    return ids(request)


def ids(request: Request) -> list[str]:
    return [sent.attributes["event_id"] for sent in request.messages]


ANSWERS = {
    "ids": ids,
    "reject some": reject_some,
    "too few ids": lambda request: ids(request)[1:],
    "too many ids": lambda request: [*ids(request), "1"],
    "empty id": lambda request: [*ids(request)[1:], ""],
    "no ids": lambda _: None,
    "away": lambda _: Failure(BrokerUnavailable, "away"),
    "no topic": lambda _: BrokerRefused("no topic"),
    "defect": lambda _: ZeroDivisionError("a defect"),
    "cancelled": lambda _: asyncio.CancelledError(),
    "end": lambda _: Defect(),
    "hang": lambda _: None,
}
GOOD = ["ids", "reject some"]


class Observing(Unobserved):
    """Raises from time to time."""

    calls = 0

    def waited(self, events, count):
        self.calls += 1
        if self.calls % 5 == 0:
            raise ZeroDivisionError("an observer's defect")


@define(eq=False)
class Published:
    number: int
    key: str
    admitted: float
    future: asyncio.Future[str]
    ended_before: "set[Published]"
    """The messages of the key that had ended when this one was admitted."""

    def failed_for_good(self) -> bool:
        if not self.future.done() or self.future.cancelled():
            return False
        error = self.future.exception()
        return error is not None and not isinstance(error, MessageRefused)


class Queues(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(lambda _loop, _context: None)  # other tests check what is reported
        self.answers: list[tuple[str, float]] = []
        self.published: dict[str, list[Published]] = {key: [] for key in KEYS}
        self.by_id: dict[str, Published] = {}
        self.in_flight: list[str] = []
        self.wrong: list[str] = []
        self.waiters: list[asyncio.Task[str]] = []
        self.closed = False
        self.run(self.open())

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    async def open(self) -> None:
        limits = Limits(
            deadline=DEADLINE,
            max_messages=14,
            batching={TOPICS[0]: Batching(max_messages=4), TOPICS[1]: Batching(max_messages=3, max_latency=0.3)},
        )
        self.queues = KeyedQueues(self.send, limits, observer=Observing())

    async def send(self, request: Request) -> object:
        answer, seconds = self.answers.pop() if self.answers else ("ids", 0.01)
        self.check(request)
        if request.key:
            self.in_flight.append(request.key)
        try:
            await asyncio.sleep(1000 if answer == "hang" else seconds)
            sent = ANSWERS[answer](request)
            if isinstance(sent, BaseException):
                raise sent
            return sent
        finally:
            if request.key:
                self.in_flight.remove(request.key)

    def check(self, request: Request) -> None:
        """Check a request of a key: it is the only one, in order, and overtakes nothing that failed for good."""
        sent = [self.by_id[message_id] for message_id in ids(request)]
        if not request.key:
            return
        if request.key in self.in_flight:
            self.wrong.append(f"two requests of {request.key!r} at a time")
        numbers = [one.number for one in sent]
        if numbers != sorted(numbers):
            self.wrong.append(f"out of order in a request: {numbers}")
        for earlier in self.published[request.key][: self.published[request.key].index(sent[0])]:
            if not earlier.future.done():
                self.wrong.append(f"{sent[0].number} is sent before {earlier.number} has ended")
            elif earlier.failed_for_good() and any(earlier not in one.ended_before for one in sent):
                self.wrong.append(f"{numbers} overtake {earlier.number}, which failed")

    def admit(self, key: str) -> asyncio.Future[str]:
        earlier = self.published[key]
        sent = message(len(self.by_id), key, TOPICS[key == "b"])
        future = self.queues.publish(sent)
        ended = {one for one in earlier if one.future.done()}
        published = Published(len(self.by_id), key, self.loop.time(), future, ended)
        self.by_id[sent.attributes["event_id"]] = published
        earlier.append(published)
        return future

    async def wait_and_admit(self, key: str) -> str:
        await self.queues.room(message(len(self.by_id), key, TOPICS[key == "b"]))
        return await self.admit(key)  # it must not raise Overloaded

    @rule(answers=st.lists(st.tuples(st.sampled_from([*GOOD, *GOOD, *ANSWERS]), st.sampled_from([0, 0.01, 0.5]))))
    def broker_will_answer(self, answers):
        self.answers += answers

    @precondition(lambda self: not self.closed)
    @rule(key=st.sampled_from(KEYS), count=st.integers(1, 9))
    def publish(self, key, count):
        async def some() -> None:
            with suppress(Overloaded):
                for _ in range(count):
                    self.admit(key)

        self.run(some())

    @precondition(lambda self: not self.closed)
    @rule(key=st.sampled_from(KEYS))
    def publish_when_there_is_room(self, key):
        self.waiters.append(self.loop.create_task(self.wait_and_admit(key)))

    @rule(seconds=st.sampled_from([0, 0.001, 0.01, 0.06, 0.5, DEADLINE]))
    def wait(self, seconds):
        self.run(asyncio.sleep(seconds))

    @rule(data=st.data())
    def cancel_a_caller(self, data):
        for pending in (
            [one.future for one in self.by_id.values() if not one.future.done()],
            [one for one in self.waiters if not one.done()],
        ):
            if pending:
                data.draw(st.sampled_from(pending)).cancel()

    @precondition(lambda self: not self.closed)
    @rule(seconds=st.sampled_from([0, 0.01, 5]), cancelled=st.booleans())
    def drain(self, seconds, cancelled):
        async def some() -> None:
            draining = asyncio.ensure_future(self.queues.drain(seconds))
            await asyncio.sleep(0)
            if cancelled:
                draining.cancel()
            with suppress(asyncio.CancelledError):
                await draining

        self.closed = True
        self.run(some())
        assert all(one.future.done() for one in self.by_id.values())

    @invariant()
    def nothing_is_wrong(self):
        assert self.wrong == []
        assert 0 <= self.queues.load().messages <= 14
        overdue = self.loop.time() - DEADLINE - GRACE - 0.01
        assert all(one.future.done() or one.admitted > overdue for one in self.by_id.values())

    def teardown(self) -> None:
        try:
            self.run(asyncio.sleep(10 * (DEADLINE + GRACE)))
            self.nothing_is_wrong()
            assert self.queues.load() == Load(messages=0, bytes=0, waiting=0, oldest_age=0.0)
            assert asyncio.all_tasks(self.loop) == set()
            for waiter in self.waiters:
                if not waiter.cancelled() and (error := waiter.exception()):
                    assert isinstance(error, PublishError)
                    assert not isinstance(error, Overloaded)
                    assert self.closed or not isinstance(error, TransportClosed)
            for one in self.by_id.values():
                if not one.future.cancelled() and not one.future.exception():
                    assert self.by_id[one.future.result()] is one
        finally:
            self.loop.close()


def test_promises_hold_for_random_transports():
    """Whatever `send` does, messages of a key stay in order, every one ends in time, and nothing stays counted."""
    run_state_machine_as_test(Queues, settings=settings(max_examples=MODEL_RUNS, stateful_step_count=25, deadline=None))
