"""Run the strict Pub/Sub server: `broker.py SECONDS [tls]`. It waits so many seconds before each answer.

It prints its addresses as a line of JSON, with the path of its root certificate, which is empty without TLS.
"""

import asyncio
import json
import sys

import uvloop

from benchmarks.floor import PROJECT
from pulsecart.events import load_catalog
from pulsecart.testing import strict_pubsub


async def main(latency: float, *, tls: bool) -> None:
    """Serve until killed, and discard the requests that the server records for tests."""
    async with strict_pubsub(sorted(load_catalog().topics), project=PROJECT, tls=tls) as server:
        server.latency = latency
        addresses = {"rest": server.host, "grpc": server.grpc_host, "roots": server.roots_file}
        print(json.dumps(addresses), flush=True)
        while True:
            await asyncio.sleep(1)
            server.requests.clear()
            server.confirmed.clear()


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]), tls="tls" in sys.argv[2:]))
