"""Draining: what happens between the signal to stop and the end."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

from pulsecart.ports import Transport

__all__ = ["Drain"]

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]


class Drain:
    """Stops the service gracefully.

    A server would close its listeners first, so no probe could see that it is draining. Instead, on SIGTERM (and on
    SIGHUP and SIGQUIT, which would otherwise end the process immediately), the service stops being ready at once, but
    accepts events for another `delay` seconds, while the orchestrator takes the instance out of rotation. Then new
    events are rejected, those in flight are answered, and the server's own handler of SIGTERM is called. A second
    signal stops the service without delay, as does SIGINT (Ctrl+C).

    `end_streams` is called first: the server would wait for answers that have no end.
    """

    def __init__(self, transport: Transport, delay: float, end_streams: Callable[[], None] = lambda: None) -> None:
        self._transport = transport
        self._delay = delay
        self._end_streams = end_streams
        self._finishing: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self.begun = False
        """Whether draining has begun."""

    @asynccontextmanager
    async def on_signals(self) -> AsyncIterator[None]:
        """Handle the signals within the block, if the server has a handler of SIGTERM."""
        server_stops = signal.getsignal(signal.SIGTERM)
        if not callable(server_stops) or threading.current_thread() is not threading.main_thread():
            yield
            self._end_streams()
            return
        loop = asyncio.get_running_loop()

        def begin(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._end_streams)
            if self.begun or number == signal.SIGINT:
                server_stops(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM, frame)
            else:
                loop.call_soon_threadsafe(finish_later)
            self.begun = True

        def finish_later() -> None:
            self._finishing = loop.call_later(self._delay, finish)

        def finish() -> None:
            self._closing = loop.create_task(self._transport.aclose())
            server_stops(signal.SIGTERM, None)

        before = _handlers(server_stops)
        for number in before:
            signal.signal(number, begin)
        try:
            yield
        finally:
            self._end_streams()
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._finishing is not None:
                self._finishing.cancel()  # if a second signal has stopped the server earlier
            if self._closing is not None:
                await self._closing


def _handlers(server_stops: Any) -> dict[int, Any]:
    """Return the handlers of the signals to handle, given the server's handler of SIGTERM.

    A signal that is ignored, for example because of nohup, remains ignored. SIGINT is handled if the server does.
    """
    before = {number: handler for number in _SIGNALS if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    if signal.getsignal(signal.SIGINT) == server_stops:
        before[signal.SIGINT] = server_stops
    return before
