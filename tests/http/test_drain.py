"""Draining: what happens between the signal to stop and the end."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from pulsecart.app import create_app
from pulsecart.transports import MemoryTransport
from tests.http.client import DEV, served

pytestmark = pytest.mark.anyio


async def test_shutdown_waits_for_the_transport_to_close():
    """On SIGTERM the server is stopped at once, and the application waits until the transport has closed."""
    stopping, gate = asyncio.Event(), asyncio.Event()
    closed_by: list[str] = []
    closed: list[bool] = []

    class Slow(MemoryTransport):
        async def aclose(self) -> None:
            if closed_by:
                return  # the second call returns at once
            closed_by.append("the drain")
            await gate.wait()
            closed.append(True)

    before = signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())
    try:
        app = create_app(DEV, transport=Slow())
        async with asyncio.timeout(20), app.router.lifespan_context(app):
            signal.raise_signal(signal.SIGTERM)
            await stopping.wait()
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.1, gate.set)
        assert closed == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_second_sigterm_stops_without_delay():
    """During the drain delay a second SIGTERM is passed to the server at once, and only once."""
    loop, stops = asyncio.get_running_loop(), []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: stops.append(number))
    try:
        async with create_app(attrs.evolve(DEV, drain_delay=1)).router.lifespan_context(None):
            signal.raise_signal(signal.SIGTERM)
            scheduled = loop.create_future()
            loop.call_soon_threadsafe(scheduled.set_result, None)  # runs after what the handler has scheduled
            await scheduled
            assert stops == []
            signal.raise_signal(signal.SIGTERM)
            assert stops == [signal.SIGTERM]
        delay_is_over = loop.create_future()
        loop.call_later(1, delay_is_over.set_result, None)
        await delay_is_over
        assert stops == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_application_outside_the_main_thread():
    """Outside the main thread, where no signal handler can be set, the application still runs."""

    async def live() -> int:
        async with served() as client:
            return (await client.get("/livez")).status_code

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(asyncio.run, live()).result() == 200


async def test_interrupt_is_passed_to_the_server_at_once():
    """SIGINT stops the service without delay, even with a drain delay, and streams end first."""
    loop, stops = asyncio.get_running_loop(), []

    def stop(number: int, _frame: object) -> None:
        stops.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        async with served(settings=attrs.evolve(DEV, drain_delay=60)) as client:
            signal.raise_signal(signal.SIGINT)
            assert stops == [signal.SIGINT]
            scheduled = loop.create_future()
            loop.call_soon_threadsafe(scheduled.set_result, None)  # runs after what the handler has scheduled
            await scheduled
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/dev/stream")).status_code == 503
            signal.raise_signal(signal.SIGTERM)
            assert stops == [signal.SIGINT, signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
