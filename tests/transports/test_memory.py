import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from pulsecart import BrokerUnavailable, Message, TransportClosed
from pulsecart.transports import MemoryTransport
from tests.transports.contract import Opened, Published, TransportContract, message


def published_to(transport: MemoryTransport) -> Published:
    async def published(topic: str, _count: int) -> list[Message]:
        return [message for message in transport.messages if message.topic == topic]

    return published


class TestContract(TransportContract):
    @pytest.fixture
    async def opened(self) -> AsyncIterator[Opened]:
        async with MemoryTransport() as transport:
            yield Opened(transport, published_to(transport))


class TestContractWithHandler(TransportContract):
    @pytest.fixture
    async def opened(self) -> AsyncIterator[Opened]:
        async def slow_at_times(sent: Message) -> None:
            for _ in range(3 - sum(sent.data) % 3):  # an earlier message may take longer than a later one
                await asyncio.sleep(0)

        async with MemoryTransport(slow_at_times) as transport:
            yield Opened(transport, published_to(transport))


pytestmark = pytest.mark.anyio


async def test_messages_can_be_read_as_json():
    """A published message decodes itself; options of json.loads pass through."""
    transport = MemoryTransport()
    await transport.publish(Message(topic="t", data=b'{"a":1.10}', attributes={}))
    (found,) = transport.messages
    assert found.json() == {"a": 1.1}
    assert found.json(parse_float=Decimal) == {"a": Decimal("1.10")}
    assert found.message_id == "1"


async def test_clear_forgets_the_messages_but_not_the_count():
    """After clear() there are no messages, and the next id is new."""
    transport = MemoryTransport()
    await transport.publish(message(1))
    transport.clear()
    assert transport.messages == []
    assert await transport.publish(message(2)) == "2"


async def test_only_the_newest_are_kept():
    """Memory is bounded: beyond `keep`, the oldest are dropped."""
    transport = MemoryTransport(keep=3)
    for number in range(5):
        await transport.publish(message(number))
    assert [found.message_id for found in transport.messages] == ["3", "4", "5"]


async def test_only_the_newest_bytes_are_kept():
    """Beyond `keep_bytes` the oldest messages are dropped; one that alone has more is kept until the next."""
    size = len(message(0).data)
    transport = MemoryTransport(keep_bytes=3 * size)
    for number in range(5):
        await transport.publish(message(number))
    assert [found.message_id for found in transport.messages] == ["3", "4", "5"]
    large = Message(topic="t", data=b"x" * 4 * size, attributes={})
    await transport.publish(large)
    assert [found.data for found in transport.messages] == [large.data]
    await transport.publish(message(6))
    assert [found.message_id for found in transport.messages] == ["7"]
    transport.clear()
    for number in range(3):
        await transport.publish(message(number))
    assert len(transport.messages) == 3


async def test_what_is_kept_does_not_change_with_what_was_sent():
    """Attributes changed after publishing do not change what was published."""
    transport = MemoryTransport()
    attributes = {"a": "1"}
    await transport.publish(Message(topic="t", data=b"{}", attributes=attributes))
    attributes["a"] = "2"
    assert transport.messages[0].attributes == {"a": "1"}


async def test_a_handler_makes_it_fail():
    """What the handler raises is what publish raises, and the message is not kept."""

    async def outage(_message: Message) -> None:
        raise BrokerUnavailable("test")

    transport = MemoryTransport(outage)
    with pytest.raises(BrokerUnavailable, match="test"):
        await transport.publish(message(1))
    assert transport.messages == []


async def test_a_handler_makes_it_wait():
    """While the handler waits for one message, its key's next waits too, and other keys do not."""
    gate = asyncio.Event()
    entered: asyncio.Queue[Message] = asyncio.Queue()

    async def wait(sent: Message) -> None:
        entered.put_nowait(sent)
        if sent.ordering_key == "slow":
            await gate.wait()

    transport = MemoryTransport(wait)
    first, second = message(1, "slow"), message(2, "slow")
    slow = asyncio.gather(transport.publish(first), transport.publish(second))
    assert await entered.get() is first
    other = message(3, "other")
    await transport.publish(other)
    assert [entered.get_nowait() for _ in range(entered.qsize())] == [other]
    assert [found.ordering_key for found in transport.messages] == ["other"]
    gate.set()
    await slow
    assert [found.data for found in transport.messages if found.ordering_key == "slow"] == [first.data, second.data]


async def test_closing_while_a_handler_waits_loses_nothing_silently():
    """A message whose handler ends after the transport was closed is refused, not kept unseen."""
    gate = asyncio.Event()

    async def wait(_message: Message) -> None:
        await gate.wait()

    transport = MemoryTransport(wait)
    publishing = asyncio.create_task(transport.publish(message(1)))
    await asyncio.sleep(0)
    await transport.aclose()
    gate.set()
    with pytest.raises(TransportClosed):
        await publishing
