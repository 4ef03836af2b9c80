from collections import Counter

import pytest

from pulsecart import Producer, by_user, in_shards, unordered
from pulsecart.events import OrderPlaced, PersonalizedSend
from pulsecart.transports import MemoryTransport


def test_shard_of_a_user_is_stable():
    """The shard of a user is the same in every process and version: these values must never change."""
    assert [in_shards(8)(f"user-{n}") for n in range(6)] == SHARDS
    assert in_shards(1)("anyone") == "shard-0"


SHARDS = ["shard-1", "shard-0", "shard-0", "shard-5", "shard-5", "shard-1"]


@pytest.mark.parametrize("count", [0, -1])
def test_number_of_shards_is_at_least_one(count):
    """Without a shard there would be no key: this is an error at once, not when an event is published."""
    with pytest.raises(ValueError, match=f"in_shards\\({count}\\): the number of shards is at least 1"):
        in_shards(count)


def test_by_user_and_unordered_keys():
    """Ordering by user uses the user id as the key; no order means no key."""
    assert (by_user("user-1"), unordered("user-1")) == ("user-1", "")


def test_users_are_spread_evenly_over_shards():
    """With many users, no shard has many more than the others."""
    counts = Counter(map(in_shards(8), map(str, range(8_000))))
    assert len(counts) == 8
    assert max(counts.values()) < 1_150


@pytest.mark.anyio
async def test_ordering_is_chosen_by_topic():
    """The ordering key is chosen by topic; topics without an ordering are ordered by user."""
    transport = MemoryTransport()
    orderings = {OrderPlaced.topic: in_shards(1), "other": by_user}
    producer = Producer(transport, ordering=orderings)
    await producer.publish(OrderPlaced(user_id="u", order_id="o", payload={}))
    await producer.publish(PersonalizedSend(user_id="u", payload={}))
    await Producer(transport, ordering={PersonalizedSend.topic: unordered}).publish(
        PersonalizedSend(user_id="u", payload={})
    )
    assert [message.ordering_key for message in transport.messages] == ["shard-0", "u", ""]
    assert all(message.json()["user_id"] == "u" for message in transport.messages)
