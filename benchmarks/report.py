"""Write the results of the benchmark: `results.md`, and a chart of CPU time per event, `results.png`."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import frozen

from benchmarks.rows import (
    ARRAYS,
    BROKERS,
    CALLERS,
    ELSEWHERE,
    FASTAPI,
    FASTIFY,
    FLOOR,
    GCLOUD_AIO,
    GO,
    GRPC,
    LATENCIES,
    MILLION,
    REST,
    SECTIONS,
    SIZES,
    STEADY,
    UPLOADING,
    with_latency,
)

__all__ = ["Rounds", "chart", "machine", "report"]

Rounds = list[dict[str, float]]
"""The figures of a row, round by round."""

Results = Mapping[str, Mapping[str, Rounds]]
"""The rounds of each row, by section."""

PEERS = Path(__file__).with_name("peers")

PREFACE = """# Benchmark

Made by `nox -s bench{options}`. Each figure is a median of {rounds} rounds, with its range; some rows run in fewer. In
each round every row is a new process. It gets {warm_up:,} events to warm up, and then {events:,}, or a share of both
if it is slow, or a multiple if it is fast: orders of about 400 bytes by 1000 users. CPU time per event is that of the
service alone, with all its processes and threads.
Memory is resident memory, summed over the service's processes, after the first event (idle) and at its highest (peak).
Unless a row says otherwise, nothing writes a line for each event, traces, or exports metrics.

The peers follow the documentation of their frameworks: see [peers](peers). Each validates the event by its type,
completes it, publishes it with ordering key and attributes, and answers 202 with both ids, except fastpubsub, which
returns no message id. Before it is measured, each has to publish three events whole and to refuse two invalid ones.
They do less than pulsecart: numbers lose decimals (not in Go), lengths count characters, errors are not problem
documents, and a key that failed stays paused. Google's clients with ordering wait 10 ms for more messages unless
configured otherwise, which is part of their latency; pulsecart does not wait on this topic. Google's asyncio client and
gcloud-aio-pubsub have no ordering of their own: they keep order only for a caller that awaits each answer. The peers in
Python run on stock uvicorn, with uvloop and httptools, each in its own environment. pulsecart has its own settings for
uvicorn and the garbage collector, and its own protocol class; one row shows it without them. The peer in Go is built
with Debian's packages, which are older than Google's newest client for Go.

With many events a request, a latency is that of a request, and lines (NDJSON) come in requests of 10,000, one after the
other. The peers publish a list only if all its events are valid, each event at once with their client, and answer when
all are confirmed; with gcloud-aio-pubsub, a user's events of a list share a request to the broker, as in pulsecart. An
upload is one request of any length, from another process; its lines are of other users than the single events during
it. The rate of `pulsecart send` includes its start.

The floor is bare ASGI on stock uvicorn with a bare gRPC stub. The strict server is `pulsecart.testing.strict_pubsub`,
which waits {latency:g} ms before each answer unless a row says otherwise. Over TLS, every service verifies the server's
certificate and name, and pulsecart also sends a service account's token with each request; the others send none. What
is measured only through the emulator, and the section without TLS, is not encrypted.

