"""Content-Encoding: gzip and zstd, for whole bodies and for streams."""

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulsecart.http.formats.coding import Decoder, decoded, zstd
from pulsecart.http.problems import ProblemError
from pulsecart.serve.settings import Settings
from tests.http.client import JSON, ingest, problem, served
from tests.http.test_batch import incomplete, ndjson, order, post, post_lines

pytestmark = pytest.mark.anyio

CODINGS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "zstd": zstd.compress, "GZip": gzip.compress}
BOTH = pytest.mark.parametrize("coding", ["gzip", "zstd"])
WIDE_WINDOW = zstd.compress(b"x" * 50_000_000, options={zstd.CompressionParameter.window_log: 27})


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("path", ["/events/ingest", "/events/validate", "/events/batch", "/events/cloudevents"])
async def test_every_route_decodes_bodies(client, path, coding):
    """A compressed body is read like the body itself; names are case-insensitive."""
    document = order()
    headers = JSON | {"Content-Encoding": coding}
    if path == "/events/batch":
        document = [document]
    if path == "/events/cloudevents":
        document = {"user_id": "u", "order_id": "o", "payload": {}}
        headers |= {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "order.placed"}
    body = CODINGS[coding](json.dumps(document).encode())
    response = await client.post(path, content=body, headers=headers)
    assert response.status_code == (200 if path == "/events/validate" else 202), response.text


@BOTH
async def test_several_members_are_read(client, coding):
    """A body may be several gzip members or zstd frames, one after another, empty ones included."""
    body = json.dumps(order()).encode()
    parts = [CODINGS[coding](part) for part in (body[:20], b"", body[20:], b"")]
    assert (await ingest(client, b"".join(parts), **{"Content-Encoding": coding})).status_code == 202


@BOTH
async def test_any_number_of_members_is_read_while_others_have_their_turn(client, coding):
    """A body of a member for each event is read, in a time that grows with its length, and does not delay others."""
    empty, events = CODINGS[coding](b""), [CODINGS[coding](json.dumps(order(n)).encode() + b",") for n in range(2000)]
    body = CODINGS[coding](b"[") + b"".join(events) + CODINGS[coding](json.dumps(order()).encode() + b"]")
    response = await post(client, body + empty * 50_000, **{"Content-Encoding": coding, "Prefer": "return=minimal"})
    assert response.json() == {"status": "accepted", "accepted": 2001, "failed": 0}
    delays = []
    task = asyncio.create_task(post(client, empty * 50_000, **{"Content-Encoding": coding}))
    while not task.done():
        started = time.perf_counter()
        await asyncio.sleep(0)
        delays.append(time.perf_counter() - started)
    problem(await task, 400, "malformed-body")
    assert len(delays) > 50


@BOTH
async def test_limit_applies_to_the_decoded_body(coding):
    """A small body that becomes a large one is 413 with the limit, quickly, and however many members it has."""
    body = json.dumps(order()).encode()
    async with served(settings=Settings(transport="memory", max_body_bytes=len(body))) as client:
        compress = CODINGS[coding]
        headers = {"Content-Encoding": coding}
        exact = compress(body, level=22) if coding == "zstd" else compress(body)
        if len(exact) <= len(body):
            assert (await ingest(client, exact, **headers)).status_code == 202
        assert problem(await ingest(client, compress(body + b" "), **headers), 413, "body-too-large")["limit"] == len(
            body
        )
    bomb = compress(bytes(100_000_000))
    async with served() as client:
        started = time.process_time()
        for body in (bomb, compress(b"") * 500 + bomb):
            if len(body) <= 1_048_576:
                assert problem(await ingest(client, body, **headers), 413, "body-too-large")["limit"] == 1_048_576
        assert time.process_time() - started < 2


def wrong_bodies(coding: str) -> dict[str, bytes]:
    good = CODINGS[coding](json.dumps(order()).encode())
    flipped = bytearray(good)
    flipped[2] ^= 0xFF
    return {
        "empty": b"",
        "not compressed": json.dumps(order()).encode(),
        "truncated": good[:-1],
        "truncated early": good[:8],
        "flipped": bytes(flipped),
        "trailing garbage": good + b"garbage",
        "trailing zeros": good + bytes(10),
        "half a member more": good + good[:8],
        "the other coding": CODINGS["zstd" if coding == "gzip" else "gzip"](b"{}"),
        "raw deflate": zlib.compress(b"{}"),
    }


