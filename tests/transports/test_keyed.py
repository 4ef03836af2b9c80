"""KeyedQueues: queues and batches per key, on a `send` function of the test. Most tests run in virtual time."""

import asyncio
import contextvars
import gc
from collections.abc import Callable
from contextlib import suppress

import pytest
from attrs import define, field

from pulsecart import (
    Aborted,
    Batching,
    BrokerRefused,
    BrokerUnavailable,
    Limits,
    Message,
    MessageRefused,
    Overloaded,
    PublishError,
    TransportClosed,
)
from pulsecart.ports import Load, Unobserved
from pulsecart.testing import TransportContract
from pulsecart.transports.keyed import GRACE, PATIENCE, UNORDERED_REQUESTS, Failure, KeyedQueues, Request, Send
from tests.transports.messages import TOPICS, message
from tests.transports.virtual import in_virtual_time

EMPTY = Load(messages=0, bytes=0, waiting=0, oldest_age=0.0)
BEHIND = "an earlier event of the same key failed while this one waited"
AWAY = Failure(BrokerUnavailable, "away")
REFUSED = Failure(MessageRefused, "refused")


class OwnTransport:
    """What an author writes: a transport to a broker of its own, here a list."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __aenter__(self):
        self._queues = KeyedQueues(self._send, Limits())
        return self

    async def __aexit__(self, *_):
        await self.aclose()

    async def publish(self, message):
        return await self._queues.publish(message)

    async def check(self, topics):
        return []

    async def aclose(self):
        await self._queues.drain(7)

    async def _send(self, request: Request) -> list[str]:
        await asyncio.sleep(0)
        self.messages += request.messages
        count = len(self.messages)
        return [str(count - n) for n, _ in enumerate(request.messages)]


class TestOwnTransport(TransportContract):
    @pytest.fixture
    def transport(self):
        return OwnTransport()

    @pytest.fixture
    def delivered(self, transport):
        return lambda: transport.messages


def test_the_names_for_authors_are_public():
    """What a transport needs can be imported from `pulsecart.transports`."""
    from pulsecart import transports

    assert {transports.KeyedQueues, transports.Request, transports.Failure, transports.Send} == {
        KeyedQueues,
        Request,
        Failure,
        Send,
    }


@define
class Broker:
    """A `send` whose requests wait for the answers of a test: ids, a `Failure`, or an exception to raise."""

    requests: list[Request] = field(factory=list)
    answers: list[asyncio.Future[object]] = field(factory=list)
    cancelled: int = 0

    async def send(self, request: Request):
        answer = asyncio.get_running_loop().create_future()
        self.requests.append(request)
        self.answers.append(answer)
        try:
            sent = await answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return confirmed(request) if sent is None else sent

    async def received(self, count: int) -> None:
        async with asyncio.timeout(100):
            while len(self.requests) < count:
                await asyncio.sleep(0.001)

    def sizes(self) -> list[int]:
        return [len(request.messages) for request in self.requests]


def confirmed(request: Request) -> list[str]:
    return [sent.attributes["event_id"] for sent in request.messages]


async def confirming(request: Request) -> list[str]:
    """Confirm every message after 5 ms."""
    await asyncio.sleep(0.005)
    return confirmed(request)


def raising(error: BaseException) -> Callable[[Request], object]:
    async def send(_request):
        await asyncio.sleep(0.001)
        raise error

    return send


async def ended(futures) -> list[object]:
    """Wait for results, and return ids and errors."""
    return await asyncio.gather(*futures, return_exceptions=True)


def clock() -> float:
    return asyncio.get_running_loop().time()


def reported() -> list[dict[str, object]]:
    """Collect what is reported to the exception handler of the event loop."""
    found: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: found.append(context))
    return found


@in_virtual_time
async def test_request_describes_what_is_sent():
    """A request has topic, key, messages, the deadline of the oldest one, and what the observer knows of them."""

    class Observing(Unobserved):
        def current(self):
            return "span"

    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(deadline=3), observer=Observing())
    sent = message(1, "key")
    start = clock()
    publishing = queues.publish(sent)
    await broker.received(1)
    assert broker.requests == [
        Request(topic=TOPICS[0], key="key", messages=[sent], deadline=start + 3, observed=["span"])
    ]
    broker.answers[0].set_result(None)
    assert await publishing == "key-1"
    await queues.drain(1)


@in_virtual_time
async def test_context_of_a_caller_is_not_visible_to_a_request():
    """Context variables of one caller are not visible to a request with other callers' messages."""
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    async def send(request):
        seen.append(variable.get())
        return confirmed(request)

    variable.set("a caller's")
    await KeyedQueues(send, Limits()).publish(message(1))
    assert seen == ["none"]


# What `send` returns and raises