The benchmark does not show a network, Google's front end, or more than a few cores. Throughput and latency are
those of a machine that also runs broker and load generator; only the ratios of CPU time carry over. It also does not
show what is refused, repeated or lost when something fails: for pulsecart, `nox -s faults` does.
"""

COLUMNS = {
    "CPU us/event": ("cpu_us", 0),
    "sender's CPU us/event": ("sender_us", 0),
    "events/s": ("per_second", 0),
    "p50 ms": ("p50_ms", 1),
    "p99 ms": ("p99_ms", 1),
    "idle MB": ("idle_mb", 0),
    "peak MB": ("peak_mb", 0),
    "start to first 202, s": ("start_s", 2),
}

LIBRARY = {
    "stub": "bare gRPC stub, one message a request, 64 at once",
    "ordered": "Producer.publish, ordered by user, 64 at once",
    "transport": "Transport.publish, unordered, 100 messages a request",
    "producer": "Producer.publish, unordered, 100 messages a request",
}


def table(results: Mapping[str, Rounds], columns: Mapping[str, tuple[str, int]]) -> list[str]:
    """Return a Markdown table with a line for each row. What was not measured is left out."""
    measured = {figure for rounds in results.values() for seen in rounds for figure in seen}
    columns = {title: column for title, column in columns.items() if column[0] in measured}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, rounds in results.items():
        values = [([seen[figure] for seen in rounds if figure in seen], digits) for figure, digits in columns.values()]
        lines.append(f"| {name} | {' | '.join(spread(*each) if each[0] else '' for each in values)} |")
    return lines


@frozen
class Comparison:
    """A figure of one row over that of another, or on its own."""

    text: str
    over: tuple[str, str]
    """A section and a row of it."""

    under: tuple[str, str] | None = None
    figure: str = "cpu_us"
    wanted: float | None = None
    """The most that it should be."""

    at_least: bool = False
    """Whether `wanted` is the least instead."""

    @property
    def limit(self) -> str:
        """What is wanted, in words."""
        return f"at {'least' if self.at_least else 'most'} {self.wanted:g}"

    def met(self, measured: float) -> bool:
        """Return whether a figure is as wanted."""
        assert self.wanted is not None
        return measured >= self.wanted if self.at_least else measured <= self.wanted

    def rounds(self, results: Results) -> list[float]:
        """Return the figure of each round, so that a slow minute slows both sides; empty if a row was not measured."""
        of = [results.get(section, {}).get(row, []) for section, row in filter(None, (self.over, self.under))]
        if self.under is None:
            return [seen[self.figure] for seen in of[0]]
        return [over[self.figure] / under[self.figure] for over, under in zip(*of, strict=False)]


MEMORY, FREE, AWAITED = ("memory", "pulsecart"), ("memory", "FastAPI, a publish that costs nothing"), "FastAPI, awaited"
EMULATOR = "emulator", "pulsecart"
WIRES_MEMORY = "wires", "pulsecart, in memory"
CPU, START, IDLE, P99 = "CPU per event", "time from start to first 202", "idle memory", "p99, ms"

WIRE_GOALS = [
    Comparison(f"{CPU}, over Go with Google's client", ("wires", REST), ("wires", GO), wanted=0.75),
    *(
        Comparison(
            f"the same, {latency}, {callers} callers",
            ("latency", with_latency(REST, latency, callers)),
            ("latency", with_latency(GO, latency, callers)),
            wanted=0.75,
        )
        for latency in LATENCIES
        for callers in CALLERS
    ),
    Comparison(f"{CPU}, over Fastify with Google's client", ("wires", REST), ("wires", FASTIFY), wanted=0.45),
    Comparison(f"{CPU}, over itself on the gRPC wire", ("wires", REST), ("wires", GRPC), wanted=0.55),
    Comparison(f"{CPU}, over the floor", ("wires", REST), ("wires", FLOOR), wanted=0.8),
    Comparison(f"{START}, over the memory transport's", ("wires", REST), WIRES_MEMORY, "start_s", 1.3),
    Comparison(f"{IDLE}, over the memory transport's", ("wires", REST), WIRES_MEMORY, "idle_mb", 1.3),
    Comparison(f"{P99}, at 1000 events/s", ("steady", REST), None, "p99_ms", 9.0),
]

NDJSON_MEMORY, NDJSON_SHARDS = ("batch", "in memory, NDJSON"), ("batch", "TLS, `shards:8`, NDJSON")
SINGLE_MEMORY = "batch", "in memory, single events"
BATCH_GOALS = [
    Comparison(
        f"NDJSON in memory: {CPU}, over a bare ASGI route's per request",
        NDJSON_MEMORY,
        ("batch", "bare ASGI route, single events"),
        wanted=0.85,
    ),
    Comparison(
        f"NDJSON over TLS, `shards:8`: {CPU}, over that of single events",
        NDJSON_SHARDS,
        ("batch", "TLS, `shards:8`, single events, 256 callers"),
        wanted=0.4,
    ),
    Comparison(
        "NDJSON in memory: events/s, over single events",
        NDJSON_MEMORY,
        SINGLE_MEMORY,
        "per_second",
        wanted=3,
        at_least=True,
    ),
    Comparison(
        "growth of memory in an upload of a million lines over TLS, MB", ("batch", MILLION), None, "growth_mb", 30
    ),
    *(
        Comparison(
            f"single events {text}: p99 during an upload, over p99 without",
            ("batch", f"{name}, {STEADY}{UPLOADING}"),
            ("batch", f"{name}, {STEADY}"),
            "p99_ms",
            3,
        )
        for name, text in (("in memory", "in memory"), ("TLS", "over TLS"))
    ),
]

GOALS = {"REST wire, over TLS": WIRE_GOALS, "Many events a request": BATCH_GOALS}
"""What pulsecart should reach, by what it is about."""

OTHERS = [
    Comparison(f"without TLS, {CPU}, over Go with Google's client", ("plain", REST), ("plain", GO)),
    Comparison(f"without TLS, {CPU}, over Fastify with Google's client", ("plain", REST), ("plain", FASTIFY)),
    Comparison(f"without TLS, {CPU}, over itself on the gRPC wire", ("plain", REST), ("plain", GRPC)),
    Comparison(f"without TLS, {CPU}, over the floor", ("plain", REST), ("plain", FLOOR)),
    Comparison(
        f"without TLS and credentials, {START}, over the memory transport's", ("plain", REST), WIRES_MEMORY, "start_s"
    ),
    Comparison(
        f"without TLS and credentials, {IDLE}, over the memory transport's", ("plain", REST), WIRES_MEMORY, "idle_mb"
    ),
    Comparison(f"gRPC wire over TLS, {START}, over the memory transport's", ("wires", GRPC), WIRES_MEMORY, "start_s"),
    Comparison(f"gRPC wire over TLS, {IDLE}, over the memory transport's", ("wires", GRPC), WIRES_MEMORY, "idle_mb"),
    Comparison(f"gRPC wire over TLS, {P99}, at 1000 events/s", ("steady", GRPC), None, "p99_ms"),
    Comparison(f"over TLS at 1000 events/s, {CPU}, over Go with Google's client", ("steady", REST), ("steady", GO)),
    Comparison(f"over TLS at 1000 events/s, {CPU}, over the floor", ("steady", REST), ("steady", FLOOR)),
    Comparison(
        "event-loop lag at 1000 events/s, p99, ms",
        ("steady", "pulsecart, REST, with a clock in its loop"),
        None,
        "lag_p99_ms",
    ),
    Comparison(f"in memory, over FastAPI and a publish that costs nothing: {CPU}", MEMORY, FREE),
    Comparison(f"in memory, over the same: {START}", MEMORY, FREE, "start_s"),
    Comparison(f"in memory, over the same: {IDLE}", MEMORY, FREE, "idle_mb"),
    Comparison(f"in memory, over itself on stock uvicorn: {CPU}", MEMORY, ("memory", "pulsecart, on stock uvicorn")),
    Comparison(f"through the emulator, over FastAPI, awaited: {CPU}", EMULATOR, ("emulator", AWAITED)),
    Comparison(f"through the emulator, over FastAPI, awaited: {START}", EMULATOR, ("emulator", AWAITED), "start_s"),
    Comparison(f"through the emulator, over FastAPI, awaited: {IDLE}", EMULATOR, ("emulator", AWAITED), "idle_mb"),
    Comparison(
        f"through the emulator, over FastAPI and Google's asyncio client: {CPU}",
        EMULATOR,
        ("emulator", "FastAPI, Google's asyncio client"),
    ),
    Comparison(f"through the emulator, over Fastify: {CPU}", EMULATOR, ("emulator", FASTIFY)),
    Comparison("through the emulator, over Fastify: peak memory", EMULATOR, ("emulator", FASTIFY), "peak_mb"),
    Comparison(f"through the emulator, over Go: {CPU}", EMULATOR, ("emulator", GO)),
    Comparison(
        "2 workers over 1, on cores shared with everything else: throughput",
        ("emulator", "pulsecart, 2 workers"),
        EMULATOR,
        "per_second",
    ),
    *(
        Comparison(
            f"telemetry on, {share} % sampled, over off: {CPU}",
            ("telemetry", f"all on, {share} % sampled"),
            ("telemetry", "off, logs at warning"),
        )
        for share in (10, 100)
    ),
    *(
        Comparison(
            f"{row}, over bare: {CPU}",
            ("shipped", next(each.name for each in SECTIONS["shipped"].rows if each.name.startswith(row))),
            ("shipped", SECTIONS["shipped"].rows[0].name),
        )
        for row in ("with keys", "as shipped")
    ),
    *(
        Comparison(
            f"arrays of 100 over TLS, over {name}: {CPU}",
            ("batch", f"TLS, {ARRAYS}, {REST}"),
            ("batch", f"TLS, {ARRAYS}, {name}"),
        )
        for name in (GO, FASTIFY, FASTAPI, GCLOUD_AIO)
    ),
    Comparison(
        "single events in memory: p99 during an upload to another service on the machine, over p99 without",
        ("batch", f"in memory, {STEADY}{ELSEWHERE}"),
        ("batch", f"in memory, {STEADY}"),
        "p99_ms",
    ),
    *(
        Comparison(f"lines/s of the upload {text}, with {STEADY}", ("batch", row), None, "upload_per_second")
        for row, text in (
            (f"in memory, {STEADY}{UPLOADING}", "in memory"),
            (f"TLS, {STEADY}{UPLOADING}", "over TLS"),
        )
    ),
    Comparison(
        "`shards:8` over `user`: throughput", ("orderings", "`shards:8`"), ("orderings", "`user`"), "per_second"
    ),
]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and, where there were several values, their range."""
    median = f"{statistics.median(values):,.{digits}f}"
    return median if len(values) == 1 else f"{median} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def goals(results: Results) -> Iterator[str]:
    """Yield tables of what was wanted and what was measured."""
    for title, group in GOALS.items():
        measured = {goal: values for goal in group if (values := goal.rounds(results))}
        if measured:
            yield from ["", f"## Goals: {title}", "", "| | wanted | measured | |", "|---|---|---|---|"]
        for goal, values in measured.items():
            verdict = "met" if goal.met(statistics.median(values)) else "**not met**"
            yield f"| {goal.text} | {goal.limit} | {spread(values)} | {verdict} |"


