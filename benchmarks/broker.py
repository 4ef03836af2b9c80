"""The tests' strict Pub/Sub server as a process: `broker.py PORT SECONDS`, the seconds to wait before each answer."""

import asyncio
import sys

import uvloop

from pulsecart.events import load_catalog
from tests.strict_server import strict_server


async def main(port: int, latency: float) -> None:
    """Serve until killed, and forget what came: the server keeps it for tests."""
    async with strict_server(sorted(load_catalog().topics), project="pulsecart-dev", port=port) as server:
        server.latency = latency
        while True:
            await asyncio.sleep(1)
            for kept in (server.requests, server.metadata, server.peers, server.confirmed):
                kept.clear()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
