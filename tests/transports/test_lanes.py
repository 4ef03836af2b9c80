import asyncio
import contextvars

import pytest

from pulsecart import BrokerUnavailable, Limits
from pulsecart.transports.lanes import Lanes
from tests.transports.contract import message

pytestmark = pytest.mark.anyio


async def test_a_defect_below_leaves_no_caller_waiting(caplog):
    """Whatever is raised in sending, all that wait are told, and the defect itself is not hidden."""

    async def defective(_topic, _key, _messages, _deadline):
        await asyncio.sleep(0)
        raise ZeroDivisionError("a defect")

    lanes = Lanes(defective, Limits())
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context["exception"]))
    results = await asyncio.gather(*(lanes.publish(message(n)) for n in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [BrokerUnavailable] * 3
    await lanes.drain(1)
    assert [str(error) for error in raised] == ["a defect"]


async def test_a_batch_is_sent_in_no_callers_context():
    """What a caller has in its context does not reach a request that carries other callers' messages."""
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    async def send(_topic, _key, messages, _deadline):
        seen.append(variable.get())
        return ["1"] * len(messages)

    variable.set("a caller's")
    await Lanes(send, Limits()).publish(message(1))
    assert seen == ["none"]
