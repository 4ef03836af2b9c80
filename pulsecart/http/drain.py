"""Draining: what happens between being told to stop and stopping."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

from pulsecart.ports import Transport

__all__ = ["Drain"]


class Drain:
    """Stops in order.

    A server alone closes its listeners first, so that no probe could see it drain. Here, on SIGTERM,
    readiness falls at once; events are still taken for `delay` seconds, while the orchestrator takes the
    instance out of rotation; then new ones are refused, those in flight are answered, and the server
    is told to stop. A second SIGTERM stops it without delay.
    """

    def __init__(self, transport: Transport, delay: float) -> None:
        self._transport = transport
        self._delay = delay
        self._finishing: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self.begun = False
        """Whether the service is about to stop."""

    @asynccontextmanager
    async def on_sigterm(self) -> AsyncIterator[None]:
        """Go before the server's handler of SIGTERM, where there is one, until the end of the block."""
        server_stops = signal.getsignal(signal.SIGTERM)
        if not callable(server_stops) or threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def begin(number: int, frame: FrameType | None) -> None:
            if self.begun:
                server_stops(number, frame)
            else:
                self.begun = True
                loop.call_soon_threadsafe(finish_later)

        def finish_later() -> None:
            self._finishing = loop.call_later(self._delay, finish)

        def finish() -> None:
            self._closing = loop.create_task(self._transport.aclose())
            server_stops(signal.SIGTERM, None)

        signal.signal(signal.SIGTERM, begin)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, server_stops)
            if self._finishing is not None:
                self._finishing.cancel()  # stopped sooner, by a second signal
            if self._closing is not None:
                await self._closing