@in_virtual_time
async def test_exception_of_send_fails_its_key_and_is_reported():
    """Any exception fails the request and what waits behind it, and is reported once; then the key continues."""
    found = reported()
    errors = [ZeroDivisionError("a defect")]

    async def send(request):
        await asyncio.sleep(0.001)
        if errors:
            raise errors.pop()
        return confirmed(request)

    queues = KeyedQueues(send, Limits())
    first = queues.publish(message(0))
    await asyncio.sleep(0)
    results = await ended([first, queues.publish(message(1))])
    assert [type(result) for result in results] == [BrokerUnavailable, Aborted]
    assert str(results[0]) == "the transport failed to publish to the topic contract-a (ZeroDivisionError)"
    assert results[0].error_type == "ZeroDivisionError"
    assert str(results[1]) == BEHIND
    assert "ZeroDivisionError" in results[1].log_detail
    (context,) = found
    assert str(context["exception"]) == "a defect"
    assert context["message"].endswith("<locals>.send failed to publish to the topic contract-a (ZeroDivisionError)")
    assert await queues.publish(message(2)) == "user-2"
    assert queues.load() == EMPTY


class OwnError(BrokerRefused):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}", f"the broker's words for {code}", error_type="OWN")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OwnError(5), BrokerRefused, "code 5"),
        (PublishError("not now"), PublishError, "not now"),
        (TimeoutError(), BrokerUnavailable, "the broker did not answer in time"),
        (asyncio.CancelledError(), BrokerUnavailable, r"failed to publish to the topic contract-a \(CancelledError\)"),
    ],
)
@in_virtual_time
async def test_error_of_send_fails_the_message(error, kind, text):
    """A `PublishError` keeps its meaning; a time limit, or a cancelled part, of `send` is `BrokerUnavailable`."""
    found = reported()
    queues = KeyedQueues(raising(error), Limits())
    sent = message(1)
    with pytest.raises(PublishError, match=text) as caught:
        await queues.publish(sent)
    assert type(caught.value) is kind
    assert caught.value.message is sent
    assert caught.value.error_type == getattr(error, "error_type", type(error).__name__)
    assert (found, queues.load()) == ([], EMPTY)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([], "the broker returned 0 message ids for 2"),
        (["1"], "the broker returned 1 message ids for 2"),
        (["1", "2", "3"], "the broker returned 3 message ids for 2"),
        (["1", ""], "the broker returned no message id"),
        ([None, "2"], "the broker returned no message id"),
        ([1, 2], "the broker returned no message id"),
        ("12", "failed to publish .* (TypeError)"),
        (None, "failed to publish .* (TypeError)"),
    ],
)
@in_virtual_time
async def test_wrong_message_ids_are_no_confirmation(ids, text):
    """Unless there is one text for each message, none is confirmed, and the key can be published to again."""
    found = reported()

    async def send(request):
        return ids if len(request.messages) == 2 else confirmed(request)

    queues = KeyedQueues(send, Limits())
    results = await ended([queues.publish(message(1)), queues.publish(message(2))])
    assert [type(result) for result in results] == [BrokerUnavailable] * 2
    for result in results:
        assert text.partition(" .* ")[0] in str(result)
        assert text.partition(" .* ")[2] in str(result)
    assert len(found) == ("TypeError" in text)
    assert queues.load() == EMPTY
    assert await queues.publish(message(3)) == "user-3"


class Ending(BaseException):
    """Neither an `Exception` nor a cancellation."""


@pytest.mark.parametrize("key", ["user", ""])
@in_virtual_time
async def test_base_exception_of_send_fails_what_waits(key):
    """What ends the task of a queue fails its messages, and new ones are sent."""
    found = reported()
    errors = [Ending()]

    async def send(request):
        await asyncio.sleep(0.001)
        if errors:
            raise errors.pop()
        return confirmed(request)

    queues = KeyedQueues(send, Limits())
    first = queues.publish(message(0, key))
    await asyncio.sleep(0)
    results = await ended([first, queues.publish(message(1, key))])
    assert [str(result) for result in results] == ["the transport was stopped before the broker confirmed"] * 2
    assert await queues.publish(message(2, key)) == f"{key}-2"
    await queues.drain(1)
    gc.collect()
    assert [type(context["exception"]) for context in found] == [Ending]  # asyncio reports that it ended a task
    assert queues.load() == EMPTY


@in_virtual_time
async def test_observer_that_raises_does_not_lose_messages():
    """What an observer raises is reported, and the messages are sent."""

    class Failing(Unobserved):
        def waited(self, events, count):
            raise ZeroDivisionError("an observer's defect")

    found = reported()
    queues = KeyedQueues(confirming, Limits(), observer=Failing())
    assert await queues.publish(message(1)) == "user-1"
    assert [str(context["exception"]) for context in found] == ["an observer's defect"]