@BOTH
@pytest.mark.parametrize("case", wrong_bodies("gzip"))
async def test_body_that_cannot_be_decoded_is_400(client, coding, case):
    """A truncated body, trailing garbage and anything else than the coding is malformed, and the answer says so."""
    body = wrong_bodies(coding)[case]
    document = problem(await ingest(client, body, **{"Content-Encoding": coding}), 400, "malformed-body")
    assert coding in document["detail"]
    problem(await post(client, body, **{"Content-Encoding": coding}), 400, "malformed-body")


async def test_zstd_window_is_limited(client):
    """A frame that needs a window of more than 8 MiB is refused, since the window is memory."""
    response = await post_lines(client, WIDE_WINDOW, **{"Content-Encoding": "zstd"})
    problem(response, 400, "malformed-body")


@BOTH
@pytest.mark.parametrize("cut", [1, 7, 100_000])
async def test_stream_is_decoded_as_it_arrives(client, coding, cut):
    """Lines and members need not end where parts of the body end."""
    lines = [ndjson(order(n), b"") for n in range(50)]
    body = b"".join(CODINGS[coding](line) for line in lines[:25]) + CODINGS[coding](b"".join(lines[25:]))

    async def content() -> AsyncIterator[bytes]:
        for start in range(0, len(body), cut):
            yield body[start : start + cut]

    response = await post_lines(client, content(), **{"Content-Encoding": coding})
    assert response.json() == {"status": "accepted", "accepted": 50, "failed": 0}


@BOTH
async def test_stream_that_cannot_be_decoded_any_more_ends(client, coding):
    """What was read before is published; the answer is 400 and says from which line on nothing was processed."""
    body = CODINGS[coding](ndjson(order(1), b"x", order(2)))
    response = await post_lines(client, body + b"garbage", **{"Content-Encoding": coding})
    document = problem(response, 400, "malformed-body")
    assert (document["accepted"], document["failed"], document["stopped_at"]) == (2, 1, 4)
    assert [result["line"] for result in document["results"]] == [2]


async def test_stream_that_decodes_to_very_much_ends(client):
    """A few kB that decode to 100 MB of blank lines take little time, and the answer says where to resume."""
    bomb = zstd.compress(ndjson(order(1)) + b"\n" * 100_000_000)
    started = time.process_time()
    response = await post_lines(client, bomb, **{"Content-Encoding": "zstd"})
    assert time.process_time() - started < 2
    document = problem(response, 413, "body-too-large")
    assert (document["accepted"], document["failed"]) == (1, 0)
    assert 60_000_000 < document["stopped_at"] < 70_000_000
    assert "more than 200 times its size" in document["detail"]


@BOTH
async def test_bomb_in_a_stream_is_one_line(client, coding):
    """A line of 50 MB from a few kB fails alone with the limit of a line; the lines around it are published."""
    body = CODINGS[coding](ndjson(order(1)) + bytes(50_000_000) + b"\n" + ndjson(order(2)))
    document = incomplete(await post_lines(client, body, **{"Content-Encoding": coding}), 422)
    assert document["accepted"] == 2
    (result,) = document["results"]
    assert (result["line"], result["status"], result["type"]) == (2, 413, "body-too-large")


@BOTH
@given(data=st.lists(st.binary(max_size=300_000), min_size=1, max_size=3), cut=st.integers(1, 1000))
@settings(max_examples=40, deadline=None)
def test_decoding_reverses_encoding(coding, data, cut):
    """Any members, cut anywhere, decode to what they were made of, in pieces of limited size."""
    repeated = [part * 50 for part in data]
    body = b"".join(CODINGS[coding](part) for part in repeated)
    decoder = Decoder(coding)
    pieces = [piece for start in range(0, len(body), cut) for piece in decoder.feed(body[start : start + cut])]
    decoder.finish()
    assert b"".join(pieces) == b"".join(repeated)
    assert max(map(len, pieces)) <= 65_536


@BOTH
@given(body=st.binary(max_size=200), prefix=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_decoded_or_malformed(coding, body, prefix):
    """Nothing but a ProblemError is raised, and nothing over the limit is returned."""
    if prefix:
        body = CODINGS[coding](b"start" * 30)[: len(body)] + body
    try:
        size, status = len(asyncio.run(decoded(body, coding, 100))), 400
    except ProblemError as error:
        size, status = 0, error.problem.status
    assert size <= 100
    assert status in {400, 413}
