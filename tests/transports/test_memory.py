"""The memory transport: the contract, what it keeps, and its handler."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest

from pulsecart import BrokerUnavailable, Message, TransportClosed
from pulsecart.testing import Delivered, Outage, TransportContract
from pulsecart.transports import MemoryTransport
from tests.transports.messages import message


class TestContract(TransportContract):
    @pytest.fixture
    def transport(self) -> MemoryTransport:
        return MemoryTransport()

    @pytest.fixture
    def delivered(self, transport: MemoryTransport) -> Delivered:
        return lambda: transport.messages


class TestContractWithHandler(TransportContract):
    @pytest.fixture
    def away(self) -> asyncio.Event:
        return asyncio.Event()

    @pytest.fixture
    def transport(self, away: asyncio.Event) -> MemoryTransport:
        async def slow_at_times(sent: Message) -> None:
            if away.is_set():
                raise BrokerUnavailable("away")
            for _ in range(3 - sum(sent.data) % 3):  # an earlier message may take longer than a later one
                await asyncio.sleep(0)

        return MemoryTransport(slow_at_times)

    @pytest.fixture
    def delivered(self, transport: MemoryTransport) -> Delivered:
        return lambda: transport.messages

    @pytest.fixture
    def outage(self, away: asyncio.Event) -> Outage:
        @asynccontextmanager
        async def is_away() -> AsyncIterator[None]:
            away.set()
            yield
            away.clear()

        return is_away


pytestmark = pytest.mark.anyio


async def test_message_decodes_its_json():
    """`json()` decodes the data, with the options of json.loads."""
    transport = MemoryTransport()
    await transport.publish(Message(topic="t", data=b'{"a":1.10}', attributes={}))
    (found,) = transport.messages
    assert found.json() == {"a": 1.1}
    assert found.json(parse_float=Decimal) == {"a": Decimal("1.10")}
    assert found.message_id == "1"


async def test_clear_keeps_the_message_count():
    """After clear() there are no messages, and message ids continue."""
    transport = MemoryTransport()
    await transport.publish(message(1))
    transport.clear()
    assert transport.messages == []
    assert await transport.publish(message(2)) == "2"


async def test_oldest_messages_over_keep_are_dropped():
    """At most `keep` messages are kept, the newest."""
    transport = MemoryTransport(keep=3)
    for number in range(5):
        await transport.publish(message(number))
    assert [found.message_id for found in transport.messages] == ["3", "4", "5"]


async def test_oldest_messages_over_keep_bytes_are_dropped():
    """At most `keep_bytes` are kept; a single larger message is kept until the next one."""
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


async def test_kept_message_is_a_copy():
    """Changing attributes after publishing does not change the kept message."""
    transport = MemoryTransport()
    attributes = {"a": "1"}
    await transport.publish(Message(topic="t", data=b"{}", attributes=attributes))
    attributes["a"] = "2"
    assert transport.messages[0].attributes == {"a": "1"}


async def test_handler_can_fail_a_publish():
    """The handler's exception is raised by publish, and the message is not kept."""

    async def outage(_message: Message) -> None:
        raise BrokerUnavailable("test")

    transport = MemoryTransport(outage)
    with pytest.raises(BrokerUnavailable, match="test"):
        await transport.publish(message(1))
    assert transport.messages == []


async def test_handler_can_delay_a_key():
    """While the handler waits for a message, the next one of its key waits too; other keys do not."""
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


async def test_close_while_a_handler_waits_refuses_the_message():
    """A message whose handler ends after the transport was closed raises TransportClosed."""
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


async def test_listener_is_called_within_the_block():
    """A listener gets each message that is published while it listens, and no refused one."""

    async def refuse_2(sent: Message) -> None:
        if sent.data == message(2).data:
            raise BrokerUnavailable("test")

    transport = MemoryTransport(refuse_2)
    await transport.publish(message(0))
    heard: list[Message] = []
    with transport.listening(heard.append):
        await transport.publish(message(1))
        with pytest.raises(BrokerUnavailable):
            await transport.publish(message(2))
    await transport.publish(message(3))
    assert heard == [transport.messages[1]]


def publish_all(transport: MemoryTransport, key: str, count: int) -> None:
    async def publish() -> None:
        for number in range(count):
            await transport.publish(message(number, key))

    asyncio.run(publish())


def test_threads_share_a_transport():
    """Message ids are unique and the list is complete if threads with loops of their own publish at the same time."""
    transport = MemoryTransport()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: publish_all(transport, key, 500), "abcd"))
    assert [found.message_id for found in transport.messages] == [str(number) for number in range(1, 2001)]