# Order


@in_virtual_time
async def test_failed_request_of_a_key_fails_what_waits_behind_it():
    """The request fails for its reason, what waited behind it for the earlier event; the next request is sent."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits())
    first, other = queues.publish(message(0)), queues.publish(message(0, "other"))
    await broker.received(2)
    behind = [queues.publish(message(n)) for n in (1, 2)]
    broker.answers[0].set_result(Failure(BrokerRefused, "no such topic", "the log's words", "NOT_FOUND"))
    results = await ended([first, *behind])
    assert [str(result) for result in results] == ["no such topic", BEHIND, BEHIND]
    assert [type(result) for result in results] == [BrokerRefused, Aborted, Aborted]
    assert results[1].log_detail == f"{BEHIND}: the log's words"
    assert results[1].error_type == "NOT_FOUND"
    assert len({id(result) for result in results}) == 3
    assert not other.done()  # of the same topic, and it may find out that the topic is back
    again = queues.publish(message(3))
    await broker.received(3)
    for answer in broker.answers[1:]:
        answer.set_result(None)
    assert await ended([other, again]) == ["other-0", "user-3"]
    await queues.drain(1)


@in_virtual_time
async def test_cancelled_messages_stay_cancelled_when_their_batch_fails():
    """When waiting messages fail, those whose callers were cancelled are skipped."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits())
    tasks = [queues.publish(message(n)) for n in range(3)]
    await broker.received(1)
    tasks[0].cancel()
    tasks[2].cancel()
    broker.answers[0].set_result(AWAY)
    results = await ended(tasks)
    assert [type(result) for result in results] == [asyncio.CancelledError, BrokerUnavailable, asyncio.CancelledError]
    assert queues.load() == EMPTY


@in_virtual_time
async def test_cancelled_messages_that_wait_are_not_sent():
    """A message whose caller was cancelled before its request is not sent; a request without messages neither."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits())
    tasks = [queues.publish(message(0))]
    await broker.received(1)
    tasks += [queues.publish(message(n)) for n in range(1, 3)]
    for task in tasks[1:]:
        task.cancel()
    broker.answers[0].set_result(None)
    assert await tasks[0] == "user-0"
    await queues.drain(1)
    assert (broker.sizes(), queues.load()) == ([1], EMPTY)


@in_virtual_time
async def test_messages_confirmed_before_a_defect_stay_confirmed():
    """A defect in a later part of a split batch does not affect messages that an earlier part has confirmed."""
    reported()
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits())
    tasks = [queues.publish(message(n)) for n in range(3)]
    for answer in (REFUSED, None):
        await broker.received(len(broker.requests) + 1)
        broker.answers[-1].set_result(answer)
    await broker.received(3)
    broker.answers[-1].set_exception(ZeroDivisionError("a defect"))
    results = await ended(tasks)
    assert broker.sizes() == [3, 1, 2]
    assert [type(result) for result in results] == [str, BrokerUnavailable, BrokerUnavailable]
    assert queues.oldest is None


@in_virtual_time
async def test_failed_half_fails_the_other_half_of_a_key():
    """If a half fails for good, the other one, and what waits, are behind it."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits())
    tasks = [queues.publish(message(n)) for n in range(4)]
    await broker.received(1)
    tasks.append(queues.publish(message(4)))
    broker.answers[0].set_result(REFUSED)
    await broker.received(2)
    broker.answers[1].set_result(AWAY)
    assert [str(result) for result in await ended(tasks)] == ["away"] * 2 + [BEHIND] * 3
    assert (broker.sizes(), queues.load()) == ([4, 2], EMPTY)


# Messages without a key


@in_virtual_time
async def test_hanging_request_without_a_key_holds_up_no_other_message():
    """Of messages without a key only those of the hanging request fail; others are sent after a bounded wait."""
    hangs = asyncio.Event()
    waits = []

    async def send(request):
        if message(0, "") in request.messages:
            await hangs.wait()
        return await confirming(request)

    async def publish(number):
        start = clock()
        await queues.publish(message(number, ""))
        waits.append(clock() - start)

    queues = KeyedQueues(send, Limits(deadline=2))
    first = queues.publish(message(0, ""))
    await asyncio.sleep(0.001)
    async with asyncio.TaskGroup() as callers:
        for number in range(1, 51):
            callers.create_task(publish(number))
            await asyncio.sleep(0.01)
    assert len(waits) == 50
    assert max(waits) < PATIENCE + 0.02
    with pytest.raises(BrokerUnavailable, match="the broker did not confirm within 2 s"):
        await first
    assert queues.load() == EMPTY


