"""Measure costly bodies: `python -m benchmarks.bodies [--mib 1] [--repeat 5]` prints a table.

Each body goes through the whole ASGI application, and its CPU time is compared with that of a typical order of the same
size. The event loop runs nothing else meanwhile, so the time is also how long other requests wait.
"""

import argparse
import time
from collections.abc import Iterator, MutableMapping
from typing import Any

import uvloop

from pulsecart.app import create_app
from pulsecart.message import MAX_MESSAGE_BYTES
from pulsecart.serve.settings import Settings
from pulsecart.transports import MemoryTransport

MAX_RATIO, MAX_MS = 8, 150  # the latter a MiB
"""The limits for each body: CPU time compared with a typical order, and in total."""

HEAD = b'{"event_type":"order.placed","user_id":"user-1","order_id":"order-1"'
LINE = b'{"sku":"SKU-000123","name":"A thing to buy","quantity":2,"unit_price":19.90,"currency":"EUR"}'
ESCAPE = rb'"\u0041",'
PAIR = rb"\ud83d\ude00"
EMOJI = "😀".encode()
LONG_NUMBER = b"1e999999999999999999,"
"""Its exponent is so long that pulsecart examines every number."""

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/events/ingest",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}


def filled(start: bytes, unit: bytes, end: bytes, size: int, between: bytes = b",") -> bytes:
    """Return a body of about `size` bytes: as many units as fit, between a start and an end."""
    count = (size - len(start) - len(end)) // (len(unit) + len(between))
    return start + between.join([unit] * count) + end


def numbered(start: bytes, unit: bytes, end: bytes, size: int) -> bytes:
    """Return a body of about `size` bytes, whose units are numbered."""
    count = (size - len(start) - len(end)) // (len(unit % 10**6) + 1)
    return start + b",".join(unit % (10**6 + number) for number in range(count)) + end


def in_payload(unit: bytes, size: int, first: bytes = b"") -> bytes:
    """Return an order whose payload is a list."""
    return filled(HEAD + b',"payload":{"v":[' + first, unit, b"]}}", size)


def in_text(unit: bytes, size: int, last: bytes = b"", end: bytes = b'"}}') -> bytes:
    """Return an order whose payload is one string."""
    return filled(HEAD + b',"payload":{"v":"', unit, last + end, size, b"")


