"""Run the strict Pub/Sub server over gRPC: `broker.py PORT SECONDS`. It waits so many seconds before each answer."""

import asyncio
import sys

import uvloop

from pulsecart.events import load_catalog
from pulsecart.testing import strict_pubsub


async def main(port: int, latency: float) -> None:
    """Serve until killed, and discard what the server records for tests."""
    async with strict_pubsub(sorted(load_catalog().topics), project="pulsecart-dev", grpc_port=port) as server:
        server.latency = latency
        while True:
            await asyncio.sleep(1)
            server.requests.clear()
            server.confirmed.clear()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
