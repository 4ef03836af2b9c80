"""The REST wire, its retries and its queues against a random network: order, accounting and confirmations hold."""

import asyncio
from contextlib import suppress

from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pulsecart import Limits, MessageRefused, PublishError
from pulsecart.ports import Load, Unobserved
from pulsecart.transports import EmulatorTransport
from pulsecart.transports.keyed import GRACE
from tests.transports.messages import message
from tests.transports.network import CONNECTS, FATES, Network, Sent, SimulatedLoop
from tests.transports.virtual import MODEL_RUNS

DEADLINE = 2.0
CONNECTIONS = 3
KEYS = ["", "a", "b", "c", "d"]


class Watching(Unobserved):
    def __init__(self) -> None:
        self.watched = []

    def watch(self, loaded):
        self.watched.append(loaded)


@define(eq=False)
class Published:
    number: int
    key: str
    admitted: float
    task: "asyncio.Task[str]"
    ended_before: "set[Published]"
    """The messages of the key that had ended when this one was admitted."""

    taken: bool = False

    def error(self) -> BaseException | None:
        return self.task.exception() if self.task.done() and not self.task.cancelled() else None


class Wire(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.network = Network(self.check_sent, self.check_taken)
        self.loop = SimulatedLoop(self.network)
        self.loop.set_exception_handler(self.report)
        self.published: list[Published] = []
        self.in_flight: dict[str, Sent] = {}
        self.wrong: list[str] = []
        self.observer = Watching()
        self.closed = False
        self.run(self.open())

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    async def open(self) -> None:
        self.transport = EmulatorTransport(
            project="test",
            host="pubsub.test:443",
            connections=CONNECTIONS,
            limits=Limits(deadline=DEADLINE, max_messages=40),
            observer=self.observer,
        )
        await self.transport.__aenter__()

    def report(self, _loop, context) -> None:
        self.wrong.append(f"{context['message']}: {context.get('exception')!r}")

    def check_sent(self, sent: Sent) -> None:
        """Check a request of a key: it is the only one, in order, and overtakes nothing that failed for good."""
        if not sent.key:
            return
        before = self.in_flight.get(sent.key)
        if before is not None and not before.answered and not before.connection.closed:
            self.wrong.append(f"two requests of {sent.key!r} at a time: {before.numbers} and {sent.numbers}")
        self.in_flight[sent.key] = sent
        if sent.numbers != sorted(sent.numbers):
            self.wrong.append(f"out of order in a request: {sent.numbers}")
        for number in sent.numbers:
            if (one := self.published[number]).task.done() and not one.task.cancelled():
                self.wrong.append(f"{number} is sent after it has ended")
        # The callers before are told in the next steps of the event loop.
        self.loop.call_later(0.0001, self.check_earlier, sent)

    def check_earlier(self, sent: Sent) -> None:
        first = self.published[sent.numbers[0]]
        for earlier in self.published[: first.number]:
            if earlier.key != sent.key or earlier.task.cancelled():
                continue
            if not earlier.task.done():
                self.wrong.append(f"{first.number} is sent before {earlier.number} has ended")
            elif (error := earlier.error()) and not isinstance(error, MessageRefused):
                late = [n for n in sent.numbers if earlier not in self.published[n].ended_before]
                if late:
                    self.wrong.append(f"{late} overtake {earlier.number}, which failed")

    def check_taken(self, number: int) -> None:
        self.published[number].taken = True

    @rule(fates=st.lists(st.sampled_from([*["ok"] * 8, *FATES]), min_size=1, max_size=6))
    def server_will(self, fates):
        self.network.fates += fates

    @rule(connects=st.lists(st.sampled_from(CONNECTS), min_size=1, max_size=3))
    def connections_will(self, connects):
        self.network.connects += connects

    @rule(silent=st.booleans())
    def all_connections_break(self, silent):
        for connection in self.network.open_connections():
            if silent:
                connection.silent = True
            else:
                connection.end()

    @precondition(lambda self: not self.closed)
    @rule(key=st.sampled_from(KEYS), count=st.integers(1, 6))
    def publish(self, key, count):
        async def some() -> None:
            for _ in range(count):
                ended = {one for one in self.published if one.key == key and one.task.done()}
                number = len(self.published)
                task = self.loop.create_task(self.transport.publish(message(number, key)))
                self.published.append(Published(number, key, self.loop.time(), task, ended))
                await asyncio.sleep(0)

        self.run(some())

    @rule(seconds=st.sampled_from([0, 0.001, 0.01, 0.06, 0.5, 1.1, DEADLINE, 15]))
    def wait(self, seconds):
        self.run(asyncio.sleep(seconds))

    @rule(data=st.data())
    def cancel_a_caller(self, data):
        if pending := [one.task for one in self.published if not one.task.done()]:
            data.draw(st.sampled_from(pending)).cancel()

    @precondition(lambda self: not self.closed and len(self.published) > 12)
    @rule(seconds=st.sampled_from([0, 0.01, None]))
    def close(self, seconds):
        async def some() -> None:
            closing = self.loop.create_task(self.transport.aclose())
            if seconds is not None:
                await asyncio.sleep(seconds)
                closing.cancel()
            with suppress(asyncio.CancelledError):
                await closing

        self.closed = True
        self.run(some())
        self.run(asyncio.sleep(0))
        assert all(one.task.done() for one in self.published)
        assert self.network.open_connections() == []

    @invariant()
    def nothing_is_wrong(self):
        assert self.wrong == []
        assert len(self.network.open_connections()) <= CONNECTIONS
        overdue = self.loop.time() - DEADLINE - GRACE - 0.01
        for one in self.published:
            assert one.task.done() or one.admitted > overdue, f"{one.number} has not ended in time"
            if one.task.done() and not one.task.cancelled():
                assert isinstance(one.error(), PublishError | None)
                if one.error() is None:
                    assert one.taken, f"{one.number} is confirmed, but the server does not have it"
                    assert self.network.ids[one.task.result()] == one.number

    def teardown(self) -> None:
        try:
            self.run(asyncio.sleep(3 * DEADLINE))
            self.nothing_is_wrong()
            if not self.closed:
                self.recovers()
                self.close(None)
            for each in self.observer.watched:
                assert each.load() == Load()
            assert asyncio.all_tasks(self.loop) == set()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.run(asyncio.sleep(0.1))
            self.loop.close()

    def recovers(self) -> None:
        """When the network works again, so does publishing, over new connections if need be."""
        self.network.fates.clear()
        self.network.connects.clear()
        self.run(asyncio.sleep(30))

        async def some() -> None:
            sent = [message(len(self.published) + n, key) for n, key in enumerate(KEYS)]
            for each in sent:
                task = self.loop.create_task(self.transport.publish(each))
                self.published.append(
                    Published(len(self.published), each.ordering_key, self.loop.time(), task, set(self.published))
                )
            await asyncio.wait([one.task for one in self.published])

        self.run(some())
        self.nothing_is_wrong()
        assert [one.error() for one in self.published[-len(KEYS) :]] == [None] * len(KEYS)


def test_promises_hold_on_a_random_network():
    """Whatever the network and the server do, nothing is confirmed that was not taken, and keys stay in order."""
    run_state_machine_as_test(Wire, settings=settings(max_examples=MODEL_RUNS, stateful_step_count=30, deadline=None))
