"""Send events as callers do, and print the results as JSON: `senders.py client|send|upload PORT EVENTS`.

`client` is `pulsecart.client`, `send` is the command. `upload` streams lines in constant memory; without a number of
events it prints a line when it is under way, and goes on until SIGTERM.
"""

import json
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from itertools import count

from benchmarks.forms import body
from pulsecart.client import Client

BLOCK = 1000
"""The number of lines that `upload` has in memory; it sends them again and again."""

UPLOAD = b"POST /events/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked"


def client(port: int, events: int) -> dict[str, float]:
    """Send events with `send_many`."""
    orders = [json.loads(body(number)) for number in range(events)]
    clock, cpu = time.perf_counter(), time.process_time()
    with Client(f"http://127.0.0.1:{port}") as service:
        accepted = sum(1 for _ in service.send_many(orders))
    return {
        "per_second": events / (time.perf_counter() - clock),
        "sender_us": (time.process_time() - cpu) / events * 1e6,
        "refused": events - accepted,
    }


def send(port: int, events: int) -> dict[str, float]:
    """Send a file with the command. Its start counts."""
    with tempfile.NamedTemporaryFile(suffix=".ndjson") as file:
        file.writelines(body(number) + b"\n" for number in range(events))
        file.flush()
        clock = time.perf_counter()
        command = [sys.executable, "-m", "pulsecart", "send", file.name, "--to", f"http://127.0.0.1:{port}"]
        subprocess.run(command, check=True, stderr=subprocess.PIPE)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "per_second": events / (time.perf_counter() - clock),
        "sender_us": (used.ru_utime + used.ru_stime) / events * 1e6,
        "refused": 0,
    }


def upload(port: int, events: int) -> dict[str, float]:
    """Upload lines, of users of its own: those of another caller do not wait for them."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    lines = [body(number).replace(b'"user-', b'"uploader-') + b"\n" for number in range(BLOCK)]
    sent = 0
    clock = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(UPLOAD + b"\r\n\r\n")
        for size in _blocks(events):
            if stopped:
                break
            block = b"".join(lines[:size])
            connection.sendall(b"%x\r\n%b\r\n" % (len(block), block))
            sent += size
            # More than the buffers between the two processes hold: the service has begun.
            if not events and sent == 20 * BLOCK:
                print("under way", flush=True)
        connection.sendall(b"0\r\n\r\n")
        answer = HTTPResponse(connection, method="POST")
        answer.begin()
        text = answer.read()
    accepted = json.loads(text)["accepted"]
    if answer.status != 202 or accepted != sent:
        sys.exit(f"{sent:,} lines were uploaded, and the answer was {answer.status} {text!r}")
    return {"per_second": sent / (time.perf_counter() - clock), "refused": sent - accepted}


def _blocks(events: int) -> Iterator[int]:
    """Yield the number of lines in each block; without a number of events, for ever."""
    for first in range(0, events, BLOCK) if events else count(step=0):
        yield min(BLOCK, events - first) if events else BLOCK


SENDERS: dict[str, Callable[[int, int], dict[str, float]]] = {"client": client, "send": send, "upload": upload}


if __name__ == "__main__":
    print(json.dumps(SENDERS[sys.argv[1]](*map(int, sys.argv[2:]))))
