"""One at a time per key, in order of arrival."""

import asyncio
from collections.abc import Hashable
from weakref import WeakValueDictionary

__all__ = ["Turns"]


class Turns:
    """Locks by key: `async with turns.of(key)`. First come, first served; an idle key takes no memory."""

    def __init__(self) -> None:
        # Those who hold or wait for a lock keep it alive, nobody else does.
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: Hashable) -> asyncio.Lock:
        """Return the key's lock, the same one for all who ask while anybody holds or waits for it."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
