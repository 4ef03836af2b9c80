"""Post events over raw sockets and print the results as JSON: `load.py PORT CONNECTIONS EVENTS [RATE [SIZE]]`.

Without a rate, or with 0, each connection sends its next event when it has an answer. With a rate, events are due at
regular times, and latency counts from the time an event was due, so that a server that stalls cannot hide the delay.
A size in bytes makes the orders larger, with more lines.
"""

import asyncio
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from typing import cast

import uvloop

USERS = 1000
LINES = 3
BYTES, LINE_BYTES = 390, 56
"""About the size of an order of so many lines, and of each further line."""

_random = random.Random(1)
"""Seeded, so that every service gets the same users in the same order."""


def body(number: int, size: int = 0) -> bytes:
    """Return an order by one of the users, of about 400 bytes, or of a larger size."""
    lines = LINES + max(0, size - BYTES) // LINE_BYTES
    order = {
        "event_type": "order.placed",
        "user_id": f"user-{_random.randrange(USERS)}",
        "order_id": f"order-{number}",
        "payload": {
            "total": 89.90,
            "currency": "EUR",
            "lines": [{"sku": f"sku-{line}", "quantity": line, "price": 44.95} for line in range(lines)],
            "note": "x" * 100,
        },
    }
    return json.dumps(order).encode()


def request(number: int, size: int = 0) -> bytes:
    """Return the whole request. Requests are built before the measurement."""
    data = body(number, size)
    head = f"POST /events/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


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


async def main(port: int, connections: int, events: int, rate: float = 0.0, size: int = 0) -> None:
    """Send the events, and print the results."""
    requests = [(number / rate if rate else 0.0, request(number, size)) for number in range(events)]
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
    numbers = [int(argument) for argument in sys.argv[1:]]
    uvloop.run(main(*numbers))