def sizes(results: Results) -> Iterator[str]:
    """Yield a table of the wires' cost by the size of the event, and where base64 reverses it."""
    yield from ["", "## The wires by size", "", "| event | REST, CPU us | gRPC, CPU us | REST over gRPC |"]
    yield "|---|---|---|---|"
    dearer = []
    for size in SIZES:
        rest, grpc = ("sizes", f"{REST}, {size}"), ("sizes", f"{GRPC}, {size}")
        ratios = Comparison("", rest, grpc).rounds(results)
        if statistics.median(ratios) > 1:
            dearer.append(size)
        cpu = [spread(Comparison("", each).rounds(results), 0) for each in (rest, grpc)]
        yield f"| {size} | {' | '.join(cpu)} | {spread(ratios)} |"
    yield ""
    if dearer:
        yield f"REST cost more CPU than gRPC at {', '.join(dearer)}: for events that large, set `PULSECART_WIRE=grpc`."
    else:
        yield "REST cost less CPU than gRPC at each of these sizes."


def findings(results: Results, libraries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the most important ratios."""
    for each in OTHERS:
        if values := each.rounds(results):
            yield f"- {each.text}: {spread(values)}"
    if libraries and "users" in (last := libraries[-1]):
        yield f"- resident memory before many distinct users, MB: {last['before_mb']:.1f}"
        yield f"- resident memory after {last['users']:,} of them, MB: {last['after_mb']:.1f}"
    if busy := [
        seen["generator_busy"]
        for rows in results.values()
        for rounds in rows.values()
        for seen in rounds
        if "generator_busy" in seen
    ]:
        yield f"- highest CPU of the load generator, cores: {max(busy):.2f}"


SAY_VERSIONS = """
import sys
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in sys.argv[1:]), sep=", ")
"""


def machine() -> str:
    """Describe the machine and the versions."""
    model = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    packages = ["pulsecart", "uvicorn", "uvloop", "starlette", "grpcio", "google-cloud-pubsub", "msgspec", "cattrs"]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    for peer, names in {
        "fastapi": "fastapi pydantic",
        "gcloud-aio": "gcloud-aio-pubsub aiohttp",
        "litestar": "litestar",
        "fastpubsub": "fastpubsub",
    }.items():
        versions += f", {said_by(f'{PEERS}/.venv-{peer}/bin/python', '-c', SAY_VERSIONS, *names.split())}"
    node = said_by("node", "--version").removeprefix("v")
    emulator = said_by("gcloud", "version", "--format=value(pubsub-emulator)")
    modules = json.loads((PEERS / "fastify/package.json").read_text())["dependencies"]
    node += "".join(f", {module} {number}" for module, number in modules.items())
    go = said_by("go", "env", "GOVERSION").removeprefix("go")
    google = "golang-google-cloud-dev"
    go += f", {google} {said_by('dpkg-query', '--show', '--showformat=${Version}', google)}"
    where = f"{datetime.now(UTC):%Y-%m-%d}, {platform.system()} on {model}, {os.cpu_count()} cores for all"
    python = f"Python {platform.python_version()}, {versions}"
    return f"{where}; {python}; Node {node}; Go {go}; Pub/Sub emulator {emulator}."


def said_by(*command: str) -> str:
    """Return the output of a command. A peer that is not installed cannot be measured, but others can."""
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    except FileNotFoundError:
        return f"({Path(command[0]).name} is not installed)"


def report(
    results: Results,
    libraries: Sequence[Mapping[str, Any]],
    received: Mapping[str, int],
    machine: str,
    **preface: Any,
) -> str:
    """Return the text of `results.md`. What was not measured is left out."""
    lines = [PREFACE.format(latency=BROKERS["tls"].latency * 1e3, **preface), machine]
    lines += [*goals(results), *(sizes(results) if "sizes" in results else ())]
    lines += ["", "## Further figures", "", "Ratios, unless a unit is named.", "", *findings(results, libraries)]
    lines += [f"- the collector received {received['spans']:,} spans and {received['metrics']:,} metrics"]
    lines += ["", "![CPU time per event](results.png)"]
    for key, rounds in results.items():
        lines += ["", f"## {SECTIONS[key].title}", "", *table(rounds, COLUMNS)]
    if libraries:
        without_http = {title: [each[name] for each in libraries] for name, title in LIBRARY.items()}
        columns = {"CPU us/message": ("cpu_us", 1), "messages/s": ("per_second", 0)}
        lines += ["", "## Without HTTP, through the strict server without TLS", "", *table(without_http, columns)]
    return "\n".join([*lines, ""])


def chart(results: Results, path: Path) -> None:
    """Draw the CPU time per event, as medians with ranges."""
    from matplotlib.figure import Figure

    sections = [section for section in ("memory", "wires", "emulator") if section in results]
    if not sections:
        return
    heights = [len(results[section]) for section in sections]
    figure = Figure(figsize=(9, 2 + 0.25 * sum(heights)), layout="constrained")
    figure.suptitle("CPU time per accepted event (less is better)")
    plots = figure.subplots(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, section in zip(plots, sections, strict=True):
        for name, rounds in reversed(list(results[section].items())):
            values = [seen["cpu_us"] for seen in rounds]
            median = statistics.median(values)
            errors = [[median - min(values)], [max(values) - median]]
            color = "#1a73e8" if name.startswith("pulsecart") else "#9aa0a6"
            axes.barh(name, median, xerr=errors, color=color, ecolor="#3c4043", capsize=3)
            axes.annotate(f"{median:,.0f}", (max(values), name), (6, 0), textcoords="offset points", va="center")
        axes.set_title(SECTIONS[section].title, loc="left", fontsize=10)
        axes.set_xlabel("microseconds")
        axes.margins(x=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