@in_virtual_time
async def test_failed_request_without_a_key_fails_no_other_message():
    """One of several requests in flight fails: only its messages do, not those that wait."""
    broker = Broker()
    limits = Limits(batching={TOPICS[0]: Batching(max_messages=5)})
    queues = KeyedQueues(broker.send, limits)
    start = clock()
    tasks = [queues.publish(message(n, "")) for n in range(100)]
    await broker.received(UNORDERED_REQUESTS)
    assert clock() - start < PATIENCE  # full requests are sent at once
    broker.answers[3].set_result(Failure(BrokerUnavailable, "FAILED_PRECONDITION"))
    for number in [*range(3), *range(4, UNORDERED_REQUESTS)]:
        broker.answers[number].set_result(None)
    await broker.received(20)
    for answer in broker.answers[UNORDERED_REQUESTS:]:
        answer.set_result(None)
    results = await ended(tasks)
    assert [n for n, result in enumerate(results) if not isinstance(result, str)] == [15, 16, 17, 18, 19]
    await queues.drain(1)


@in_virtual_time
async def test_requests_without_a_key_are_limited_in_number():
    """At most UNORDERED_REQUESTS are in flight; what does not fit waits for one to end."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(deadline=60))
    tasks = []
    for number in range(UNORDERED_REQUESTS + 5):
        tasks.append(queues.publish(message(number, "")))
        await asyncio.sleep(2 * PATIENCE)
    assert broker.sizes() == [1] * UNORDERED_REQUESTS
    broker.answers[7].set_result(None)
    await broker.received(UNORDERED_REQUESTS + 1)
    assert broker.sizes()[-1] == 5
    for answer in broker.answers:
        if not answer.done():
            answer.set_result(None)
    assert await ended(tasks) == [f"-{number}" for number in range(UNORDERED_REQUESTS + 5)]
    await queues.drain(1)


@in_virtual_time
async def test_messages_without_a_key_share_requests_under_load():
    """Messages that arrive each millisecond share requests of 30 ms, instead of each starting one."""
    requests = []

    async def send(request):
        requests.append(request)
        await asyncio.sleep(0.03)
        return confirmed(request)

    queues = KeyedQueues(send, Limits())
    tasks = []
    for number in range(3000):
        tasks.append(queues.publish(message(number, "")))
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert len(requests) <= 3000 / 30 + 10


@in_virtual_time
async def test_hanging_half_without_a_key_does_not_hold_up_the_other_half():
    """When a request is split and the first half hangs, the second half is sent by another request."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(deadline=2))
    tasks = [queues.publish(message(n, "")) for n in range(4)]
    await broker.received(1)
    await asyncio.sleep(3 * PATIENCE)
    broker.answers[0].set_result(REFUSED)
    start = clock()
    await broker.received(3)
    assert clock() - start < 2 * PATIENCE
    broker.answers[2].set_result(None)
    assert await ended(tasks[2:]) == ["-2", "-3"]
    assert not tasks[0].done()
    await ended(tasks)
    assert broker.sizes() == [4, 2, 2]


@in_virtual_time
async def test_max_latency_applies_before_another_request_is_started():
    """With a `max_latency`, messages wait for others while a request is in flight, but not for its end."""
    broker = Broker()
    limits = Limits(batching={TOPICS[0]: Batching(max_messages=4, max_latency=1)})
    queues = KeyedQueues(broker.send, limits)
    tasks = [queues.publish(message(n, "")) for n in range(4)]
    await broker.received(1)
    tasks += [queues.publish(message(n, "")) for n in (4, 5)]
    start = clock()
    await broker.received(2)
    assert 1 <= clock() - start <= 1 + 2 * PATIENCE
    for answer in broker.answers:
        answer.set_result(None)
    await asyncio.gather(*tasks)
    assert broker.sizes() == [4, 2]
    await queues.drain(1)


@in_virtual_time
async def test_halves_are_sent_before_messages_that_wait_for_others():
    """With a `max_latency`, the halves of a rejected request are sent at once, also while other messages wait."""
    broker = Broker()
    limits = Limits(batching={TOPICS[0]: Batching(max_messages=4, max_latency=2)})
    queues = KeyedQueues(broker.send, limits)
    tasks = [queues.publish(message(n, "")) for n in range(4)]
    await broker.received(1)
    tasks += [queues.publish(message(n, "")) for n in range(4, 8)]
    await broker.received(2)
    broker.answers[1].set_result(None)
    tasks.append(queues.publish(message(8, "")))
    await asyncio.sleep(0.1)
    broker.answers[0].set_result(REFUSED)
    start = clock()
    await broker.received(3)
    broker.answers[2].set_result(None)
    await broker.received(4)
    broker.answers[3].set_result(None)
    assert clock() - start < 0.1
    await broker.received(5)
    broker.answers[4].set_result(None)
    assert all(isinstance(result, str) for result in await ended(tasks))
    assert broker.sizes() == [4, 4, 2, 2, 1]
    await queues.drain(1)


