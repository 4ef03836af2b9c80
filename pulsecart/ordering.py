"""Ordering keys: which messages of a topic are delivered in order.

Ordered by user, each request to the broker contains messages of one user. With shards, users share a key, so a
request contains messages of many users; the order of each user is still kept. This has costs: Pub/Sub accepts
1 MB/s per key, a message that a consumer rejects delays its whole shard, and when the number of shards changes,
the order of messages that are not yet delivered is lost.
"""

from collections.abc import Callable
from hashlib import blake2b

__all__ = ["Ordering", "by_user", "in_shards", "unordered"]

Ordering = Callable[[str], str]
"""Returns the ordering key for a user id, or an empty string for no order."""


def by_user(user_id: str) -> str:
    """Order the messages of each user: the key is the user id."""
    return user_id


def unordered(user_id: str) -> str:  # noqa: ARG001 (the signature of Ordering)
    """Do not order messages: the key is empty."""
    return ""


def in_shards(count: int) -> Ordering:
    """Order the messages of each of `count` groups of users; the keys are `shard-0`, `shard-1` and so on.

    For the same count, a user is in the same shard in every process and version. Raises `ValueError` for a count
    below 1.
    """
    if count < 1:
        raise ValueError(f"in_shards({count}): the number of shards is at least 1; `unordered` is for no order")

    def shard(user_id: str) -> str:
        digest = blake2b(user_id.encode(), digest_size=8).digest()  # hash() differs from process to process
        return f"shard-{int.from_bytes(digest) % count}"

    return shard
