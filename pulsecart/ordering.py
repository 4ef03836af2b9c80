"""Which messages of a topic are delivered in order: the choice of the ordering key.

By user, requests to the broker hold one user's messages each. Under shards, users share keys, so that
requests hold many users' messages, and each user's order still holds. Its price: Pub/Sub takes 1 MB/s
per key, a consumer that refuses a message holds up its whole shard, and another number of shards mixes
the order of what is under way.
"""

from collections.abc import Callable
from hashlib import blake2b

__all__ = ["Ordering", "by_user", "in_shards", "unordered"]

Ordering = Callable[[str], str]
"""Returns the ordering key for a user id; the empty string for no order."""


def by_user(user_id: str) -> str:
    """Order the messages of each user: the key is the user id."""
    return user_id


def unordered(user_id: str) -> str:  # noqa: ARG001 (an Ordering takes it)
    """Order nothing: there is no key."""
    return ""


def in_shards(count: int) -> Ordering:
    """Order the messages of each of `count` groups of users: the keys are `shard-0` and so on.

    A user is in the same shard in every process and version, as long as the count is the same.
    """

    def shard(user_id: str) -> str:
        digest = blake2b(user_id.encode(), digest_size=8).digest()  # hash() differs from process to process
        return f"shard-{int.from_bytes(digest) % count}"

    return shard
