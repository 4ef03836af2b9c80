"""The rows of the benchmark: each is a service with its broker and its load. Sections of rows are run together."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from attrs import Factory, frozen

from benchmarks.forms import SINGLE

__all__ = ["BROKERS", "SECTIONS", "Broker", "Row", "Section"]


@frozen
class Broker:
    """A strict server, in a process of its own."""

    latency: float
    """How many seconds it waits before each answer."""

    tls: bool


BROKERS = {
    "tls": Broker(0.005, tls=True),
    "tls, 20 ms": Broker(0.020, tls=True),
    "tls, 50 ms": Broker(0.050, tls=True),
    "plain": Broker(0.005, tls=False),
}


@frozen
class Row:
    """A service under a load."""

    name: str
    command: Callable[[int], list[str]]
    """Returns the command that starts it on a port."""

    broker: str
    """A key of `BROKERS`, or `emulator`; empty for none."""

    wire: str = "rest"
    """How it talks to the broker: `rest` or `grpc`. pulsecart is told; every other service has one."""

    environment: Mapping[str, str] = Factory(dict)
    connections: int = 64
    rate: int = 0
    """Events per second; 0 for as many as possible."""

    size: int = 0
    """The size of each event in bytes; 0 for about 400."""

    share: float = 1.0
    """How many of the events asked for: fewer for what is slow."""

    events: int = 0
    """How many events, whatever is asked for; 0 for the share."""

    form: str = SINGLE
    """A key of `FORMS`: what `load` makes of events."""

    key: str = ""
    """The caller's key; empty for none."""

    sender: str = "load"
    """What sends the events: `load`, which uses the fields above, or a key of `SENDERS`."""

    uploads: Literal["", "to it", "elsewhere"] = ""
    """Where another process uploads lines meanwhile: to this service or to another one, which shows what the machine
    alone does to latency. CPU time is not measured then: it would be that of both loads."""

    rounds: int = 0
    """In how many rounds it is measured at most; 0 for all."""


@frozen
class Section:
    """Rows that are compared."""

    title: str
    rows: Sequence[Row]


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


def go(port: int) -> list[str]:
    """Return the command for the peer in Go, which noxfile.py builds."""
    return ["benchmarks/peers/go/peer", str(port)]


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


KEY = "pck_benchmark-benchmark-benchmark-benchmark-key"
WITH_KEYS = {"PULSECART_AUTH": "keys", "PULSECART_SOURCES": "benchmarks/sources.toml"}

FLOOR = "bare ASGI that awaits the bare stub"
REST, GRPC = "pulsecart, REST", "pulsecart, gRPC"
GO, FASTIFY, GCLOUD_AIO = "Go, Google's client", "Fastify, Google's client", "FastAPI and gcloud-aio-pubsub (REST)"
SHARDED = "pulsecart.commerce-events=shards:8"
UNORDERED = "pulsecart.commerce-events=none"

SIZES = {"1 kB": 1000, "10 kB": 10_000, "100 kB": 100_000, "1 MB": 1_000_000}
SIZE_SHARES = {"1 kB": 0.5, "10 kB": 0.4, "100 kB": 0.1, "1 MB": 0.02}
LATENCIES = {"5 ms": "tls", "20 ms": "tls, 20 ms", "50 ms": "tls, 50 ms"}
CALLERS = (32, 256)


SHARDS = pulsecart("--ordering", SHARDED)
ARRAYS, NDJSON = "arrays of 100", "NDJSON"
GZIP, ZSTD = "NDJSON, gzip", "NDJSON, zstd"
FASTAPI = "FastAPI, Google's client"
MILLION = "TLS, `shards:8`, an upload of a million lines"
STEADY = "1000 single events/s"
UPLOADING, ELSEWHERE = ", during an upload", ", during an upload to another service"


def with_latency(service: str, latency: str, callers: int) -> str:
    """Return the name of a row."""
    return f"{service}, {latency}, {callers} callers"


