"""KeyedQueues: queues and batches per key, on a `send` function of the test."""

import asyncio
import contextvars

import pytest

from pulsecart import Batching, BrokerUnavailable, Limits, MessageRefused, TransportClosed
from pulsecart.transports.keyed import Failure, KeyedQueues
from tests.transports.contract import TOPICS, message

pytestmark = pytest.mark.anyio


async def test_defect_in_send_fails_all_waiting_messages(caplog):
    """Any exception of `send` fails all waiting messages, and is reported to the event loop."""

    async def defective(_topic, _key, _messages, _spans, _deadline):
        await asyncio.sleep(0)
        raise ZeroDivisionError("a defect")

    queues = KeyedQueues(defective, Limits())
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context["exception"]))
    results = await asyncio.gather(*(queues.publish(message(n)) for n in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [BrokerUnavailable] * 3
    await queues.drain(1)
    asyncio.get_running_loop().set_exception_handler(None)
    assert [str(error) for error in raised] == ["a defect"]


async def test_batch_is_sent_in_a_context_of_its_own():
    """Context variables of one caller are not visible to a request with other callers' messages."""
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    async def send(_topic, _key, messages, _spans, _deadline):
        seen.append(variable.get())
        return ["1"] * len(messages)

    variable.set("a caller's")
    await KeyedQueues(send, Limits()).publish(message(1))
    assert seen == ["none"]


async def test_cancelled_messages_stay_cancelled_when_their_batch_fails():
    """When waiting messages fail, those whose callers were cancelled are skipped."""
    gate, entered = asyncio.Event(), asyncio.Event()

    async def refuse(_topic, _key, _messages, _spans, _deadline):
        entered.set()
        await gate.wait()
        return Failure(BrokerUnavailable, "test")

    queues = KeyedQueues(refuse, Limits())
    tasks = [asyncio.ensure_future(queues.publish(message(n))) for n in range(3)]
    await entered.wait()
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, BrokerUnavailable, asyncio.CancelledError]


async def test_messages_confirmed_before_a_defect_stay_confirmed():
    """A defect in a later part of a split batch does not affect messages that an earlier part has confirmed."""
    sent = []

    async def send(_topic, _key, messages, _spans, _deadline):
        sent.append(len(messages))
        if len(messages) == 1:
            return ["0"]
        if len(messages) == 3:
            return Failure(MessageRefused, "test")
        raise ZeroDivisionError("a defect")

    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    queues = KeyedQueues(send, Limits())
    results = await asyncio.gather(*(queues.publish(message(n)) for n in range(3)), return_exceptions=True)
    await queues.drain(1)
    asyncio.get_running_loop().set_exception_handler(None)
    assert sent == [3, 1, 2]
    assert [type(result) for result in results] == [str, BrokerUnavailable, BrokerUnavailable]
    assert queues.oldest is None


async def test_publish_after_drain_is_refused():
    """Drained queues accept no messages."""
    queues = KeyedQueues(lambda *_: None, Limits())
    await queues.drain(1)
    with pytest.raises(TransportClosed):
        await queues.publish(message(1))


async def test_drain_does_not_wait_for_max_latency():
    """Draining sends messages that wait for a batch, and those behind them, at once."""
    gate, sent = asyncio.Event(), []

    async def send(_topic, _key, messages, _spans, _deadline):
        sent.append(len(messages))
        await gate.wait()
        return ["1"] * len(messages)

    queues = KeyedQueues(send, Limits(deadline=20, batching={TOPICS[0]: Batching(max_messages=2, max_latency=10)}))
    tasks = [asyncio.ensure_future(queues.publish(message(n))) for n in range(3)]
    lingering = asyncio.ensure_future(queues.publish(message(1, "other")))
    while not sent:
        await asyncio.sleep(0)
    draining = asyncio.create_task(queues.drain(60))
    await asyncio.sleep(0)
    gate.set()
    async with asyncio.timeout(8):
        await draining
        await asyncio.gather(*tasks, lingering)
    assert sorted(sent) == [1, 1, 2]


async def test_cancelled_task_fails_its_messages():
    """When the task of a queue is cancelled, even while it waits for a batch, its messages fail."""
    queues = KeyedQueues(lambda *_: None, Limits(deadline=20, batching={TOPICS[0]: Batching(max_latency=10)}))
    before = asyncio.all_tasks()
    publishing = queues.publish(message(1))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    with pytest.raises(BrokerUnavailable, match="stopped before"):
        await publishing