# Deadlines


@in_virtual_time
async def test_message_behind_an_expired_one_says_so():
    """A message that waits behind one whose deadline ends fails with it, without naming a time it did not have."""

    async def send(request):
        await asyncio.sleep(request.deadline - clock())
        return Failure(BrokerUnavailable, "the broker did not confirm within 2 s")

    queues = KeyedQueues(send, Limits(deadline=2))
    first = queues.publish(message(0))
    await asyncio.sleep(1.95)
    results = await ended([first, queues.publish(message(1))])
    assert [str(result) for result in results] == ["the broker did not confirm within 2 s", BEHIND]
    assert results[1].log_detail == f"{BEHIND}: the broker did not confirm within 2 s"


@in_virtual_time
async def test_expired_request_of_different_ages_fails_only_the_old_for_their_time():
    """In one request of a key, those whose own deadline is not over fail for the earlier event."""
    requests = []

    async def send(request):
        requests.append(len(request.messages))
        if len(requests) == 1:
            await asyncio.sleep(1.96)
            return confirmed(request)
        await asyncio.sleep(request.deadline - clock())
        return Failure(BrokerUnavailable, "the broker did not confirm within 2 s")

    queues = KeyedQueues(send, Limits(deadline=2))
    tasks = [queues.publish(message(0))]
    await asyncio.sleep(0.001)
    tasks += [queues.publish(message(n)) for n in (1, 2)]
    await asyncio.sleep(1.9)
    tasks += [queues.publish(message(n)) for n in (3, 4)]
    results = await ended(tasks)
    assert requests == [1, 4]
    assert [str(result) for result in results] == [
        "user-0",
        *["the broker did not confirm within 2 s"] * 2,
        *[BEHIND] * 2,
    ]


@in_virtual_time
async def test_send_that_ignores_its_deadline_is_cancelled():
    """A request that hangs ends soon after the deadline of its oldest message; then the key continues."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(deadline=2))
    start = clock()
    tasks = [queues.publish(message(0))]
    await asyncio.sleep(1)
    tasks.append(queues.publish(message(1)))
    results = await ended(tasks)
    assert clock() - start == pytest.approx(2 + GRACE)
    assert [str(result) for result in results] == ["the broker did not confirm within 2 s", BEHIND]
    again = queues.publish(message(2))
    await broker.received(2)
    assert broker.cancelled == 1
    broker.answers[1].set_result(None)
    assert await again == "user-2"
    await queues.drain(1)


@in_virtual_time
async def test_messages_without_a_key_each_have_their_full_time():
    """A request without a key lasts until the deadline of its newest message; older ones fail at their own."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(deadline=2, batching={TOPICS[0]: Batching(max_latency=1)}))
    start = clock()
    old = queues.publish(message(0, ""))
    await asyncio.sleep(0.9)
    young = queues.publish(message(1, ""))
    await broker.received(1)
    assert broker.sizes() == [2]
    assert broker.requests[0].deadline == start + 2.9
    with pytest.raises(BrokerUnavailable, match="within 2 s"):
        await old
    assert clock() - start == pytest.approx(2 + GRACE)
    broker.answers[0].set_result(None)
    assert await young == "-1"
    await queues.drain(1)
    assert queues.load() == EMPTY