def on_every_client(broker: str, share: float = 1.0) -> list[Row]:
    """Return the rows that compare the wires and the clients."""
    return [
        Row(REST, pulsecart(), broker, share=share),
        Row(GRPC, pulsecart(), broker, "grpc", share=share),
        Row(FLOOR, floor("publish"), broker, "grpc", share=share),
        Row(GO, go, broker, "grpc", share=share),
        Row(FASTIFY, fastify, broker, "grpc", share=share),
        Row(GCLOUD_AIO, peer("gcloud_aio_awaited", "gcloud-aio"), broker, share=share),
    ]


SECTIONS: dict[str, Section] = {
    "memory": Section(
        "No broker, as fast as they can, 64 connections",
        [
            Row("bare ASGI route", floor("route"), ""),
            Row("pulsecart", pulsecart(), ""),
            Row("pulsecart, on stock uvicorn", pulsecart_on_stock_uvicorn, ""),
            Row("pulsecart, all on, 10 % sampled", pulsecart(), "", environment=sampled("0.1")),
            Row("pulsecart, all on, 100 % sampled", pulsecart(), "", environment=sampled("1")),
            Row("FastAPI, a publish that costs nothing", peer("fastapi_free", "fastapi"), ""),
        ],
    ),
    "wires": Section(
        "Through the strict server over TLS, as fast as they can, 64 connections",
        [Row("pulsecart, in memory", pulsecart(), ""), *on_every_client("tls")],
    ),
    "plain": Section(
        "Through the strict server without TLS, as fast as they can, 64 connections",
        on_every_client("plain", share=0.5),
    ),
    "latency": Section(
        "Through the strict server over TLS, by its latency and the number of connections, as fast as they can",
        [
            Row(with_latency(name, latency, callers), command, broker, wire, connections=callers, share=0.3)
            for latency, broker in LATENCIES.items()
            for callers in CALLERS
            for name, command, wire in ((REST, pulsecart(), "rest"), (GRPC, pulsecart(), "grpc"), (GO, go, "grpc"))
            if name != GRPC or callers == max(CALLERS)
        ],
    ),
    "steady": Section(
        "Through the strict server over TLS, 1000 events/s, 64 connections",
        [
            Row(REST, pulsecart(), "tls", rate=1000, share=0.75),
            Row(GRPC, pulsecart(), "tls", "grpc", rate=1000, share=0.75),
            Row(FLOOR, floor("publish"), "tls", "grpc", rate=1000, share=0.75),
            Row(GO, go, "tls", "grpc", rate=1000, share=0.75),
            Row("pulsecart, REST, with a clock in its loop", pulsecart_with_clock, "tls", rate=1000, share=0.25),
        ],
    ),
    "sizes": Section(
        "By the size of the event, through the strict server over TLS, as fast as they can, 16 connections",
        [
            Row(f"{name}, {size}", pulsecart(), "tls", wire, connections=16, size=SIZES[size], share=SIZE_SHARES[size])
            for size in SIZES
            for name, wire in ((REST, "rest"), (GRPC, "grpc"))
        ],
    ),
    "emulator": Section(
        "Through the emulator, as fast as they can, 64 connections",
        [
            Row(FLOOR, floor("publish"), "emulator", "grpc"),
            Row("pulsecart", pulsecart(), "emulator"),
            Row("pulsecart, 2 workers", pulsecart("--workers", "2"), "emulator"),
            Row(GRPC, pulsecart(), "emulator", "grpc"),
            Row(GO, go, "emulator", "grpc"),
            Row(FASTIFY, fastify, "emulator", "grpc"),
            Row(GCLOUD_AIO, peer("gcloud_aio_awaited", "gcloud-aio"), "emulator"),
            Row(
                "FastAPI, Google's asyncio client",
                peer("fastapi_async_client", "fastapi"),
                "emulator",
                "grpc",
                share=0.5,
            ),
            Row("Litestar, awaited", peer("litestar_awaited", "litestar"), "emulator", "grpc", share=0.125),
            Row("FastAPI, awaited", peer("fastapi_awaited", "fastapi"), "emulator", "grpc", share=0.125),
            Row("FastAPI, blocking", peer("fastapi_blocking", "fastapi"), "emulator", "grpc", share=0.125),
            Row("FastAPI and fastpubsub", peer("fastpubsub_awaited", "fastpubsub"), "emulator", "grpc", share=0.125),
        ],
    ),
    "telemetry": Section(
        "Telemetry, through the strict server over TLS, as fast as they can, 64 connections",
        [
            Row("off, logs at warning", pulsecart(), "tls", share=0.5),
            Row("all on, 10 % sampled", pulsecart(), "tls", environment=sampled("0.1"), share=0.5),
            Row("all on, 100 % sampled", pulsecart(), "tls", environment=sampled("1"), share=0.5),
        ],
    ),
    "orderings": Section(
        "Orderings, through the strict server over TLS, as fast as they can, 256 connections",
        [
            Row("`user`", pulsecart(), "tls", connections=256),
            Row("`shards:8`", pulsecart("--ordering", SHARDED), "tls", connections=256),
            Row("`none`", pulsecart("--ordering", UNORDERED), "tls", connections=256),
        ],
    ),
    "shipped": Section(
        "As shipped, through the strict server over TLS, as fast as they can, 64 connections",
        [
            Row("bare: no telemetry, logs at warning, no keys", pulsecart(), "tls"),
            Row("with keys", pulsecart(), "tls", environment=WITH_KEYS, key=KEY),
            Row(
                "as shipped: with keys, a log line an event, metrics, traces at 10 %",
                pulsecart(),
                "tls",
                environment=WITH_KEYS | sampled("0.1"),
                key=KEY,
            ),
        ],
    ),
    "batch": Section(
        "Many events a request",
        [
            Row("bare ASGI route, single events", floor("route"), "", share=2),
            Row("in memory, single events", pulsecart(), "", share=2),
            *(
                Row(f"in memory, {form}", pulsecart(), "", form=form, connections=connections, share=3, rounds=rounds)
                for form, connections, rounds in (
                    (NDJSON, 1, 0),
                    (GZIP, 1, 3),
                    (ZSTD, 1, 3),
                    (ARRAYS, 16, 3),
                    ("arrays of 10,000", 1, 3),
                    ("CloudEvents, batches of 100", 16, 3),
                )
            ),
            Row("in memory, `pulsecart.client.send_many`", pulsecart(), "", sender="client", rounds=3),
            Row("in memory, `pulsecart send`", pulsecart(), "", sender="send", rounds=3),
            Row("TLS, `shards:8`, single events, 256 callers", SHARDS, "tls", connections=256),
            Row("TLS, `shards:8`, NDJSON", SHARDS, "tls", form=NDJSON, connections=1, share=2),
            Row("TLS, NDJSON", pulsecart(), "tls", form=NDJSON, connections=1, rounds=3),
            *(
                Row(f"TLS, {ARRAYS}, {name}", command, "tls", wire, form=ARRAYS, connections=16, share=share, rounds=3)
                for name, command, wire, share in (
                    (REST, pulsecart(), "rest", 0.5),
                    (GO, go, "grpc", 0.5),
                    (FASTIFY, fastify, "grpc", 0.5),
                    (FASTAPI, peer("fastapi_awaited", "fastapi"), "grpc", 0.25),
                    (GCLOUD_AIO, peer("gcloud_aio_awaited", "gcloud-aio"), "rest", 0.5),
                )
            ),
            Row(f"in memory, {STEADY}", pulsecart(), "", rate=1000, share=0.25),
            Row(f"in memory, {STEADY}{UPLOADING}", pulsecart(), "", rate=1000, share=0.25, uploads="to it"),
            Row(f"in memory, {STEADY}{ELSEWHERE}", pulsecart(), "", rate=1000, share=0.25, uploads="elsewhere"),
            Row(f"TLS, {STEADY}", pulsecart(), "tls", rate=1000, share=0.25),
            Row(f"TLS, {STEADY}{UPLOADING}", pulsecart(), "tls", rate=1000, share=0.25, uploads="to it"),
            Row(MILLION, SHARDS, "tls", sender="upload", events=1_000_000, rounds=1),
        ],
    ),
}
