"""Write the results of the benchmark: `results.md`, and a chart of CPU time per event, `results.png`."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.rows import FLOOR, SECTIONS

__all__ = ["Rounds", "chart", "report"]

Rounds = list[dict[str, float]]
"""The figures of a row, round by round."""

MEMORY, EMULATOR, FULL, STEADY, TELEMETRY, ORDERINGS = SECTIONS

PREFACE = """# Benchmark

Made by `nox -s bench{options}`. Each figure is a median of {rounds} rounds, with its range. In each round every row
is a new process. It gets {warm_up:,} events to warm up, and then {events:,}: orders of about 400 bytes by 1000 users.
CPU time per event is that of the service alone, workers included. Memory is resident memory, summed over the
service's processes, after the first event (idle) and at its highest (peak). Unless a row says otherwise, nothing
writes a line for each event, traces, or exports metrics.

The peers follow the documentation of their frameworks: see [peers](peers). Each validates the event by its type,
completes it, publishes it with ordering key and attributes (the benchmark checks this), and answers 202 with both
ids, except fastpubsub, which returns no message id. They do less than pulsecart: numbers lose decimals, lengths count
characters, errors are not problem documents, and a key that failed stays paused. Google's clients with ordering wait
10 ms for more messages unless configured otherwise, which is part of their latency; pulsecart does not wait on this
topic. Google's asyncio client has no ordering of its own: it keeps order only for a caller that awaits each answer.
The peers in Python run on stock uvicorn, with uvloop and httptools, each in its own environment. pulsecart has its
own settings for uvicorn and the garbage collector, and its own protocol class; one row shows it without them.

The floor is bare ASGI on stock uvicorn with a bare gRPC stub. The strict server is the tests' own broker, which waits
{latency:g} ms before each answer.

The benchmark does not show a network, TLS, Google's front end, or more than a few cores. Throughput and latency are
those of a machine that also runs broker and load generator; only the ratios of CPU time carry over. It also does not
show what is refused, repeated or lost when something fails: for pulsecart, `nox -s faults` does.
"""

COLUMNS = {
    "CPU us/event": ("cpu_us", 0),
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


def middle(rounds: Rounds, name: str, digits: int = 0) -> str:
    """Return the median of a figure and, where there were several rounds, its range."""
    values = [seen[name] for seen in rounds]
    median = f"{statistics.median(values):,.{digits}f}"
    return median if len(values) == 1 else f"{median} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def ratio(over: Rounds, under: Rounds, figure: str = "cpu_us") -> str:
    """Return the median ratio of a figure, taken round by round, so that a slow minute slows both sides."""
    ratios = [a[figure] / b[figure] for a, b in zip(over, under, strict=True)]
    return middle([{"ratio": each} for each in ratios], "ratio", 2)


def table(results: Mapping[str, Rounds], columns: Mapping[str, tuple[str, int]]) -> list[str]:
    """Return a Markdown table with a line for each row."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, rounds in results.items():
        figures = [middle(rounds, figure, digits) for figure, digits in columns.values()]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