@in_virtual_time
async def test_hanging_requests_without_a_key_free_their_places():
    """When all places hang, messages that wait are sent as soon as the deadlines free them, or fail at their own."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(deadline=2.02, batching={TOPICS[0]: Batching(max_messages=1)}))
    start = clock()
    tasks = [queues.publish(message(n, "")) for n in range(UNORDERED_REQUESTS + 2)]
    await asyncio.sleep(1)
    late = queues.publish(message(99, ""))
    await broker.received(UNORDERED_REQUESTS + 1)
    assert broker.requests[-1].messages == [message(99, "")]
    assert broker.cancelled == UNORDERED_REQUESTS
    assert clock() - start <= 2.02 + GRACE + 0.002
    broker.answers[-1].set_result(None)
    assert await late == "-99"
    assert [type(result) for result in await ended(tasks)] == [BrokerUnavailable] * len(tasks)
    await queues.drain(1)
    assert queues.load() == EMPTY


@pytest.mark.parametrize("key", ["user", ""])
@in_virtual_time
async def test_tasks_cancelled_before_they_start_lose_no_message(key):
    """Even if no task of a queue ever runs, its messages fail at their deadline, and new ones are sent at once."""
    queues = KeyedQueues(confirming, Limits(deadline=2, batching={TOPICS[0]: Batching(max_messages=1)}))
    before = asyncio.all_tasks()
    tasks = [queues.publish(message(n, key)) for n in range(UNORDERED_REQUESTS)]
    for task in asyncio.all_tasks() - before:
        task.cancel()
    results = await ended(tasks)
    assert {str(result) for result in results} == {"the broker did not confirm within 2 s"}
    start = clock()
    assert await queues.publish(message(99, key)) == f"{key}-99"
    assert clock() - start < PATIENCE
    await queues.drain(1)
    assert queues.load() == EMPTY


@in_virtual_time
async def test_cancelled_task_fails_its_messages():
    """When the task of a queue is cancelled, even while it waits for a batch, its messages fail."""
    queues = KeyedQueues(confirming, Limits(deadline=20, batching={TOPICS[0]: Batching(max_latency=10)}))
    before = asyncio.all_tasks()
    publishing = queues.publish(message(1))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    with pytest.raises(BrokerUnavailable, match="stopped before"):
        await publishing


@pytest.mark.parametrize("answer", [confirmed, lambda _: REFUSED, lambda _: AWAY])
@pytest.mark.parametrize("key", ["user", ""])
@in_virtual_time
async def test_send_that_swallows_its_cancellation_changes_nothing_late(key, answer):
    """A request that returns after its messages have failed resolves nothing, and affects no later message."""
    found = reported()

    async def send(request):
        if message(0, key) not in request.messages:
            return await confirming(request)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(0.001)
        return answer(request)

    queues = KeyedQueues(send, Limits(deadline=2))
    results = await ended([queues.publish(message(n, key)) for n in range(2)])
    assert [str(result) for result in results] == ["the broker did not confirm within 2 s"] * 2
    assert await queues.publish(message(2, key)) == f"{key}-2"
    await queues.drain(1)
    gc.collect()
    assert (found, queues.load()) == ([], EMPTY)


# Limits


def fill(queues: KeyedQueues, key: str, topic: str = TOPICS[0]) -> list[asyncio.Future[str]]:
    """Publish until the key gets no more."""
    futures: list[asyncio.Future[str]] = []
    while True:
        try:
            futures.append(queues.publish(message(len(futures), key, topic)))
        except Overloaded:
            return futures


@pytest.mark.parametrize("limits", [{"max_messages": 100}, {"max_bytes": 100 * message(10).size}])
@pytest.mark.parametrize("key", ["hot-user-4711", ""])
@in_virtual_time
async def test_hot_key_leaves_room_for_others(limits, key):
    """A key that hangs gets about half of a limit, the next one a third, and idle keys are always admitted."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(**limits))
    hot = fill(queues, key)
    assert 48 <= len(hot) <= 52
    with pytest.raises(Overloaded, match="the share is as much as is free for all") as caught:
        queues.publish(message(1, key))
    assert "4711" not in str(caught.value) + caught.value.log_detail
    assert ("of one ordering key" if key else "without an ordering key") in str(caught.value)
    assert 24 <= len(fill(queues, "second", TOPICS[1])) <= 26
    assert len(fill(queues, "third")) >= 12
    assert queues.publish(message(1, "idle"))
    await queues.drain(0)
    assert queues.load() == EMPTY
    await asyncio.gather(*hot, return_exceptions=True)


@in_virtual_time
async def test_eight_shards_can_use_most_of_the_limit():
    """Keys that all have much to send share the limit equally, and leave little of it unused."""
    queues = KeyedQueues(Broker().send, Limits(max_messages=900))
    counts = [0] * 8
    for number in range(2000):
        with suppress(Overloaded):
            queues.publish(message(number, f"shard-{number % 8}"))
            counts[number % 8] += 1
    assert min(counts) >= 99
    assert sum(counts) <= 900
    await queues.drain(0)


@in_virtual_time
async def test_confirmed_messages_free_the_share_of_their_key():
    """A key over its share is admitted again once its messages are confirmed."""
    queues = KeyedQueues(confirming, Limits(max_messages=10))
    await asyncio.gather(*fill(queues, "hot"))
    assert len(await asyncio.gather(*fill(queues, "hot"))) == 6
    assert queues.load() == EMPTY


@in_virtual_time
async def test_message_over_the_limit_of_bytes_is_admitted_while_others_are_in_flight():
    """A message larger than the limit is not refused for ever because other messages are always in flight."""
    small = message(1, "small")
    large = Message(topic=TOPICS[0], data=b"x" * 10 * small.size, attributes=small.attributes, ordering_key="large")
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(max_bytes=3 * small.size))
    tasks = [queues.publish(small), queues.publish(large)]
    with pytest.raises(Overloaded, match="the limits are 10,000 messages and"):
        queues.publish(large)
    await broker.received(2)
    for answer in broker.answers:
        answer.set_result(None)
    assert await ended(tasks) == ["small-1", "small-1"]
    await queues.drain(1)


