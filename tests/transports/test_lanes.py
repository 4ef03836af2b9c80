import asyncio
import contextvars

import pytest

from pulsecart import Batching, BrokerUnavailable, Limits, MessageRefused, TransportClosed
from pulsecart.transports.lanes import Failure, Lanes
from tests.transports.contract import TOPICS, message

pytestmark = pytest.mark.anyio


async def test_a_defect_below_leaves_no_caller_waiting(caplog):
    """Whatever is raised in sending, all that wait are told, and the defect itself is not hidden."""

    async def defective(_topic, _key, _messages, _spans, _deadline):
        await asyncio.sleep(0)
        raise ZeroDivisionError("a defect")

    lanes = Lanes(defective, Limits())
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context["exception"]))
    results = await asyncio.gather(*(lanes.publish(message(n)) for n in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [BrokerUnavailable] * 3
    await lanes.drain(1)
    asyncio.get_running_loop().set_exception_handler(None)
    assert [str(error) for error in raised] == ["a defect"]


async def test_a_batch_is_sent_in_no_callers_context():
    """What a caller has in its context does not reach a request that carries other callers' messages."""
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    async def send(_topic, _key, messages, _spans, _deadline):
        seen.append(variable.get())
        return ["1"] * len(messages)

    variable.set("a caller's")
    await Lanes(send, Limits()).publish(message(1))
    assert seen == ["none"]


async def test_a_caller_that_gives_up_while_all_else_fails():
    """Failing what waits passes over a caller that has gone already."""
    gate, entered = asyncio.Event(), asyncio.Event()

    async def refuse(_topic, _key, _messages, _spans, _deadline):
        entered.set()
        await gate.wait()
        return Failure(BrokerUnavailable, "test")

    lanes = Lanes(refuse, Limits())
    tasks = [asyncio.ensure_future(lanes.publish(message(n))) for n in range(3)]
    await entered.wait()
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, BrokerUnavailable, asyncio.CancelledError]


async def test_what_was_confirmed_before_a_defect_stays_confirmed():
    """A defect in a later part of a halved batch does not touch what an earlier one has confirmed."""
    sent = []

    async def send(_topic, _key, messages, _spans, _deadline):
        sent.append(len(messages))
        if len(messages) == 1:
            return ["0"]
        if len(messages) == 3:
            return Failure(MessageRefused, "test")
        raise ZeroDivisionError("a defect")

    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    lanes = Lanes(send, Limits())
    results = await asyncio.gather(*(lanes.publish(message(n)) for n in range(3)), return_exceptions=True)
    await lanes.drain(1)
    asyncio.get_running_loop().set_exception_handler(None)
    assert sent == [3, 1, 2]
    assert [type(result) for result in results] == [str, BrokerUnavailable, BrokerUnavailable]
    assert lanes.oldest is None


async def test_after_draining_nothing_is_taken():
    """Drained lanes refuse."""
    lanes = Lanes(lambda *_: None, Limits())
    await lanes.drain(1)
    with pytest.raises(TransportClosed):
        await lanes.publish(message(1))


async def test_draining_does_not_wait_for_others_to_come():
    """A message that lingers for a batch is sent at once when the lanes are drained, and what waits behind it too."""
    gate, sent = asyncio.Event(), []

    async def send(_topic, _key, messages, _spans, _deadline):
        sent.append(len(messages))
        await gate.wait()
        return ["1"] * len(messages)

    lanes = Lanes(send, Limits(deadline=20, batching={TOPICS[0]: Batching(max_messages=2, max_latency=10)}))
    tasks = [asyncio.ensure_future(lanes.publish(message(n))) for n in range(3)]
    lingering = asyncio.ensure_future(lanes.publish(message(1, "other")))
    while not sent:
        await asyncio.sleep(0)
    draining = asyncio.create_task(lanes.drain(60))
    await asyncio.sleep(0)
    gate.set()
    async with asyncio.timeout(8):
        await draining
        await asyncio.gather(*tasks, lingering)
    assert sorted(sent) == [1, 1, 2]


async def test_ending_the_lanes_leaves_no_caller_waiting():
    """Whatever a task is doing when it is ended, even waiting for others to come, its callers are told."""
    lanes = Lanes(lambda *_: None, Limits(deadline=20, batching={TOPICS[0]: Batching(max_latency=10)}))
    before = asyncio.all_tasks()
    publishing = lanes.publish(message(1))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    with pytest.raises(BrokerUnavailable, match="ended before"):
        await publishing
