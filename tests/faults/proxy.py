"""A TCP proxy in front of a broker, which can simulate faults."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import Factory, define

CHUNK = 65536


@define(eq=False)
class Link:
    """A connection of the service, and the broker's for it."""

    flows: asyncio.Event = Factory(asyncio.Event)
    """Set while its bytes are forwarded."""
    chunks: int = 0
    """How many chunks it has forwarded."""


class Proxy:
    """Forwards bytes, unless a fault is set."""

    def __init__(self, target: str, address: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: set[Link] = set()
        self.address = address
        self.requests = asyncio.Event()
        """Set while bytes from the service are forwarded."""
        self.requests.set()
        self.answers = asyncio.Event()
        """Set while bytes from the broker are forwarded."""
        self.answers.set()
        self.delay = 0.0
        """Delay of each answer in seconds."""
        self.spoiled = 0.0
        """How likely a chunk of an answer is truncated or replaced by garbage, and its connection closed."""
        self.connections = 0

    async def listen(self) -> None:
        """Accept connections, at the same address as before."""
        host, _, port = self.address.rpartition(":")
        self._listener = await asyncio.start_server(self._serve, host, int(port))
        self.address = f"{host}:{self._listener.sockets[0].getsockname()[1]}"

    def refuse_new(self) -> None:
        """Refuse new connections."""
        if self._listener is not None:
            self._listener.close()

    async def refuse(self) -> None:
        """Reset all connections, and refuse new ones."""
        self.refuse_new()
        self.cut()

    def silence(self, *, only_busiest: bool = False) -> None:
        """Forward no more bytes on the connections that exist, which stay open. New ones work."""
        busiest = [max(self._links, key=lambda link: link.chunks)]
        for link in busiest if only_busiest else self._links:
            link.flows.clear()

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
        link = Link()
        link.flows.set()
        self._links.add(link)
        try:
            brokers_reader, brokers_writer = await asyncio.open_connection(self._host, self._port)
            self._writers.add(brokers_writer)
            try:
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._pass(link, reader, brokers_writer, self.requests))
                    directions.create_task(self._pass(link, brokers_reader, writer, self.answers))
            finally:
                self._writers.discard(brokers_writer)
                brokers_writer.transport.abort()
        except* (OSError, asyncio.IncompleteReadError):
            pass  # a connection that ends is what this is for
        finally:
            self._links.discard(link)
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        while chunk := await reader.read(CHUNK):
            await flows.wait()
            await link.flows.wait()
            link.chunks += 1
            if flows is self.answers and random.random() < self.spoiled:
                writer.write(random.choice([chunk[: len(chunk) // 2], random.randbytes(100)]))
                await writer.drain()
                break
            if flows is self.answers and self.delay:
                # Meanwhile others are read: answers that share a connection are late by the same time.
                asyncio.get_running_loop().call_later(self.delay, writer.write, chunk)
                continue
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError  # one end closed: so does the other


@asynccontextmanager
async def proxy(target: str, address: str = "127.0.0.1:0") -> AsyncIterator[Proxy]:
    passes = Proxy(target, address)
    await passes.listen()
    try:
        yield passes
    finally:
        await passes.aclose()
