"""An event loop whose time is made up: when all wait, its clock jumps to the next timer."""

import asyncio
import functools
import os
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["MODEL_RUNS", "VirtualLoop", "in_virtual_time"]

MODEL_RUNS = int(os.environ.get("PULSECART_MODEL_RUNS", "300"))
"""How many random runs the tests of models make."""


class _Jumping(selectors.DefaultSelector):
    now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits, and no timer is set"
            self.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in an event loop of its own, which must have no tasks left at the end."""

    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        loop = VirtualLoop()
        try:
            loop.run_until_complete(test(*args, **options))
            loop.run_until_complete(asyncio.sleep(0))
            assert asyncio.all_tasks(loop) == set()
        finally:
            loop.close()

    return run