# Waiting for room


@in_virtual_time
async def test_room_is_waited_for_instead_of_overloaded():
    """Callers that wait for room publish any number of messages, in order, and never more than fit."""
    most = 0

    async def send(request):
        nonlocal most
        most = max(most, queues.load().messages)
        return await confirming(request)

    async def batch(key):
        futures = []
        for number in range(200):
            await queues.room(message(number, key))
            futures.append(queues.publish(message(number, key)))
        return await asyncio.gather(*futures)

    queues = KeyedQueues(send, Limits(max_messages=10))
    keys = ["a", "b", "c", "d", ""]
    assert await asyncio.gather(*map(batch, keys)) == [[f"{key}-{n}" for n in range(200)] for key in keys]
    assert most == 10
    assert queues.load() == EMPTY


async def waiting_for_room(queues: KeyedQueues, sent: Message, log: list[str]) -> str:
    await queues.room(sent)
    confirmed = queues.publish(sent)
    log.append(sent.ordering_key)
    return await confirmed


@in_virtual_time
async def test_those_that_wait_for_room_take_turns():
    """Room goes to the one that has waited longest, also if an earlier one was cancelled or did not publish."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(max_messages=1))
    log = []
    first = queues.publish(message(0))
    await broker.received(1)
    loop = asyncio.get_running_loop()
    only_waits = loop.create_task(queues.room(message(1)))
    tasks = [loop.create_task(waiting_for_room(queues, message(1, key), log)) for key in "abc"]
    await asyncio.sleep(0)
    broker.answers[0].set_result(None)
    await first
    tasks[0].cancel()  # it may have been woken already
    for count in (2, 3):
        await broker.received(count)
        broker.answers[-1].set_result(None)
    await only_waits
    assert await asyncio.gather(*tasks[1:]) == ["b-1", "c-1"]
    assert log == ["b", "c"]
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await queues.drain(1)


@in_virtual_time
async def test_waiting_for_the_share_of_a_key_does_not_hold_up_other_keys():
    """Who waits for the share of a hanging key does not take the room of those behind it."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(max_messages=10))
    log = []
    hot = fill(queues, "hot")
    rest = [queues.publish(message(1, f"user-{n}")) for n in range(4)]
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(waiting_for_room(queues, message(9, key), log)) for key in ("hot", "cold")]
    await broker.received(5)
    assert log == []
    broker.answers[1].set_result(None)
    await broker.received(6)
    assert log == ["cold"]
    broker.answers[0].set_result(None)
    await asyncio.gather(*hot)
    await broker.received(7)
    assert log == ["cold", "hot"]
    for answer in broker.answers[2:]:
        answer.set_result(None)
    await asyncio.gather(*rest, *tasks)
    await queues.drain(1)


@in_virtual_time
async def test_room_taken_by_another_is_waited_for_again():
    """If somebody publishes without waiting before the one that was woken runs, that one keeps its place."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(max_messages=1))
    log = []
    first = queues.publish(message(0))
    first.add_done_callback(lambda _: seconds.append(queues.publish(message(0, "quick"))))
    seconds = []
    await broker.received(1)
    task = asyncio.get_running_loop().create_task(waiting_for_room(queues, message(1, "patient"), log))
    await asyncio.sleep(0)
    broker.answers[0].set_result(None)
    await broker.received(2)
    assert log == []
    broker.answers[1].set_result(None)
    await broker.received(3)
    broker.answers[2].set_result(None)
    assert await task == "patient-1"
    assert await seconds[0] == "quick-0"
    await queues.drain(1)


@in_virtual_time
async def test_room_of_closed_queues_is_an_error():
    """Closing wakes those that wait for room at once, not only when messages have ended."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(max_messages=1))
    publishing = queues.publish(message(0))
    task = asyncio.get_running_loop().create_task(queues.room(message(1)))
    await broker.received(1)
    draining = asyncio.get_running_loop().create_task(queues.drain(60))
    with pytest.raises(TransportClosed, match="the transport is closed"):
        await task
    assert not publishing.done()
    broker.answers[0].set_result(None)
    await draining
    assert await publishing == "user-0"
    with pytest.raises(TransportClosed):
        await queues.room(message(1))


# Draining


@in_virtual_time
async def test_publish_after_drain_is_refused():
    """Drained queues accept no messages."""
    queues = KeyedQueues(confirming, Limits())
    await queues.drain(1)
    with pytest.raises(TransportClosed):
        await queues.publish(message(1))


