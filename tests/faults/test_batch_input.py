"""Mutated batches, CloudEvents and compressed bodies."""

import asyncio
import gzip
import json
import random
import time

import httpx
import msgspec
import pytest

from pulsecart.http.formats.coding import decoded, zstd
from pulsecart.http.problems import ProblemError
from tests.faults.conftest import MOST_MEMORY_MB
from tests.faults.test_input import PIECES, mutated
from tests.serving import serving

pytestmark = [pytest.mark.faults, pytest.mark.anyio]

INPUTS = 100_000
CONNECTIONS = 32
NAMES = [b"specversion", b"id", b"source", b"type", b"time", b"partitionkey", b"subject", b"datacontenttype"]
VALUES = [
    b"1.0",
    b"1",
    b"/shop",
    b"order.placed",
    b"2026-01-31T12:00:00Z",
    b"u1",
    b'"a b"',
    b"%C3%A9",
    b"a%20b",
    b"%2541",
]
DAMAGE = [b"%", b'"', b"\\", b"%C0%A0", b"%ED%A0%80", b"\xff", b"\x7f", b" ", b"%00", b"x" * 1100, b"\t", b"%zz", b"'"]


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (shown where it fails)
    return random.Random(seed)


def check_results(document: dict, lines: list[bytes]) -> None:
    """Check that each line is accepted or has a result, at most 1,000 of them listed."""
    assert document["accepted"] + document["failed"] == len(lines)
    assert all(result["detail"] and 400 <= result["status"] < 500 for result in document.get("results", ()))


@pytest.mark.parametrize("form", ["lines", "array"])
async def test_hundred_thousand_mutated_events_in_batches(tmp_path, scale, rng, form):
    """Each event of a batch is accepted or fails alone with a reason; memory does not grow."""
    accepted = failed = 0
    with serving(cwd=tmp_path) as served:
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            for _ in range(INPUTS * scale // 500):
                lines = [line for line in (mutated(rng).replace(b"\n", b" ") for _ in range(500)) if line.strip()]
                headers = {"Content-Type": "application/x-ndjson"}
                if form == "array":
                    lines = [line for line in lines if is_element(line)]
                    headers = {"Content-Type": "application/json"}
                body = b"\n".join(lines) if form == "lines" else b"[%b]" % b",".join(lines)
                coding = rng.choice(["", "gzip", "zstd"])
                if coding:
                    headers["Content-Encoding"] = coding
                    body = gzip.compress(body, 1) if coding == "gzip" else zstd.compress(body)
                response = await client.post("/events/batch", content=body, headers=headers)
                assert response.status_code in {202, 422}, response.text
                check_results(response.json(), lines)
                accepted, failed = accepted + response.json()["accepted"], failed + response.json()["failed"]
        assert accepted > INPUTS / 10
        assert failed > INPUTS / 100
        assert served.peak_memory_mb < MOST_MEMORY_MB
        assert "Traceback" not in served.output


def is_element(text: bytes) -> bool:
    """Return whether a text is one JSON value as far as that shows without decoding it."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def damaged(rng: random.Random) -> bytes:
    """Return a request with an array, a batch of CloudEvents or, mostly, one in binary mode, with damage."""
    match rng.randrange(4):
        case 0:
            body = bytearray(b"[%b]" % b",".join(mutated(rng) for _ in range(rng.randint(0, 3))))
            at = rng.randrange(len(body))
            body[at : at + rng.randint(0, 3)] = rng.choice([b"", b"[", b"]", b",", *PIECES])
            path, head = b"batch", b"Content-Type: application/json\r\n"
        case 1:
            event = {name.decode(): value.decode("latin-1") for name, value in zip(NAMES, VALUES, strict=False)}
            event["data"] = {"user_id": "u1", "order_id": "o", "payload": {}}
            body = bytearray(json.dumps([event]).encode())
            at = rng.randrange(len(body))
            body[at : at + rng.randint(0, 9)] = rng.choice(PIECES)
            path, head = b"cloudevents", b"Content-Type: application/cloudevents-batch+json\r\n"
        case _:
            body = bytearray(rng.choice([b'{"user_id":"u1","order_id":"o","payload":{}}', mutated(rng), b"[]"]))
            head = b"Content-Type: application/json\r\n"
            for name, value in zip(NAMES, VALUES, strict=False):
                sent = bytearray(value if rng.random() < 0.9 else rng.choice(VALUES))
                if rng.random() < 0.1:
                    sent[rng.randrange(len(sent) + 1) :] = rng.choice(DAMAGE)
                if name != b"datacontenttype" and rng.random() < 0.97:
                    head += b"ce-%b: %b\r\n" % (name, bytes(sent))
            path = b"cloudevents"
    return b"POST /events/%b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (path, head, len(body), body)


async def test_hundred_thousand_damaged_arrays_and_cloudevents(tmp_path, scale, rng):
    """Any body and any headers are 202 or a 4xx with a reason: no 5xx, no hang, no traceback."""
    left = iter(range(INPUTS * scale))
    statuses: dict[int, int] = {}

    async def post_on(port: int) -> None:
        reader = writer = None
        for _ in left:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sent = damaged(rng)
            writer.write(sent)
            async with asyncio.timeout(30):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                answer = await reader.readexactly(length)
            status = int(head[9:12])
            statuses[status] = statuses.get(status, 0) + 1
            assert status == 202 or 400 <= status < 500, (sent, answer)
            assert b"Traceback" not in answer
            if status != 202:
                assert json.loads(answer)["detail"], (sent, answer)
            if b"connection: close" in head:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    with serving(cwd=tmp_path) as served:
        port = int(served.url.rpartition(":")[2])
        async with asyncio.TaskGroup() as connections:
            for _ in range(CONNECTIONS):
                connections.create_task(post_on(port))
        assert sum(statuses.values()) == INPUTS * scale
        assert {202, 400, 422} <= set(statuses)
        assert served.peak_memory_mb < MOST_MEMORY_MB
        assert "Traceback" not in served.output


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_hundred_thousand_damaged_compressed_bodies(scale, rng, coding):
    """Each is decoded within the limit or refused with 400 or 413, and none takes long."""
    compress = gzip.compress if coding == "gzip" else zstd.compress
    originals = [compress(bytes(size)) for size in (0, 1, 1000, 100_000, 3_000_000)]
    originals += [compress(rng.randbytes(size)) for size in (1, 100, 3000)]
    refused = 0
    for _ in range(INPUTS * scale):
        body = bytearray(b"".join(rng.choices(originals, k=rng.randint(1, 3))))
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(body))
            body[at : at + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
        started = time.process_time()
        try:
            assert len(await decoded(bytes(body), coding, 65_536)) <= 65_536
        except ProblemError as error:
            refused += error.problem.status in {400, 413}
        assert time.process_time() - started < 0.5
    assert refused > INPUTS / 10
