"""A TCP proxy in front of a broker, which can simulate faults."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHUNK = 65536


class Proxy:
    """Forwards bytes, unless a fault is set."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.requests = asyncio.Event()
        """Set while bytes from the service are forwarded."""
        self.requests.set()
        self.answers = asyncio.Event()
        """Set while bytes from the broker are forwarded."""
        self.answers.set()
        self.delay = 0.0
        """Delay of each answer in seconds."""
        self.connections = 0

    async def listen(self) -> None:
        """Accept connections, at the same address as before."""
        _, _, port = self.address.rpartition(":")
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", int(port or 0))
        self.address = f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def refuse(self) -> None:
        """Reset all connections, and refuse new ones."""
        if self._listener is not None:
            self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections, like a network failure."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def aclose(self) -> None:
        await self.refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._writers.add(writer)
        try:
            brokers_reader, brokers_writer = await asyncio.open_connection(self._host, self._port)
            self._writers.add(brokers_writer)
            try:
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._pass(reader, brokers_writer, self.requests, delays=False))
                    directions.create_task(self._pass(brokers_reader, writer, self.answers, delays=True))
            finally:
                self._writers.discard(brokers_writer)
                brokers_writer.transport.abort()
        except* (OSError, asyncio.IncompleteReadError):
            pass  # a connection that ends is what this is for
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event, *, delays: bool
    ) -> None:
        while chunk := await reader.read(CHUNK):
            await flows.wait()
            if delays and self.delay:
                await asyncio.sleep(self.delay)
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError  # one end closed: so does the other


@asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    passes = Proxy(target)
    await passes.listen()
    try:
        yield passes
    finally:
        await passes.aclose()