@in_virtual_time
async def test_drain_does_not_wait_for_max_latency():
    """Draining sends messages that wait for a batch, and those behind them, at once."""
    broker = Broker()
    limits = Limits(deadline=20, batching={TOPICS[0]: Batching(max_messages=2, max_latency=10)})
    queues = KeyedQueues(broker.send, limits)
    tasks = [queues.publish(message(n)) for n in range(3)]
    lingering = queues.publish(message(1, "other"))
    await broker.received(1)
    start = clock()
    draining = asyncio.create_task(queues.drain(60))
    for count in (2, 3):
        await broker.received(count)
        broker.answers[0].done() or broker.answers[0].set_result(None)
    for answer in broker.answers[1:]:
        answer.set_result(None)
    await draining
    await asyncio.gather(*tasks, lingering)
    assert clock() - start < 1
    assert sorted(broker.sizes()) == [1, 1, 2]


@pytest.mark.parametrize("key", ["user", ""])
@pytest.mark.parametrize("started", [True, False])
@in_virtual_time
async def test_drain_that_runs_out_of_time_fails_the_rest(key, started):
    """After its time, drain fails what is in flight, waits or has not even started, and returns."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits())
    tasks = [queues.publish(message(0, key))]
    if started:
        await broker.received(1)
    tasks += [queues.publish(message(n, key)) for n in (1, 2)]
    await queues.drain(0.01 if started else 0)
    assert all(task.done() for task in tasks)
    assert [str(result) for result in await ended(tasks)] == [
        "the transport was stopped before the broker confirmed"
    ] * 3
    assert broker.cancelled == started
    assert queues.load() == EMPTY


@in_virtual_time
async def test_full_request_does_not_wait_for_its_max_latency():
    """A request that waits for more messages is sent once it is full, in messages or in bytes."""
    size = message(1).size
    batching = {
        TOPICS[0]: Batching(max_messages=3, max_latency=5),
        TOPICS[1]: Batching(max_bytes=3 * size - 1, max_latency=5),
    }
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(batching=batching))
    tasks = []
    for topic in TOPICS:
        for number in range(3):
            tasks.append(queues.publish(message(number, "user", topic)))
            await asyncio.sleep(0.01)
    assert broker.sizes() == [3, 2]  # the third message does not fit in the bytes of the second request
    for answer in broker.answers:
        answer.set_result(None)
    await broker.received(3)
    broker.answers[2].set_result(None)
    assert len(await asyncio.gather(*tasks)) == 6
    await queues.drain(1)


@in_virtual_time
async def test_halves_do_not_wait_for_others():
    """With a `max_latency`, the halves of a rejected request are sent at once if nothing else waits."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits(batching={TOPICS[0]: Batching(max_messages=2, max_latency=2)}))
    tasks = [queues.publish(message(n)) for n in range(2)]
    start = clock()
    for answer in (REFUSED, REFUSED, None):
        await broker.received(len(broker.requests) + 1)
        broker.answers[-1].set_result(answer)
    assert [type(result) for result in await ended(tasks)] == [MessageRefused, str]
    assert clock() - start < 0.1
    await queues.drain(1)


@in_virtual_time
async def test_drain_fails_both_halves():
    """Halves that are not sent yet fail too."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits())
    tasks = [queues.publish(message(n)) for n in range(4)]
    await broker.received(1)
    broker.answers[0].set_result(REFUSED)
    await broker.received(2)
    await queues.drain(0.01)
    assert [type(result) for result in await ended(tasks)] == [BrokerUnavailable] * 4
    assert queues.load() == EMPTY


@in_virtual_time
async def test_cancelled_drain_leaves_nothing_alive():
    """A drain that is cancelled fails all messages, cancels their requests, and stays closed."""
    broker = Broker()
    queues = KeyedQueues(broker.send, Limits())
    tasks = [queues.publish(message(n, key)) for key in ("a", "b", "") for n in range(2)]
    await broker.received(3)
    draining = asyncio.create_task(queues.drain(60))
    await asyncio.sleep(0)
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert [type(result) for result in await ended(tasks)] == [BrokerUnavailable] * 6
    assert broker.cancelled == 3
    assert queues.load() == EMPTY
    with pytest.raises(TransportClosed):
        queues.publish(message(1))


@in_virtual_time
async def test_drain_does_not_wait_for_a_send_that_cannot_be_cancelled():
    """Drain returns although a request goes on after its cancellation."""
    stubborn = asyncio.Event()

    async def send(request):
        with suppress(asyncio.CancelledError):
            await stubborn.wait()
        await stubborn.wait()
        return confirmed(request)

    queues = KeyedQueues(send, Limits())
    publishing = queues.publish(message(1))
    await asyncio.sleep(0)
    start = clock()
    await queues.drain(1)
    assert clock() - start <= 1 + 2 * GRACE
    with pytest.raises(BrokerUnavailable):
        await publishing
    stubborn.set()
    await asyncio.sleep(0.01)
    assert queues.load() == EMPTY
