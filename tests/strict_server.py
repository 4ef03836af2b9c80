"""The strict server in a thread."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pulsecart.testing import StrictPubsub, strict_pubsub


@contextmanager
def on_a_thread(*topics: str, tls: bool = True) -> Iterator[StrictPubsub]:
    """Run a strict server in a thread: a command runs its own event loop in this one."""
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()
    servers: list[StrictPubsub] = []

    async def serve() -> None:
        async with strict_pubsub(topics, tls=tls) as server:
            servers.append(server)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert started.wait(10)
        yield servers[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
