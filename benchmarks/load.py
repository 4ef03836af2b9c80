"""Post events over raw sockets, and print the results as JSON.

    python -m benchmarks.load PORT CONNECTIONS EVENTS [--rate 1000] [--size 10000] [--form NDJSON] [--key pck_…]

Without a rate, or with 0, each connection sends its next request when it has an answer. With a rate, requests are due
at regular times, and latency counts from the time a request was due, so that a server that stalls cannot hide the
delay. A size in bytes makes the orders larger, with more lines. The form says how many events a request has. The key
is sent with each.
"""

import argparse
import asyncio
import json
import resource
import time
from collections.abc import Iterator
from typing import cast

import uvloop

from benchmarks.forms import FORMS, SINGLE, body


def requests_of(events: int, size: int, form: str, key: str) -> Iterator[bytes]:
    """Yield whole requests. They are made before the measurement."""
    sent = FORMS[form]
    for first in range(0, events, sent.events):
        yield sent.request_of([body(number, size) for number in range(first, min(first + sent.events, events))], key)


class Connection(asyncio.Protocol):
    """Sends one request after another."""

    def __init__(
        self, requests: Iterator[tuple[float, bytes]], begin: float, results: list[tuple[float, bool]]
    ) -> None:
        self.requests = requests
        self.begin = begin
        self.results = results
        self.loop = asyncio.get_running_loop()
        self.ended = self.loop.create_future()
        self.sent = 0.0
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.send_next()

    def send_next(self) -> None:
        due = next(self.requests, None)
        if due is None:
            self.transport.close()
            self.ended.set_result(None)
            return
        after, data = due
        if not after:
            self.send(time.perf_counter(), data)
        elif (left := self.begin + after - time.perf_counter()) > 0:
            self.loop.call_later(left, self.send, self.begin + after, data)
        else:
            self.send(self.begin + after, data)

    def send(self, due: float, data: bytes) -> None:
        self.sent = due
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        self.results.append((time.perf_counter() - self.sent, head.startswith(b"HTTP/1.1 202 ")))
        self.received = b""
        self.send_next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error or ConnectionError("the server closed the connection"))


async def main(  # noqa: PLR0913 (an argument for each of the program's)
    *, port: int, connections: int, events: int, rate: int, size: int, form: str, key: str
) -> None:
    """Send the events, and print the results."""
    requests = [
        (number / rate if rate else 0.0, request) for number, request in enumerate(requests_of(events, size, form, key))
    ]
    results: list[tuple[float, bool]] = []
    loop = asyncio.get_running_loop()
    pending = iter(requests)
    cpu = time.process_time()
    begin = time.perf_counter()
    made = [
        await loop.create_connection(lambda: Connection(pending, begin, results), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.gather(*(connection.ended for _, connection in made))
    seconds = time.perf_counter() - begin
    busy = time.process_time() - cpu
    latencies = sorted(latency for latency, _ in results)
    result = {
        "per_second": events / seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
        "refused": sum(not accepted for _, accepted in results),
        "generator_busy": busy / seconds,
        "generator_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument in ("port", "connections", "events"):
        parser.add_argument(argument, type=int)
    parser.add_argument("--rate", type=int, default=0)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--form", choices=FORMS, default=SINGLE)
    parser.add_argument("--key", default="")
    uvloop.run(main(**vars(parser.parse_args())))
