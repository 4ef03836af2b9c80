"""The rows of the benchmark: each is a service with its broker and its load."""

import sys
from collections.abc import Callable, Mapping

from attrs import Factory, frozen

__all__ = ["SECTIONS", "Row"]


@frozen
class Row:
    """A service under a load."""

    name: str
    command: Callable[[int], list[str]]
    """Returns the command that starts it on a port."""

    broker: str
    """`strict` or `emulator`; empty for none."""

    environment: Mapping[str, str] = Factory(dict)
    connections: int = 64
    rate: int = 0
    """Events per second; 0 for as many as possible."""


UVICORN = ["--http", "httptools", "--loop", "uvloop", "--ws", "none"]
UVICORN += ["--no-access-log", "--no-server-header", "--log-level", "error"]
"""The options for uvicorn, as in `pulsecart serve`."""


def floor(name: str) -> Callable[[int], list[str]]:
    """Return the command for an application of floor.py."""
    return lambda port: [sys.executable, "-m", "uvicorn", f"benchmarks.floor:{name}", "--port", str(port), *UVICORN]


def peer(name: str, environment: str) -> Callable[[int], list[str]]:
    """Return the command for a peer in Python. noxfile.py makes an environment for each framework."""
    python = f"benchmarks/peers/.venv-{environment}/bin/python"
    return lambda port: [python, "-m", "uvicorn", f"benchmarks.peers.{name}:app", "--port", str(port), *UVICORN]


def pulsecart(*options: str) -> Callable[[int], list[str]]:
    """Return the command for `pulsecart serve`."""
    return lambda port: [sys.executable, "-m", "pulsecart", "serve", "--port", str(port), *options]


def pulsecart_on_stock_uvicorn(port: int) -> list[str]:
    """Return the command for pulsecart's application on the same server as the peers."""
    factory = ["--factory", "pulsecart.app:create_app"]
    return [sys.executable, "-m", "uvicorn", *factory, "--port", str(port), *UVICORN]


def pulsecart_with_clock(port: int) -> list[str]:
    """Return the command for pulsecart with a clock in its event loop."""
    return [sys.executable, "-m", "benchmarks.lag", str(port)]


def fastify(port: int) -> list[str]:
    """Return the command for the peer on Node."""
    return ["node", "benchmarks/peers/fastify/server.js", str(port)]


def sampled(share: str) -> dict[str, str]:
    """Return the environment for full telemetry: traces of a share of the events, metrics and a line per event."""
    return {
        "OTEL_SDK_DISABLED": "",
        "PULSECART_LOG_LEVEL": "info",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": share,
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    }


FLOOR = "bare ASGI that awaits the bare stub"
SHARDED = "pulsecart.commerce-events=shards:8"
UNORDERED = "pulsecart.commerce-events=none"

SECTIONS: dict[str, list[Row]] = {
    "No broker, as fast as they can, 64 connections": [
        Row("bare ASGI route", floor("route"), ""),
        Row("pulsecart", pulsecart(), ""),
        Row("pulsecart, on stock uvicorn", pulsecart_on_stock_uvicorn, ""),
        Row("pulsecart, all on, 10 % sampled", pulsecart(), "", sampled("0.1")),
        Row("pulsecart, all on, 100 % sampled", pulsecart(), "", sampled("1")),
        Row("FastAPI, a publish that costs nothing", peer("fastapi_free", "fastapi"), ""),
    ],
    "Through the emulator, as fast as they can, 64 connections": [
        Row(FLOOR, floor("publish"), "emulator"),
        Row("pulsecart", pulsecart(), "emulator"),
        Row("pulsecart, 2 workers", pulsecart("--workers", "2"), "emulator"),
        Row("Fastify", fastify, "emulator"),
        Row("FastAPI, Google's asyncio client", peer("fastapi_async_client", "fastapi"), "emulator"),
        Row("Litestar, awaited", peer("litestar_awaited", "litestar"), "emulator"),
        Row("FastAPI, awaited", peer("fastapi_awaited", "fastapi"), "emulator"),
        Row("FastAPI, blocking", peer("fastapi_blocking", "fastapi"), "emulator"),
        Row("FastAPI and fastpubsub", peer("fastpubsub_awaited", "fastpubsub"), "emulator"),
    ],
    "Through the strict server, as fast as they can, 64 connections": [
        Row(FLOOR, floor("publish"), "strict"),
        Row("pulsecart", pulsecart(), "strict"),
    ],
    "Through the strict server, 1000 events/s, 64 connections": [
        Row(FLOOR, floor("publish"), "strict", rate=1000),
        Row("pulsecart", pulsecart(), "strict", rate=1000),
        Row("pulsecart, with a clock in its loop", pulsecart_with_clock, "strict", rate=1000),
    ],
    "Telemetry, through the strict server, as fast as they can, 64 connections": [
        Row("off, logs at warning", pulsecart(), "strict"),
        Row("all on, 10 % sampled", pulsecart(), "strict", sampled("0.1")),
        Row("all on, 100 % sampled", pulsecart(), "strict", sampled("1")),
    ],
    "Orderings, through the strict server, as fast as they can, 256 connections": [
        Row("`user`", pulsecart(), "strict", connections=256),
        Row("`shards:8`", pulsecart("--ordering", SHARDED), "strict", connections=256),
        Row("`none`", pulsecart("--ordering", UNORDERED), "strict", connections=256),
    ],
}
