"""Locks by topic and ordering key."""

import asyncio
from weakref import WeakValueDictionary

from pulsecart.message import Message

__all__ = ["Turns"]


class Turns:
    """Locks for `async with turns.of(message)`. They are fair, and a key that is not in use takes no memory."""

    def __init__(self) -> None:
        # Only the tasks that hold a lock or wait for it keep it alive.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def of(self, message: Message) -> asyncio.Lock:
        """Return the lock of the message's topic and key, or a new lock if it has no key."""
        lock = self._locks.get((message.topic, message.ordering_key)) if message.ordering_key else asyncio.Lock()
        if lock is None:
            lock = self._locks[message.topic, message.ordering_key] = asyncio.Lock()
        return lock
