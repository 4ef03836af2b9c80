"""The tests that every transport must pass.

Subclass `TransportContract` as a class of tests, with a fixture `opened` that returns an `Opened`.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from attrs import frozen

from pulsecart import Message, Transport, TransportClosed
from pulsecart.message import REST_LIMIT

TOPICS = ["contract-a", "contract-b"]


Published = Callable[[str, int], Awaitable[list[Message]]]


@frozen
class Opened:
    """An open transport whose broker has TOPICS.

    `published(topic, count)` returns the topic's messages, in order of arrival per key; it may wait for `count`.
    """

    transport: Transport
    published: Published


def message(number: int, key: str = "user", topic: str = TOPICS[0]) -> Message:
    return Message(
        topic=topic,
        data=b'{"n":%d}' % number,
        attributes={"event_type": "t", "event_id": f"{key}-{number}"},
        ordering_key=key,
    )


@pytest.mark.anyio
class TransportContract:
    async def test_message_arrives_unchanged(self, opened: Opened):
        """Data, attributes, ordering key and topic reach the broker unchanged."""
        sent = Message(
            topic=TOPICS[1],
            data='{"n":89.90,"text":"é😀\\u0000"}'.encode(),
            attributes={"event_type": "t", "event_id": "ünï", "empty": ""},
            ordering_key="user 😀",
        )
        await opened.transport.publish(sent)
        (found,) = await opened.published(sent.topic, 1)
        assert (found.data, dict(found.attributes), found.ordering_key) == (
            sent.data,
            sent.attributes,
            sent.ordering_key,
        )
        assert await opened.published(TOPICS[0], 0) == []

    async def test_message_ids_are_unique(self, opened: Opened):
        """Messages published concurrently on many keys get non-empty, distinct message ids."""
        ids = await asyncio.gather(*(opened.transport.publish(message(n, f"user-{n % 7}")) for n in range(50)))
        assert all(isinstance(message_id, str) and message_id for message_id in ids)
        assert len(set(ids)) == 50
        assert len(await opened.published(TOPICS[0], 50)) == 50

    async def test_messages_of_a_key_keep_the_order_of_the_calls(self, opened: Opened):
        """Messages published concurrently arrive in the order of the calls, for each key."""
        calls = [message(number, key) for number in range(40) for key in ("a", "b", "c")]
        await asyncio.gather(*map(opened.transport.publish, calls))
        found = await opened.published(TOPICS[0], len(calls))
        for key in ("a", "b", "c"):
            assert [m.data for m in found if m.ordering_key == key] == [m.data for m in calls if m.ordering_key == key]

    async def test_message_without_a_key_is_published(self, opened: Opened):
        """An empty ordering key means that no order is kept; it is not an error."""
        await asyncio.gather(*(opened.transport.publish(message(n, "")) for n in range(5)))
        assert len(await opened.published(TOPICS[0], 5)) == 5

    async def test_check_finds_existing_topics(self, opened: Opened):
        """A check of topics that exist reports none as missing."""
        assert await opened.transport.check(TOPICS) == []

    async def test_message_at_the_size_limit_is_published(self, opened: Opened):
        """A message of exactly the largest size that every transport takes is accepted."""
        empty = message(1)
        sent = Message(
            topic=empty.topic,
            data=b"x" * REST_LIMIT.data,
            attributes=empty.attributes,
            ordering_key=empty.ordering_key,
        )
        await opened.transport.publish(sent)
        assert [len(m.data) for m in await opened.published(TOPICS[0], 1)] == [len(sent.data)]

    async def test_publish_after_close_is_refused(self, opened: Opened):
        """A closed transport refuses messages, and may be closed twice."""
        await opened.transport.aclose()
        await opened.transport.aclose()
        with pytest.raises(TransportClosed):
            await opened.transport.publish(message(1))
