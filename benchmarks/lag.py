"""Run pulsecart with a clock in its event loop: `lag.py PORT` prints the loop's lag as JSON when it stops."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette

from pulsecart.serve import server

TICK = 0.01


async def tick(lags: list[float]) -> None:
    """Record how much later than requested the loop wakes this task, until cancelled."""
    while True:
        asked = time.perf_counter()
        await asyncio.sleep(TICK)
        lags.append(time.perf_counter() - asked - TICK)


def application() -> Starlette:
    """Make the application of `pulsecart serve`, with the clock."""
    app = server.application()
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def with_clock(app: Starlette) -> AsyncIterator[Any]:
        lags: list[float] = []
        async with lifespan(app) as state:
            clock = asyncio.create_task(tick(lags))
            yield state
            clock.cancel()
        print(json.dumps({"lag_p99_ms": sorted(lags)[len(lags) * 99 // 100] * 1e3}), flush=True)

    app.router.lifespan_context = with_clock
    return app


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.lag:application",
        factory=True,
        port=int(sys.argv[1]),
        http="pulsecart.serve.protocol:HttpProtocol",
        access_log=False,
        log_level="error",
    )
