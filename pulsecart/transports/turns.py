"""One at a time per topic and ordering key, in order of arrival."""

import asyncio
from weakref import WeakValueDictionary

from pulsecart.message import Message

__all__ = ["Turns"]


class Turns:
    """Locks: `async with turns.of(message)`. First come, first served; an idle key takes no memory."""

    def __init__(self) -> None:
        # Those who hold or wait for a lock keep it alive, nobody else does.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def of(self, message: Message) -> asyncio.Lock:
        """Return the lock that messages of this topic and key share; without a key, one of its own."""
        lock = self._locks.get((message.topic, message.ordering_key)) if message.ordering_key else asyncio.Lock()
        if lock is None:
            lock = self._locks[message.topic, message.ordering_key] = asyncio.Lock()
        return lock
