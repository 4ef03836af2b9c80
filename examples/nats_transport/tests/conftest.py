"""A NATS server for each test, which can be stopped and started again."""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.js.api import ConsumerConfig, DeliverPolicy
from pulsecart_nats import read

from pulsecart import Message

SECONDS = 20


class Server:
    """A process of nats-server with JetStream, at the same address and with the same files each time."""

    def __init__(self, folder: Path, max_payload: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self._port}"
        self._configuration = folder / "nats.conf"
        self._configuration.write_text(
            f'listen: "127.0.0.1:{self._port}"\nmax_payload: {max_payload}\n'
            f'jetstream {{ store_dir: "{folder}/store" }}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["nats-server", "--config", str(self._configuration)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                assert time.monotonic() < end, "nats-server did not start"
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """End the process as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(SECONDS)
            self._process = None

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.kill)
        yield
        await asyncio.to_thread(self.start)

    async def create(self, *topics: str) -> None:
        """Create a stream for each topic."""
        client = await nats.connect(self.url)
        for topic in topics:
            await client.jetstream().add_stream(name=topic.replace(".", "_"), subjects=[topic])
        await client.close()

    async def messages(self, *topics: str) -> list[Message]:
        """Return what the streams of these topics keep, as a consumer reads it."""
        client = await nats.connect(self.url)
        found: list[Message] = []
        for topic in topics:
            stream = client.jetstream()
            count = (await stream.stream_info(topic.replace(".", "_"))).state.messages
            everything = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
            subscription = await stream.subscribe(topic, ordered_consumer=True, config=everything)
            found += [read(await subscription.next_msg(SECONDS)) for _ in range(count)]
            await subscription.unsubscribe()
        await client.close()
        return found


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def max_payload() -> int:
    """Return what pulsecart may publish at most, with headers; NATS's own default is 1 MiB."""
    return 8 * 1024 * 1024


@pytest.fixture
def server(tmp_path: Path, max_payload: int) -> Iterator[Server]:
    if shutil.which("nats-server") is None:
        assert "CI" not in os.environ, "there is no nats-server"
        pytest.skip("needs nats-server: apt-get install nats-server")
    running = Server(tmp_path, max_payload)
    running.start()
    yield running
    running.kill()