def nested(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield bodies of many objects and arrays."""
    yield "empty arrays", in_payload(b"[]", size)
    yield "empty objects", in_payload(b"{}", size)
    for depth in (2, 3, 5, 124, 125):
        yield f"arrays {depth} deep", in_payload(b"[" * depth + b"]" * depth, size)
    chain = b"[" * 124 + b"]" * 124
    yield "arrays 124 deep, an escape", in_payload(chain, size, ESCAPE)
    yield "arrays 124 deep, a long number", in_payload(chain, size, LONG_NUMBER)
    yield "arrays 124 deep, an escape, no known field", filled(b'{"v":[' + ESCAPE, chain, b"]}", size)
    yield "objects 124 deep", in_payload(b'{"":' * 123 + b"{}" + b"}" * 123, size)
    yield "arrays 126 deep, one level too many", in_payload(b"[" * 126 + b"]" * 126, size)
    yield "arrays as deep as can be", HEAD + b',"payload":' + b"[" * (size // 2) + b"]" * (size // 2) + b"}"
    yield "objects that are not closed", b'{"a":' * (size // 5)
    yield "arrays as an order_id", filled(b'{"event_type":"order.placed","order_id":[', b"[]", b"]}", size)
    yield "arrays in an unknown field", filled(HEAD + b',"x":[', b"[]", b"]}", size)
    yield "arrays as the payload", filled(HEAD + b',"payload":[', b"[]", b"]}", size)
    yield "arrays as the body", filled(b"[", b"[]", b"]", size)


def texts(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield bodies of many strings, and of long ones."""
    yield "empty strings", in_payload(b'""', size)
    yield "empty strings, a long number", in_payload(b'""', size, LONG_NUMBER)
    yield "strings of a bracket", in_payload(b'"["', size)
    yield "strings of a bracket, an escape", in_payload(b'"["', size, ESCAPE)
    yield "strings of a quote", in_payload(rb'"\""', size)
    yield "strings of a quote, a long number", in_payload(rb'"\""', size, LONG_NUMBER)
    yield "strings of a quote and brackets", in_payload(rb'"[\"]"', size)
    yield "strings of a backslash", in_payload(rb'"\\"', size)
    yield "a string of quotes", in_text(rb"\"", size)
    yield "a string of backslashes", in_text(rb"\\", size)
    yield "a string of \\u escapes", in_text(rb"\u0041", size)
    yield "a string of surrogate pairs", in_text(PAIR, size)
    yield "surrogate pairs, half of one last", in_text(PAIR, size, rb"\ud83d")
    yield "a string of é", in_text("é".encode(), size)
    yield "a string of emoji", in_text(EMOJI, size)
    yield "emoji, then a wrong byte", in_text(EMOJI, size, b"\xff")
    yield "emoji, then the end", in_text(EMOJI, size, end=b"")
    yield "a user_id of emoji", filled(b'{"user_id":"', EMOJI, b'"}', size, b"")
    yield "a user_id of \\u escapes", filled(b'{"user_id":"', rb"\u00e9", b'"}', size, b"")
    yield "an event_type of surrogate pairs", filled(b'{"event_type":"', PAIR, b'"}', size, b"")
    yield "a timestamp of digits", filled(b'{"timestamp":"', b"1", b'"}', size, b"")
    yield "spaces", HEAD + b"," + b" " * size + b'"payload":{}}'
    yield "spaces in the payload", HEAD + b',"payload":{' + b" " * size + b"}}"


def numbers(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield bodies of many numbers, and of long ones."""
    yield "digits", in_payload(b"1", size)
    yield "one integer", filled(HEAD + b',"payload":{"v":', b"1", b"}}", size, b"")
    for digits in (4299, 4300, 4301):
        yield f"integers of {digits} digits", in_payload(b"9" * digits, size)
    yield "integers of 19 digits, a long one", in_payload(b"9" * 19, size, LONG_NUMBER)
    yield "fractions of 20 digits, a long number", in_payload(b"1." + b"0" * 18, size, LONG_NUMBER)
    yield "exponents of 18 digits", in_payload(b"1e999999999999999999", size)
    yield "exponents of 19 digits", in_payload(b"1e1000000000000000000", size)
    yield "strings like exponents", in_payload(b'"e123456789012345678"', size)


def names(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield bodies of many names."""
    yield "names", numbered(HEAD + b",", b'"%d":0', b"}", size)
    yield "escaped names", numbered(HEAD + b",", rb'"\u0061%d":0', b"}", size)
    yield "one name again and again", filled(HEAD + b",", b'"":0', b"}", size)
    yield "names in the payload", numbered(HEAD + b',"payload":{', b'"%d":0', b"}}", size)
    long = b"x" * (size // 1000 - 40)
    arrays = filled(b"[", b"[]", b"]", size // 1000)
    for name, member in {
        "long": b'"%d' + long + b'":0',
        "like known ones": b'"di_redro_redro_di%d":"' + long + b'"',
        "of arrays": b'"%d":' + arrays,
    }.items():
        yield f"990 names, {name}", HEAD + b"," + b",".join(member % n for n in range(990)) + b"}"
        yield f"990 names, {name}, each twice", HEAD + b"," + b",".join(member % (n % 495) for n in range(990)) + b"}"


def bodies(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield all bodies with their names, the typical order first."""
    yield "a typical order", in_payload(LINE, size)
    yield "a typical order with spaces", in_payload(LINE.replace(b",", b", ").replace(b":", b": "), size)
    for group in (nested, texts, numbers, names):
        yield from group(size)


async def measure(size: int, repeat: int) -> None:
    """Print the cost of each body."""
    app = create_app(Settings(transport="memory", max_body_bytes=MAX_MESSAGE_BYTES), transport=MemoryTransport(keep=1))
    typical = 0.0
    print(f"\n## Costly bodies of {size / 2**20:g} MiB, through the ASGI application\n")
    print("| body | status | CPU ms | over a typical order |\n|---|---|---|---|")
    async with app.router.lifespan_context(app):
        for name, body in bodies(size):
            status, seconds = min([await cost(app, body) for _ in range(repeat)], key=lambda each: each[1])
            typical = typical or seconds
            over = " **too much**" if seconds / typical > MAX_RATIO or seconds * 1e3 > MAX_MS * size / 2**20 else ""
            print(f"| {name} | {status} | {seconds * 1e3:.1f} | {seconds / typical:.1f}{over} |", flush=True)


async def cost(app: Any, body: bytes) -> tuple[int, float]:
    """Return the status of the answer to a body, and the CPU time it took."""
    status = 0

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    started = time.process_time()
    await app(dict(SCOPE), receive, send)
    return status, time.process_time() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=float, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    uvloop.run(measure(int(arguments.mib * 2**20), arguments.repeat))