def findings(results: Mapping[str, Mapping[str, Rounds]], last_library: Mapping[str, Any]) -> list[str]:
    """Return the most important ratios."""
    memory, emulator, full, steady = results[MEMORY], results[EMULATOR], results[FULL], results[STEADY]
    telemetry, orderings = results[TELEMETRY], results[ORDERINGS]
    alone, free = memory["pulsecart"], memory["FastAPI, a publish that costs nothing"]
    ours, awaited, fastify = emulator["pulsecart"], emulator["FastAPI, awaited"], emulator["Fastify"]
    off = telemetry["off, logs at warning"]
    clocked = steady["pulsecart, with a clock in its loop"]
    figures = {
        "in memory, compared with FastAPI and a publish that costs nothing: CPU per event": ratio(alone, free),
        "in memory, compared with the same: time from start to first 202": ratio(alone, free, "start_s"),
        "in memory, compared with the same: idle memory": ratio(alone, free, "idle_mb"),
        "through the emulator, compared with FastAPI, awaited: CPU per event": ratio(ours, awaited),
        "through the emulator, compared with FastAPI, awaited: time from start to first 202": ratio(
            ours, awaited, "start_s"
        ),
        "through the emulator, compared with FastAPI, awaited: idle memory": ratio(ours, awaited, "idle_mb"),
        "through the emulator, compared with FastAPI and Google's asyncio client: CPU per event": ratio(
            ours, emulator["FastAPI, Google's asyncio client"]
        ),
        "through the emulator, compared with Fastify: CPU per event": ratio(ours, fastify),
        "through the emulator, compared with Fastify: peak memory": ratio(ours, fastify, "peak_mb"),
        "in memory, compared with the same application on stock uvicorn: CPU per event": ratio(
            alone, memory["pulsecart, on stock uvicorn"]
        ),
        "compared with the floor, at full speed: CPU per event": ratio(full["pulsecart"], full[FLOOR]),
        "compared with the floor, at 1000 events/s: CPU per event": ratio(steady["pulsecart"], steady[FLOOR]),
        "event-loop lag at 1000 events/s, p99, ms": middle(clocked, "lag_p99_ms", 1),
        "2 workers compared with 1, on cores shared with everything else: throughput": ratio(
            emulator["pulsecart, 2 workers"], ours, "per_second"
        ),
        "telemetry on, 10 % sampled, compared with off: CPU per event": ratio(telemetry["all on, 10 % sampled"], off),
        "telemetry on, 100 % sampled, compared with off: CPU per event": ratio(telemetry["all on, 100 % sampled"], off),
        "`shards:8` compared with `user`: throughput": ratio(
            orderings["`shards:8`"], orderings["`user`"], "per_second"
        ),
    }
    if "users" in last_library:
        figures["resident memory before many distinct users, MB"] = f"{last_library['before_mb']:.1f}"
        figures[f"resident memory after {last_library['users']:,} of them, MB"] = f"{last_library['after_mb']:.1f}"
    busiest = max(
        seen["generator_busy"] for section in results.values() for rounds in section.values() for seen in rounds
    )
    figures["highest CPU of the load generator, cores"] = f"{busiest:.2f}"
    return [f"- {name}: {figure}" for name, figure in figures.items()]


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
    for peer, names in {"fastapi": "fastapi pydantic", "litestar": "litestar", "fastpubsub": "fastpubsub"}.items():
        python = f"benchmarks/peers/.venv-{peer}/bin/python"
        versions += f", {said_by(python, '-c', SAY_VERSIONS, *names.split())}"
    node = said_by("node", "--version").removeprefix("v")
    emulator = said_by("gcloud", "version", "--format=value(pubsub-emulator)")
    modules = json.loads(Path(__file__).with_name("peers").joinpath("fastify/package.json").read_text())["dependencies"]
    node += "".join(f", {module} {number}" for module, number in modules.items())
    where = f"{datetime.now(UTC):%Y-%m-%d}, {platform.system()} on {model}, {os.cpu_count()} cores for all"
    return f"{where}; Python {platform.python_version()}, {versions}; Node {node}; Pub/Sub emulator {emulator}."


def said_by(*command: str) -> str:
    """Return the output of a command."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def report(
    results: Mapping[str, Mapping[str, Rounds]],
    libraries: Sequence[Mapping[str, Any]],
    received: Mapping[str, int],
    machine: str,
    **preface: Any,
) -> str:
    """Return the text of `results.md`."""
    lines = [PREFACE.format(**preface), machine]
    lines += ["", "## In short", "", "Ratios, unless a unit is named.", "", *findings(results, libraries[-1])]
    lines += [f"- the collector received {received['spans']:,} spans and {received['metrics']:,} metrics"]
    lines += ["", "![CPU time per event, in memory and through the emulator](results.png)"]
    for section, rounds in results.items():
        lines += ["", f"## {section}", "", *table(rounds, COLUMNS)]
    without_http = {title: [each[name] for each in libraries] for name, title in LIBRARY.items()}
    columns = {"CPU us/message": ("cpu_us", 1), "messages/s": ("per_second", 0)}
    lines += ["", "## Without HTTP, through the strict server", "", *table(without_http, columns), ""]
    return "\n".join(lines)


def chart(results: Mapping[str, Mapping[str, Rounds]], path: Path) -> None:
    """Draw the CPU time per event, as medians with ranges."""
    from matplotlib.figure import Figure

    sections = [MEMORY, EMULATOR]
    heights = [len(results[section]) for section in sections]
    figure = Figure(figsize=(9, 5), layout="constrained")
    figure.suptitle("CPU time per accepted event (less is better)")
    for axes, section in zip(figure.subplots(2, 1, height_ratios=heights), sections, strict=True):
        for name, rounds in reversed(list(results[section].items())):
            values = [seen["cpu_us"] for seen in rounds]
            median = statistics.median(values)
            spread = [[median - min(values)], [max(values) - median]]
            color = "#1a73e8" if name.startswith("pulsecart") else "#9aa0a6"
            axes.barh(name, median, xerr=spread, color=color, ecolor="#3c4043", capsize=3)
            axes.annotate(f"{median:,.0f}", (max(values), name), (6, 0), textcoords="offset points", va="center")
        axes.set_title(section, loc="left", fontsize=10)
        axes.set_xlabel("microseconds")
        axes.margins(x=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
